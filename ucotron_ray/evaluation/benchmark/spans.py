"""Triples of names → triples of places: which mentions an answer means, so that boundaries can be scored.

The answers of this application name entities and give no offsets. The rule: a name stands where the given entities of
that name stand, else at its occurrences as whole words (the same letters; if none, whatever their case). Of several
places of subject and object the two that are closest to each other are meant, the first of equals. The right answer
has no part in that choice. A name that stands nowhere is a wrong one.
"""

import re
from collections.abc import Collection, Mapping, Sequence

from ucotron_ray.evaluation.benchmark.records import BenchmarkRow, Span
from ucotron_ray.evaluation.scoring import normalise

End = int | Span | str
"""One end of a triple: an entity by its index, a place that is no entity's, or a name that stands nowhere."""

Placed = tuple[End, str, End]


def placed(row: BenchmarkRow, triples: Collection[tuple[str, str, str]], *, given: bool) -> set[Placed]:
    """The triples of an answer by the places of their names; `given` says whether the entities were given."""
    entity_at = _entity_at(row)
    known = _places_by_name(row) if given else {}
    found = set()
    for subject, predicate, object_ in triples:
        subjects, objects = _places(subject, row.text, known), _places(object_, row.text, known)
        one, two = _closest(subjects, objects)
        found.add((_end(one, subject, entity_at), predicate, _end(two, object_, entity_at)))
    return found


def gold(row: BenchmarkRow) -> set[Placed]:
    """The right triples in the same form."""
    entity_at = _entity_at(row)
    # Two entities on one place, as nested annotation can have it, are one here.
    index = [entity_at[entity.spans[0]] for entity in row.entities]
    return {(index[head], predicate, index[tail]) for head, predicate, tail in row.relations}


def occurrences(name: str, text: str) -> list[Span]:
    """Where a name stands in a text as whole words, in order."""
    words = name.split()
    if not words:
        return []
    pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, words)) + r"(?!\w)"
    exact = [match.span() for match in re.finditer(pattern, text)]
    return exact or [match.span() for match in re.finditer(pattern, text, re.IGNORECASE)]


def _entity_at(row: BenchmarkRow) -> dict[Span, int]:
    places: dict[Span, int] = {}
    for index, entity in enumerate(row.entities):
        for span in entity.spans:
            places.setdefault(span, index)
    return places


def _places_by_name(row: BenchmarkRow) -> dict[str, list[Span]]:
    known: dict[str, list[Span]] = {}
    for entity in row.entities:
        for name in entity.names:
            known.setdefault(normalise(name), []).extend(entity.spans)
    return known


def _places(name: str, text: str, known: Mapping[str, list[Span]]) -> list[Span]:
    return known.get(normalise(name)) or occurrences(name, text)


def _closest(subjects: Sequence[Span], objects: Sequence[Span]) -> tuple[Span | None, Span | None]:
    pairs = [(one, two) for one in subjects for two in objects if one != two]
    if not pairs:
        return (subjects[0] if subjects else None), (objects[0] if objects else None)
    return min(pairs, key=lambda pair: (_distance(*pair), pair))


def _distance(one: Span, two: Span) -> int:
    return max(0, max(one[0], two[0]) - min(one[1], two[1]))


def _end(span: Span | None, name: str, entity_at: Mapping[Span, int]) -> End:
    return normalise(name) if span is None else entity_at.get(span, span)
