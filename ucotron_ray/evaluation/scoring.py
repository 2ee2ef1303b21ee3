"""Predicted against expected triples: precision, recall, F1 with intervals, and what else went wrong.

Definitions: reference §4.9. A triple is right if subject, predicate and object all are, after normalisation (strict)
or byte for byte (exact). Counts are summed over the corpus (micro). Predictions are de-duplicated per row. Looser
comparisons are in `matching.py`, confidence in `calibration.py`.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ucotron_ray.data.records import GeneratedRow, PreferenceRow, RawRow, Relation, Row
from ucotron_ray.data.wire import parse_answer, parse_prompt
from ucotron_ray.evaluation import intervals
from ucotron_ray.evaluation.matching import Triple, is_whole_array, keeps_schema, relaxed_matches, squashed

MEASURE = (
    "names compared after NFC, case folding, `_` as a space, without quotes around and .,;: behind; Wilson intervals"
)
"""What a score is, in words. Part of its recipe: scores by another measure are not mixed with it."""

_QUOTES = "\"'`“”‘’«»‹›„‚"
_BEFORE, _BEHIND = re.compile(rf"^[\s{_QUOTES}]+"), re.compile(rf"[\s{_QUOTES}.,;:]+$")


@dataclass(frozen=True)
class RowScore:
    """Counts of one row. `names` and `invented` count subject and object mentions of the prediction."""

    right: int
    predicted: int
    expected: int
    exact_right: int
    exact_predicted: int
    exact_expected: int
    """As they are written: two spellings are one triple for `predicted`, and two here."""
    valid: bool
    names: int
    invented: int
    right_by_predicate: Counter[str]
    predicted_by_predicate: Counter[str]
    expected_by_predicate: Counter[str]
    relaxed_right: int
    """With close names (`matching.same_name`)."""
    symmetric_right: int
    """With close names, and symmetric predicates in either direction."""
    pairs_right: int
    pairs_predicted: int
    pairs_expected: int
    """Subject and object without predicate, in their direction."""
    pairs_named: int
    """Of `pairs_right`, those that got a right predicate."""
    whole_json: bool
    schema: bool
    not_in_text: int
    """Of `names`, those that the text does not have, spaces and punctuation not counted."""
    expected_names: int
    expected_not_in_text: int
    """The floor of the above: what a perfect answer would have."""
    judged: tuple[tuple[float, bool], ...]
    """Stated confidence of every predicted triple, and whether it is right."""


def normalise(text: str) -> str:
    """NFC, case folded, `_` and white space as one space, without quotes around it and .,;: behind it.

    No other sign is dropped: C, C++ and C# are three names. A text of such signs alone stays as it is.
    """
    # Folding may take a letter apart again: U+0390 has three code points afterwards.
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    spaced = re.sub(r"[_\s]+", " ", folded).strip()
    return _BEHIND.sub("", _BEFORE.sub("", spaced)) or spaced


def score_row(row: RawRow, answer: str) -> RowScore:
    """The counts of one answer, read by the server's parser."""
    parsed = parse_answer(answer)
    relations = parsed or []
    predicted, expected = _triples(relations), _triples(row.expected_relations)
    exact = {(r.subject, r.predicate, r.object) for r in relations}
    exact_expected = {(r.subject, r.predicate, r.object) for r in row.expected_relations}
    given = {normalise(entity.text) for entity in row.entities}
    names = _names(predicted)
    pairs, expected_pairs = _pairs(predicted), _pairs(expected)
    text = squashed(row.text)
    return RowScore(
        right=len(predicted & expected),
        predicted=len(predicted),
        expected=len(expected),
        exact_right=len(exact & exact_expected),
        exact_predicted=len(exact),
        exact_expected=len(exact_expected),
        valid=parsed is not None,
        names=len(names),
        invented=sum(name not in given for name in names),
        right_by_predicate=Counter(triple[1] for triple in predicted & expected),
        predicted_by_predicate=Counter(triple[1] for triple in predicted),
        expected_by_predicate=Counter(triple[1] for triple in expected),
        relaxed_right=relaxed_matches(predicted, expected, either_way=False),
        symmetric_right=relaxed_matches(predicted, expected, either_way=True),
        pairs_right=len(pairs & expected_pairs),
        pairs_predicted=len(pairs),
        pairs_expected=len(expected_pairs),
        pairs_named=len(_pairs(predicted & expected)),
        whole_json=is_whole_array(answer),
        schema=keeps_schema(answer),
        not_in_text=sum(squashed(name) not in text for name in names),
        expected_names=2 * len(expected),
        expected_not_in_text=sum(squashed(name) not in text for name in _names(expected)),
        judged=judged(row, relations, [relation.confidence for relation in relations]),
    )


def judged(row: RawRow, relations: Sequence[Relation], confidences: Sequence[float]) -> tuple[tuple[float, bool], ...]:
    """A confidence of every predicted triple, that of its first mention, and whether the triple is right."""
    expected = _triples(row.expected_relations)
    first: dict[Triple, float] = {}
    for relation, confidence in zip(relations, confidences, strict=True):
        (triple,) = _triples([relation])
        first.setdefault(triple, confidence)
    return tuple((confidence, triple in expected) for triple, confidence in sorted(first.items()))


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


