"""Synthesis on a real Ray head against the simulator in a process of its own, whose ledger judges what was paid twice."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from tests.faults.invariants import After, broken
from tests.ray.conftest import ROOT, lose, new_head, second_node
from tests.ray.test_chain import TIMEOUT, finished, start, wait_for
from ucotron_ray.core.artifacts import Store
from ucotron_ray.simulators.fireworks_settings import TEACHER
from ucotron_ray.synthesis import journal, outcomes
from ucotron_ray.synthesis.plan import STATUSES
from ucotron_ray.teacher.outcome import FINAL

pytestmark = pytest.mark.ray

COUNT = 150
IN_FLIGHT = 16
CANARY = "fw-canary-0815"


@contextmanager
def simulator(ledger: Path, *options: str, environment: dict | None = None) -> Iterator[str]:
    command = [sys.executable, "-m", "ucotron_ray", "simulate-fireworks", "--ledger", str(ledger), *options]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})}
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split("listening on ")[1].strip()
    finally:
        process.terminate()
        process.wait(10)


def arguments(url: str, store: Path, *more: str) -> list[str]:
    settings = {
        "models.generation.model_id": TEACHER,
        "api.inference_base_url": f"{url}/inference/v1",
        "api.max_in_flight": IN_FLIGHT,
        "store": store,
        "tracking.mlflow_uri": "none",
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return ["synthesize", "relation_extraction", "--name", "made", "--count", str(COUNT), *sets, *more]


def answered(ledger: Path) -> Counter:
    """How often each distinct request was answered, as the server saw it."""
    lines = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()] if ledger.exists() else []
    return Counter(line["request"] for line in lines if line["event"] == "out" and line["status"] == "200")


def rows(store: Path) -> dict[str, bytes]:
    artifact = Store(store).get("dataset", "made")
    return {path.name: path.read_bytes() for path in artifact.path.glob("*.jsonl")}


def left(straight: dict, store: Path, ledger: Path) -> list[str]:
    """What does not hold after a fault, see tests/faults/invariants.py."""
    made, undisturbed = (Store(place).path("dataset", "made") for place in (store, straight["store"]))
    return broken(After(store, ledger=ledger, may_repeat=IN_FLIGHT, made=made, straight=undisturbed, files="*.jsonl"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory, ray_head) -> dict:
    """One undisturbed run, with a key."""
    directory = tmp_path_factory.mktemp("straight")
    store, ledger = directory / "store", directory / "ledger.jsonl"
    head = type(ray_head)(ray_head.address, ray_head.dashboard, {**ray_head.environment, "FIREWORKS_API_KEY": CANARY})
    with simulator(ledger, "--api-key-env", "CANARY_KEY", environment={"CANARY_KEY": CANARY}) as url:
        key = directory / "key"
        key.touch(mode=0o600)
        key.write_text(CANARY, encoding="utf-8")
        # The head's processes were started without the key: they read it from the file.
        result = finished(start(head, *arguments(url, store, "--set", f"api.key_file={key}")))
        key.unlink()
        again = finished(start(head, *arguments(url, store, "--set", f"api.key_file={key}")))
    return {"store": store, "ledger": ledger, "result": result, "again": again, "head": ray_head}


def test_a_run_gives_exactly_the_rows_asked_for_and_the_sum_is_what_was_planned(straight):
    result = straight["result"]
    assert result["accepted"] == COUNT
    lines = (
        (Store(straight["store"]).get("dataset", "made").path / "relation_extraction.jsonl").read_text().splitlines()
    )
    assert len(lines) == COUNT
    planned = sum(result[status] for status in STATUSES)
    other = (Store(straight["store"]).get("dataset", "made").path / "rejected.jsonl").read_text().splitlines()
    assert planned == COUNT + len(other)
    assert result["train"] + result["val"] == COUNT
    assert result["requests"] == sum(answered(straight["ledger"]).values())
    assert max(answered(straight["ledger"]).values()) == 1
    assert result["cost_usd"] > 0


def test_a_second_run_asks_nobody(straight):
    assert straight["again"]["artifact"] == straight["result"]["artifact"]
    assert "reuse" in straight["again"]["stderr"]


def test_the_key_is_in_no_file_that_the_run_left(straight):
    session = Path(straight["head"].environment["RAY_TEMP_DIR"])
    seen = 0
    for root in (straight["store"], session):
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                seen += 1
                assert CANARY.encode() not in path.read_bytes(), path
    assert seen > 20
    assert CANARY not in straight["result"]["stderr"]
    for path in ("api/jobs/", "api/v0/actors"):
        request = urllib.request.Request(f"{straight['head'].dashboard}/{path}")
        token = Path(straight["head"].environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert CANARY.encode() not in answer.read()


def test_kill_9_of_the_driver_and_the_same_command_again(straight, ray_head, tmp_path):
    store, ledger = tmp_path / "store", tmp_path / "ledger.jsonl"
    with simulator(ledger, "--latency", "0.3") as url:
        process = start(ray_head, *arguments(url, store))
        wait_for(lambda: sum(answered(ledger).values()) >= 60, process)
        process.kill()
        process.communicate()
        kept = {record.rid for record in journal.records(store / "journal" / "relation_extraction")}
        assert len(kept) >= 60 - IN_FLIGHT
        result = finished(start(ray_head, *arguments(url, store)))
        repeats = sum(count - 1 for count in answered(ledger).values())
    assert repeats <= IN_FLIGHT, "only what was in flight at the kill"
    assert result["accepted"] == COUNT
    assert left(straight, store, ledger) == []
    assert rows(store) == rows(straight["store"])


@dataclass(frozen=True)
class Books:
    """Dollars and failures as the server has them, and as we have them."""

    served: float
    """Of its answers, whoever got them."""
    dearest: float
    cut_off: int
    journaled: float
    """Of the answers in our journal."""
    failed: int
    """Requests that the journal counts at their worst: they were cut off, and may be billed."""
    total: float
    """All that we count, with what was in flight."""


def books(ledger: Path, store: Path, usd_per_token: float) -> Books:
    lines = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]
    out = [line for line in lines if line["event"] == "out"]
    answers = [line["tokens"] * usd_per_token for line in out if line["status"] == "200"]
    folder = store / "journal" / "relation_extraction"
    kept = list(journal.records(folder))
    ours = [record.cost_usd for record in kept if record.kind in FINAL]
    run = kept[0].run
    open_usd = outcomes.unsettled(
        Store(store).partial("dataset", "made"), lambda rids: journal.settled(folder, run, rids)
    )
    return Books(
        sum(answers),
        max(answers),
        sum(line["status"] == "cut off" for line in out),
        sum(ours),
        sum(record.kind == "transient" for record in kept),
        sum(record.cost_usd for record in kept) + open_usd,
    )


def nothing_in_flight(ledger: Path) -> bool:
    events = Counter(json.loads(line)["event"] for line in ledger.read_text(encoding="utf-8").splitlines())
    return events["in"] == events["out"]


@pytest.mark.faults
@pytest.mark.slow
def test_kill_9_at_ten_moments_under_noise_and_the_dollars_are_those_of_the_server(straight, ray_head, tmp_path):
    """Ours differ from the server's by those in flight at the kills, and by no more."""
    store, ledger, prices = tmp_path / "store", tmp_path / "ledger.jsonl", tmp_path / "prices.yaml"
    # Dollars for generated tokens alone: the server's ledger has those.
    prices.write_text(f"date: 2026-01-01\nmodels: {{{TEACHER}: {{input: 0, output: 1000}}}}\n", encoding="utf-8")
    noise = "500=0.03,reset=0.03,half=0.02"
    kills = 0
    with simulator(ledger, "--latency", "0.3", "--faults", noise) as url:
        command = arguments(url, store, "--set", f"api.prices={prices}", "--set", "api.retry_delay=0.1")
        for more in range(8, 28, 2):
            process = start(ray_head, *command)
            least = sum(answered(ledger).values()) + more
            wait_for(lambda least=least: sum(answered(ledger).values()) >= least, process)
            process.kill()
            process.communicate()
            kills += 1
            wait_for(lambda: nothing_in_flight(ledger), None)
            found = books(ledger, store, 1000 / 1e6)
            print(kills, found)
            assert -1e-9 <= found.served - found.journaled <= kills * IN_FLIGHT * found.dearest
            assert 0 <= found.cut_off - found.failed <= kills * IN_FLIGHT
            # Never less than the server has, but for what was sent since the driver's last look, a second ago.
            assert found.total >= found.served - kills * IN_FLIGHT * found.dearest
        result = finished(start(ray_head, *command))
    assert kills == 10
    assert result["accepted"] == COUNT
    made, undisturbed = (Store(place).path("dataset", "made") for place in (store, straight["store"]))
    after = After(store, ledger=ledger, may_repeat=kills * IN_FLIGHT, made=made, straight=undisturbed, files="*.jsonl")
    assert broken(after) == []


