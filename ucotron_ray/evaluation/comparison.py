"""Models side by side on the same held-out rows → a comparison with a page."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.files import write_json, write_text
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl
from ucotron_ray.data.records import RawRow
from ucotron_ray.data.stage import ROWS, data_of, held_out, rows_file
from ucotron_ray.evaluation.answers import ModelRef, adapter_of, model_ref
from ucotron_ray.evaluation.stage import PREDICTIONS, REPORT, scored, scores_of
from ucotron_ray.models import stage as models

if TYPE_CHECKING:
    from ucotron_ray.evaluation.compare import ScoredModel

COMPARISON = "comparison.json"


def sources(run: Run, references: Sequence[str]) -> list[ModelRef]:
    """What the references name. Raises ConfigError for fewer than two, or for one that stands there twice."""
    if len(references) < 2:
        raise ConfigError(
            "two models are needed", expected="MODEL MODEL …, the first one is compared with", found="one"
        )
    twice = sorted({reference for reference in references if references.count(reference) > 1})
    if twice:
        raise ConfigError("a model stands there twice", expected="every model once", found=", ".join(twice))
    named = [model_ref(run, reference) for reference in references]
    # Two directories can have one name: then the whole reference tells them apart.
    labels = [source.label for source in named]
    return [
        replace(source, label=reference) if labels.count(source.label) > 1 else source
        for source, reference in zip(named, references, strict=True)
    ]


def rows_of(run: Run, sources: Sequence[ModelRef]) -> Artifact:
    """The rows to ask: `evaluation.data`, else the validation rows of what the first trained source learned from."""
    trained = [source.adapter or (adapter_of(run, source.bundle) if source.bundle else None) for source in sources]
    first = next((adapter for adapter in trained if adapter is not None), None)
    return held_out(run, run.config.recipe.evaluation.data, data_of(run, first))


def with_examples(run: Run, base: ModelRef, trained: ModelRef, data: Artifact, count: int) -> ModelRef:
    """The base with training rows of the trained source before each question. Raises ConfigError if there are none."""
    from ucotron_ray.evaluation import baselines

    held_out = (row.text for row in jsonl.relations_among(rows_file(data)))
    return baselines.with_examples(base, baselines.training_rows(run, trained), held_out, count)


def with_base_examples(run: Run, sources: Sequence[ModelRef], data: Artifact) -> list[ModelRef]:
    """The sources, and after them, if `evaluation.few_shots` is set, the base of the first adapter with examples."""
    count = run.config.recipe.evaluation.few_shots
    tuned = next(((source, source.adapter) for source in sources if source.adapter is not None), None)
    if not count or tuned is None:
        return list(sources)
    base = models.note_hub(run, models.original_base(tuned[1], run.store))
    plain = ModelRef(Path(base.reference).name, "model", base=base)
    return [*sources, with_examples(run, plain, tuned[0], data, count)]


def compare(run: Run, sources: Sequence[ModelRef], data: Artifact, *, named: bool) -> Artifact:
    """Score what is not scored yet, then compare → `scores/<name>`; without a name of its own it is called by content.

    The first source is what the others are compared with.
    """
    made = {source.label: scored(run, source, data) for source in sources}
    settings = run.config.recipe.evaluation
    fields = {"comparison": list(made), "resamples": settings.resamples, "seed": settings.seed}
    inputs = tuple(artifact.as_input(label) for label, artifact in made.items())
    request = Request("scores", run.name, fields, inputs)
    if not named:
        request = replace(request, name=f"compare-{request.recipe[:12]}")

    def build(build: Build) -> BuildResult:
        from ucotron_ray.evaluation import baselines
        from ucotron_ray.evaluation.compare import GUIDE_GROUP
        from ucotron_ray.evaluation.compare import compare as compare_answers
        from ucotron_ray.evaluation.page import comparison_page

        rows = asked_rows(next(iter(made.values())))
        answered = [scored_model(label, artifact) for label, artifact in made.items()]
        # Those of the first model that learned: the same rows that say which held-out rows are asked.
        training = next((found for source in sources if (found := baselines.training_rows(run, source))), [])
        guesses = baselines.scores([row for row in rows if row.group != GUIDE_GROUP], training)
        comparison = compare_answers(
            rows, answered, baselines=guesses, resamples=settings.resamples, seed=settings.seed
        )
        write_json(build.path / COMPARISON, comparison)
        write_text(build.path / REPORT, comparison_page(comparison))
        spool = run.spool.child("compare")
        for file in (COMPARISON, REPORT):
            spool.file(build.path / file)
        gains = {f"difference_{number}": entry["difference"] for number, entry in _numbered(comparison)}
        return BuildResult(gains, {"models": len(made)}, [f"{number}: {label}" for number, label in enumerate(made)])

    return run.make("compare", request, build)


def scored_model(label: str, artifact: Artifact) -> "ScoredModel":
    """The scores of an artifact with the answers in the server's chat prompt, in the order of the rows."""
    from ucotron_ray.evaluation.compare import ScoredModel

    return ScoredModel(label, scores_of(artifact), chat_answers(artifact))


def chat_answers(artifact: Artifact) -> list[str]:
    """The answers in the server's chat prompt, in the order of `rows.jsonl`."""
    # Not splitlines of text: it also splits at characters that may stand inside of a JSON string.
    lines = (artifact.path / PREDICTIONS).read_bytes().split(b"\n")[:-1]
    records = [record for line in lines if (record := json.loads(line))["layout"] == "chat"]
    return [record["answer"] for record in sorted(records, key=lambda record: record["row"])]


def asked_rows(artifact: Artifact) -> list[RawRow]:
    """The rows that a scores artifact answers, the guide's five among them."""
    return jsonl.read_relations(artifact.path / ROWS)


def comparison_of(artifact: Artifact) -> dict[str, Any]:
    """The comparison of a scores artifact that `compare` made."""
    comparison: dict[str, Any] = json.loads((artifact.path / COMPARISON).read_text(encoding="utf-8"))
    return comparison


def _numbered(comparison: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    return list(enumerate(comparison["differences"].values(), 1))
