"""A wrong address of a cluster ends in seconds and in words, and what waits for room is said."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest
import ray
from ray._private.accelerators import RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO_ENV_VAR

from ucotron_ray import cli
from ucotron_ray.core import cluster, config, demand, session, worker_environment
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.operations import doctor


@contextmanager
def answering(said: bytes) -> Iterator[str]:
    """A server that says this to whoever comes, once it was greeted."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(said)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        thread.join(5)


def closed() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "said", "step"),
    [
        ("http://127.0.0.1:8265", "address of a dashboard", "RAY_ADDRESS=127.0.0.1:6379"),
        ("https://ray.example", "address of a dashboard", "ucotron-ray submit --address"),
        ("127.0.0.1", "no address of a Ray cluster", "RAY_ADDRESS=127.0.0.1:6379"),
        ("head.example:", "no address of a Ray cluster", "RAY_ADDRESS=head.example:6379"),
        ("127.0.0.1:abc", "no address of a Ray cluster", ""),
        ("redis://head:6379", "no address of a Ray cluster", ""),
        (":6379", "no address of a Ray cluster", ""),
    ],
)
def test_what_is_no_address_is_told_from_its_text(address, said, step):
    with pytest.raises(ConfigError, match=said) as refused:
        cluster.check_text(address)
    assert step in (refused.value.next_step or "")
    settings = config.load(overrides=[("ray.address", address)])
    assert doctor._ray_address(settings).verdict == doctor.GAP


@pytest.mark.parametrize(
    "address", ["auto", "local", "10.0.0.1:6379", "head.example:6379", "ray://h:10001", "[::1]:6379"]
)
def test_what_is_one_passes(address):
    cluster.check_text(address)
    assert doctor._ray_address(config.load(overrides=[("ray.address", address)])).verdict == doctor.OK


def test_nobody_is_found_out_in_seconds():
    began = time.monotonic()
    for address in (closed(), "no-such-host.invalid:6379"):
        with pytest.raises(ConfigError, match="no Ray cluster to connect to"):
            cluster.check_answers(address)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-ERR unknown command\r\n", b""])
def test_another_server_is_no_head(said, monkeypatch):
    monkeypatch.setattr(cluster, "ANSWER_SECONDS", 0.5)
    monkeypatch.setattr(session.services, "canonicalize_bootstrap_address_or_die", lambda address: address)
    with answering(said) as address, pytest.raises(ConfigError, match="no Ray head") as refused:
        session._check_head(address)
    assert refused.value.exit_code == 2


@contextmanager
def gcs(status: grpc.StatusCode) -> Iterator[str]:
    """A server in the place of a head's, that answers every call so."""

    class Every(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
                if status is not grpc.StatusCode.OK:
                    context.abort(status, "InvalidAuthToken: Authentication token is missing or incorrect")
                return b""

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(1), handlers=(Every(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def test_a_head_that_asks_for_a_token_is_told_from_none(monkeypatch):
    monkeypatch.setattr(session.services, "canonicalize_bootstrap_address_or_die", lambda address: address)
    with gcs(grpc.StatusCode.OK) as address:
        session._check_head(address)
    with (
        gcs(grpc.StatusCode.UNAUTHENTICATED) as address,
        pytest.raises(ConfigError, match="asks for a token") as refused,
    ):
        session._check_head(address)
    assert "RAY_AUTH_MODE=token" in str(refused.value)
    assert "start a head" not in str(refused.value)


def test_a_head_on_the_address_that_ray_makes_of_loopback_is_asked_too(monkeypatch):
    """Through a tunnel 127.0.0.1:6379 is a head, and this machine's own address none."""
    elsewhere = closed()
    monkeypatch.setattr(session.services, "canonicalize_bootstrap_address_or_die", lambda address: elsewhere)
    with gcs(grpc.StatusCode.OK) as address, pytest.raises(ConfigError, match="no Ray head") as refused:
        session._check_head(address)
    assert elsewhere in str(refused.value.found)


@pytest.mark.parametrize("given", ["http://127.0.0.1:8265", "127.0.0.1", None])
def test_a_verb_ends_with_2_and_never_asks_ray(given, tmp_path, monkeypatch, capsys, tiny_model):
    """`export` of a base model is the shortest way to a connection."""
    monkeypatch.setattr(ray, "init", lambda **options: pytest.fail("Ray was asked"))
    monkeypatch.setenv("RAY_ADDRESS", given or closed())
    settings = ["--set", f"store={tmp_path}", "--set", "tracking.mlflow_uri=none", "--set", "export.gguf=[]"]
    assert cli.main(["export", str(tiny_model), *settings]) == 2
    assert "RAY_ADDRESS" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["sft", "synthesize", "pipeline", "export"])
def test_a_dry_run_says_so_of_the_text_alone(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    settings = ["--set", f"store={tmp_path}", "--set", "tracking.mlflow_uri=none"]
    own = {"sft": ["--train-data", "x"], "export": ["x"], "synthesize": ["preference"]}.get(verb, [])
    assert cli.main([verb, *own, "--dry-run", *settings]) == 2
    assert "address of a dashboard" in capsys.readouterr().err


def test_a_cluster_beside_ours_is_named_once(monkeypatch, caplog):
    for found, lines in ((set(), 0), ({"10.0.0.2:6379", "10.0.0.1:6379"}, 1)):
        monkeypatch.setattr(session.services, "find_gcs_addresses", lambda found=found: found)
        caplog.clear()
        with caplog.at_level("INFO"):
            session._note_others()
        assert len(caplog.messages) == lines
    assert "RAY_ADDRESS=10.0.0.1:6379 would join it" in caplog.text


ONE, GPU = (("CPU", 1.0),), (("CPU", 4.0), ("GPU", 1.0))


def test_what_waits_is_said_with_what_the_cluster_has():
    said = demand.lines(demand.Demand({ONE: 3, GPU: 1}, [{"CPU": 0.0, "memory": 1e9}, {"CPU": 8.0}]))
    assert said[0] == "cluster: 3 x {CPU: 1} wait: all of it is in use; 2 node(s) have 8 CPU together"
    assert said[1].startswith(
        "cluster: 1 x {CPU: 4, GPU: 1} wait: no node has room for it; 2 node(s) have 8 CPU, 0 GPU"
    )


def test_what_waits_from_one_look_to_the_next_is_said_once(caplog):
    looks = [{ONE: 1}, {GPU: 1}, {GPU: 2, ONE: 1}, {GPU: 1}, {GPU: 1}]
    seen = threading.Event()

    def look() -> demand.Demand:
        if not looks:
            seen.set()
            raise ConnectionError("gone")
        return demand.Demand(looks.pop(0), [{"CPU": 0.0}])

    with caplog.at_level("WARNING"), demand.watched(look, seconds=0.01):
        assert seen.wait(10)
    assert [message.partition(" wait")[0] for message in caplog.messages] == ["cluster: 2 x {CPU: 4, GPU: 1}"]


def test_a_task_without_a_gpu_sees_none():
    """Ray 2.60 leaves CUDA_VISIBLE_DEVICES as it is for it, unless this variable says otherwise."""
    assert worker_environment.VARIABLES[RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO_ENV_VAR] == "1"
