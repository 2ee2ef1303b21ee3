"""The published ways to ask a set and to score the answers.

entities-given   names and types are given, all triples of the text are asked
end-to-end       nothing is given but the text
pairs            for each ordered pair that the set lists, its two entities are given: which relation holds, if any

Measures, after Taillé et al. 2020 (arXiv 2009.10684): `boundaries` is right with the relation and both places,
`strict` with the types as well. Answers of this application have no types: with entities given the types are given too,
so strict and boundaries are one; end to end there is no strict. `names` compares names and not places: our own measure,
and what most papers on generating models call triple F1. All are micro-averaged over the rows.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ucotron_ray.data.records import RawRow, Relation
from ucotron_ray.data.wire import format_answer, parse_answer
from ucotron_ray.evaluation import intervals
from ucotron_ray.evaluation.benchmark.records import BenchmarkRow, BenchmarkSet
from ucotron_ray.evaluation.benchmark.spans import gold, placed
from ucotron_ray.evaluation.bootstrap import f1_of_counts
from ucotron_ray.evaluation.matching import squashed
from ucotron_ray.evaluation.predictions import END_TO_END as ASKED_WITHOUT_ENTITIES
from ucotron_ray.evaluation.scoring import normalise, score_row, summary

ENTITIES_GIVEN, END_TO_END, PAIRS = "entities-given", "end-to-end", "pairs"
PROTOCOLS = (ENTITIES_GIVEN, END_TO_END, PAIRS)

NAME_FIGURES = (
    "precision", "recall", "f1", "f1_low", "f1_high", "exact_f1", "relaxed_f1", "macro_f1", "relations_expected",
    "relations_predicted", "rows",
)  # fmt: skip
"""Of `scoring.summary`: what is about triples, not about the form of an answer."""

Figures = dict[str, float]
Counts = tuple[int, int, int]
"""Right, predicted, expected."""


@dataclass(frozen=True)
class Question:
    """One question to a model: about a row of the set, or about one pair of it."""

    row: int
    raw: RawRow
    pair: tuple[int, int] | None = None


def questions(rows: Sequence[BenchmarkRow], protocol: str) -> list[Question]:
    """All questions of a protocol, in the order of the rows. A row of which no pair is listed has none in `pairs`."""
    if protocol != PAIRS:
        return [Question(index, row.raw()) for index, row in enumerate(rows)]
    return [Question(index, row.pair(*pair), pair) for index, row in enumerate(rows) for pair in row.pairs()]


def num_questions(rows: Sequence[BenchmarkRow], protocol: str) -> int:
    """How many questions there would be: a document of 20 entities has 380 pairs."""
    return sum(len(row.pairs()) for row in rows) if protocol == PAIRS else len(rows)


def asked_layout(protocol: str) -> str:
    """The layout of `predictions.asked_row` that a protocol asks in."""
    return ASKED_WITHOUT_ENTITIES if protocol == END_TO_END else "chat"


def measures(
    data: BenchmarkSet,
    asked: Sequence[Question],
    answers: Sequence[str],
    protocol: str,
    *,
    has_spans: bool,
) -> dict[str, Figures | None]:
    """Measure → its figures; None where the protocol or the set does not allow it. Needs one question at least."""
    own = {squashed(predicate): predicate for predicate in reversed(data.predicates)}
    first = {index: _first_names(data.rows[index]) for index in {question.row for question in asked}}
    understood = [_in_own_words(parse_answer(answer) or [], own) for answer in answers]
    renamed = [_renamed(relations, first[question.row]) for question, relations in zip(asked, understood, strict=True)]
    if protocol == PAIRS:
        return {"pairs": _pair_figures(asked, renamed)}
    boundaries = None
    if has_spans:
        given = protocol == ENTITIES_GIVEN
        counts = [
            _boundary_counts(data.rows[question.row], relations, given=given)
            for question, relations in zip(asked, understood, strict=True)
        ]
        boundaries = _figures(counts)
    scored = [
        score_row(question.raw, format_answer(relations)) for question, relations in zip(asked, renamed, strict=True)
    ]
    figures = summary(scored)
    return {
        "strict": boundaries if protocol == ENTITIES_GIVEN else None,
        "boundaries": boundaries,
        "names": {key: figures[key] for key in NAME_FIGURES},
        "sentences": _sentence_figures(asked, renamed) if data.layout == "text2kgbench" else None,
    }


def _in_own_words(relations: Sequence[Relation], own: Mapping[str, str]) -> list[Relation]:
    """The triples; a predicate is the set's own if its letters and digits are: `used for`, `USED-FOR`."""
    return [
        relation.model_copy(update={"predicate": own.get(squashed(relation.predicate), relation.predicate)})
        for relation in relations
    ]


