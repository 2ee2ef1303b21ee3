"""What 8, 64 and 512 nodes would load, from what was measured on one machine: `python -m tests.benchmarks.scale`.

A model on paper: plain arithmetic over constants. Those of `Measured` come from result files of this directory (the
limiter's and the journal's costs are measured by this module, the rest by others); those of `Assumed` nobody measured.
"""

import dataclasses
import json
import pickle
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.run import processor
from tests.benchmarks.table import RESULTS
from ucotron_ray.core import config
from ucotron_ray.core.files import write_json
from ucotron_ray.core.provenance import provenance
from ucotron_ray.synthesis.governor import Governor
from ucotron_ray.synthesis.journal import SYNC_SECONDS, Record, Writer
from ucotron_ray.synthesis.ledger import Budget, Finished, Need, Settings
from ucotron_ray.synthesis.permits import EXCHANGE_SECONDS
from ucotron_ray.teacher.outcome import OutcomeKind

NODES = (8, 64, 512)
RUN = "run"


@dataclass(frozen=True)
class Shape:
    """Of a Qwen2.5 model: what its LoRA layers span."""

    hidden: int
    inner: int
    kv: int
    layers: int
    base_gb: float
    """Weights in bfloat16."""


# From the models' config.json at the hub, by their names.
SHAPES = {
    "slm": Shape(896, 4864, 128, 24, 1.0),
    "small": Shape(1536, 8960, 256, 28, 3.1),
    "medium": Shape(3584, 18944, 512, 28, 15.2),
}


@dataclass(frozen=True)
class Measured:
    """Costs on one core of the machine of the result files."""

    sender_requests_per_second: float
    """Of one sending actor, with the simulator that it asks beside it on two cores."""
    exchange_us: Mapping[int, float]
    """Of the limiter for one exchange, by the number of senders."""
    request_us: float
    """Of the limiter's process for one request in an exchange, its way in and out included."""
    record_bytes: float
    """Of one answer in the journal."""
    driver_mb_per_million_requests: float
    train_fixed_seconds: float
    """What Ray Train adds to a training, whatever its length."""


@dataclass(frozen=True)
class Assumed:
    """What was not measured here."""

    call_us: float = 500.0
    """Of Ray for one call of the limiter's actor, on its core."""
    shared_gb_per_second: float = 1.0
    """What a shared file system gives to all nodes together."""
    network_gb_per_second: float = 1.25
    """Between two nodes: 10 Gbit/s."""


@dataclass(frozen=True)
class Synthesis:
    """One sender a node. Rates a second."""

    nodes: int
    account_limit: float
    senders_limit: float
    limiter_limit: float
    limiter_share_at_account_limit: float
    journal_mb: float
    journal_syncs: float
    """At most: a process syncs only what is new."""
    first: str


@dataclass(frozen=True)
class Training:
    """One GPU a node, one worker each, a sweep where one training cannot take them all."""

    nodes: int
    workers_of_one: int
    at_once: int
    base_read_seconds: float
    """Until every node has read the base model from the shared file system."""
    checkpoint_gb: float
    """Of all trainings that save at the same time: adapter and two moments in float32."""
    allreduce_seconds: float
    """A step of one training, the adapter's gradients in float32 around a ring."""
    first: str


def synthesis(nodes: int, measured: Measured, assumed: Assumed, requests_per_minute: float | None) -> Synthesis:
    """What synthesis loads, and what ends first."""
    account = requests_per_minute / 60 if requests_per_minute else float("inf")
    senders = nodes * measured.sender_requests_per_second
    exchange = (measured.exchange_us[nodes] + assumed.call_us) / 1e6
    # A busy sender asks as often as it may. One core takes so many exchanges; what is left of it takes requests in them.
    most_exchanges = nodes / EXCHANGE_SECONDS
    busy = min(1.0, most_exchanges * exchange)
    # A full limiter is asked less often with more in each exchange: at the least once a second, to be lively.
    at_least = nodes * exchange
    limiter = max(0.0, 1.0 - min(busy, at_least)) / (measured.request_us / 1e6)
    rate = min(account, senders, limiter)
    limits = {"the account's limit": account, "the senders' processors": senders, "the limiter's core": limiter}
    return Synthesis(
        nodes=nodes,
        account_limit=account,
        senders_limit=senders,
        limiter_limit=limiter,
        # A sender that waits for leave asks again with every answer and every grant, but no more often than it may.
        limiter_share_at_account_limit=min(most_exchanges, 2 * rate + nodes / 2) * exchange
        + rate * measured.request_us / 1e6,
        journal_mb=rate * measured.record_bytes / 1e6,
        journal_syncs=min(nodes / SYNC_SECONDS, rate),
        first=min(limits, key=lambda name: limits[name]),
    )


