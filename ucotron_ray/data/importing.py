"""The user's own files → the rows of a dataset: its splits kept apart, what was read as what, rows on two sides."""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.core.errors import InputError
from ucotron_ray.core.files import canonical_hash, content_hash, file_hash, list_files
from ucotron_ray.data import checks, jsonl, readers, wire
from ucotron_ray.data.jsonl import Placed, TrainingRow
from ucotron_ray.data.records import ChatRow, PreferenceRow, RawRow, Row

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Splits:
    """Rows for training, for choices (validation) and for the claim (test), and how they were read.

    `reading` names what makes the rows others than earlier versions read from the same bytes; empty for plain files.
    """

    train: list[Row]
    val: list[Row]
    test: list[Row]
    reading: list[str]
    counts: dict[str, int]


def read_splits(
    train: Path, val: Path | None, *, layout: str | None = None, drop_overlap: bool = False, quiet: bool = False
) -> Splits:
    """Rows of a file or directory, with validation rows of its own or of a second file. Logs what was read as what.

    A row of two sides is refused, or with `drop_overlap` taken away: a validation row that trains from validation, a
    test row from both others, since the claim is made on a whole test split. Raises InputError.
    """
    rows = jsonl.training_rows(train, layout)
    held_out = jsonl.training_rows(val, layout) if val else []
    if not quiet:
        for path, found in ((train, rows), *(((val, held_out),) if val else ())):
            say_layouts(path, found)
    # A single file is what it was named for, whatever its name says.
    splits = train.is_dir() or len({placed.split for placed in rows}) > 1
    own = {name: [placed for placed in rows if placed.split == name] for name in ("train", "val", "test")}
    every = {**own, "val": held_out or own["val"]} if splits else {"train": rows, "val": held_out, "test": []}
    if not every["train"]:
        found = ", ".join(f"{len(part)} {name}" for name, part in every.items())
        raise InputError("there are no rows of the split train", where=str(train), expected="train.jsonl", found=found)
    made = {name: readable_rows([placed.row for placed in part]) for name, part in every.items()}
    kept, dropped = _apart({name: part[0] for name, part in made.items()}, train, val, drop_overlap)
    if kept["test"] and not quiet:
        unused = "" if kept["val"] else "; there are no validation rows, and none are made of them"
        log.info("%s: %d test rows are kept for the claim and not used%s", train, len(kept["test"]), unused)
    counts = {"chat": made["train"][1], "chat_as_is": made["train"][2]}
    counts |= {"test": len(kept["test"])} if kept["test"] else {}
    counts |= {"overlap_dropped": dropped} if dropped else {}
    reading = _reading(every, layout, dropped)
    if splits and held_out and own["val"]:
        log.warning("%s: its own %d validation rows are not used beside %s", train, len(own["val"]), val)
        reading = sorted([*reading, "other validation"])
    return Splits(kept["train"], kept["val"], kept["test"], reading, counts)


def _reading(every: dict[str, list[Placed[TrainingRow]]], layout: str | None, dropped: int) -> list[str]:
    """What earlier versions did not read, or read as something else."""
    names = {name for part in every.values() for placed in part for name in placed.honoured}
    names |= {f"format {layout}"} if layout else set()
    names |= {"test"} if every["test"] else set()
    names |= {"overlap dropped"} if dropped else set()
    # Beside train.jsonl they looked for val.jsonl alone.
    other = re.compile(r"(?:validation|valid|dev|development)(?:_sft)?\.(?:jsonl|parquet),")
    names |= {"validation"} if any(other.match(placed.where) for placed in every["val"]) else set()
    return sorted(names)


def content_of(path: Path) -> str:
    """sha256 over a file, or over all files of a directory."""
    return content_hash(list_files(path)) if path.is_dir() else file_hash(path)


def named(prefix: str, fields: dict[str, Any], digest: object, reading: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The name of a dataset by content, and its fields: for plain files those that they always had."""
    if not reading:
        return f"{prefix}-{(digest if isinstance(digest, str) else canonical_hash(digest))[:12]}", fields
    return f"{prefix}-{canonical_hash([digest, list(reading)])[:12]}", {**fields, "read": list(reading)}


def say_layouts(path: Path, rows: Iterable[Placed[Any]]) -> None:
    """Log what the rows of a file were read as, and what `validate` would reject in them and a training takes."""
    said = readers.says((placed.layout, placed.honoured) for placed in rows)
    if said:
        log.info("%s: %s", path, said)
    doubtful = [(placed.where, found) for placed in rows if (found := checks.wrong_span(placed.row))]
    if doubtful:
        log.warning(
            "%s: %d row(s) with a span or a name that does not hold, first %s (%s); `ucotron-ray validate` names all",
            path,
            len(doubtful),
            *doubtful[0],
        )


def readable_rows(rows: Sequence[TrainingRow]) -> tuple[list[Row], int, int]:
    """Rows with chat rows read back into relations; how many were chat rows, and how many of those stay as they are."""
    made: list[Row] = []
    num_chat = num_as_is = 0
    for row in rows:
        if isinstance(row, ChatRow):
            num_chat += 1
            parsed = wire.relations_of_chat(row)
            num_as_is += parsed is None
            made.append(parsed or row)
        else:
            made.append(row)
    return made, num_chat, num_as_is


def row_key(row: Row) -> str:
    """What makes two rows the same question."""
    if isinstance(row, RawRow):
        return row.text
    if isinstance(row, ChatRow):
        return "\n".join(message.content for message in row.messages if message.role == "user")
    assert isinstance(row, PreferenceRow)
    return row.prompt


def _apart(rows: dict[str, list[Row]], train: Path, val: Path | None, drop: bool) -> tuple[dict[str, list[Row]], int]:
    """The splits without rows in common, and how many rows were dropped for it."""
    keys = {name: {row_key(row) for row in part} for name, part in rows.items()}
    common = {
        "validation": (keys["train"] - keys["test"]) & keys["val"],
        "test": keys["test"] & (keys["train"] | keys["val"]),
    }
    where = f"{train}, {val}" if val else str(train)
    if not drop:
        for name, found in common.items():
            if found:
                others = "training rows" if name == "validation" else "training or validation rows"
                count = sum(row_key(row) in found for row in rows["val" if name == "validation" else name])
                raise InputError(
                    f"{count} {name} row(s) are {others} too",
                    where=where,
                    expected=f"{name} rows that training does not see",
                    found=sorted(found)[0][:120],
                    next_step=f"pass --drop-overlap to leave them out of {_LEAVES[name]}, or remove them yourself",
                )
        return rows, 0
    kept = {
        "train": [row for row in rows["train"] if row_key(row) not in keys["test"]],
        "val": [row for row in rows["val"] if row_key(row) not in keys["train"] | keys["test"]],
        "test": rows["test"],
    }
    dropped = {name: len(rows[name]) - len(part) for name, part in kept.items() if len(part) < len(rows[name])}
    if not kept["train"]:
        raise InputError("every training row is a test row too", where=where, expected="rows of their own to train on")
    for name, count in dropped.items():
        log.info("%s: %d row(s) of %s stand in another split too and are dropped", train, count, name)
    return kept, sum(dropped.values())


_LEAVES = {"validation": "the validation rows", "test": "training and validation"}
