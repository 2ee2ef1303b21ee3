"""Every kind of row that a file can hold, and which one an object is."""

from collections.abc import Mapping
from typing import Any

from ucotron_ray.core import generators
from ucotron_ray.core.recipe import Generation
from ucotron_ray.data import checks, jsonl
from ucotron_ray.data.records import ChatRow, RawRow
from ucotron_ray.data.wire import relations_of_chat
from ucotron_ray.synthesis.generator import generator
from ucotron_ray.synthesis.quality import is_name
from ucotron_ray.synthesis.rows import Fields, RowKind
from ucotron_ray.synthesis.tasks import relation_extraction
from ucotron_ray.synthesis.vocabulary import vocabulary_of

TRAINS = {"relations": "sft", "chat": "sft", "relation_extraction": "sft", "preference": "dpo"}
"""Which stage trains on rows of a kind; descriptions are encoded first, and the other kinds are for other programs."""


def all_kinds(generation: Generation) -> tuple[RowKind, ...]:
    """The kinds of all generators, the server's relation rows and chat rows; in the vocabulary of the recipe."""
    made = {name: generator(name).row_kind() for name in generators.NAMES}
    made[relation_extraction.NAME] = relation_extraction.row_kind(vocabulary_of(generation))
    return (*made.values(), _relations(), _chat())


def kind_of(value: Mapping[str, Any], kinds: tuple[RowKind, ...]) -> RowKind | None:
    """The kind of an object, by the key that tells it; None if it is of none."""
    model = jsonl.kind_of(value)
    if model is not None:
        return next((kind for kind in kinds if kind.model is model), None)
    return next((kind for kind in kinds if kind.key is not None and kind.key in value), None)


def _relations() -> RowKind:
    return RowKind(
        name="relations",
        model=RawRow,
        identity=lambda row: str(row["text"]),
        labels=lambda row: [relation["predicate"] for relation in row["expected_relations"]],
        # Without a label it may be anybody.
        names=lambda row: [e["text"] for e in row["entities"] if is_name(e["text"], e.get("label", "person"))],
        defects=_wrong_span,
    )


def _chat() -> RowKind:
    return RowKind(
        name="chat",
        model=ChatRow,
        identity=lambda row: "\n".join(m["content"] for m in row["messages"] if m["role"] == "user"),
        labels=_predicates_of_chat,
        names=lambda row: [entity.text for entity in _raw_of(row).entities if is_name(entity.text, entity.label)],
        defects=_unlearnable,
    )


def _unlearnable(row: Fields) -> list[str]:
    """What a training refuses, by the same function."""
    problem = checks.unlearnable(ChatRow.model_validate(row))
    return [problem[0]] if problem else []


def _wrong_span(row: Fields) -> list[str]:
    return ["wrong_span"] if checks.wrong_span(RawRow.model_validate(row)) else []


def _raw_of(row: Fields) -> RawRow:
    """The text, entities and relations of a chat row, as far as they can be read back."""
    found = relations_of_chat(ChatRow.model_validate(row))
    return found or RawRow(text="-", entities=[], expected_relations=[])


def _predicates_of_chat(row: Fields) -> list[str]:
    return [relation.predicate for relation in _raw_of(row).expected_relations]
