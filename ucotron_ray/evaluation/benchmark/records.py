"""What all public sets are read into: texts, entities with the places of their mentions, and relations."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ucotron_ray.data.records import Entity, RawRow, Relation

Span = tuple[int, int]
"""Character offsets in the text, end exclusive."""

TYPES = {"peop": "person", "per": "person"}
"""Types of public sets that `data.records.server_label` does not know: CoNLL04 and DocRED."""

NO_TYPE = "concept"
"""The label in the prompt where a set has no types: the server's own default."""


@dataclass(frozen=True)
class GoldEntity:
    """An entity: how it is called first, every name that it has, its type, and where its mentions stand, if known."""

    names: tuple[str, ...]
    type: str = NO_TYPE
    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        """Raises ValueError for an entity without a name."""
        if not self.names or not self.names[0].strip():
            raise ValueError("an entity without a name")

    @property
    def name(self) -> str:
        """The name in the prompt and in the right triples."""
        return self.names[0]


@dataclass(frozen=True)
class BenchmarkRow:
    """One text of a public set. Relations and pairs name entities by their index: (head, predicate, tail)."""

    text: str
    entities: tuple[GoldEntity, ...]
    relations: tuple[tuple[int, str, int], ...]
    negatives: tuple[tuple[int, int], ...] = ()
    """Ordered pairs that the set itself says have no relation; sets that say nothing of them have none here."""
    group: str | None = None
    """Domain or ontology, where a set has several."""

    def __post_init__(self) -> None:
        """Raises ValueError for an empty text."""
        if not self.text.strip():
            raise ValueError("an empty text")

    def raw(self) -> RawRow:
        """The row as this application asks and scores it, all entities given."""
        return self._asked(range(len(self.entities)), self.relations)

    def pair(self, head: int, tail: int) -> RawRow:
        """The question about one ordered pair: only these two are given, the head first."""
        return self._asked((head, tail), [triple for triple in self.relations if triple[::2] == (head, tail)])

    def pairs(self) -> list[tuple[int, int]]:
        """The pairs to classify, in order: those that have a relation, then the negatives of the set."""
        return list(dict.fromkeys([*(triple[::2] for triple in self.relations), *self.negatives]))

    def _asked(self, given: Sequence[int], relations: Sequence[tuple[int, str, int]]) -> RawRow:
        names = [entity.name for entity in self.entities]
        return RawRow(
            text=self.text,
            entities=[_in_prompt(self.entities[index], self.text) for index in given],
            expected_relations=[
                Relation(subject=names[head], predicate=predicate, object=names[tail])
                for head, predicate, tail in relations
            ],
            group=self.group,
        )


@dataclass(frozen=True)
class BenchmarkSet:
    """One split of a public set."""

    layout: str
    split: str
    rows: tuple[BenchmarkRow, ...]
    predicates: tuple[str, ...]
    """Its vocabulary, sorted: that of its ontology or list where it has one, else of all the splits that are there."""
    files: tuple[str, ...]
    """What was read of this split, relative to the directory."""


def joined(tokens: Sequence[str]) -> tuple[str, list[Span]]:
    """Tokens → one text, one space between two tokens, and the span of each token in it.

    The same rule as in SpERT's reader, whose phrases are tokens joined by one space; nothing is guessed about the
    spacing that the tokens had before.
    """
    spans: list[Span] = []
    end = -1
    for token in tokens:
        spans.append((end + 1, end + 1 + len(token)))
        end = spans[-1][1]
    return " ".join(tokens), spans


def span_entity(text: str, token_spans: Sequence[Span], first: int, last: int, kind: str) -> GoldEntity:
    """The entity of the tokens from `first` to `last`, both included."""
    span = (token_spans[first][0], token_spans[last][1])
    return GoldEntity((text[slice(*span)],), kind, (span,))


def _in_prompt(entity: GoldEntity, text: str) -> Entity:
    label = TYPES.get(entity.type.lower(), entity.type)
    if entity.spans:
        start, end = entity.spans[0]
        return Entity(text=entity.name, label=label, start=start, end=end)
    return Entity.located(entity.name, label, text)


def last_parts(labels: Sequence[str]) -> dict[str, str]:
    """Labels such as `/people/person/place_of_birth` → their last part, unless two labels would become one."""
    short = {label: re.sub(r".*/", "", label) or label for label in labels}
    return short if len(set(short.values())) == len(short) else {label: label for label in labels}
