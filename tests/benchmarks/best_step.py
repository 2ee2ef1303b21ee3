"""Last step against best step on the demo's rows, three seeds: `python -m tests.benchmarks.best_step DIRECTORY`.

DIRECTORY has the demo's `train.jsonl`, `val.jsonl` and `test.jsonl`. Each seed trains once as the demo's recipe says, with
F1 on validation rows four times; the adapter of the best step and that of the last one answer the same test rows. What is
done is kept in DIRECTORY: the same command goes on.
"""

import json
import sys
from pathlib import Path
from typing import Any

from tests.benchmarks.run import processor
from tests.benchmarks.table import RESULTS
from tests.benchmarks.training_arms import model_directory
from ucotron_ray.core import config
from ucotron_ray.core.provenance import provenance
from ucotron_ray.data import jsonl
from ucotron_ray.evaluation import generate, scoring
from ucotron_ray.evaluation.bootstrap import f1_of_counts, paired
from ucotron_ray.evaluation.predictions import PredictJob, read_predictions
from ucotron_ray.training import sft
from ucotron_ray.training.hooks import Hooks
from ucotron_ray.training.job import SftJob

SEEDS = (42, 43, 44)
STEPS = 128
F1_ROWS, TEST_ROWS = 64, 200
ANSWER_TOKENS = 128


def seed_result(directory: Path, seed: int, threads: int) -> dict[str, Any]:
    """Train with one seed, score both adapters on the test rows."""
    kept = directory / f"seed-{seed}.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    run = directory / f"run-{seed}"
    run.mkdir(exist_ok=True)
    loaded = config.load(recipe=Path("jobs/recipes/demo.yaml"))
    settings = loaded.recipe.sft.model_copy(
        update={"seed": seed, "eval_rows": F1_ROWS, "eval_f1_rows": F1_ROWS, "eval_steps": 32, "save_steps": 16}
    )
    score = generate.triples_of(directory / "val.jsonl", F1_ROWS, max_new_tokens=ANSWER_TOKENS, batch_size=32)
    job = SftJob(
        base=str(model_directory()),
        train_file=str(directory / "train.jsonl"),
        val_file=str(directory / "val.jsonl"),
        directory=str(run),
        settings=settings.model_dump(),
        workers=loaded.place.workers.model_dump(),
        num_threads=threads,
    )
    sft.train(job, lambda _: None, Hooks(score=score))
    record = json.loads((run / "training.json").read_text(encoding="utf-8"))
    adapters = {"best": run / "adapter", "last": run / "checkpoints" / f"checkpoint-{STEPS}"}
    counts = {name: _counts(run, directory / "test.jsonl", path, name, threads) for name, path in adapters.items()}
    made = {
        "seed": seed,
        "best_step": record["adapter"]["step"],
        "scores": record["adapter"]["scores"],
        **{name: float(f1_of_counts(counts[name].sum(axis=0))) for name in adapters},
        "difference": vars(paired(counts["best"], counts["last"], resamples=1000, seed=42)),
    }
    kept.write_text(json.dumps(made), encoding="utf-8")
    return made


def _counts(run: Path, rows_file: Path, adapter: Path, name: str, threads: int) -> Any:
    # Of the whole file: its groups stand one after the other.
    every = jsonl.read_relations(rows_file)
    picked = [index * len(every) // TEST_ROWS for index in range(TEST_ROWS)]
    job = PredictJob(
        base=str(model_directory()),
        adapter=str(adapter),
        rows_file=str(rows_file),
        questions=tuple((index, "chat") for index in picked),
        output_file=str(run / f"{name}.jsonl"),
        max_new_tokens=ANSWER_TOKENS,
        batch_size=32,
        dtype="auto",
        num_threads=threads,
    )
    generate.predict(job)
    answers = {entry.row: entry.answer for entry in read_predictions(run / f"{name}.jsonl")}
    return scoring.counts_of([scoring.score_row(every[index], answers[index]) for index in picked])


if __name__ == "__main__":
    target = Path(sys.argv[1])
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else 2
    seeds = [seed_result(target, seed, threads) for seed in SEEDS]
    made = provenance(seconds=0.0)
    facts = {"commit": made["commit"], "packages": made["packages"], "processor": processor()}
    result = {"seeds": seeds, "test_rows": TEST_ROWS, "validation_rows": F1_ROWS, **facts}
    (RESULTS / "best_step.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