@pytest.mark.faults
def test_kill_9_of_the_sending_actor_and_the_run_goes_on(straight, ray_head, tmp_path):
    store, ledger = tmp_path / "store", tmp_path / "ledger.jsonl"
    with simulator(ledger, "--latency", "0.3") as url:
        process = start(ray_head, *arguments(url, store))
        wait_for(lambda: sum(answered(ledger).values()) >= 60, process)
        segment = next((store / "journal" / "relation_extraction" / "segments").glob("*.log"))
        os.kill(int(segment.stem.split("-")[-2]), signal.SIGKILL)
        finished(process)
    assert left(straight, store, ledger) == []
    assert rows(store)


@pytest.mark.faults
def test_a_lost_node_and_the_same_command_end_with_the_same_rows(straight, ray_head, tmp_path):
    store, ledger = tmp_path / "store", tmp_path / "ledger.jsonl"
    segments = store / "journal" / "relation_extraction" / "segments"
    with simulator(ledger, "--latency", "1.0") as url, second_node(ray_head) as node:
        command = arguments(url, store, "--set", "api.num_actors=2")
        process = start(ray_head, *command)
        # Both actors send: each has a segment of its own.
        wait_for(lambda: len(list(segments.glob("*.log"))) == 2 and sum(answered(ledger).values()) >= 40, process)
        there = {child.pid for child in psutil.Process(node.pid).children(recursive=True)}
        writers = {int(path.stem.split("-")[-2]) for path in segments.glob("*.log")}
        assert len(writers & there) == 1, "one of them on each node"
        lose(node)
        process.communicate(timeout=TIMEOUT)
        if process.returncode != 0:
            # Where the limiter was on the lost node, the run stops and says so.
            assert process.returncode == 75
            finished(start(ray_head, *command))
    assert left(straight, store, ledger) == []
    assert rows(store)


