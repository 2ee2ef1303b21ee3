"""Measures sweeps: `python -m tests.benchmarks.sweeps [grid replay live] [--keep DIR]`. Writes `results/sweep_<name>.json`.

`grid` trains 12 configurations (4 rates × 3 ranks) of the demo's model to their end and keeps the curves; it is sized for
half an hour on two cores, which `probe` (two of the 12) lets check. `replay` runs the sweep's own decisions over these
curves in 100 orders, without training anything. `live` runs the sweep once as a user would. Stopped, the same command
with the same --keep goes on.
"""

import argparse
import heapq
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.run import RECIPE, processor, ucotron
from tests.benchmarks.sweeps_table import sweeps_table
from tests.benchmarks.table import RESULTS
from ucotron_ray.core import config
from ucotron_ray.core.artifacts import Store
from ucotron_ray.core.provenance import provenance
from ucotron_ray.data import jsonl
from ucotron_ray.simulators import demo_world
from ucotron_ray.tuning import record as records
from ucotron_ray.tuning import sweep as sweeps
from ucotron_ray.tuning.on_ray import Halving
from ucotron_ray.tuning.record import Record, Score
from ucotron_ray.tuning.summary import summary, winner

Result = dict[str, Any]

RATES, RANKS = [8.0e-5, 2.5e-4, 8.0e-4, 2.5e-3], [4, 16, 64]
TRAIN_ROWS, VAL_ROWS, BATCH, REPORT = 72, 16, 2, 6
STEPS = TRAIN_ROWS // BATCH
PREDICATES = 8
TRAIN_WORLD, VAL_WORLD = 42, 43
AT_ONCE, ORDERS = 2, 100
DEFAULT = (REPORT, 3)
VARIANTS = (DEFAULT, (REPORT, 2), (REPORT, 4), (2 * REPORT, 2), (2 * REPORT, 3))
"""(first rung in steps, reduction factor)."""

WANTED_BEST, WANTED_SPREAD = 0.5, 0.10


def rows(world: int, count: int, predicates: Collection[str]) -> list[Any]:
    """Rows of a world that state one relation, of these predicates. GENERATED DATA."""
    return [row for row in single(world) if row.expected_relations[0].predicate in predicates][:count]


def single(world: int) -> list[Any]:
    """Rows that state one relation, in an order of their own."""
    every = demo_world.rows(demo_world.graph_world(world), 2000, seed=world)
    return [row for row in every if len(row.expected_relations) == 1]


def frequent(world: int) -> set[str]:
    """The most frequent predicates of such rows."""
    counts = Counter(row.expected_relations[0].predicate for row in single(world))
    return {name for name, _ in counts.most_common(PREDICATES)}


def tune(
    root: Path, name: str, *, scheduler: str, rates: Sequence[float] = RATES, ranks: Sequence[int] = RANKS
) -> Result:
    """One sweep in the store below root; the verb's last line, the record, and the minutes."""
    root.mkdir(parents=True, exist_ok=True)
    files = {"train": root / "train.jsonl", "val": root / "val.jsonl"}
    if not files["val"].is_file():
        predicates = frequent(TRAIN_WORLD)
        jsonl.write_rows(files["train"], rows(TRAIN_WORLD, TRAIN_ROWS, predicates))
        jsonl.write_rows(files["val"], rows(VAL_WORLD, VAL_ROWS, predicates))
    settings = {
        "training.sft.slm.epochs": 1,
        "training.sft.slm.batch_size": BATCH,
        "training.sft.slm.max_rows": TRAIN_ROWS,
        "training.sft.slm.eval_rows": 8,
        "tuning.search": "grid",
        "tuning.space.sft.learning_rate": json.dumps(list(rates)),
        "tuning.space.sft.lora_rank": json.dumps(list(ranks)),
        "tuning.scheduler": scheduler,
        "tuning.report_steps": REPORT,
        "tuning.f1_rows": VAL_ROWS,
        "tuning.max_new_tokens": 40,
        "trials.slm.cpus_per_worker": 1,
        "trials.slm.at_once": AT_ONCE,
    }
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    data = ["--train-data", str(files["train"]), "--val-data", str(files["val"])]
    began = time.monotonic()
    result = ucotron(root / "store", "tune", "sft", *RECIPE, *data, "--name", name, *overrides)
    record = records.read(Store(root / "store").get("sweep", name).path)
    assert record is not None
    return {"line": result, "record": record, "minutes": (time.monotonic() - began) / 60}


