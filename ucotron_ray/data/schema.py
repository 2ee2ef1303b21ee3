"""A schema: which types of entities there are, which predicates can hold between them, and what else they are called.

Its file, which a person edits: `schema_file.py`.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import Field, StrictBool, StringConstraints, model_validator

from ucotron_ray.core.files import canonical_hash
from ucotron_ray.core.sections import NonNegative, Section, Text
from ucotron_ray.core.strict_yaml import KeyPath
from ucotron_ray.data.records import Relation, name_key, server_label

# On one line: names stand in prompts and in lists.
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, pattern=r"^[^\x00-\x1f\x7f]+$")]


class EntityType(Section):
    """A type of entities. Labels of rows are found by it whatever their case (`Schema.types_of`)."""

    name: Name
    description: str = ""


class Example(Section):
    """Two entities that a predicate holds between, and a text that says so in their very names."""

    subject: Name
    object: Name
    text: Text | None = None


class Predicate(Section):
    """What can hold between a subject and an object."""

    name: Name
    description: str = ""
    domain: tuple[Name, ...] = ()
    """Types that the subject can have; empty = any."""
    range: tuple[Name, ...] = ()
    """Types that the object can have; empty = any."""
    symmetric: StrictBool = False
    """Whether it holds in both directions as soon as it holds in one."""
    inverse: Name | None = None
    """The predicate that says the same with the ends exchanged, and that is written instead of this one."""
    aliases: tuple[Name, ...] = ()
    """Other names of the same."""
    examples: tuple[Example, ...] = ()
    count: NonNegative | None = None
    """How often the source of the schema says it."""


class Schema(Section):
    """Types and predicates that fit together: no name means two things, every type and inverse that is named exists."""

    types: tuple[EntityType, ...] = ()
    predicates: Annotated[tuple[Predicate, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        misfit = next(_misfits(self), None)
        if misfit is not None:
            raise misfit
        return self

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The names that relations are written with: every predicate but those that are the inverse of another."""
        return tuple(predicate.name for predicate in self.predicates if predicate.inverse is None)

    @property
    def content(self) -> str:
        """sha256 of what the schema means: the order of its entries and their counts do not change it."""
        return canonical_hash(
            {
                "types": {kind.name: kind.description for kind in self.types},
                "predicates": {predicate.name: _meaning(predicate) for predicate in self.predicates},
            }
        )

    def predicate_named(self, name: str) -> Predicate | None:
        """The predicate with this name or alias, however it is spelled (`predicate_key`); None if there is none."""
        return self._by_key.get(predicate_key(name))

    def types_of(self, label: str) -> frozenset[str]:
        """The schema's types that a label can mean: the type of this name, else those that the server calls the same.

        A row's label `location` is each of `city` and `mountain`, where the schema has no `location`.
        """
        exact = self._types_by_key.get(name_key(label))
        return frozenset((exact,)) if exact else self._types_by_server_label.get(server_label(label), frozenset())

    def allows(self, subject_type: str, predicate: str, object_type: str) -> bool:
        """Whether a predicate, by name or alias, can hold between entities with these labels."""
        found = self.predicate_named(predicate)
        if found is None:
            return False
        return all(
            not types or not self.types_of(label).isdisjoint(types)
            for types, label in ((found.domain, subject_type), (found.range, object_type))
        )

    def canonical(self, relation: Relation) -> Relation:
        """The relation as all that mean the same are written; as it is if the schema has no such predicate.

        An alias becomes the predicate's name, an inverse its main predicate with the ends exchanged, and the ends of a
        symmetric predicate come in the order of their names.
        """
        predicate = self.predicate_named(relation.predicate)
        if predicate is None:
            return relation
        ends = (relation.subject, relation.object)
        if predicate.inverse is not None:
            ends = ends[::-1]
        name = predicate.inverse or predicate.name
        if self._by_key[predicate_key(name)].symmetric:
            first, second = sorted(ends, key=lambda end: (name_key(end), end))
            ends = (first, second)
        return relation.model_copy(update={"subject": ends[0], "predicate": name, "object": ends[1]})

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Checked, and found by its own names: pydantic's copy would keep the old ones."""
        return type(self).model_validate({**dict(self), **(update or {})})

    @cached_property
    def _by_key(self) -> dict[str, Predicate]:
        return {predicate_key(name): p for p in self.predicates for name in (p.name, *p.aliases)}

    @cached_property
    def _types_by_key(self) -> dict[str, str]:
        return {name_key(kind.name): kind.name for kind in self.types}

    @cached_property
    def _types_by_server_label(self) -> dict[str, frozenset[str]]:
        labels = {kind.name: server_label(kind.name) for kind in self.types}
        return {found: frozenset(name for name in labels if labels[name] == found) for found in labels.values()}


def snake_case(name: str) -> str:
    """`worksAt`, `Works at` and `works-at` as `works_at`; empty for a name without letters and digits."""
    words = re.sub(r"(?<=[^\W_A-Z])(?=[A-Z])", "_", name)
    return re.sub(r"[\W_]+", "_", name_key(words)).strip("_")


def predicate_key(name: str) -> str:
    """What the spellings of one predicate have in common."""
    return snake_case(name) or name_key(name)


class Misfit(ValueError):
    """Something in a schema that does not fit the rest: where it stands, what was expected, and what to do."""

    def __init__(self, problem: str, path: KeyPath, *, expected: str, next_step: str) -> None:
        super().__init__(problem)
        self.problem, self.path, self.expected, self.next_step = problem, path, expected, next_step


