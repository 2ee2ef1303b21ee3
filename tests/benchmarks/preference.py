"""DPO after SFT on the demo: does it keep F1, and does it tell right answers from the model's own wrong ones?

Goes through the command line in one store, so that a run that was stopped goes on where it was.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.run import RECIPE, ucotron
from ucotron_ray.core.artifacts import Store
from ucotron_ray.evaluation import bootstrap

NAME, ALIGNED = "demo", "demo-dpo"
RESAMPLES = 2000
PAIRS, HELD_OUT_PAIRS = 160, 64


def preference(store: Path) -> dict[str, Any]:
    """The demo's SFT, pairs of its wrong answers, DPO, and both models on the same held-out rows.

    A demo that is in the store already (`make demo`, with its `data/demo` as `data` in the store) is taken as it is.
    """
    data = store / "data"
    if not data.is_dir():
        subprocess.run(
            [sys.executable, "-m", "ucotron_ray.simulators.demo_world", str(data)], check=True, stdout=sys.stderr
        )
    common = [*RECIPE, "--set", "tracking.mlflow_uri=none"]
    graph = ["--set", f"graph.source={data}/graph_export.jsonld", "--set", "generation.in_pipeline=0"]
    scored = ["--set", f"evaluation.data={data}/relations_test.jsonl", "--set", "evaluation.base=false"]
    if not Store(store).path("adapter", NAME).is_dir():
        ucotron(store, "pipeline", *common, *graph, *scored, "--skip-export")
    settings = {"max_rows": PAIRS, "eval_rows": HELD_OUT_PAIRS, "max_longer_share": 0.6, "batch_size": 8, "epochs": 1}
    settings |= {"learning_rate": 5e-5, "lora_rank": 16, "max_context_length": 1024, "on_policy.max_tokens": 128}
    aligned = [part for key, value in settings.items() for part in ("--set", f"training.dpo.slm.{key}={value}")]
    made = ucotron(store, "dpo", *common, *aligned, "--data", NAME, "--from", NAME, "--name", ALIGNED)
    ucotron(store, "evaluate", ALIGNED, *common, *scored)
    before, after = (counts_of(store, name) for name in (NAME, ALIGNED))
    compared = bootstrap.paired(after, before, resamples=RESAMPLES, seed=42)
    return {
        "f1_before": float(bootstrap.f1_of_counts(before.sum(axis=0))),
        "f1_after": float(bootstrap.f1_of_counts(after.sum(axis=0))),
        "difference": compared.difference,
        "difference_low": compared.low,
        "difference_high": compared.high,
        "rows": len(before),
        "pairs": made["counts"]["rows"],
        "held_out_pairs": made["counts"]["val_rows"],
        "accuracy": made["eval_accuracy"],
        "longer_wins": made["eval_longer_wins"],
        "train_longer_wins": made["longer_wins"],
        "margin": made["eval_margin"],
        "settings": settings,
    }


def counts_of(store: Path, name: str) -> np.ndarray:
    """Right, predicted and expected triples of each held-out row, in the chat layout."""
    path = Store(store).get("scores", name).path / "predictions.jsonl"
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    counts = [
        (entry["right"], len(entry["predicted"] or []), len(entry["expected"]))
        for entry in sorted(entries, key=lambda entry: entry["row"])
        if entry["layout"] == "chat" and entry["group"] != "guide"
    ]
    return np.array(counts, dtype=np.float64)