@pytest.mark.faults
@pytest.mark.slow
def test_a_lost_head_ends_the_driver_and_on_another_one_the_same_command_ends_the_run(straight, tmp_path):
    store, ledger = tmp_path / "store", tmp_path / "ledger.jsonl"
    with simulator(ledger, "--latency", "0.3") as url:
        command = arguments(url, store)
        # Ray looks for its head for a minute otherwise.
        with new_head(RAY_gcs_rpc_server_reconnect_timeout_s="5") as (head, process_of_head):
            driver = start(head, *command)
            wait_for(lambda: sum(answered(ledger).values()) >= 60, driver)
            lose(process_of_head)
            driver.communicate(timeout=120)
            assert driver.returncode != 0
        with new_head() as (head, _):
            finished(start(head, *command))
    assert left(straight, store, ledger) == []
    assert rows(store)


TINY_DISK = (
    "unshare", "--map-root-user", "--mount", "bash", "-c",
    'spill=$RAY_TEMP_DIR/spill && mkdir -p "$spill" && mount -t tmpfs -o size=64k none "$spill" && exec "$0"',
)  # fmt: skip
FILL = """
import sys, numpy, ray
ray.init(log_to_driver=False)
kept = []
try:
    while len(kept) < 100:
        kept.append(ray.put(numpy.zeros(5_000_000, dtype=numpy.uint8)))
except ray.exceptions.OutOfDiskError:
    print("full", flush=True)
sys.stdin.read()
"""
"""Fills the object store and holds it full until its input ends."""


