"""One Ray head for all Ray tests, started by our own script on ports and in a directory of its own."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Head:
    address: str
    dashboard: str
    environment: dict[str, str]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
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
        "RAY_METRICS_PORT": str(free_port()),
        "RAY_TEMP_DIR": directory,
        "RAY_OBJECT_STORE_BYTES": "200000000",
        "RAY_NUM_CPUS": "2",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # The drain of an idle head would only make the tests wait.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
    }
    log = Path(directory) / "head.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [str(ROOT / "cluster/local-head.sh")], env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{dashboard}/api/gcs_healthz", process, log)
        yield Head(f"127.0.0.1:{gcs}", f"http://127.0.0.1:{dashboard}", environment)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        subprocess.run(["rm", "-rf", directory], check=False)


def _wait_until_healthy(url: str, process: subprocess.Popen, log: Path) -> None:
    import time

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(f"the head ended: {log.read_text()}")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            # Polling a service that is starting, with a deadline: there is nothing to be told by.
            time.sleep(0.3)
    raise AssertionError(f"the head is not healthy: {log.read_text()}")
