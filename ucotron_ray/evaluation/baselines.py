"""What a model has to beat: guesses that read no sentence, learned by counting training rows.

Both answer as a model does, so that they are scored by the same functions. They see the entities of a row, in every
setting.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import permutations

from ucotron_ray.core.artifacts import Artifact
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl
from ucotron_ray.data.records import Entity, RawRow, Relation
from ucotron_ray.data.stage import TRAIN, data_of
from ucotron_ray.data.wire import format_answer
from ucotron_ray.evaluation.answers import ModelRef, adapter_of
from ucotron_ray.evaluation.scoring import normalise, score_row, summary

EVERY_PAIR = "every pair, majority predicate"
BY_TYPES = "majority predicate per type pair"

TypePair = tuple[str, str]
"""Labels of subject and object."""


def answers(rows: Sequence[RawRow], training: Sequence[RawRow]) -> dict[str, list[str]]:
    """Name of the baseline → its answer to every row; empty where the training rows hold no relation."""
    majority, table = majority_predicate(training), majority_by_types(training)
    if majority is None:
        return {}
    return {
        EVERY_PAIR: [format_answer(every_pair(row, majority)) for row in rows],
        BY_TYPES: [format_answer(by_types(row, table)) for row in rows],
    }


def scores(rows: Sequence[RawRow], training: Sequence[RawRow]) -> dict[str, dict[str, float]]:
    """Name of the baseline → its metrics on the rows, as `scoring.summary` has them for a model."""
    return {
        name: summary([score_row(row, text) for row, text in zip(rows, texts, strict=True)])
        for name, texts in (answers(rows, training) if rows else {}).items()
    }


def training_rows(run: Run, source: ModelRef) -> list[RawRow]:
    """The relation rows that a source learned from; none where it did not learn, or the store has them no more."""
    adapter = source.adapter or (adapter_of(run, source.bundle) if source.bundle else None)
    return rows_of(data_of(run, adapter))


def rows_of(dataset: Artifact | None) -> list[RawRow]:
    """The relation rows of a dataset's training split."""
    file = dataset.path / TRAIN if dataset else None
    return jsonl.relations_among(file) if file and file.is_file() and file.stat().st_size else []


def with_examples(source: ModelRef, training: Iterable[RawRow], held_out: Iterable[str], count: int) -> ModelRef:
    """The source with so many training rows before each question, none of them with a text of the held-out rows.

    Rows that bring a predicate which none before had come first, since the prompt itself does not list the predicates.
    The same rows for every model. Raises ConfigError where there are too few.
    """
    texts = set(held_out)
    rows = [row for row in training if row.expected_relations and row.text not in texts]
    random.Random(0).shuffle(rows)
    seen: set[str] = set()
    first: list[RawRow] = []
    later: list[RawRow] = []
    for row in rows:
        predicates = {relation.predicate for relation in row.expected_relations}
        (first if predicates - seen else later).append(row)
        seen |= predicates
    chosen = (*first, *later)[:count]
    if len(chosen) < count:
        raise ConfigError(
            "there are not enough training rows to show as examples",
            where="evaluation.few_shots",
            expected=f"{count} rows with relations that are not held out",
            found=str(len(chosen)),
            next_step="lower evaluation.few_shots, or score a model whose training rows the store has",
        )
    return replace(source, label=f"{source.label} with {count} examples", examples=chosen)


def majority_predicate(training: Iterable[RawRow]) -> str | None:
    """The most frequent predicate, of equals the first in the alphabet; None where there is no relation."""
    return _most(Counter(relation.predicate for row in training for relation in row.expected_relations))


def majority_by_types(training: Iterable[RawRow]) -> dict[TypePair, str]:
    """For every pair of labels that has a relation somewhere, in its direction, the most frequent predicate."""
    counts: dict[TypePair, Counter[str]] = {}
    for row in training:
        labels = {normalise(entity.text): entity.label for entity in reversed(row.entities)}
        for relation in row.expected_relations:
            pair = labels.get(normalise(relation.subject)), labels.get(normalise(relation.object))
            if pair[0] is not None and pair[1] is not None:
                counts.setdefault((pair[0], pair[1]), Counter())[relation.predicate] += 1
    return {pair: most for pair, found in counts.items() if (most := _most(found)) is not None}


def every_pair(row: RawRow, predicate: str) -> list[Relation]:
    """Co-occurrence: this predicate between every ordered pair of the given entities that the text has."""
    return [Relation(subject=one.text, predicate=predicate, object=two.text) for one, two in _pairs(row)]


def by_types(row: RawRow, table: Mapping[TypePair, str]) -> list[Relation]:
    """The predicate of their labels between every ordered pair of the given entities, where training rows had one."""
    return [
        Relation(subject=one.text, predicate=table[one.label, two.label], object=two.text)
        for one, two in _pairs(row)
        if (one.label, two.label) in table
    ]


def _pairs(row: RawRow) -> Iterator[tuple[Entity, Entity]]:
    text = normalise(row.text)
    unique: dict[str, Entity] = {}
    for entity in row.entities:
        if normalise(entity.text) in text:
            unique.setdefault(normalise(entity.text), entity)
    return permutations(unique.values(), 2)


def _most(counts: Counter[str]) -> str | None:
    return min(counts, key=lambda predicate: (-counts[predicate], predicate), default=None)
