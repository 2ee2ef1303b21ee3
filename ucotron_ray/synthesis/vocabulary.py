"""The words that relation rows are made of: types, relations, and which names and ends can be drawn for them.

Those of the generator (`seeds.py`), or those of a schema that the recipe names (docs/schema.md).
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.recipe import Generation
from ucotron_ray.data import schema_file
from ucotron_ray.data.records import Relation, name_key
from ucotron_ray.data.schema import Predicate, Schema
from ucotron_ray.synthesis.seeds import ENTITY_TYPES, KINDS, RELATION_TYPES, every_name

FEWEST_NAMES = 2
"""Of a type on a side of the split: the two ends of a relation are different."""


@dataclass(frozen=True)
class Vocabulary:
    """Types and relations by the names that rows have; `schema` None = the generator's own."""

    types: tuple[str, ...] = ENTITY_TYPES
    relations: tuple[str, ...] = RELATION_TYPES
    drawn: tuple[str, ...] = RELATION_TYPES
    """The relations that are asked for, and that have to occur in the rows."""
    schema: Schema | None = None
    _types: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        """Types are found whatever their case."""
        object.__setattr__(self, "_types", {name_key(name): name for name in self.types})

    def type_named(self, name: str) -> str | None:
        """The type as rows write it; None if there is no such type."""
        return self._types.get(name_key(name))

    def relation_named(self, name: str) -> str | None:
        """The relation as rows write it, whatever its spelling and by any alias; None if there is none."""
        if self.schema is None:
            spelled = re.sub(r"[\s-]+", "_", name.strip().lower())
            return spelled if spelled in self.relations else None
        found = self.schema.predicate_named(name)
        return (found.inverse or found.name) if found else None

    def written(self, subject: str, relation: str, object_: str) -> tuple[str, str, str] | None:
        """A statement as all that mean the same are written; None for a relation that there is not."""
        name = self.relation_named(relation)
        if name is None:
            return None
        if self.schema is None:
            return subject, name, object_
        said = self.schema.canonical(Relation(subject=subject, predicate=relation, object=object_, confidence=1.0))
        return said.subject, said.predicate, said.object

    def described(self, relation: str) -> str:
        """What a schema says that a relation means; empty where it does not."""
        found = self.schema and self.schema.predicate_named(relation)
        return " ".join(found.description.split()) if found else ""

    def lines(self) -> str:
        """Every relation of a schema with its ends and what it means, for a prompt."""
        return "\n".join(_line(predicate) for predicate in _written(self.schema)) if self.schema else ""


def vocabulary_of(generation: Generation) -> Vocabulary:
    """What the recipe says. Raises InputError for a schema that cannot be read, ConfigError for an unknown relation."""
    types: tuple[str, ...] = ENTITY_TYPES
    relations: tuple[str, ...] = RELATION_TYPES
    schema: Schema | None = None
    if generation.schema_file is not None:
        schema = schema_file.read(Path(generation.schema_file).expanduser())
        types, relations = tuple(kind.name for kind in schema.types) or ENTITY_TYPES, schema.vocabulary
    chosen = generation.task("relation_extraction").relations or relations
    unknown = sorted(set(chosen) - set(relations))
    if unknown:
        raise ConfigError(
            f"'{unknown[0]}' is no relation of the {'schema' if schema else 'generator'}",
            where="generation.tasks.relation_extraction.relations",
            expected=", ".join(relations),
        )
    return Vocabulary(types, relations, tuple(name for name in relations if name in chosen), schema)


@dataclass(frozen=True)
class Pools:
    """What relations of a schema are drawn from, on one side of the split: their ends' types, and names by type."""

    ends: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
    names: Mapping[str, Sequence[str]]

    def draw(self, rng: random.Random, words: Vocabulary, share_of_two: float) -> list[dict[str, str]]:
        """A relation, and for a share of the draws another one of the same subject."""
        relation = rng.choice(sorted(self.ends))
        kind = rng.choice(self.ends[relation][0])
        subject = rng.choice(self.names[kind])
        drawn = [self._between(rng, words, kind, subject, relation)]
        others = sorted(name for name, (subjects, _) in self.ends.items() if kind in subjects and name != relation)
        if others and rng.random() < share_of_two:
            drawn.append(self._between(rng, words, kind, subject, rng.choice(others)))
        return drawn

    def _between(self, rng: random.Random, words: Vocabulary, kind: str, subject: str, relation: str) -> dict[str, str]:
        other = rng.choice(self.ends[relation][1])
        object_ = rng.choice([name for name in self.names[other] if name != subject])
        types = {object_: other, subject: kind}
        said = words.written(subject, relation, object_)
        assert said is not None, "relations are drawn from the vocabulary"
        first, name, second = said
        ends = {"subject": first, "subject_type": types[first], "relation": name}
        return {**ends, "object": second, "object_type": types[second]}


