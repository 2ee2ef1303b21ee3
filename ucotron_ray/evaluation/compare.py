"""Models side by side on the same rows: who is better, by how much, how sure that is, and on which rows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ucotron_ray.data.records import RawRow
from ucotron_ray.data.wire import parse_answer
from ucotron_ray.evaluation.bootstrap import paired
from ucotron_ray.evaluation.scoring import RowScore, counts_of, f1_of, score_row

GUIDE_GROUP = "guide"


@dataclass(frozen=True)
class ScoredModel:
    """A model's scores (`scores.json`) and its answers, one a row, in the server's chat prompt."""

    label: str
    scores: dict[str, Any]
    answers: Sequence[str]


def compare(
    rows: Sequence[RawRow],
    models: Sequence[ScoredModel],
    *,
    resamples: int,
    seed: int,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """The comparison as `comparison.json` holds it; the first model is what the others are compared with.

    `baselines` are metrics on the same rows, to stand beside the models'. Raises ValueError where a model has not
    answered every row.
    """
    held_out = [index for index, row in enumerate(rows) if row.group != GUIDE_GROUP]
    counts = {model.label: counts_of(scores_of_rows(rows, model.answers)) for model in models}
    first, *others = (model.label for model in models)
    shown = [_row(row, models, index) for index, row in enumerate(rows)]
    differing = [shown[index] for index in held_out if _differs(shown[index])]
    wins = {model.label: sum(shown[index]["winner"] == model.label for index in held_out) for model in models}
    return {
        "models": {model.label: model.scores for model in models},
        "baselines": dict(baselines or {}),
        "differences": {
            label: asdict(paired(counts[label], counts[first], resamples=resamples, seed=seed)) for label in others
        },
        "wins": wins,
        "ties": len(held_out) - sum(wins.values()),
        "guide": [entry for entry, row in zip(shown, rows, strict=True) if row.group == GUIDE_GROUP],
        "rows": differing,
        "resamples": resamples,
        "seed": seed,
    }


def scores_of_rows(rows: Sequence[RawRow], answers: Sequence[str]) -> list[RowScore]:
    """The counts of every held-out row; the guide's five do not count."""
    return [score_row(row, answer) for row, answer in zip(rows, answers, strict=True) if row.group != GUIDE_GROUP]


def _row(row: RawRow, models: Sequence[ScoredModel], index: int) -> dict[str, Any]:
    """What each model said to a row; the winner is the one with the best F1, or `tie`."""
    said: dict[str, dict[str, Any]] = {}
    for model in models:
        relations = parse_answer(model.answers[index])
        predicted = None if relations is None else [relation.model_dump() for relation in relations]
        said[model.label] = {"f1": f1_of(row, model.answers[index]), "predicted": predicted}
    best = max(float(entry["f1"]) for entry in said.values())
    first = [label for label, entry in said.items() if entry["f1"] == best]
    return {
        "text": row.text,
        "group": row.group,
        "expected": [relation.model_dump() for relation in row.expected_relations],
        "models": said,
        "winner": first[0] if len(first) == 1 else "tie",
    }


def _differs(entry: dict[str, Any]) -> bool:
    return len({said["f1"] for said in entry["models"].values()}) > 1