def _meaning(predicate: Predicate) -> dict[str, object]:
    return {
        "description": predicate.description,
        "domain": sorted(predicate.domain),
        "range": sorted(predicate.range),
        "symmetric": predicate.symmetric,
        "inverse": predicate.inverse,
        "aliases": sorted(predicate.aliases),
        "examples": sorted([e.subject, e.object, e.text or ""] for e in predicate.examples),
    }


def _misfits(schema: Schema) -> Iterator[Misfit]:
    yield from _doubled_types(schema)
    yield from _doubled_predicates(schema)
    known = dict.fromkeys(kind.name for kind in schema.types)
    by_name = {predicate.name: predicate for predicate in schema.predicates}
    for predicate in schema.predicates:
        yield from _wrong_types(predicate, known)
        yield from _wrong_direction(predicate, by_name)
        yield from _wrong_examples(predicate)


def _doubled_types(schema: Schema) -> Iterator[Misfit]:
    seen: dict[str, str] = {}
    for kind in schema.types:
        first = seen.setdefault(name_key(kind.name), kind.name)
        if first is not kind.name:
            yield Misfit(
                f"the type `{kind.name}` stands here twice: also as `{first}`",
                ("types", kind.name),
                expected="every type once, whatever the case of its letters",
                next_step="remove one of them, and name the other under `domain` and `range`",
            )


def _doubled_predicates(schema: Schema) -> Iterator[Misfit]:
    """Names and aliases that two predicates share, or one has twice."""
    seen: dict[str, str] = {}
    # Names first: of a name and an alias it is the alias that is in the wrong place.
    for predicate in schema.predicates:
        key = predicate_key(predicate.name)
        if key in seen:
            yield Misfit(
                f"the predicate `{predicate.name}` stands here twice: also as `{seen[key]}`",
                ("predicates", predicate.name),
                expected="every predicate once: case, spaces, `-` and `_` make no other name",
                next_step="keep one of them, with the other's types, aliases and examples",
            )
        seen[key] = predicate.name
    for predicate in schema.predicates:
        for index, alias in enumerate(predicate.aliases):
            key = predicate_key(alias)
            if key in seen:
                yield Misfit(
                    f"`{alias}` is an alias of `{predicate.name}`, and already a name of `{seen[key]}`",
                    ("predicates", predicate.name, "aliases", index),
                    expected="aliases that nothing else is called, each once",
                    next_step=f"remove the alias, or the predicate `{seen[key]}` if both say the same"
                    if seen[key] != predicate.name
                    else "remove the alias",
                )
            seen.setdefault(key, predicate.name)


def _wrong_types(predicate: Predicate, known: Collection[str]) -> Iterator[Misfit]:
    for side, types in (("domain", predicate.domain), ("range", predicate.range)):
        first = {name: index for index, name in reversed([*enumerate(types)])}
        for index, name in enumerate(types):
            path: KeyPath = ("predicates", predicate.name, side, index)
            if name not in known:
                yield Misfit(
                    f"`{predicate.name}` has the unknown type `{name}`",
                    path,
                    expected=f"one of the types: {', '.join(known) or 'there is none'}",
                    next_step=_nearest(name, known) + f"`{name}:` under `types:` adds it",
                )
            if first[name] < index:
                yield Misfit(
                    f"`{predicate.name}` names the type `{name}` twice",
                    path,
                    expected="every type once",
                    next_step="remove one of them",
                )


def _wrong_direction(predicate: Predicate, by_name: dict[str, Predicate]) -> Iterator[Misfit]:
    here: KeyPath = ("predicates", predicate.name)
    if predicate.symmetric and set(predicate.domain) != set(predicate.range):
        yield Misfit(
            f"`{predicate.name}` is symmetric, and its ends have different types",
            (*here, "symmetric"),
            expected="the same types under `domain` and `range`",
            next_step="correct the types, or remove `symmetric`",
        )
    if predicate.inverse is None:
        return
    main = by_name.get(predicate.inverse)
    if main is None:
        problem = f"`{predicate.name}` is the inverse of `{predicate.inverse}`, which is not here"
        step = _nearest(predicate.inverse, by_name) + f"`{predicate.inverse}:` under `predicates:` adds it"
    elif main is predicate or predicate.symmetric or main.symmetric:
        problem = f"`{predicate.name}` is an inverse and symmetric: it is the same in both directions"
        step = "remove `inverse`; where another predicate says the same, make this one an alias of it"
    elif main.inverse is not None:
        problem = f"`{predicate.name}` is the inverse of `{main.name}`, which is itself the inverse of `{main.inverse}`"
        step = f"remove `inverse` from the one that relations are to be written with, `{main.name}` for example"
    else:
        return
    expected = "the name of a predicate that is no inverse and is not symmetric"
    yield Misfit(problem, (*here, "inverse"), expected=expected, next_step=step)


def _wrong_examples(predicate: Predicate) -> Iterator[Misfit]:
    for index, example in enumerate(predicate.examples):
        missing = [end for end in (example.subject, example.object) if end not in (example.text or end)]
        if missing:
            yield Misfit(
                f"an example of `{predicate.name}` has a text that does not mention `{missing[0]}`",
                ("predicates", predicate.name, "examples", index),
                expected="subject and object in the very letters of the text",
                next_step="correct the name or the text, or leave out the text",
            )


def _nearest(name: str, known: Iterable[str]) -> str:
    """The beginning of a next step."""
    by_key = {name_key(one): one for one in known}
    near = difflib.get_close_matches(name_key(name), by_key, n=1)
    return f"did you mean `{by_key[near[0]]}`? Else " if near else ""