def pools(words: Vocabulary, *, seed: int, val_ratio: float) -> dict[bool, Pools]:
    """What is drawn for validation (True) and for training (False): no name for both.

    Raises ConfigError for a type that an end of a relation must have and that has no names.
    """
    assert words.schema is not None
    train, held = _split(_names(words.schema, words.types), seed=seed, val_ratio=val_ratio)
    wanted = [predicate for predicate in _written(words.schema) if predicate.name in words.drawn]
    lacking = sorted({kind for p in wanted for kind in (*p.domain, *p.range) if len(train[kind]) < FEWEST_NAMES})
    if lacking or not any(len(names) >= FEWEST_NAMES for names in train.values()):
        raise ConfigError(
            f"the schema has types without names to write of: {', '.join(lacking or words.types)}",
            where="generation.schema",
            expected=f"at least {FEWEST_NAMES} names of each: as ends of `examples` of a predicate that has this type "
            f"there, or a type that is called {', '.join(KINDS)} or the like",
            next_step="add examples, take the type out of `domain` and `range`, or leave its predicates out of "
            "generation.tasks.relation_extraction.relations",
        )
    return {side: _pools(wanted, names) for side, names in ((False, train), (True, held))}


def _pools(wanted: Sequence[Predicate], names: Mapping[str, Sequence[str]]) -> Pools:
    ends = {}
    for predicate in wanted:
        sides = [tuple(t for t in types or names if len(names[t]) >= FEWEST_NAMES) for types in _sides(predicate)]
        if all(sides):
            ends[predicate.name] = (sides[0], sides[1])
    return Pools(ends, names)


def _names(schema: Schema, types: Sequence[str]) -> dict[str, set[str]]:
    """By type: the ends of examples, where a predicate leaves no choice of their type, and the built-in names.

    A type that has too few of them takes the ends of examples that can be of this type or of another one.
    """
    names: dict[str, set[str]] = {kind: set() for kind in types}
    uncertain: dict[str, set[str]] = {kind: set() for kind in types}
    for predicate in schema.predicates:
        for side, kinds in zip(("subject", "object"), _sides(predicate), strict=True):
            # Names stand in quotes in a prompt.
            ends = {end for example in predicate.examples if '"' not in (end := str(getattr(example, side)))}
            for kind in kinds:
                (names if len(kinds) == 1 else uncertain)[kind] |= ends
    for kind, label in KINDS.items():
        # `city` fits a type of this name better than all that the server calls a location.
        fitting = schema.types_of(kind) or schema.types_of(label) if schema.types else {label}
        for found in fitting:
            names[found] |= set(every_name(kind))
    return {kind: found if len(found) >= FEWEST_NAMES else found | uncertain[kind] for kind, found in names.items()}


def _split(
    names: Mapping[str, set[str]], *, seed: int, val_ratio: float
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Names for training and for validation, by type. A name of two types is on one side for both."""
    held_out: dict[str, bool] = {}
    for kind in sorted(names):
        keys = sorted({name_key(name) for name in names[kind]})
        random.Random(f"{seed}/schema/{kind}").shuffle(keys)
        wanted = max(FEWEST_NAMES, round(len(keys) * val_ratio)) if val_ratio and len(keys) >= 2 * FEWEST_NAMES else 0
        wanted -= sum(held_out.get(key, False) for key in keys)
        for key in keys:
            if key not in held_out:
                held_out[key] = wanted > 0
                wanted -= 1
    return tuple(  # type: ignore[return-value]  # two sides, two entries
        {kind: sorted(n for n in found if held_out[name_key(n)] is side) for kind, found in names.items()}
        for side in (False, True)
    )


def _sides(predicate: Predicate) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return predicate.domain, predicate.range


def _written(schema: Schema) -> list[Predicate]:
    """The predicates that relations are written with."""
    return [predicate for predicate in schema.predicates if predicate.inverse is None]


def _line(predicate: Predicate) -> str:
    subjects, objects = (" or ".join(types) or "any" for types in _sides(predicate))
    said = " ".join(predicate.description.split())
    either = ", in either direction" if predicate.symmetric else ""
    return f"- {predicate.name} ({subjects} → {objects}{either})" + (f": {said}" if said else "")
