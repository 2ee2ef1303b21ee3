"""Measures the endpoint: `python -m tests.benchmarks.serving BUNDLE_DIRECTORY [load swap kill] [--seconds 60]`.

The service and its Ray head run in processes of their own; this process makes the load and reads the clock. Writes
`results/serving_<name>.json`. `load` also runs the same model in one plain process on the same requests, in batches of
as many rows as the service decodes together: what is lost between the two is what serving costs.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.run import processor
from tests.benchmarks.table import RESULTS
from tests.serving_load import ROOT, Asked, Load, Service, serving
from ucotron_ray.core.artifacts import Artifact, BuildResult, Request, Store
from ucotron_ray.core.files import MANIFEST, write_json, write_text
from ucotron_ray.core.provenance import provenance
from ucotron_ray.data import jsonl
from ucotron_ray.data.records import RawRow
from ucotron_ray.data.wire import chat_messages, parse_answer
from ucotron_ray.operations.dashboards import free_port
from ucotron_ray.simulators import demo_world

CLIENTS, BATCH, MAX_TOKENS = 8, 8, 512
NAME = "served"
Figures = dict[str, Any]
During = Callable[[Load, Service], Awaitable[Figures]]


# ---- the service -----------------------------------------------------------------------------------------------------


@contextmanager
def running(bundle: Path, *settings: str, replicas: int = 1) -> Iterator[Service]:
    """The bundle, in a store of its own, behind the endpoint on a head of its own."""
    with tempfile.TemporaryDirectory(prefix="ur-", dir="/tmp") as directory:
        store = Path(directory) / "store"
        publish(store, bundle, "as it came")
        arguments = [NAME, "--replicas", str(replicas)]
        overrides = [f"store={store}", f"ray.temp_dir={directory}/ray", f"serving.max_batch={BATCH}", *settings]
        arguments += [part for setting in overrides for part in ("--set", setting)]
        with serving(*arguments, environment={**os.environ, "RAY_ADDRESS": ""}, port=free_port()) as service:
            yield service


def publish(store: Path, bundle: Path, note: str) -> Artifact:
    """The bundle's files under our own name; another note makes it another one."""
    with Store(store).building(Request("bundle", NAME, {"note": note}), replace=True) as build:
        shutil.copytree(bundle, build.path, dirs_exist_ok=True, copy_function=_link)
        (build.path / MANIFEST).unlink(missing_ok=True)
        write_text(build.path / "note.txt", note)
        return build.publish(BuildResult({}, {}, ["a copy for measuring"]))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def loaded(bundle: Path, rows: Sequence[RawRow], during: During, *settings: str, replicas: int = 1) -> Figures:
    """Clients ask while something happens; what they saw, and how the service ended."""
    with running(bundle, *settings, replicas=replicas) as service:

        async def ask() -> tuple[Load, Figures, float, float]:
            load = Load(service.url, rows)
            # The first answers find cold caches.
            async with Load(service.url, rows).running(CLIENTS) as warming:
                await warming.answered(CLIENTS, timeout=120)
            began, cpu = time.monotonic(), time.process_time()
            async with load.running(CLIENTS):
                more = await during(load, service)
            return load, more, time.monotonic() - began, time.process_time() - cpu

        load, more, seconds, cpu = asyncio.run(ask())
        code, result = service.stop()
    return {
        **seen(load.asked, seconds),
        "load_process_cpu_seconds": cpu,
        **more,
        "exit_code": code,
        "unanswered_at_the_stop": result["unanswered"],
        "asked": [entry.number for entry in sorted(load.asked, key=lambda entry: entry.began)],
    }


def seen(asked: Sequence[Asked], seconds: float) -> Figures:
    """Answers, failures, latencies and rates. The last answers came after the clients were told to stop."""
    good = [entry for entry in asked if entry.status == 200]
    latencies = sorted(entry.seconds for entry in good)
    return {
        "seconds": seconds,
        "requests": len(asked),
        "failed": len(asked) - len(good),
        "outcomes": dict(Counter(f"{entry.status} {entry.code or ''}".strip() for entry in asked)),
        "unparsed": sum(parse_answer(entry.text) is None for entry in good),
        "latency_seconds": {
            "p50": statistics.median(latencies),
            "p95": latencies[min(len(latencies) - 1, int(0.95 * len(latencies)))],
            "max": latencies[-1],
        },
        "answers_per_second": len(good) / seconds,
        "new_tokens_per_second": sum(entry.tokens for entry in good) / seconds,
    }


# ---- what is measured ------------------------------------------------------------------------------------------------


def load(bundle: Path, rows: Sequence[RawRow], seconds: float) -> Figures:
    """Eight clients without a pause, and the same requests in one plain process."""

    async def wait(load: Load, service: Service) -> Figures:
        await asyncio.sleep(seconds)
        return {}

    served = loaded(bundle, rows, wait)
    numbers = served.pop("asked")
    direct = {arm: plain(bundle, rows, numbers, arm) for arm in ("runner", "batcher")}
    return {
        "served": served,
        "direct": direct,
        "clients": CLIENTS,
        "share_of_the_runner": served["answers_per_second"] / direct["runner"]["answers_per_second"],
        "share_of_the_batcher": served["answers_per_second"] / direct["batcher"]["answers_per_second"],
    }


