"""Predicted against expected triples: precision, recall, F1 with bootstrap intervals, and what else went wrong.

Definitions: reference §4.9. A triple is right if subject, predicate and object all are, after normalisation (strict)
or byte for byte (exact). Counts are summed over the corpus (micro). Predictions are de-duplicated per row.
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ucotron_ray.records import GeneratedRow, PreferenceRow, RawRow, Relation, Row
from ucotron_ray.wire import parse_answer, parse_prompt

Triple = tuple[str, str, str]

CONFIDENCE_LEVEL = 0.95

_EDGES = string.punctuation + string.whitespace + "“”‘’«»„"


@dataclass(frozen=True)
class RowScore:
    """Counts of one row. `names` and `invented` count subject and object mentions of the prediction."""

    right: int
    predicted: int
    expected: int
    exact_right: int
    valid: bool
    names: int
    invented: int
    right_by_predicate: Counter[str]
    predicted_by_predicate: Counter[str]
    expected_by_predicate: Counter[str]


def normalise(text: str) -> str:
    """NFKC, case folded, `_` and white space as one space, no quotes or punctuation at the ends."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[_\s]+", " ", folded).strip(_EDGES)


def score_row(row: RawRow, answer: str) -> RowScore:
    """The counts of one answer, read by the server's parser."""
    parsed = parse_answer(answer)
    relations = parsed or []
    predicted, expected = _triples(relations), _triples(row.expected_relations)
    exact = {(r.subject, r.predicate, r.object) for r in relations}
    exact_expected = {(r.subject, r.predicate, r.object) for r in row.expected_relations}
    given = {normalise(entity.text) for entity in row.entities}
    names = [name for triple in predicted for name in (triple[0], triple[2])]
    return RowScore(
        right=len(predicted & expected),
        predicted=len(predicted),
        expected=len(expected),
        exact_right=len(exact & exact_expected),
        valid=parsed is not None,
        names=len(names),
        invented=sum(name not in given for name in names),
        right_by_predicate=Counter(triple[1] for triple in predicted & expected),
        predicted_by_predicate=Counter(triple[1] for triple in predicted),
        expected_by_predicate=Counter(triple[1] for triple in expected),
    )


def relation_row(row: Row) -> RawRow | None:
    """The row with its right triples, a preference pair's being those of its chosen answer; None if it has none."""
    if isinstance(row, GeneratedRow):
        return row.raw()
    if isinstance(row, RawRow):
        return row
    asked = parse_prompt(row.prompt) if isinstance(row, PreferenceRow) else None
    right = parse_answer(row.chosen) if isinstance(row, PreferenceRow) else None
    if asked is None or right is None:
        return None
    return RawRow(text=asked[0], entities=asked[1], expected_relations=right)


def f1_of(row: RawRow, answer: str) -> float:
    """Triple F1 of one answer, read by the server's parser; 0 for one that cannot be read."""
    score = score_row(row, answer)
    return _prf(score.right, score.predicted, score.expected)[2] if score.valid else 0.0


def summary(scores: Sequence[RowScore], *, resamples: int, seed: int) -> dict[str, float]:
    """The metrics of a set of rows; `f1_low` and `f1_high` bound 95 % of the bootstrap resamples by row."""
    counts_N3 = np.array([(score.right, score.predicted, score.expected) for score in scores], dtype=np.float64)
    totals = counts_N3.sum(axis=0)
    precision, recall, f1 = _prf(totals[0], totals[1], totals[2])
    exact_right = sum(score.exact_right for score in scores)
    low, high = _interval(counts_N3, resamples=resamples, seed=seed)
    names = sum(score.names for score in scores)
    return {
        "rows": float(len(scores)),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "f1_low": low,
        "f1_high": high,
        "exact_f1": _prf(exact_right, totals[1], totals[2])[2],
        "valid_answers": float(np.mean([score.valid for score in scores])),
        "invented_entities": sum(score.invented for score in scores) / names if names else 0.0,
        "relations_expected": float(totals[2]),
        "relations_predicted": float(totals[1]),
    }


def by_predicate(scores: Sequence[RowScore]) -> dict[str, dict[str, float]]:
    """Precision, recall and F1 of every predicate that was expected or predicted, the most expected first."""
    right, predicted, expected = Counter[str](), Counter[str](), Counter[str]()
    for score in scores:
        right += score.right_by_predicate
        predicted += score.predicted_by_predicate
        expected += score.expected_by_predicate
    table = {}
    for predicate in sorted({*predicted, *expected}, key=lambda name: (-expected[name], name)):
        precision, recall, f1 = _prf(right[predicate], predicted[predicate], expected[predicate])
        table[predicate] = {
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "expected": float(expected[predicate]),
            "predicted": float(predicted[predicate]),
        }
    return table


def by_group(
    scored: Mapping[str | None, Sequence[RowScore]], *, resamples: int, seed: int
) -> dict[str, dict[str, float]]:
    """The metrics of every named group of a held-out set."""
    named = {group: scores for group, scores in scored.items() if group is not None}
    return {group: summary(named[group], resamples=resamples, seed=seed) for group in sorted(named)}


def _triples(relations: Sequence[Relation]) -> set[Triple]:
    return {(normalise(r.subject), normalise(r.predicate), normalise(r.object)) for r in relations}


def _prf(right: float, predicted: float, expected: float) -> tuple[float, float, float]:
    """With nothing expected and nothing predicted all three are 1: the empty answer was right."""
    if predicted == 0 and expected == 0:
        return 1.0, 1.0, 1.0
    precision = right / predicted if predicted else 0.0
    recall = right / expected if expected else 0.0
    return float(precision), float(recall), float(2 * right / (predicted + expected))


def _interval(counts_N3: np.ndarray, *, resamples: int, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    picks_RN = rng.integers(0, len(counts_N3), size=(resamples, len(counts_N3)))
    sums_R3 = counts_N3[picks_RN].sum(axis=1)
    denominators_R = sums_R3[:, 1] + sums_R3[:, 2]
    f1_R = np.where(denominators_R > 0, 2 * sums_R3[:, 0] / np.maximum(denominators_R, 1), 1.0)
    tail = (1 - CONFIDENCE_LEVEL) / 2
    low, high = np.quantile(f1_R, [tail, 1 - tail])
    return float(low), float(high)
