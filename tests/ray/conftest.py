"""One Ray head for all Ray tests, started by our own script on ports and in a directory of its own."""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from ucotron_ray.operations.dashboards import free_port

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Head:
    address: str
    dashboard: str
    environment: dict[str, str]


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
    with new_head() as (head, _):
        yield head


@contextmanager
def new_head(*under: str, **settings: str) -> Iterator[tuple[Head, subprocess.Popen]]:
    """A head by our own script, run `under` another command if one is given; its process, which `lose` ends."""
    directory = tempfile.mkdtemp(prefix="ur-", dir="/tmp")
    token = Path(directory) / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(16), encoding="utf-8")
    gcs, dashboard = free_port(), free_port()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "RAY_PORT": str(gcs),
        "RAY_DASHBOARD_PORT": str(dashboard),
        # Else Ray's own actors look for a head among this machine's processes: beside another one a training's end
        # waits twelve seconds for the wrong one.
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAY_METRICS_PORT": str(free_port()),
        "RAY_AGENT_PORT": str(free_port()),
        "RAY_TEMP_DIR": directory,
        "RAY_OBJECT_STORE_BYTES": "200000000",
        "RAY_NUM_CPUS": "2",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # The drain of an idle head would only make the tests wait.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
        **settings,
    }
    log = Path(directory) / "head.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [*under, str(ROOT / "cluster/local-head.sh")],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{dashboard}/api/gcs_healthz", process, log)
        yield Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", environment), process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        subprocess.run(["rm", "-rf", directory], check=False)


@contextmanager
def second_node(head: Head) -> Iterator[subprocess.Popen]:
    """Another node of the head's cluster, on this machine; gives its process, to be ended with `lose`."""
    directory = tempfile.mkdtemp(prefix="ur2-", dir="/tmp")
    command = [str(Path(sys.executable).with_name("ray")), "start", "--address", head.address, "--block"]
    command += ["--num-cpus", "2", "--object-store-memory", "200000000", "--disable-usage-stats"]
    with (Path(directory) / "node.log").open("w") as output:
        process = subprocess.Popen(command, env=head.environment, stdout=output, stderr=output, start_new_session=True)
    try:
        _wait_until(lambda: len(_nodes(head)) == 2, process, Path(directory) / "node.log")
        yield process
    finally:
        lose(process)
        subprocess.run(["rm", "-rf", directory], check=False)


def lose(node: subprocess.Popen) -> None:
    """Kill -9 of everything that runs on a node of `second_node`."""
    if node.poll() is None:
        processes = psutil.Process(node.pid).children(recursive=True)
        node.kill()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        node.wait(10)


def announce_loss(head: Head, seconds: int) -> None:
    """Tell the cluster what a cloud tells it before it takes a machine away: the node of `second_node` ends soon."""
    (node,) = (node["node_id"] for node in _nodes(head) if not node["is_head_node"])
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", head.address, "--node-id", node]
    command += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test"]
    command += ["--deadline-remaining-seconds", str(seconds)]
    subprocess.run(command, env=head.environment, check=True)


def _nodes(head: Head) -> list[dict[str, Any]]:
    """The nodes that are alive."""
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="utf-8")
    request = urllib.request.Request(f"{head.dashboard}/api/v0/nodes", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        nodes = json.loads(answer.read())["data"]["result"]["result"]
    return [node for node in nodes if node["state"] == "ALIVE"]


def _wait_until_healthy(url: str, process: subprocess.Popen, log: Path) -> None:
    def is_healthy() -> bool:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)

    _wait_until(is_healthy, process, log)


def _wait_until(condition: Callable[[], bool], process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the node ended: {log.read_text()}")
        with suppress(OSError):
            if condition():
                return
        # Polling a service that is starting, with a deadline: there is nothing to be told by.
        time.sleep(0.3)
    raise AssertionError(f"the node is not healthy: {log.read_text()}")
