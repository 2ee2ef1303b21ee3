"""JSONL files of rows: what a file is, reading with line numbers, writing. Which row types exist says `records.py`."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from ucotron_ray.artifacts import write_text
from ucotron_ray.errors import InputError
from ucotron_ray.records import ChatRow, PreferenceRow, RawRow, Row

TrainingRow = RawRow | ChatRow

_KEYS: tuple[tuple[str, type[Row]], ...] = (
    ("expected_relations", RawRow),
    ("messages", ChatRow),
    ("chosen", PreferenceRow),
)
"""The key that tells what a row is."""

EXPECTED = (
    'one JSON object a line: {"text", "entities", "expected_relations"}, {"messages"} '
    'or {"prompt", "chosen", "rejected"}'
)


def read_rows(path: Path) -> list[Row]:
    """Every row of a file; blank lines are skipped. Raises InputError with the line number of the first bad one."""
    rows = [_row(value, path, number) for number, value in _objects(path)]
    if not rows:
        raise InputError("the file has no rows", where=str(path), expected=EXPECTED, found="an empty file")
    return rows


def read_training_rows(path: Path) -> list[TrainingRow]:
    """The rows of a file for supervised training; a preference file is refused, and so is a row without an answer."""
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        if isinstance(row, PreferenceRow):
            raise InputError(
                "these are preference pairs",
                where=f"{path}, row {number}",
                expected='rows with "expected_relations" or "messages"',
                found='a row with "chosen" and "rejected"',
                next_step="preference pairs train with DPO, not with SFT",
            )
        if isinstance(row, ChatRow) and row.messages[-1].role != "assistant":
            raise InputError(
                "the last message of a row is not the assistant's, so there is nothing to learn",
                where=f"{path}, row {number}",
                expected="roles system (optional), user, assistant",
                found=", ".join(message.role for message in row.messages),
            )
    return cast(list[TrainingRow], rows)


def read_preferences(path: Path) -> list[PreferenceRow]:
    """The rows of a file that holds preference pairs only."""
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, PreferenceRow):
            raise InputError(
                "this row is no preference pair",
                where=f"{path}, row {number}",
                expected='{"prompt", "chosen", "rejected"}',
                found=type(row).__name__,
            )
    return cast(list[PreferenceRow], rows)


def read_relations(path: Path) -> list[RawRow]:
    """The rows of a file that holds raw relation rows only."""
    rows = read_rows(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, RawRow):
            raise InputError(
                "this row cannot be scored",
                where=f"{path}, row {number}",
                expected='{"text", "entities", "expected_relations"}',
                found=type(row).__name__,
            )
    return cast(list[RawRow], rows)


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows, one JSON object a line, atomically; return how many. The same rows give the same bytes."""
    lines = [row.model_dump_json(exclude_none=True) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(line + "\n" for line in lines))
    return len(lines)


def kinds(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows of each type there are."""
    return dict(Counter(type(row).__name__ for row in rows))


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise _bad(path, number, str(error)) from error
                if not isinstance(value, dict):
                    raise _bad(path, number, type(value).__name__)
                yield number, value
    except UnicodeDecodeError as error:
        raise InputError(
            "the file is not UTF-8", where=str(path), found=str(error), next_step="convert it to UTF-8"
        ) from error
    except OSError as error:
        raise InputError(
            "the file cannot be read", where=str(path), found=error.strerror, next_step="check the path"
        ) from error


def _row(value: dict[str, Any], path: Path, number: int) -> Row:
    for key, kind in _KEYS:
        if key in value:
            try:
                return kind.model_validate(value)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(str(part) for part in first["loc"])
                raise _bad(path, number, f"{where}: {first['msg']}") from error
    raise _bad(path, number, "an object with the keys " + ", ".join(sorted(value)[:8]))


def _bad(path: Path, number: int, found: str) -> InputError:
    return InputError(
        "a line cannot be used as a row",
        where=f"{path}, line {number}",
        expected=EXPECTED,
        found=found,
        next_step="correct or remove this line; the training data format is in README.md",
    )
