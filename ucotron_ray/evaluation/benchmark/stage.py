"""A model on a public set → `scores/<name>` with a report that has baselines and published figures beside it."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request
from ucotron_ray.core.errors import ConfigError, InputError
from ucotron_ray.core.files import write_json, write_text
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl
from ucotron_ray.data.stage import ROWS
from ucotron_ray.data.wire import format_answer, user_prompt
from ucotron_ray.evaluation import baselines
from ucotron_ray.evaluation.answers import ModelRef, answers_of, layouts_of
from ucotron_ray.evaluation.benchmark.protocols import (
    END_TO_END,
    Question,
    asked_layout,
    measures,
    num_questions,
    questions,
)
from ucotron_ray.evaluation.benchmark.published import published
from ucotron_ray.evaluation.benchmark.records import BenchmarkRow, BenchmarkSet
from ucotron_ray.evaluation.benchmark.sets import fingerprint, has_split, layout_of, read_set
from ucotron_ray.evaluation.predictions import Prediction, asked_row
from ucotron_ray.evaluation.stage import PREDICTIONS, described
from ucotron_ray.models.stage import prompt_identity

REPORT = "report.json"

MEASURE = 1
"""Raised when the same answers would get other figures, so that a store does not take the old for the new ones."""


@dataclass(frozen=True)
class Benchmark:
    """What is asked: the rows of a split, how, and the training rows for baselines and leaks (none if not there)."""

    data: BenchmarkSet
    protocol: str
    training: tuple[BenchmarkRow, ...]
    directory: Path
    max_rows: int | None


def prepared(layout: str, directory: Path, split: str | None, protocol: str, max_rows: int | None) -> Benchmark:
    """The set, read and checked. Raises ConfigError, InputError, and InputError where the protocol has no question."""
    if max_rows is not None and max_rows < 1:
        raise ConfigError("no row would be asked", where="--max-rows", expected="1 or more", found=str(max_rows))
    data = read_set(layout, directory, split)
    training: tuple[BenchmarkRow, ...] = ()
    if data.split != "train" and has_split(layout, directory, "train"):
        training = read_set(layout, directory, "train").rows
    if max_rows is not None and max_rows < len(data.rows):
        # Always the same sample, whatever the recipe: figures of two models are of the same rows.
        picked = sorted(random.Random(0).sample(range(len(data.rows)), max_rows))
        data = replace(data, rows=tuple(data.rows[index] for index in picked))
    if not num_questions(data.rows, protocol):
        raise InputError(
            "the protocol has no question: no row has a pair",
            where=f"{directory}, {data.split}",
            next_step="take more rows or another --protocol",
        )
    return Benchmark(data, protocol, training, directory, max_rows)


def plan(benchmark: Benchmark) -> dict[str, Any]:
    """What would be asked, and the first question as the model would read it."""
    data = benchmark.data
    row = next(row for row in data.rows if num_questions([row], benchmark.protocol))
    first = asked_row(questions([row], benchmark.protocol)[0].raw, asked_layout(benchmark.protocol))[0]
    return {
        **_facts(benchmark),
        "questions": num_questions(data.rows, benchmark.protocol),
        "vocabulary": list(data.predicates),
        "first_question": user_prompt(first.text, first.entities),
        "published": [entry.model_dump() for entry in published(data.layout, benchmark.protocol)],
    }


def asked_source(run: Run, source: ModelRef, benchmark: Benchmark) -> ModelRef:
    """The source as it is asked: a base model or an endpoint with `evaluation.few_shots` training rows of the set.

    Raises ConfigError for a source that cannot be asked in the way of the protocol.
    """
    protocol, count = benchmark.protocol, run.config.recipe.evaluation.few_shots
    if asked_layout(protocol) not in layouts_of(source):
        raise ConfigError(
            f"{source.label} only relates entities that are given",
            where="--protocol",
            expected="entities-given or pairs, or another --model",
            found=protocol,
        )
    if not count or not (source.endpoint or (source.base and source.adapter is None)):
        return source
    shown = [question.raw for question in questions(benchmark.training, protocol)]
    return baselines.with_examples(source, shown, (row.text for row in benchmark.data.rows), count)


def request(run: Run, source: ModelRef, benchmark: Benchmark) -> Request:
    """What scoring would make."""
    settings = run.config.recipe.evaluation
    data = benchmark.data
    asked = {
        "layout": data.layout,
        "split": data.split,
        "protocol": benchmark.protocol,
        "max_rows": benchmark.max_rows,
        "files": fingerprint(data.layout, benchmark.directory),
        "max_new_tokens": settings.max_new_tokens,
        "seed": settings.seed,
        "measure": MEASURE,
    }
    return Request(
        "scores", run.name, {"benchmark": asked, "prompt": prompt_identity(), **source.identity}, source.inputs
    )


def score(run: Run, source: ModelRef, benchmark: Benchmark) -> Artifact:
    """Ask the source, score its answers → `scores/<name>` with `report.json` and every prediction."""

    def build(build: Build) -> BuildResult:
        asked = questions(benchmark.data.rows, benchmark.protocol)
        rows = [question.raw for question in asked]
        jsonl.write_rows(build.path / ROWS, rows)
        layout = asked_layout(benchmark.protocol)
        indexed = [(index, layout) for index in range(len(rows))]
        predictions, measured = answers_of(run, source, rows, indexed, build.path)
        report = {"model": described(source), **report_of(run, benchmark, predictions)}
        write_json(build.path / REPORT, report)
        lines = [json.dumps(vars(prediction), ensure_ascii=False) for prediction in predictions]
        write_text(build.path / PREDICTIONS, "".join(line + "\n" for line in lines))
        for shard in build.path.glob("shard-*.jsonl"):
            shard.unlink()
        metrics = _flat(report["measures"]) | {key: value for key, value in measured.items() if value}
        spool = run.spool.child("benchmark")
        spool.metrics(metrics)
        for file in (REPORT, PREDICTIONS):
            spool.file(build.path / file)
        counts = {"rows": len(benchmark.data.rows), "predictions": len(predictions)}
        return BuildResult(metrics, counts, [f"model {described(source)}", f"{benchmark.data.layout} {layout}"])

    return run.make("benchmark", request(run, source, benchmark), build)


def report_of(run: Run, benchmark: Benchmark, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The measures of model and baselines, those without the texts that training has too, and published figures."""
    asked = questions(benchmark.data.rows, benchmark.protocol)
    pairs = list(zip(asked, (prediction.answer for prediction in predictions), strict=True))
    seen = {row.text for row in benchmark.training}
    fresh = [(question, answer) for question, answer in pairs if question.raw.text not in seen]
    guesses = baselines.answers([question.raw for question in asked], [row.raw() for row in benchmark.training])
    given = " (entities given)" if benchmark.protocol == END_TO_END else ""
    right = [(question, format_answer(question.raw.expected_relations)) for question in asked]
    # As names, the right triples are not always placed right: that is the most that an answer can get.
    ceiling = _measures(benchmark, right).get("boundaries")
    return {
        **_facts(benchmark),
        "questions": len(asked),
        "measures": _measures(benchmark, pairs),
        "ceiling": ceiling["f1"] if ceiling else None,
        "without_training_texts": _measures(benchmark, fresh) if 0 < len(fresh) < len(asked) else None,
        "baselines": {
            name + given: _measures(benchmark, list(zip(asked, answers, strict=True)))
            for name, answers in guesses.items()
        },
        "published": [entry.model_dump() for entry in published(benchmark.data.layout, benchmark.protocol)],
        "cut_answers": sum(prediction.cut for prediction in predictions) / len(predictions),
    }


def report_in(artifact: Artifact) -> dict[str, Any]:
    """The report of a scores artifact that `score` made."""
    report: dict[str, Any] = json.loads((artifact.path / REPORT).read_text(encoding="utf-8"))
    return report


def _measures(benchmark: Benchmark, answered: Sequence[tuple[Question, str]]) -> dict[str, Any]:
    return dict(
        measures(
            benchmark.data,
            [question for question, _ in answered],
            [answer for _, answer in answered],
            benchmark.protocol,
            has_spans=layout_of(benchmark.data.layout).has_spans,
        )
    )


def _facts(benchmark: Benchmark) -> dict[str, Any]:
    data = benchmark.data
    seen = {row.text for row in benchmark.training}
    return {
        "layout": data.layout,
        "split": data.split,
        "protocol": benchmark.protocol,
        "files": list(data.files),
        "rows": len(data.rows),
        "relations": sum(len(set(row.relations)) for row in data.rows),
        "predicates": len(data.predicates),
        "training_rows": len(benchmark.training),
        "rows_in_training": sum(row.text in seen for row in data.rows),
    }


def _flat(measures: dict[str, Any]) -> dict[str, float]:
    return {f"{name}_f1": float(figures["f1"]) for name, figures in measures.items() if figures}