def _first_names(row: BenchmarkRow) -> dict[str, str]:
    """Other name → first name of the entities that have several, as those of a document can."""
    several = [entity for entity in row.entities if len(entity.names) > 1]
    return {normalise(name): entity.name for entity in reversed(several) for name in entity.names}


def _renamed(relations: Sequence[Relation], first: Mapping[str, str]) -> list[Relation]:
    if not first:
        return list(relations)
    return [
        relation.model_copy(
            update={
                "subject": first.get(normalise(relation.subject), relation.subject),
                "object": first.get(normalise(relation.object), relation.object),
            }
        )
        for relation in relations
    ]


def _boundary_counts(row: BenchmarkRow, relations: Sequence[Relation], *, given: bool) -> Counts:
    triples = {(relation.subject, relation.predicate, relation.object) for relation in relations}
    predicted, expected = placed(row, triples, given=given), gold(row)
    return len(predicted & expected), len(predicted), len(expected)


def _pair_figures(asked: Sequence[Question], understood: Sequence[Sequence[Relation]]) -> Figures:
    """Positive-class micro F1 over the pairs, the macro F1 of CrossRE's `evaluate.py`, and the share of right pairs.

    A pair may have several relations, and no relation is no class: naming none where there is none counts only for
    `accuracy`.
    """
    labels = [
        (
            {normalise(relation.predicate) for relation in relations if _is_about(relation, question.raw)},
            {normalise(relation.predicate) for relation in question.raw.expected_relations},
        )
        for question, relations in zip(asked, understood, strict=True)
    ]
    counts = [(len(found & expected), len(found), len(expected)) for found, expected in labels]
    right = Counter(label for found, expected in labels for label in found & expected)
    named = Counter(label for pair in labels for either in pair for label in either)
    wanted = {label for _, expected in labels for label in expected}
    return {
        **_figures(counts),
        "macro_f1": sum(2 * right[label] / named[label] for label in wanted) / len(wanted) if wanted else 0.0,
        "accuracy": sum(found == expected for found, expected in labels) / len(labels),
        "negatives": float(sum(not expected for _, expected in labels)),
    }


def _is_about(relation: Relation, pair: RawRow) -> bool:
    head, tail = pair.entities
    return (normalise(relation.subject), normalise(relation.object)) == (normalise(head.text), normalise(tail.text))


def _sentence_figures(asked: Sequence[Question], understood: Sequence[Sequence[Relation]]) -> Figures:
    """Text2KGBench's own average: F1 of each sentence, mean of an ontology, mean of the ontologies.

    As in its `src/evaluation/run_eval.py` (arXiv 2308.02357): a predicted triple whose relation no right triple of the
    sentence has is left out, names are compared without spaces and `_`; where nothing is left the sentence has 0.
    """
    groups: dict[str | None, list[tuple[float, float, float]]] = {}
    for question, relations in zip(asked, understood, strict=True):
        expected = {_spaceless(relation) for relation in question.raw.expected_relations}
        labels = {relation.predicate for relation in question.raw.expected_relations}
        predicted = {_spaceless(relation) for relation in relations if relation.predicate in labels}
        right = len(expected & predicted)
        precision, recall = right / max(len(predicted), 1), right / max(len(expected), 1)
        f1 = 2 * precision * recall / (precision + recall) if right else 0.0
        groups.setdefault(question.raw.group, []).append((precision, recall, f1))
    means_G3 = np.array([np.mean(found, axis=0) for found in groups.values()])
    return dict(zip(("precision", "recall", "f1"), map(float, means_G3.mean(axis=0)), strict=True))


def _spaceless(relation: Relation) -> str:
    text = relation.subject + relation.predicate + relation.object
    return "".join(text.replace("_", " ").split()).lower()


def _figures(counts: Sequence[Counts]) -> Figures:
    counts_N3 = np.array(counts, dtype=np.float64)
    right, predicted, expected = counts_N3.sum(axis=0)
    low, high = intervals.of_f1(counts_N3)
    return {
        "precision": float(right / predicted) if predicted else 0.0,
        "recall": float(right / expected) if expected else 0.0,
        "f1": float(f1_of_counts(counts_N3.sum(axis=0))),
        "f1_low": low,
        "f1_high": high,
        "relations_expected": float(expected),
        "relations_predicted": float(predicted),
        "rows": float(len(counts)),
    }
