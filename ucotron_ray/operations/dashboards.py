"""The pages of a store: MLflow and TensorBoard as processes on loopback, beside Ray's own dashboard."""

import importlib.util
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ucotron_ray.core.errors import MissingPackage, StageFailed
from ucotron_ray.operations.process_group import end_group

LOOPBACK = "127.0.0.1"
START_SECONDS = 180.0
"""MLflow imports for ten seconds and makes its tables on a first start; a busy machine takes several times that."""

END_SECONDS = 30.0
RAY_PORT = 8265


@dataclass(frozen=True)
class Page:
    """One server: what it is called, its command, and the address of its page."""

    name: str
    command: list[str]
    url: str


def pages(store: Path, mlflow_uri: str | None) -> list[Page]:
    """TensorBoard on everything below the store, and MLflow on the store's database (not on a server elsewhere).

    Raises MissingPackage.
    """
    made = []
    for module in ("tensorboard", "mlflow"):
        if importlib.util.find_spec(module) is None:
            raise MissingPackage(f"{module} is not installed", next_step=f"pip install -c constraints.txt {module}")
    if mlflow_uri is not None and mlflow_uri.startswith("sqlite:"):
        port = free_port()
        command = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port)]
        command += ["--backend-store-uri", mlflow_uri, "--workers", "1"]
        command += ["--serve-artifacts", "--artifacts-destination", str(store / "tracking" / "artifacts")]
        made.append(Page("MLflow", command, f"http://{LOOPBACK}:{port}"))
    port = free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(store), "--host", LOOPBACK]
    made.append(Page("TensorBoard", [*command, "--port", str(port)], f"http://{LOOPBACK}:{port}"))
    return made


def ray_page(script: Path, temporary: Path) -> Page:
    """A Ray head of our own by the project's script, with its dashboard on 8265 if nobody has that.

    The dashboard asks for the token that `ray get-auth-token` prints.
    """
    port = RAY_PORT if is_free(RAY_PORT) else free_port()
    settings = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "RAY_PORT": free_port(),
        "RAY_DASHBOARD_PORT": port,
        "RAY_METRICS_PORT": free_port(),
        "RAY_AGENT_PORT": free_port(),
        "RAY_TEMP_DIR": temporary,
        # Nobody works on it: nothing to wait for at the end.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": 1,
    }
    command = ["env", *(f"{name}={value}" for name, value in settings.items()), str(script)]
    return Page("Ray", command, f"http://{LOOPBACK}:{port}")


def is_free(port: int) -> bool:
    """Whether a port of loopback can be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def answers(url: str, seconds: float = 2.0) -> bool:
    """Whether something speaks HTTP there."""
    try:
        with urllib.request.urlopen(url, timeout=seconds):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


class Shown:
    """Servers that run for the time of a `with` block, and are ended with it, whatever ends the block."""

    def __init__(self, wanted: Sequence[Page], logs: Path) -> None:
        self.wanted = wanted
        self._logs = logs
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Shown":
        self._logs.mkdir(parents=True, exist_ok=True)
        try:
            for page in self.wanted:
                with (self._logs / f"{page.name.lower()}.log").open("ab") as output:
                    # A session of their own: Ctrl-C comes to us, and we end them with all that they started.
                    self._processes.append(
                        subprocess.Popen(page.command, stdout=output, stderr=output, start_new_session=True)
                    )
            self._wait_until_ready()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()

    def wait(self) -> None:
        """Return when one of them has ended."""
        pause = threading.Event()
        while all(process.poll() is None for process in self._processes):
            pause.wait(0.5)

    def end(self) -> None:
        """End them and everything that they started."""
        for process in self._processes:
            end_group(process, END_SECONDS)

    def _wait_until_ready(self) -> None:
        pause, deadline = threading.Event(), time.monotonic() + START_SECONDS
        for page, process in zip(self.wanted, self._processes, strict=True):
            while not answers(page.url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise StageFailed(
                        f"{page.name} does not start",
                        where=str(self._logs / f"{page.name.lower()}.log"),
                        next_step="its log says why",
                    )
                pause.wait(0.3)
