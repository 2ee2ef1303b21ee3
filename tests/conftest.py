"""Fixtures of all tests. No test may reach another host than this one."""

import gc
import os
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler.loadscope import LoadScopeScheduling

RAY = "tests/ray/"
SHARED = Path(__file__).parents[2] / "shared"

# Nothing may look for a hub, whatever a test asks for.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# Threads of torch's arithmetic otherwise spin while they wait for each other: two processes on two cores then take five
# times as long for a step. It changes no result. libgomp reads it when it is loaded, so here.
os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


class OneRayHead(LoadScopeScheduling):
    """Shares the tests out by file; those that need a Ray head go to one process, since a machine has one at a time."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return RAY if file.startswith(RAY) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneRayHead:
    """Only with `-n`, as `make test` runs."""
    return OneRayHead(config, log)


def pytest_collection_finish() -> None:
    """What is imported by now stays: the collections that accelerate asks for at each training pass over it no more."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _only_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but loopback and local sockets fails the test."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        host = address[0] if isinstance(address, tuple) else ""
        if host and host not in ("127.0.0.1", "::1", "localhost", "0.0.0.0") and not _is_own(str(host)):
            raise AssertionError(f"a test tried to reach {host}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell's own settings do not reach the tests."""
    for name in list(os.environ):
        if name.startswith(("FIREWORKS_", "UCOTRON_", "WANDB_", "MLFLOW_")) or name in ("RAY_ADDRESS",):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_models import save_tiny

    return save_tiny(tmp_path_factory.mktemp("tiny") / "qwen2", "qwen2")


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """For a family the directory of a bundle, made once. Tracing warns about every branch of the model's code."""
    from tests.tiny_models import save_tiny_bundle

    @cache
    def made(family: str) -> Path:
        return save_tiny_bundle(tmp_path_factory.mktemp(family), family)

    return made


@pytest.fixture(scope="session")
def demo_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from ucotron_ray.simulators.demo_world import write_demo

    return write_demo(tmp_path_factory.mktemp("demo"), num_chunks=60, num_held_out=12, seed=3)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data beside a checkout; absent in a bare clone."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"there is no real data at {SHARED / 'data'}")
    return SHARED / "data"


def _is_own(host: str) -> bool:
    own = {entry[4][0] for entry in socket.getaddrinfo(socket.gethostname(), None)}
    return host in own