def fixed(record: Record) -> Result:
    """Seconds that a trial costs beside its steps and scores."""
    values = [trial.fixed_seconds for trial in record.trials if trial.fixed_seconds is not None]
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "trials": len(values)}


def probe(root: Path) -> Result:
    """Two configurations to their end, at once: what a pair of trials takes and reaches."""
    made = tune(root, "probe", scheduler="none", rates=RATES[2:], ranks=RANKS[1:2])
    record: Record = made["record"]
    curves = {
        trial.id: [(score.step, score.value, score.loss, score.seconds) for score in record.curve(trial.id)]
        for trial in record.trials
    }
    seconds = {trial.id: trial.seconds for trial in record.trials}
    return {"curves": curves, "seconds": seconds, "fixed_seconds": fixed(record), "minutes": made["minutes"]}


def grid(root: Path) -> Result:
    """All configurations to their end: the oracle."""
    made = tune(root, "grid", scheduler="none")
    record: Record = made["record"]
    best = {trial.id: record.best(trial.id) for trial in record.trials}
    values = [score.value for score in best.values() if score is not None]
    return {
        "best": max(values),
        "worst": min(values),
        "as_wanted": max(values) >= WANTED_BEST and max(values) - min(values) >= WANTED_SPREAD,
        "winner": winner(record, "slm"),
        "minutes": made["minutes"],
        "minutes_of_trials": sum(trial.seconds for trial in record.trials) / 60,
        "steps": records.steps_run(record, record.trials),
        "failed": [trial.cause for trial in record.trials if trial.state == "failed"],
        "fixed_seconds": fixed(record),
        "scored_rows": VAL_ROWS,
        "trained_rows": TRAIN_ROWS,
        "curves": [
            {
                "trial": trial.id,
                **trial.params,
                "points": [
                    {"step": score.step, "f1": score.value, "loss": score.loss} for score in record.curve(trial.id)
                ],
            }
            for trial in record.trials
        ],
    }


def replay(root: Path) -> Result:
    """Halving over the grid's curves in 100 orders, with the sweep's own code."""
    kept_grid = json.loads((RESULTS / "sweep_grid.json").read_text(encoding="utf-8"))
    curves = {entry["trial"]: entry for entry in kept_grid["curves"] if entry["points"]}
    made = {}
    for grace, factor in VARIANTS:
        runs = [replayed(curves, order, grace=grace, factor=factor) for order in range(ORDERS)]
        made[f"grace {grace}, factor {factor}"] = {
            "steps_saved": spread([run["steps_saved"] for run in runs]),
            "regret": spread([run["regret"] for run in runs]),
            "found_best": statistics.mean(run["regret"] <= 1e-12 for run in runs),
        }
    return {
        "orders": ORDERS,
        "at_once": AT_ONCE,
        "default": f"grace {DEFAULT[0]}, factor {DEFAULT[1]}",
        "variants": made,
    }