def counts_of(scores: Sequence[RowScore]) -> NDArray[np.float64]:
    """[rows, 3]: right, predicted and expected triples of each row, what is resampled."""
    counts_N3: NDArray[np.float64] = np.array(
        [(score.right, score.predicted, score.expected) for score in scores], dtype=np.float64
    )
    return counts_N3


def summary(scores: Sequence[RowScore]) -> dict[str, float]:
    """The metrics of a set of rows; those in `_low` and `_high` are the bounds of 95 % intervals (`intervals.py`)."""
    counts_N3 = counts_of(scores)
    totals = counts_N3.sum(axis=0)
    precision, recall, f1 = _prf(totals[0], totals[1], totals[2])
    low, high = intervals.of_f1(counts_N3)
    valid = sum(score.valid for score in scores)
    valid_low, valid_high = intervals.of_share(valid, len(scores))
    names = sum(score.names for score in scores)
    return {
        "rows": float(len(scores)),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "f1_low": low,
        "f1_high": high,
        "exact_f1": _prf(
            sum(score.exact_right for score in scores),
            sum(score.exact_predicted for score in scores),
            sum(score.exact_expected for score in scores),
        )[2],
        "valid_answers": valid / len(scores),
        "valid_answers_low": valid_low,
        "valid_answers_high": valid_high,
        "invented_entities": sum(score.invented for score in scores) / names if names else 0.0,
        "relations_expected": float(totals[2]),
        "relations_predicted": float(totals[1]),
        **_looser(scores, predicted=totals[1], expected=totals[2]),
        **_form(scores, names=names),
    }


def _looser(scores: Sequence[RowScore], *, predicted: float, expected: float) -> dict[str, float]:
    """Relaxed triples, pairs, and the predicates of the pairs that were found."""
    pairs_right = sum(score.pairs_right for score in scores)
    pair_precision, pair_recall, pair_f1 = _prf(
        pairs_right, sum(score.pairs_predicted for score in scores), sum(score.pairs_expected for score in scores)
    )
    per_predicate = [entry["f1"] for entry in by_predicate(scores).values() if entry["expected"]]
    return {
        "macro_f1": float(np.mean(per_predicate)) if per_predicate else 0.0,
        "relaxed_f1": _prf(sum(score.relaxed_right for score in scores), predicted, expected)[2],
        "relaxed_symmetric_f1": _prf(sum(score.symmetric_right for score in scores), predicted, expected)[2],
        "pair_precision": pair_precision,
        "pair_recall": pair_recall,
        "pair_f1": pair_f1,
        "predicate_accuracy": sum(score.pairs_named for score in scores) / pairs_right if pairs_right else 0.0,
    }


def _form(scores: Sequence[RowScore], *, names: int) -> dict[str, float]:
    """JSON and schema, names and predicates from nowhere, and triples where there is no relation."""
    expected_names = sum(score.expected_names for score in scores)
    predicates = sum((score.predicted_by_predicate for score in scores), Counter[str]())
    known = {predicate for score in scores for predicate in score.expected_by_predicate}
    foreign = sum(count for predicate, count in predicates.items() if predicate not in known)
    empty = [score for score in scores if not score.expected]
    filled = sum(score.predicted > 0 for score in empty)
    filled_low, filled_high = intervals.of_share(filled, len(empty))
    floor = sum(score.expected_not_in_text for score in scores) / expected_names if expected_names else 0.0
    return {
        "json_answers": float(np.mean([score.whole_json for score in scores])),
        "schema_answers": float(np.mean([score.schema for score in scores])),
        "names_not_in_text": sum(score.not_in_text for score in scores) / names if names else 0.0,
        "expected_names_not_in_text": floor,
        "unknown_predicates": foreign / predicates.total() if predicates else 0.0,
        "empty_rows": float(len(empty)),
        "false_positives_on_empty": filled / len(empty) if empty else 0.0,
        "false_positives_on_empty_low": filled_low,
        "false_positives_on_empty_high": filled_high,
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


def by_group(scored: Mapping[str | None, Sequence[RowScore]]) -> dict[str, dict[str, float]]:
    """The metrics of every named group of a held-out set."""
    named = {group: scores for group, scores in scored.items() if group is not None}
    return {group: summary(named[group]) for group in sorted(named)}


def _triples(relations: Sequence[Relation]) -> set[Triple]:
    return {(normalise(r.subject), normalise(r.predicate), normalise(r.object)) for r in relations}


def _pairs(triples: Iterable[Triple]) -> set[tuple[str, str]]:
    return {(subject, object_) for subject, _, object_ in triples}


def _names(triples: Iterable[Triple]) -> list[str]:
    return [name for triple in triples for name in (triple[0], triple[2])]


def _prf(right: float, predicted: float, expected: float) -> tuple[float, float, float]:
    """With nothing expected and nothing predicted all three are 1: the empty answer was right."""
    if predicted == 0 and expected == 0:
        return 1.0, 1.0, 1.0
    precision = right / predicted if predicted else 0.0
    recall = right / expected if expected else 0.0
    return float(precision), float(recall), float(2 * right / (predicted + expected))