def adapter_parameters(shape: Shape, rank: int) -> int:
    """Of LoRA on all linear layers: rank times the widths of both sides of each."""
    attention = 2 * (shape.hidden + shape.hidden) + 2 * (shape.hidden + shape.kv)
    return rank * shape.layers * (attention + 3 * (shape.hidden + shape.inner))


def training(
    nodes: int, shape: Shape, rank: int, global_batch: int, step_seconds: float, measured: Measured, assumed: Assumed
) -> Training:
    """What training loads, and what ends first. `step_seconds` = of one worker alone with its rows of a step."""
    workers = min(nodes, global_batch)
    at_once = max(1, nodes // workers)
    parameters = adapter_parameters(shape, rank)
    base = nodes * shape.base_gb / assumed.shared_gb_per_second
    ring = 2 * (workers - 1) / workers * 4 * parameters / 1e9 / assumed.network_gb_per_second
    costs = {
        "the recipe's global batch": 0.0 if nodes <= global_batch else float("inf"),
        "reading the base model": base / measured.train_fixed_seconds,
        "the gradients' way": ring / step_seconds,
    }
    return Training(
        nodes=nodes,
        workers_of_one=workers,
        at_once=at_once,
        base_read_seconds=base,
        checkpoint_gb=at_once * 12 * parameters / 1e9,
        allreduce_seconds=ring,
        first=max(costs, key=lambda name: costs[name]),
    )


# ---- measurements ----------------------------------------------------------------------------------------------------


def time_of_exchange(senders: int, requests: int, *, seconds: float = 0.4) -> float:
    """Microseconds of the limiter for one exchange that hands in and takes out so many requests."""
    governor = Governor(Settings(10**6, 10**6, None, None, None, 300.0), time.monotonic)
    governor.join(RUN, Budget(None, None), governor.settings)
    need = Need("extract", 200, 400, 100)
    names = [f"sender-{number}" for number in range(senders)]
    granted = {name: governor.exchange(RUN, name, [], [need] * requests).reserved for name in names}
    # Of the processor, so that what else runs on the machine does not count.
    count, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        for name in names:
            governor.driver_is_alive(RUN)
            finished = [Finished(need, reserved, OutcomeKind.ANSWER, 200, 0, 60, 0.0, 1) for reserved in granted[name]]
            granted[name] = governor.exchange(RUN, name, finished, [need] * requests).reserved
            count += 1
    return (time.process_time() - began) / count * 1e6


def time_of_travel(requests: int, *, seconds: float = 0.3) -> float:
    """Microseconds of the limiter's process for one request on its way in and its leave on the way out (pickled by Ray)."""
    governor = Governor(Settings(10**6, 10**6, None, None, None, 300.0), time.monotonic)
    governor.join(RUN, Budget(None, None), governor.settings)
    need = [Need(f"extract {number}", 200 + number, 400, 100) for number in range(requests)]
    grant = governor.exchange(RUN, "sender", [], need)
    finished = [
        Finished(n, r, OutcomeKind.ANSWER, 200, 0, 60, 0.0, 1) for n, r in zip(need, grant.reserved, strict=True)
    ]
    sent = pickle.dumps((finished, need), protocol=5)
    count, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        pickle.loads(sent)
        pickle.dumps(grant, protocol=5)
        count += requests
    return (time.process_time() - began) / count * 1e6


def bytes_of_record(directory: Path, text: str) -> int:
    """Of one journaled answer of this text."""
    writer = Writer(directory)
    record = Record("0" * 32, "answer", text, "stop", "relation_extraction", "relation_extraction.write", "teacher", 180, 0, 57, False, 0.0002, 1)  # fmt: skip
    _, length = writer.append(record)
    writer.close()
    return length


def measure() -> dict[str, Any]:
    """The costs that no other benchmark measures."""
    few, many = 1, 11
    exchange = {nodes: time_of_exchange(nodes, few) for nodes in NODES}
    per_request = (time_of_exchange(NODES[0], many) - exchange[NODES[0]]) / (many - few)
    travel = time_of_travel(20)
    with tempfile.TemporaryDirectory() as directory:
        # An answer of 57 tokens, the mean of synthesis_targets.json, at four characters a token.
        size = bytes_of_record(Path(directory), "x" * (57 * 4))
    return {
        "exchange_us": {str(nodes): max(0.0, time - few * per_request) for nodes, time in exchange.items()},
        "request_us": per_request + travel,
        "travel_us": travel,
        "record_bytes": size,
    }


def measured(directory: Path = RESULTS) -> Measured:
    """The constants of the result files."""
    read = {
        name: json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("scale", "synthesis_throughput", "synthesis_plan", "training_ray")
    }
    plan = read["synthesis_plan"]
    return Measured(
        sender_requests_per_second=read["synthesis_throughput"]["arms"]["ours at 0.02 s"]["rate"],
        exchange_us={int(nodes): time for nodes, time in read["scale"]["exchange_us"].items()},
        request_us=read["scale"]["request_us"],
        record_bytes=read["scale"]["record_bytes"],
        driver_mb_per_million_requests=plan["driver_mb_peak_above"] / plan["requests"] * 1e6,
        train_fixed_seconds=read["training_ray"]["group"]["fixed_seconds"]
        - read["training_ray"]["ray"]["fixed_seconds"],
    )


# ---- tables ----------------------------------------------------------------------------------------------------------


def synthesis_table() -> str:
    """For the default account, and for one without limits."""
    constants, assumed = measured(), Assumed()
    lines = [
        "| nodes | account allows /s | senders could /s | limiter could /s | limiter's core | journal MB/s | syncs /s | first to end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for limit in (config.load().place.api.requests_per_minute, None):
        for nodes in NODES:
            made = synthesis(nodes, constants, assumed, limit)
            allowed = "no limit" if limit is None else f"{made.account_limit:,.0f}"
            lines.append(
                f"| {nodes} | {allowed} | {made.senders_limit:,.0f} | {made.limiter_limit:,.0f} "
                f"| {min(1.0, made.limiter_share_at_account_limit):.0%} | {made.journal_mb:.2f} "
                f"| {made.journal_syncs:,.0f} | {made.first} |"
            )
    return "\n".join(lines)


def training_table() -> str:
    """For every tier with its own rank and the default global batch."""
    constants, assumed = measured(), Assumed()
    settings = config.load().recipe.training.sft
    lines = [
        "| tier | nodes | workers of one training | trainings at once | base model read, s | a checkpoint of all, GB | gradients a step, s | first to end |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for tier, shape in SHAPES.items():
        chosen = getattr(settings, tier)
        for nodes in NODES:
            made = training(nodes, shape, chosen.lora_rank, chosen.batch_size or 16, 1.0, constants, assumed)
            lines.append(
                f"| {tier} | {nodes} | {made.workers_of_one} | {made.at_once} | {made.base_read_seconds:,.0f} "
                f"| {made.checkpoint_gb:.2f} | {made.allreduce_seconds:.2f} | {made.first} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, write the result file, print the tables."""
    began = time.monotonic()
    made = measure()
    origin = provenance(seconds=time.monotonic() - began)
    made |= {"commit": origin["commit"], "packages": origin["packages"], "processor": processor()}
    write_json(RESULTS / "scale.json", made)
    print(f"{synthesis_table()}\n\n{training_table()}\n\n{json.dumps(dataclasses.asdict(measured()), indent=2)}")


if __name__ == "__main__":
    main()
