"""Scoring what answers on held-out rows, and what was scored side by side."""

import json
import logging
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl, uses
from ucotron_ray.data.records import RawRow, name_key
from ucotron_ray.data.stage import ROWS, rows_file
from ucotron_ray.evaluation.answers import ModelRef, answers_of, layouts_of
from ucotron_ray.evaluation.scoring import MEASURE
from ucotron_ray.models import base as base_models
from ucotron_ray.models.stage import prompt_identity

log = logging.getLogger(__name__)

PREDICTIONS, SCORES, REPORT = "predictions.jsonl", "scores.json", "report.html"


HEADLINE_GROUP, SECOND_GROUP, GUIDE_GROUP = "seen", "unseen", "guide"


def evaluate_request(
    run: Run, name: str, base: base_models.BaseModel, adapter: Artifact | None, data: Artifact
) -> Request:
    """What scoring a model would make."""
    return score_request(run, name, ModelRef(name, "model", base=base, adapter=adapter), data)


def evaluate(run: Run, name: str, base: base_models.BaseModel, adapter: Artifact | None, data: Artifact) -> Artifact:
    """Score a base model, or it with an adapter → `scores/<name>` with every prediction."""
    source = ModelRef(name, "model", base=base, adapter=adapter)
    return score(run, name, source, data, stage="evaluate" if adapter else "evaluate-base")


def score_request(run: Run, name: str, source: ModelRef, data: Artifact) -> Request:
    """What scoring would make."""
    settings = run.config.recipe.evaluation.model_dump(exclude={"data", "base", "few_shots"})
    fields = {"evaluation": settings, "measure": MEASURE, "prompt": prompt_identity(), **source.identity}
    return Request("scores", name, fields, (data.as_input("data"), *source.inputs))


def score(run: Run, name: str, source: ModelRef, data: Artifact, *, stage: str) -> Artifact:
    """Ask a source the held-out rows and the guide's five → `scores/<name>` with every prediction."""
    settings = run.config.recipe.evaluation

    def build(build: Build) -> BuildResult:
        from ucotron_ray.evaluation import baselines
        from ucotron_ray.evaluation.guide_prompts import guide_rows
        from ucotron_ray.evaluation.report import write_scores

        sample = sampled(jsonl.relations_among(rows_file(data)), settings.max_rows, settings.seed)
        rows = [*sample, *guide_rows()]
        jsonl.write_rows(build.path / ROWS, rows)
        asked = _questions(source, len(sample), len(rows), run)
        predictions, measured = answers_of(run, source, rows, asked, build.path)
        guesses = baselines.scores(sample, baselines.training_rows(run, source))
        scores = write_scores(build.path, rows, predictions, settings, guesses)
        for shard in build.path.glob("shard-*.jsonl"):
            shard.unlink()
        seconds = measured.get("seconds", 0.0)
        metrics = {**flat_metrics(scores), **({"seconds": seconds} if seconds else {})}
        spool = run.spool.child(stage)
        spool.dataset(data, "evaluation")
        for artifact in (source.adapter, source.bundle):
            if artifact:
                spool.model(artifact, "input")
        spool.metrics(metrics)
        for file in (SCORES, PREDICTIONS, REPORT):
            spool.file(build.path / file)
        counts = {"rows": len(sample), "predictions": len(predictions)}
        counts["chosen_by"] = num_chosen_by(run, source, sample)
        notes = [f"model {described(source)}"]
        return BuildResult(metrics, counts, notes, rows=[uses.used("score", "F1", data, rows_file(data).name)])

    return run.make(stage, score_request(run, name, source, data), build)


def num_chosen_by(run: Run, source: ModelRef, rows: Sequence[RawRow]) -> int:
    """How many of the rows the model was chosen by: its F1 on them is no claim, and that is said."""
    chose = [
        use for artifact in (source.adapter, source.bundle) if artifact for use in uses.choices(run.store, artifact)
    ]
    chosen_by = uses.texts(run.store, chose) or set()
    count = sum(name_key(row.text) in chosen_by for row in rows)
    if count:
        what = ", ".join(sorted({use.what for use in chose}))
        log.warning(
            "evaluate: %d of %d rows chose %s of %s: a score on them is no claim", count, len(rows), what, source.label
        )
    return count


