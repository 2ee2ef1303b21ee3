"""What a kind of row is, beyond its typed model: what must not repeat, what must not leak, what can be wrong in it.

A file in `tasks/` declares one `RowKind`; selection, gate and card do the rest, and know no task by its name.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.recipe import Gate
from ucotron_ray.data import jsonl
from ucotron_ray.data.records import Row

Fields = Mapping[str, Any]
"""A row as JSON has it."""

SPLIT_FILES = {"train": "train.jsonl", "val": "val.jsonl"}
VENDOR = "vendor.jsonl"

DEFECTS = {
    "schema": "does not fit its typed model",
    "wrong_span": "an entity does not stand in the text where the row says, or a relation has an end that is no entity",
    "outside_vocabulary": "a type, relation, label or predicate that the vocabulary does not have",
    "wrong_types": "a relation whose ends have types that the schema does not give it",
    "same_fact": "two facts that should differ state the same value",
    "wrong_label": "the label does not follow from the facts, their times and their confidences",
    "unstated": "a text does not state what the row says that it states",
    "alias_as_negative": "a pair that is marked as different names one entity",
    "wrong_reward": "the parts of a reward do not follow from the path",
    "not_alone": "an answer that is more than what was asked for",
    "unanswered": "a chat row whose last message is not the assistant's: there is nothing to learn",
    "empty_answer": "an answer without a text: there is nothing to learn",
    "same_answers": "a pair whose two answers do not differ",
    "duplicate": "the same as an earlier row",
    "near_duplicate": "nearly the text of an earlier row",
    "leak": "a name of a validation row also stands in a training row",
    "special_token": "a turn marker of a chat template",
    "control_character": "a control, bidirectional or invisible character",
    "secret": "a string that looks like a key or a password",
    "personal_data": "an e-mail address, a telephone, card or account number",
}
"""What can be wrong in a row, by the name under which it is counted."""


@dataclass(frozen=True)
class RowKind:
    """One kind of row. Functions take the row as JSON has it, after its typed model took it."""

    name: str
    model: type[Row]
    identity: Callable[[Fields], str]
    """What must not repeat."""
    labels: Callable[[Fields], Iterable[str]]
    """What is counted for the balance of the set: a class, or every relation that a row states."""
    vocabulary: tuple[str, ...] = ()
    """Every label that there is; empty if it is open."""
    names: Callable[[Fields], Iterable[str]] = lambda _: ()
    """What must not stand on both sides of the split: names of their own, and no common nouns (`quality.is_name`)."""
    defects: Callable[[Fields], Iterable[str]] = lambda _: ()
    """What is wrong in this row alone, in the words of DEFECTS."""
    files: Callable[[Fields, str], Iterable[tuple[str, Any]]] = lambda row, split: ((SPLIT_FILES[split], row),)
    """What trains: (file, JSON object) for a row of a split."""
    published: Callable[[Fields], Fields] = lambda row: row
    """The row in the guide's layout."""
    shares: Mapping[str, float] | None = None
    """Exact shares of the classes, by their first label; None if any mixture is fine."""
    key: str | None = None
    """The key that tells such a row from others, for kinds that `data/jsonl.py` does not know."""
    repeats_nearly: bool = True
    """Whether nearly the same text is a repetition. Not for names, which are alike by nature."""
    beside: tuple["RowKind", ...] = ()
    """Kinds that may stand in the same file, since the same stage trains on them."""

    def of(self, row: Fields) -> "RowKind":
        """The kind of a row: this one, or of those beside it the one that the row's keys tell."""
        model = jsonl.kind_of(row) if self.beside else None
        return next((kind for kind in self.beside if kind.model is model), self)

    def quotas(self, count: int) -> dict[str, int] | None:
        """How many rows of each class make `count`: largest remainders, so that the sum is exact."""
        if self.shares is None:
            return None
        exact = {label: count * share for label, share in self.shares.items()}
        rows = {label: int(value) for label, value in exact.items()}
        by_remainder = sorted(exact, key=lambda label: (rows[label] - exact[label], label))
        for label in by_remainder[: count - sum(rows.values())]:
            rows[label] += 1
        return rows

    def class_of(self, row: Fields) -> str:
        """The class whose share counts."""
        return next(iter(self.labels(row)), "")


def check_limits(settings: Gate) -> None:
    """Raises ConfigError for a threshold of something that is not looked for."""
    for part in ("defects", "caught"):
        unknown = sorted(set(getattr(settings, part)) - set(DEFECTS))
        if unknown:
            raise ConfigError(
                f"`{unknown[0]}` is nothing that the gate looks for",
                where=f"generation.gate.{part}",
                expected="one of: " + ", ".join(DEFECTS),
            )


def strings(value: object) -> Iterator[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from strings(key)
            yield from strings(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from strings(inner)


def dump(value: object) -> str:
    """One line of JSON. Raises ValueError for what JSON does not have, such as NaN."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