@pytest.mark.faults
@pytest.mark.slow
def test_a_full_spill_directory_stops_the_run_in_words_and_with_room_it_goes_on(straight, tmp_path):
    """Ray spills to a disk of 64 KB, and somebody else has filled the object store."""
    store, ledger = tmp_path / "store", tmp_path / "ledger.jsonl"
    # Where Ray cannot spill it maps files; it takes the disk for full from 0 % on.
    full = {"RAY_OBJECT_STORE_BYTES": "80000000", "RAY_local_fs_capacity_threshold": "0"}
    with new_head(*TINY_DISK, **full) as (head, _), simulator(ledger) as url:
        environment = {**head.environment, "RAY_ADDRESS": head.address}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        filler = subprocess.Popen([sys.executable, "-c", FILL], env=environment, text=True, **pipes)
        try:
            assert filler.stdout.readline() == "full\n"
            stopped = finished(start(head, *arguments(url, store)), code=75)
            assert "the disk that it spills to" in stopped["stderr"]
        finally:
            filler.communicate("")
        finished(start(head, *arguments(url, store)))
    assert left(straight, store, ledger) == []
    assert rows(store) == rows(straight["store"])


@pytest.mark.faults
def test_a_lossy_control_plane_costs_time_and_no_row(straight, ray_head, tmp_path):
    """A quarter of what the driver asks Ray's processes for, and of their answers, is lost by Ray's own injection."""
    lossy = {"num_failures": 20, "req_failure_prob": 25, "resp_failure_prob": 25}
    methods = (
        "CoreWorkerService.grpc_client.PushTask",
        "CoreWorkerService.grpc_client.GetObjectStatus",
        "NodeManagerService.grpc_client.RequestWorkerLease",
    )
    injected = {"RAY_testing_rpc_failure": json.dumps(dict.fromkeys(methods, lossy))}
    head = replace(ray_head, environment={**ray_head.environment, **injected})
    store, ledger = tmp_path / "store", tmp_path / "ledger.jsonl"
    with simulator(ledger) as url:
        command = arguments(url, store)
        process = start(head, *command)
        _, err = process.communicate(timeout=TIMEOUT)
        if process.returncode != 0:
            assert process.returncode == 75, err[-3000:]
            finished(start(ray_head, *command))
    assert left(straight, store, ledger) == []


@pytest.mark.faults
def test_a_budget_stops_the_run_and_a_higher_one_goes_on(straight, ray_head, tmp_path):
    store, ledger = tmp_path / "store", tmp_path / "ledger.jsonl"
    with simulator(ledger) as url:
        stopped = finished(start(ray_head, *arguments(url, store, "--max-usd", "0.02")), code=75)
        assert stopped["status"] == "stopped"
        assert "budget" in stopped["stderr"]
        assert journal.spent(store / "journal" / "relation_extraction", _run(store)) <= 0.02
        finished(start(ray_head, *arguments(url, store, "--max-usd", "5")))
        assert max(answered(ledger).values()) == 1
    assert rows(store) == rows(straight["store"])


@pytest.mark.faults
def test_a_key_refused_in_the_middle_stops_at_once(ray_head, tmp_path):
    store, ledger = tmp_path / "store", tmp_path / "ledger.jsonl"
    with simulator(ledger, "--faults", "402=0.02", "--latency", "0.1") as url:
        stopped = finished(start(ray_head, *arguments(url, store)), code=75)
    statuses = Counter(json.loads(line).get("status") for line in ledger.read_text().splitlines())
    assert statuses["402"] <= IN_FLIGHT
    assert "billing" in stopped["stderr"]


@pytest.mark.faults
def test_sigterm_keeps_what_was_in_flight(straight, ray_head, tmp_path):
    store, ledger = tmp_path / "store", tmp_path / "ledger.jsonl"
    with simulator(ledger, "--latency", "0.5") as url:
        process = start(ray_head, *arguments(url, store))
        wait_for(lambda: sum(answered(ledger).values()) >= 60, process)
        process.terminate()
        finished(process, code=75)
        kept = sum(1 for _ in journal.records(store / "journal" / "relation_extraction"))
        assert kept == sum(answered(ledger).values())
        finished(start(ray_head, *arguments(url, store)))
        assert max(answered(ledger).values()) == 1, "nothing was paid twice"
    assert rows(store) == rows(straight["store"])


def _run(store: Path) -> str:
    return next(journal.records(store / "journal" / "relation_extraction")).run