def scored(run: Run, source: ModelRef, data: Artifact) -> Artifact:
    """The scores of a source: those that the store has of it, by whatever name, else new ones."""
    request = score_request(run, run.name, source, data)
    own_name = f"{name_of(source.label)}-{request.recipe[:8]}"
    # What an endpoint serves can change behind its name: its answers are kept for this comparison's name only.
    found = None if source.kind == "endpoint" else equal_scores(run, request)
    name = f"{run.name}-{own_name}" if source.kind == "endpoint" else found or own_name
    return score(run, name, source, data, stage=f"evaluate-{own_name}")


def name_of(reference: str) -> str:
    """A reference as a part of an artifact's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", reference).strip("-.")


def equal_scores(run: Run, request: Request) -> str | None:
    """The name under which the store has scores of the same recipe and inputs."""
    names = [request.name, *run.store.names("scores")]
    for name in names:
        artifact = run.store.find("scores", name)
        if artifact is not None and artifact.manifest.recipe == request.recipe:
            return name
    return None


def scores_of(artifact: Artifact) -> dict[str, Any]:
    """The scores of a scores artifact."""
    scores: dict[str, Any] = json.loads((artifact.path / SCORES).read_text(encoding="utf-8"))
    return scores


def described(source: ModelRef) -> str:
    """A source in a few words."""
    examples = f" with {len(source.examples)} examples" if source.examples else ""
    if source.base is not None:
        return source.base.reference + (f" + {source.adapter.manifest.name}" if source.adapter else "") + examples
    return source.label


def flat_metrics(scores: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a scores file for the manifest and MLflow: overall, and the main ones of every part."""
    metrics = {key: float(value) for key, value in scores["overall"].items()}
    parts = {"raw": scores["raw"], "end_to_end": scores.get("end_to_end"), GUIDE_GROUP: scores["guide"]}
    for group, values in {**scores["groups"], **parts}.items():
        if values:
            names = ("f1", "f1_low", "f1_high", "valid_answers", "rows")
            metrics |= {f"{group}_{key}": float(values[key]) for key in names}
    for kind, entry in (scores.get("calibration") or {}).items():
        if entry:
            prefix = kind.replace(" ", "_")
            metrics |= {f"{prefix}_{key}": float(entry[key]) for key in ("ece", "brier", "aurc")}
    return metrics


def sampled(rows: Sequence[RawRow], max_rows: int | None, seed: int) -> list[RawRow]:
    """A seeded sample that keeps the shares of the groups, in the order of the file."""
    if max_rows is None or max_rows >= len(rows):
        return list(rows)
    groups: dict[str | None, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.group, []).append(index)
    shares = _shares([len(members) for members in groups.values()], max_rows)
    picked: list[int] = []
    for members, share in zip(groups.values(), shares, strict=True):
        picked += random.Random(seed).sample(members, share)
    return [rows[index] for index in sorted(picked)]


def _shares(sizes: Sequence[int], total: int) -> list[int]:
    """A smaller total divided in proportion to the sizes: rounded down, and what is left to the largest remainders."""
    whole = sum(sizes)
    shares = [total * size // whole for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda index: -(total * sizes[index] % whole))
    for index in by_remainder[: total - sum(shares)]:
        shares[index] += 1
    return shares


def _questions(source: ModelRef, num_sample: int, num_rows: int, run: Run) -> list[tuple[int, str]]:
    """Every row in the server's chat prompt, and a seeded part of the sample in each other layout of the source."""
    settings = run.config.recipe.evaluation
    questions = [(index, "chat") for index in range(num_rows)]
    others = {"raw": settings.raw_rows, "end_to_end": settings.end_to_end_rows}
    for layout in layouts_of(source)[1:]:
        picked = random.Random(settings.seed).sample(range(num_sample), min(others[layout], num_sample))
        questions += [(index, layout) for index in sorted(picked)]
    return questions


def headline(scores: dict[str, Any]) -> dict[str, float | None]:
    """F1 on the rows marked `seen` (on all where none is), on those marked `unseen`, and valid answers."""
    groups, overall = scores["groups"], scores["overall"]
    seen = groups.get(HEADLINE_GROUP, overall)
    unseen = groups.get(SECOND_GROUP)
    return {
        "tuned_f1": seen["f1"],
        "tuned_f1_unseen": unseen["f1"] if unseen else None,
        "valid_answers": overall["valid_answers"],
    }


def f1_of(artifact: Artifact) -> float:
    """The F1 of a scores artifact over all of its rows."""
    return float(scores_of(artifact)["overall"]["f1"])