def plain(bundle: Path, rows: Sequence[RawRow], numbers: Sequence[int], arm: str) -> Figures:
    """The same requests in the order of their beginning, without HTTP and Ray, in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        asked = Path(directory) / "rows.jsonl"
        jsonl.write_rows(asked, [rows[number % len(rows)] for number in numbers])
        command = [sys.executable, "-m", "tests.benchmarks.serving", str(bundle.absolute())]
        command += ["--rows", str(asked), "--arm", arm]
        made: Figures = json.loads(
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        )
    return made


def swap(bundle: Path, rows: Sequence[RawRow], seconds: float) -> Figures:
    """The bundle is replaced twice under load."""

    async def exchange(load: Load, service: Service) -> Figures:
        store = store_of(service)
        took = []
        for note in ("the second", "the third"):
            await asyncio.sleep(seconds / 4)
            began, before = time.monotonic(), switched(service)
            await asyncio.to_thread(publish, store, bundle, note)
            async with asyncio.timeout(120):
                while switched(service) == before:
                    await asyncio.sleep(0.05)
            took.append(time.monotonic() - began)
        await asyncio.sleep(seconds / 4)
        return {"seconds_from_publishing_to_answering": took}

    made = loaded(bundle, rows, exchange)
    made.pop("asked")
    return {**made, "clients": CLIENTS}


def store_of(service: Service) -> Path:
    """The store that it was started on."""
    return next(Path(part.removeprefix("store=")) for part in service.command if part.startswith("store="))


def switched(service: Service) -> int:
    """How many exchanges its replicas reported."""
    return sum("switched from" in line for line in service.log)


def kill(bundle: Path, rows: Sequence[RawRow], seconds: float) -> Figures:
    """One of two replicas is killed under load."""

    async def shoot(load: Load, service: Service) -> Figures:
        await asyncio.sleep(seconds / 3)
        victim = service.replicas()[0]
        began = time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        async with asyncio.timeout(180):
            while len([process for process in service.replicas() if process.pid != victim.pid]) < 2:
                await asyncio.sleep(0.1)
        back = time.monotonic() - began
        await asyncio.sleep(seconds / 3)
        return {"seconds_until_two_processes": back}

    made = loaded(bundle, rows, shoot, replicas=2)
    made.pop("asked")
    return {**made, "clients": CLIENTS, "most_in_a_replica": 2 * BATCH}


# ---- the same model in a plain process -------------------------------------------------------------------------------


def runner_arm(bundle: Path, rows: Sequence[RawRow]) -> Figures:
    """Batches of as many rows as the service decodes together, each until its last row is over."""
    from ucotron_ray.models import served

    model = served.load(bundle)
    decoding = served.default_decoding(bundle)
    tokens = 0
    began = time.monotonic()
    for start in range(0, len(rows), BATCH):
        answers = []
        for row in rows[start : start + BATCH]:
            messages = chat_messages(row.text, row.entities)
            constraint = model.constraint(messages[-1]["content"], decoding)
            ids = model.chat_ids(messages)
            answers.append(model.answer(ids, max_new_tokens=MAX_TOKENS, constraint=constraint))
        for answer in model.run(answers):
            tokens += len(answer.tokens)
    return rates(len(rows), tokens, time.monotonic() - began)


def batcher_arm(bundle: Path, rows: Sequence[RawRow]) -> Figures:
    """The service's own engine with as many rows inside as the clients keep there."""
    from ucotron_ray.models import served
    from ucotron_ray.serving import backends
    from ucotron_ray.serving.engine import Engine
    from ucotron_ray.serving.exchange import Question, Turn
    from ucotron_ray.serving.target import Target

    wanted = Target(NAME, "onnx", str(bundle), "", decoding=served.default_decoding(bundle))
    engine = Engine(wanted, backends.load(wanted, num_threads=0), max_batch=BATCH, max_prompt_tokens=2048)
    left = list(reversed(rows))
    tokens = 0

    async def client() -> None:
        nonlocal tokens
        while left:
            row = left.pop()
            turns = tuple(Turn(**message) for message in chat_messages(row.text, row.entities))
            async for piece in engine.answer(Question(turns, MAX_TOKENS)):
                if piece.usage:
                    tokens += piece.usage.completion_tokens

    async def all_clients() -> None:
        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    began = time.monotonic()
    asyncio.run(all_clients())
    seconds = time.monotonic() - began
    engine.close()
    return rates(len(rows), tokens, seconds)


def rates(answers: int, tokens: int, seconds: float) -> Figures:
    return {
        "answers": answers,
        "seconds": seconds,
        "answers_per_second": answers / seconds,
        "new_tokens_per_second": tokens / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("parts", nargs="*", default=["load", "swap", "kill"])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rows", type=Path, help="rows whose prompts are asked (default: of the demo's world)")
    parser.add_argument("--arm", choices=("runner", "batcher"), help="internal: one arm in this process")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = (
        [row for row in jsonl.read_relations(args.rows) if len(row.entities) > 1]
        if args.rows
        else [row for row in demo_world.rows(demo_world.graph_world(1), 200, seed=8) if len(row.entities) > 1]
    )
    if args.arm:
        print(json.dumps({"runner": runner_arm, "batcher": batcher_arm}[args.arm](args.bundle, rows)))
        return
    for part in args.parts:
        began = time.monotonic()
        made = {"load": load, "swap": swap, "kill": kill}[part](args.bundle, rows, args.seconds)
        made |= {"processor": processor(), "rows": len(rows), "bundle": args.bundle.name}
        facts = provenance(seconds=time.monotonic() - began)
        made |= {"commit": facts["commit"], "versions": facts["packages"]}
        args.results.mkdir(parents=True, exist_ok=True)
        write_json(args.results / f"serving_{part}.json", made)
        print(json.dumps(made, indent=2))


if __name__ == "__main__":
    main()
