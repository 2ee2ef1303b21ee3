"""Measures the synthesis engine: `python -m tests.benchmarks.synthesis [throughput limits start plan targets]`.

The simulator runs in a process of its own, and its ledger is what is counted: the client's own figures are no evidence.
Every arm of one name is measured in one run, one after the other, on the same machine. Writes `results/<name>.json`.
"""

import argparse
import asyncio
import itertools
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests.benchmarks.run import ROOT, processor
from tests.benchmarks.table import RESULTS
from ucotron_ray.core import config
from ucotron_ray.core.provenance import provenance
from ucotron_ray.simulators.fireworks_settings import TEACHER
from ucotron_ray.synthesis.plan import request_body, request_id
from ucotron_ray.synthesis.tasks import relation_extraction

IN_FLIGHT = 512
SAMPLES = 10_000
HTTP_PROCESSOR_REQUESTS = 200
SAMPLE_SECONDS = 0.25
RAMP_SECONDS = 60.0


@contextmanager
def simulator(ledger: Path, *options: str) -> Iterator[str]:
    """The simulator in a process of its own; gives its address."""
    command = [sys.executable, "-m", "ucotron_ray", "simulate-fireworks", "--ledger", str(ledger), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split("listening on ")[1].strip()
    finally:
        process.terminate()
        process.wait(10)


class Watched:
    """A command and all its descendants: processor seconds and memory over time."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.samples: list[tuple[float, float]] = []
        self.driver_peak = 0
        self._cpu: dict[int, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def finish(self, timeout: float) -> tuple[int, str, str]:
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGTERM)
            out, err = self.process.communicate()
        self._done.set()
        self._thread.join()
        return self.process.returncode, out, err

    def cpu_between(self, begin: float, end: float) -> float:
        """Processor seconds between two moments of the monotonic clock."""
        return self._cpu_at(end) - self._cpu_at(begin)

    def _cpu_at(self, moment: float) -> float:
        return min(self.samples, key=lambda sample: abs(sample[0] - moment))[1]

    def _watch(self) -> None:
        root = psutil.Process(self.process.pid)
        while not self._done.wait(SAMPLE_SECONDS):
            try:
                for process in [root, *root.children(recursive=True)]:
                    times = process.cpu_times()
                    self._cpu[process.pid] = times.user + times.system
                self.driver_peak = max(self.driver_peak, root.memory_info().rss)
            except psutil.Error:
                continue
            # Processes that ended keep what they had used.
            self.samples.append((time.monotonic(), sum(self._cpu.values())))


def events(ledger: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines()]


def steady_rate(entries: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Answers a second between the first and the last twentieth of them, and when that time began and ended."""
    times = sorted(entry["at"] for entry in entries if entry["event"] == "out" and entry["status"] == "200")
    low, high = times[len(times) // 20], times[len(times) * 19 // 20 - 1]
    inside = sum(low < at <= high for at in times)
    return inside / (high - low), low, high


def ours(url: str, store: Path, *more: str, task: str = "relation_extraction", count: int = SAMPLES) -> list[str]:
    settings = {
        "models.generation.model_id": TEACHER,
        "api.inference_base_url": f"{url}/inference/v1",
        "api.max_in_flight": IN_FLIGHT,
        "api.requests_per_minute": "null",
        "tracking.mlflow_uri": "none",
        "store": store,
        "ray.num_cpus": 2,
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return [sys.executable, "-m", "ucotron_ray", "synthesize", task, "--count", str(count), *sets, *more, "--json"]


# ---- throughput ------------------------------------------------------------------------------------------------------


def throughput(directory: Path) -> dict[str, Any]:
    """20,000 requests, 512 in flight, 1 s latency: a bare loop, this engine, Ray's own HTTP processor; and saturation."""
    arms: dict[str, Any] = {}
    for latency in ("1.0", "0.02"):
        for arm, run in (("bare", bare_arm), ("ours", our_arm)):
            ledger = directory / f"{arm}-{latency}.jsonl"
            with simulator(ledger, "--latency", latency, "--garbage", "0") as url:
                arms[f"{arm} at {latency} s"] = run(url, ledger, directory / f"store-{latency}")
            print(arm, latency, arms[f"{arm} at {latency} s"], file=sys.stderr)
    ledger = directory / "processor.jsonl"
    with simulator(ledger, "--latency", "1.0", "--garbage", "0") as url:
        subprocess.run([sys.executable, "-m", "tests.benchmarks.http_processor", url], check=True, cwd=ROOT)
        arms["ray http processor at 1.0 s"] = {"rate": steady_rate(events(ledger))[0]}
    idle = idle_cluster_share()
    mine, bare = arms["ours at 1.0 s"], arms["bare at 1.0 s"]
    mine["cpu_ms_per_request"] = (mine.pop("cpu_seconds") - idle * mine["seconds"]) / mine["requests"] * 1000
    arms["ours at 0.02 s"].pop("cpu_seconds")
    return {
        "arms": arms,
        "idle_cluster_cpu_share": idle,
        "share_of_bare": mine["rate"] / bare["rate"],
        "times_http_processor": mine["rate"] / arms["ray http processor at 1.0 s"]["rate"],
    }


def our_arm(url: str, ledger: Path, store: Path) -> dict[str, Any]:
    watched = Watched(ours(url, store))
    code, out, err = watched.finish(1800)
    assert code == 0, err[-3000:]
    rate, low, high = steady_rate(events(ledger))
    result = json.loads(out.splitlines()[-1])
    inside = sum(low < entry["at"] <= high for entry in events(ledger) if entry["event"] == "out")
    return {
        "rate": rate,
        "requests": inside,
        "seconds": high - low,
        "cpu_seconds": watched.cpu_between(low, high),
        "whole_run_seconds": result["seconds"],
        "accepted": result["accepted"],
    }


def bare_arm(url: str, ledger: Path, _: Path) -> dict[str, Any]:
    """The same requests by a bare asyncio loop of as many workers as may be in flight; nothing is kept or checked."""
    asyncio.run(_bare(f"{url}/inference/v1/chat/completions", 2 * SAMPLES))
    return {"rate": steady_rate(events(ledger))[0]}


async def _bare(url: str, count: int) -> None:
    task = relation_extraction.make_task(config.load().recipe.generation)
    numbers = iter(range(count))

    async def worker(session: aiohttp.ClientSession) -> None:
        for number in numbers:
            facts = task.sample(number)
            ask = next(task.converse(facts))
            body = request_body(TEACHER, ask, request_id(task, TEACHER, facts, ask, []))
            async with session.post(url, json=body) as response:
                await response.json()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.gather(*(worker(session) for _ in range(IN_FLIGHT)))


def idle_cluster_share() -> float:
    """Processor seconds a second that a local cluster takes that does nothing."""
    code = "import ray, time; ray.init(num_cpus=2, include_dashboard=False, logging_level='ERROR'); time.sleep(35)"
    watched = Watched([sys.executable, "-c", code])
    watched.finish(120)
    end = watched.samples[-1][0] - 3
    return watched.cpu_between(end - 15, end) / 15


# ---- limits ----------------------------------------------------------------------------------------------------------

LIMIT_SECONDS = 690.0
TOKENS_PER_MINUTE = 360_000.0
MOVES = ((150.0, 0.5), (270.0, 1.0), (390.0, 1.6), (510.0, 0.8), (600.0, 1.2))


def limits(directory: Path) -> dict[str, Any]:
    """Heavy-tailed latency and a token limit that moves: how much of what was allowed was used, and how many 429."""
    ledger = directory / "limits.jsonl"
    options = ["--latency", "1.5", "--latency-p99", "10", "--completion-tokens", "400", "--garbage", "0"]
    options += ["--generated-tokens-per-minute", str(TOKENS_PER_MINUTE)]
    options += ["--limit-moves", ",".join(f"{at}:{factor}" for at, factor in MOVES)]
    with simulator(ledger, *options) as url:
        watched = Watched(ours(url, directory / "store", count=8000))
        watched.finish(LIMIT_SECONDS + 60)
    entries = events(ledger)
    began = entries[0]["at"]
    end = min(LIMIT_SECONDS, entries[-1]["at"] - began)
    out = [entry for entry in entries if entry["event"] == "out"]

    def used(begin: float, until: float) -> dict[str, float]:
        inside = [entry for entry in out if begin <= entry["at"] - began < until]
        tokens = sum(entry["tokens"] for entry in inside if entry["status"] == "200")
        refused = sum(entry["status"] == "429" for entry in inside)
        share = tokens / allowed(begin, until)
        return {"seconds": until - begin, "share_of_allowed": share, "share_429": refused / len(inside)}

    edges = [RAMP_SECONDS, *(at for at, _ in MOVES if at < end), end]
    return {
        "ramp": used(0.0, RAMP_SECONDS),
        "after": used(RAMP_SECONDS, end),
        "phases": [used(low, high) for low, high in itertools.pairwise(edges)],
    }


def allowed(begin: float, until: float) -> float:
    """Tokens that the simulator allows between two moments after the first request."""
    edges = [(0.0, 1.0), *MOVES, (float("inf"), 0.0)]
    total = 0.0
    for (low, factor), (high, _) in itertools.pairwise(edges):
        total += max(0.0, min(until, high) - max(begin, low)) * factor * TOKENS_PER_MINUTE / 60
    return total


# ---- a large plan ----------------------------------------------------------------------------------------------------


def plan(directory: Path, count: int = 200_000) -> dict[str, Any]:
    """200,000 planned rows at 50 ms: the driver's memory above that after ray.init."""
    ledger, store = directory / "plan.jsonl", directory / "store"
    marks = directory / "marks.json"
    with simulator(ledger, "--latency", "0.05", "--garbage", "0") as url:
        command = ours(url, store, "--set", "api.max_rounds=2", count=count)
        command[1:3] = ["-m", "tests.benchmarks.driver_memory", str(marks)]
        watched = Watched(command)
        code, out, err = watched.finish(3600)
    after_init = json.loads(marks.read_text(encoding="utf-8"))["rss_after_init"]
    return {
        "exit": code,
        "result": json.loads(out.splitlines()[-1]) if out.strip() else err[-500:],
        "driver_mb_after_init": after_init / 2**20,
        "driver_mb_peak_above": (watched.driver_peak - after_init) / 2**20,
        "requests": sum(entry["event"] == "in" for entry in events(ledger)),
        "rate": steady_rate(events(ledger))[0],
    }


def start(directory: Path, count: int = 200_000) -> dict[str, Any]:
    """The same plan, from the command to the first journaled row, with what ray.init takes of it; then it is stopped."""
    ledger, store, marks = directory / "start.jsonl", directory / "store", directory / "marks.json"
    with simulator(ledger, "--latency", "0.05", "--garbage", "0") as url:
        command = ours(url, store, count=count)
        command[1:3] = ["-m", "tests.benchmarks.driver_memory", str(marks)]
        began = time.monotonic()
        watched = Watched(command)
        while not any(path.stat().st_size for path in (store / "journal").glob("*/segments/*.log")):
            assert watched.process.poll() is None
            time.sleep(0.05)
        first = time.monotonic() - began
        watched.process.send_signal(signal.SIGTERM)
        stopping = time.monotonic()
        code, _, err = watched.finish(120)
        stopped = time.monotonic() - stopping
    assert code == 75, err[-3000:]
    ray_init = json.loads(marks.read_text(encoding="utf-8"))["seconds_of_init"]
    return {"seconds_to_first_row": first, "seconds_of_ray_init": ray_init, "seconds_to_stop": stopped}


def targets(directory: Path) -> dict[str, Any]:
    """10,000 relation rows and 5,000 preference pairs, with the simulator's usual share of garbage."""
    ledger, store = directory / "targets.jsonl", directory / "store"
    results = {}
    with simulator(ledger, "--latency", "0.2") as url:
        for task, count, more in (
            ("relation_extraction", 10_000, ()),
            ("preference", 5000, ("--input", "relation_extraction")),
        ):
            code, out, err = Watched(ours(url, store, *more, task=task, count=count)).finish(1800)
            assert code == 0, err[-3000:]
            results[task] = json.loads(out.splitlines()[-1])
    answers = [entry["request"] for entry in events(ledger) if entry["event"] == "out" and entry["status"] == "200"]
    return {"results": results, "answered": len(answers), "answered_twice": len(answers) - len(set(answers))}


def main() -> None:
    arms = {"throughput": throughput, "limits": limits, "start": start, "plan": plan, "targets": targets}
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(arms))
    for name in parser.parse_args().names:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as directory:
            result = arms[name](Path(directory))
        made = provenance(seconds=time.monotonic() - began)
        result |= {"commit": made["commit"], "packages": made["packages"], "processor": processor()}
        (RESULTS / f"synthesis_{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
