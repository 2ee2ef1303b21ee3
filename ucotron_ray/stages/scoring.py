"""Scoring a model on held-out rows."""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from ucotron_ray import jsonl
from ucotron_ray.artifacts import Artifact, Build, Request, Result
from ucotron_ray.models import base as base_models
from ucotron_ray.records import RawRow
from ucotron_ray.run import Run
from ucotron_ray.stages.datasets import ROWS, rows_file
from ucotron_ray.stages.models import loadable_base, prompt_identity

PREDICTIONS, SCORES = "predictions.jsonl", "scores.json"


HEADLINE_GROUP, SECOND_GROUP, GUIDE_GROUP = "seen", "unseen", "guide"


def evaluate_request(
    run: Run, name: str, base: base_models.BaseModel, adapter: Artifact | None, data: Artifact
) -> Request:
    """What scoring would make."""
    fields = {
        "evaluation": run.config.recipe.evaluation.model_dump(exclude={"data", "base"}),
        "base": {"reference": base.reference, "identity": base.identity},
        "prompt": prompt_identity(),
    }
    inputs = (data.as_input("data"), *((adapter.as_input("adapter"),) if adapter else ()))
    return Request("scores", name, fields, inputs)


def evaluate(run: Run, name: str, base: base_models.BaseModel, adapter: Artifact | None, data: Artifact) -> Artifact:
    """Score a base model, or it with an adapter → `scores/<name>` with every prediction."""
    settings, workers = run.config.recipe.evaluation, run.config.place.workers

    def build(build: Build) -> Result:
        loadable = loadable_base(run, base)
        run.connect()
        from ucotron_ray import session
        from ucotron_ray.evaluation.guide_prompts import guide_rows
        from ucotron_ray.evaluation.on_ray import predict_on_ray
        from ucotron_ray.evaluation.predictions import PredictJob
        from ucotron_ray.evaluation.report import write_scores

        sample = sampled(jsonl.read_relations(rows_file(data)), settings.max_rows, settings.seed)
        rows = [*sample, *guide_rows()]
        jsonl.write_rows(build.path / ROWS, rows)
        questions = [(index, "chat") for index in range(len(rows))]
        num_raw = min(settings.raw_rows, len(sample))
        asked_raw = random.Random(settings.seed).sample(range(len(sample)), num_raw)
        questions += [(index, "raw") for index in sorted(asked_raw)]
        job = PredictJob(
            base=loadable,
            adapter=str(adapter.path / "adapter") if adapter else None,
            rows_file=str(build.path / ROWS),
            questions=tuple(questions),
            output_file="",
            max_new_tokens=settings.max_new_tokens,
            batch_size=workers.eval_batch,
            dtype=workers.dtype,
            num_threads=session.worker_resources(workers).threads,
        )
        predictions, measured = predict_on_ray(job, workers, build.path, run.log_file)
        scores = write_scores(build.path, rows, predictions, settings)
        for shard in build.path.glob("shard-*.jsonl"):
            shard.unlink()
        stage = "evaluate" if adapter else "evaluate-base"
        metrics = {**flat_metrics(scores), **({"seconds": measured["seconds"]} if measured["seconds"] else {})}
        spool = run.spool.child(stage)
        spool.dataset(data, "evaluation")
        if adapter:
            spool.model(adapter, "input")
        spool.metrics(metrics)
        for file in (SCORES, PREDICTIONS):
            spool.file(build.path / file)
        counts = {"rows": len(sample), "predictions": len(predictions)}
        return Result(metrics, counts, [f"model {base.reference}" + (f" + {adapter.manifest.name}" if adapter else "")])

    stage = "evaluate" if adapter else "evaluate-base"
    return run.make(stage, evaluate_request(run, name, base, adapter, data), build)


def scores_of(artifact: Artifact) -> dict[str, Any]:
    """The scores of a scores artifact."""
    scores: dict[str, Any] = json.loads((artifact.path / SCORES).read_text(encoding="utf-8"))
    return scores


def flat_metrics(scores: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a scores file for the manifest and MLflow: overall, per group, raw layout and guide prompts."""
    metrics = {key: float(value) for key, value in scores["overall"].items()}
    for group, values in {**scores["groups"], "raw": scores["raw"], GUIDE_GROUP: scores["guide"]}.items():
        if values:
            names = ("f1", "f1_low", "f1_high", "valid_answers", "rows")
            metrics |= {f"{group}_{key}": float(values[key]) for key in names}
    return metrics


def sampled(rows: Sequence[RawRow], max_rows: int | None, seed: int) -> list[RawRow]:
    """A seeded sample that keeps the shares of the groups, in the order of the file."""
    if max_rows is None or max_rows >= len(rows):
        return list(rows)
    groups: dict[str | None, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.group, []).append(index)
    picked: list[int] = []
    for number, members in enumerate(groups.values(), 1):
        # Rounding is settled by the last group.
        share = max_rows - len(picked) if number == len(groups) else round(max_rows * len(members) / len(rows))
        picked += random.Random(seed).sample(members, min(share, len(members)))
    return [rows[index] for index in sorted(picked)]
