"""Measures what README claims: `python -m tests.benchmarks.run [demo real_graph]`, in fresh stores.

Writes `results/<name>.json` and prints the table for README. `real_graph` needs the real data beside the checkout.
"""

import argparse
import json
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.table import RESULTS, table
from ucotron_ray.core.artifacts import Store
from ucotron_ray.core.provenance import provenance

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"
PLACE = ["--place", str(ROOT / "cluster/places/laptop.yaml")]
RECIPE = ["--recipe", str(ROOT / "jobs/recipes/demo.yaml")]
PARTS = ("f1", "f1_low", "f1_high", "valid_answers", "precision", "recall", "rows")

REAL_TRAIN_ROWS = 800


def demo(store: Path) -> dict[str, Any]:
    """The main job from nothing, then once more."""
    data = store / "data"
    subprocess.run(
        [sys.executable, "-m", "ucotron_ray.simulators.demo_world", str(data)], check=True, stdout=sys.stderr
    )
    arguments = ["pipeline", *RECIPE, "--set", f"graph.source={data}/graph_export.jsonld"]
    arguments += ["--set", f"evaluation.data={data}/relations_test.jsonl"]
    arguments += ["--set", "api.inference_base_url={url}/inference/v1"]
    began = time.monotonic()
    ucotron(store, *arguments, simulator=True)
    first = time.monotonic() - began
    began = time.monotonic()
    ucotron(store, *arguments, simulator=True)
    second = time.monotonic() - began
    parts = {group: beside(store, "demo", group) for group in ("seen", "unseen")}
    return {"parts": parts, "minutes": first / 60, "second_run_seconds": second, **of_adapter(store, "demo")}


def real_graph(store: Path) -> dict[str, Any]:
    """Graph, training and a seeded sample of the held-out rows of `../shared/data`."""
    name = "t2k"
    began = time.monotonic()
    ucotron(store, "import-graph", str(REAL / "graph_export.jsonld"), "--name", name)
    overrides = ["--set", f"training.sft.slm.max_rows={REAL_TRAIN_ROWS}", "--set", "evaluation.max_new_tokens=128"]
    ucotron(store, "sft", *RECIPE, "--train-data", name, "--name", name, *overrides)
    # The 500 rows that are test for ever; here, since `real_rows` imports this file.
    from tests.benchmarks import real_rows

    test = real_rows.write(store)["test"]
    scored = ["--data", str(test), "--max-rows", str(real_rows.ROWS_OF_EACH), *overrides]
    ucotron(store, "evaluate", name, *RECIPE, *scored)
    minutes = (time.monotonic() - began) / 60
    return {"parts": {"all": beside(store, name, None)}, "minutes": minutes, **of_adapter(store, name)}


def ucotron(store: Path, *arguments: str, simulator: bool = False) -> dict[str, Any]:
    """One verb; with `simulator` beside the one of the teacher."""
    command = [sys.executable, "-m", "ucotron_ray", *arguments, *PLACE, "--set", f"store={store}", "--json"]
    if simulator:
        command = [sys.executable, "-m", "ucotron_ray", "simulate-fireworks", "--", *command]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return answer


def beside(store: Path, name: str, group: str | None) -> dict[str, dict[str, float]]:
    """Base and tuned scores of a group, or of all rows."""
    made = {}
    for arm, artifact in (("base", f"{name}-base"), ("tuned", name)):
        scores = json.loads((Store(store).get("scores", artifact).path / "scores.json").read_text(encoding="utf-8"))
        values = scores["groups"][group] if group else scores["overall"]
        made[arm] = {key: values[key] for key in PARTS}
    return made


def of_adapter(store: Path, name: str) -> dict[str, Any]:
    manifest = Store(store).get("adapter", name).manifest
    return {
        "rows_trained": manifest.counts["rows"],
        "train_minutes": manifest.provenance["seconds"] / 60,
        "seed": manifest.recipe_fields["sft"]["seed"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=["demo", "real_graph"])
    for name in parser.parse_args().names:
        if name == "real_graph" and not REAL.is_dir():
            print(f"real_graph: skipped, there is no {REAL}", file=sys.stderr)
            continue
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as store:
            result = {"demo": demo, "real_graph": real_graph}[name](Path(store))
        made = provenance(seconds=result["minutes"] * 60)
        result |= {"commit": made["commit"], "packages": made["packages"], "processor": processor()}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(table())


def processor() -> str:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"model name\s*: (.*)", info)
    return f"{model[1] if model else platform.processor()}, {info.count('processor')} cores"


if __name__ == "__main__":
    main()