def replayed(curves: Mapping[str, Any], order: int, *, grace: int, factor: int) -> dict[str, float]:
    """One sweep over known curves, trials started in a shuffled order; every step takes as long as any other."""
    names = sorted(curves)
    random.Random(order).shuffle(names)
    tuning = config.load(overrides=[("tuning.search", "grid"), ("tuning.space.sft", {"learning_rate": [1e-3]})])
    plan = sweeps.Plan(
        stage="sft",
        tuning=tuning.recipe.tuning,
        settings={"slm": tuning.recipe.sft},
        at_once={"slm": AT_ONCE},
        side_by_side=False,
        steps_of=lambda tier, settings: STEPS,
    )
    with tempfile.TemporaryDirectory() as directory:
        scheduler = Halving(grace=grace, factor=factor, steps=STEPS)
        record = as_record(curves, names)
        sweep = sweeps.Sweep(Path(directory), record, plan, {"slm": scheduler}, lambda record, trial: None)
        events: list[tuple[int, int, str, int]] = []
        ties = itertools.count()
        clock = 0
        while True:
            while (trial := sweep.next()) is not None:
                heapq.heappush(events, (clock + curves[trial.id]["points"][0]["step"], next(ties), trial.id, 0))
            if not events:
                break
            clock, _, name, index = heapq.heappop(events)
            points = curves[name]["points"]
            point = points[index]
            score = Score(trial=name, step=point["step"], value=point["f1"], loss=point["loss"], at=float(clock))
            if sweep.scored(score) or index + 1 == len(points):
                sweep.ended(name, "finished")
            else:
                heapq.heappush(events, (clock + points[index + 1]["step"] - point["step"], next(ties), name, index + 1))
        found = summary(sweep.record)
    oracle = max(point["f1"] for entry in curves.values() for point in entry["points"])
    return {"steps_saved": found["steps_saved"], "regret": oracle - found["winners"]["slm"]["value"]}


def as_record(curves: Mapping[str, Any], names: Sequence[str]) -> Record:
    """A sweep that has not begun, with these trials in this order."""
    facts = records.TierFacts(
        model="replay",
        identity="replay",
        parameters=None,
        bytes=None,
        rows=TRAIN_ROWS,
        steps=STEPS,
        report_steps=REPORT,
        grace_steps=REPORT,
    )
    trials = [
        records.Trial(
            id=name,
            tier="slm",
            number=number,
            params={key: curves[name][key] for key in ("learning_rate", "lora_rank")},
            seed=42,
            steps=STEPS,
        )
        for number, name in enumerate(names)
    ]
    return Record(
        name="replay",
        stage="sft",
        data="replay",
        search="grid",
        scheduler="asha",
        reduction_factor=DEFAULT[1],
        searched=["learning_rate", "lora_rank"],
        tiers={"slm": facts},
        trials=trials,
    )


def live(root: Path) -> Result:
    """The same configurations as a sweep that stops what is behind."""
    oracle = json.loads((RESULTS / "sweep_grid.json").read_text(encoding="utf-8"))
    made = tune(root, "live", scheduler="asha")
    record: Record = made["record"]
    found = summary(record)
    won = found["winners"]["slm"]
    return {
        "steps_saved": found["steps_saved"],
        "regret": oracle["best"] - won["value"],
        "winner": won,
        "states": found["states"],
        "minutes": made["minutes"],
        "minutes_of_the_grid": oracle["minutes"],
        "fixed_seconds": fixed(record),
    }


def spread(values: Sequence[float]) -> Result:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


ARMS: dict[str, Callable[[Path], Result]] = {"probe": probe, "grid": grid, "replay": replay, "live": live}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=["grid", "replay", "live"], metavar="NAME")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="rows and store lie there: a run that was stopped goes on"
    )
    given = parser.parse_args()
    for name in given.names:
        with tempfile.TemporaryDirectory(prefix="bench-sweep-") as scratch:
            result = ARMS[name](given.keep or Path(scratch))
        made = provenance(seconds=0.0)
        result |= {"commit": made["commit"], "packages": made["packages"], "processor": processor()}
        if name == "probe":
            print(json.dumps(result, indent=2), file=sys.stderr)
            continue
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"sweep_{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(sweeps_table())


if __name__ == "__main__":
    main()
