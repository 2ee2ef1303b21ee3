"""Estimate against actual on the demo: `python -m tests.benchmarks.estimates --calibrate STORE`.

STORE holds one finished demo: its manifests are the calibration. Then the demo runs once more in a fresh store, with
another seed and other sizes, and what was expected of every stage is compared with what it took. `--finished STORE2`
compares with a run that is there already; `--only synthesize` runs that stage alone. Writes `results/estimate.json`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.benchmarks.run import PLACE, RECIPE, processor, ucotron
from tests.benchmarks.table import RESULTS
from ucotron_ray import pipeline
from ucotron_ray.core import config
from ucotron_ray.core.artifacts import Store
from ucotron_ray.core.provenance import provenance
from ucotron_ray.core.run import Run
from ucotron_ray.planning import forecast, rates

NAME = "second"
SIZES = {
    "generation.in_pipeline": 240,
    "generation.seed": 7,
    "training.sft.slm.max_rows": 384,
    "evaluation.max_rows": 48,
}
"""Other numbers than the calibration's: its own would be met by repeating them."""

TOKENS_WITHIN, MINUTES_WITHIN = 0.05, 0.25


def second_run(store: Path, only: str | None) -> None:
    """The demo in other sizes, or one stage of it."""
    data = store / "data"
    subprocess.run(
        [sys.executable, "-m", "ucotron_ray.simulators.demo_world", str(data)], check=True, stdout=sys.stderr
    )
    overrides = [part for key, value in SIZES.items() for part in ("--set", f"{key}={value}")]
    overrides += ["--set", "api.inference_base_url={url}/inference/v1"]
    if only == "synthesize":
        count = str(SIZES["generation.in_pipeline"])
        synthesize = ["synthesize", "relation_extraction", "--count", count, "--name", f"{NAME}-teacher"]
        ucotron(store, *synthesize, *RECIPE, *overrides, simulator=True)
        return
    overrides += ["--set", f"graph.source={data}/graph_export.jsonld", "--name", NAME]
    overrides += ["--set", f"evaluation.data={data}/relations_test.jsonl"]
    ucotron(store, "pipeline", *RECIPE, *overrides, simulator=True)


def compared(calibration: Path, store: Path, name: str, sizes: dict[str, Any]) -> list[dict[str, Any]]:
    """Every stage that the second store has: expected by the first one's rates, and taken."""
    overrides = [*sizes.items(), ("store", str(store)), ("tracking.mlflow_uri", "none")]
    place = Path(PLACE[1])
    settings = config.load(recipe=Path(RECIPE[1]), place=place, overrides=overrides)
    run = Run(settings, verb="pipeline", name=name)
    expected = forecast.every_stage(run, pipeline.chain(run, pipeline.Options()), rates.measured(Store(calibration)))
    stages = [asdict(stage) for stage in forecast.taken(run, expected)]
    for stage in stages:
        for figure, within in (("tokens", TOKENS_WITHIN), ("usd", TOKENS_WITHIN), ("minutes", MINUTES_WITHIN)):
            ours, actual = stage[figure], stage[f"actual_{figure}"]
            if ours is not None and actual:
                stage[f"{figure}_off"] = ours / actual - 1
                stage[f"{figure}_within"] = abs(ours / actual - 1) <= within
    return stages


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--calibrate", type=Path, required=True, metavar="STORE")
    parser.add_argument("--finished", type=Path, metavar="STORE")
    parser.add_argument("--name", default="demo", help="of the finished run")
    parser.add_argument("--only", choices=("synthesize",))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-estimate-") as folder:
        if args.finished:
            stages = compared(args.calibrate, args.finished, args.name, {})
        else:
            second_run(Path(folder), args.only)
            stages = compared(args.calibrate, Path(folder), NAME, SIZES)
    made = provenance(seconds=0.0)
    result = {"stages": stages, "sizes": {} if args.finished else SIZES, "processor": processor()}
    result |= {"commit": made["commit"], "packages": made["packages"]}
    target = RESULTS / ("estimate.json" if not args.only else f"estimate_{args.only}.json")
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for stage in stages:
        parts = [
            f"{figure} {stage[f'{figure}_off']:+.1%}"
            for figure in ("tokens", "usd", "minutes")
            if f"{figure}_off" in stage
        ]
        print(f"{stage['stage']:<14} " + "  ".join(parts))


if __name__ == "__main__":
    main()
