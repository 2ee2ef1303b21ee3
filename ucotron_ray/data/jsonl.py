"""Files of rows: what an object is, reading with line numbers, writing. Which row types exist says `records.py`.

Written is JSONL; read is what `readers.py` reads.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ucotron_ray.core.errors import InputError
from ucotron_ray.core.files import write_text
from ucotron_ray.data import readers
from ucotron_ray.data.records import (
    ChatRow,
    ContradictionRow,
    DescriptionRow,
    EntityPairRow,
    GeneratedRow,
    PathRow,
    PreferenceRow,
    RawRow,
    Row,
)

TrainingRow = RawRow | ChatRow
R = TypeVar("R", bound=Row)

_KEYS: tuple[tuple[str, type[Row]], ...] = (
    ("expected_relations", RawRow),
    ("messages", ChatRow),
    ("chosen", PreferenceRow),
    ("relations", GeneratedRow),
    ("fact_a", ContradictionRow),
    ("canonical", EntityPairRow),
    ("path_node_ids", PathRow),
    ("description", DescriptionRow),
)
"""The key that tells what a row is."""

EXPECTED = (
    'one JSON object a line: {"text", "entities", "expected_relations"}, {"messages"} '
    'or {"prompt", "chosen", "rejected"}'
)


def read_rows(path: Path, split: str | None = None) -> list[Row]:
    """Every row of a file or directory, or of one split of it; blank lines are skipped.

    Raises InputError with the line number of the first bad one.
    """
    rows = [_row(value, path, where) for where, value in _objects(path, split)]
    if not rows:
        raise InputError("the file has no rows", where=str(path), expected=EXPECTED, found="an empty file")
    return rows


def read_training_rows(path: Path, split: str | None = None) -> list[TrainingRow]:
    """The rows of a file for supervised training; a preference file is refused, and so is a row without an answer."""
    rows: list[TrainingRow] = []
    for number, row in enumerate(read_rows(path, split), 1):
        row = row.raw() if isinstance(row, GeneratedRow) else row
        if isinstance(row, ChatRow) and row.messages[-1].role != "assistant":
            raise InputError(
                "the last message of a row is not the assistant's, so there is nothing to learn",
                where=f"{path}, row {number}",
                expected="roles system (optional), user, assistant",
                found=", ".join(message.role for message in row.messages),
            )
        if not isinstance(row, (RawRow, ChatRow)):
            pairs = isinstance(row, PreferenceRow)
            raise InputError(
                "these are preference pairs" if pairs else "these rows train nothing that SFT can learn",
                where=f"{path}, row {number}",
                expected='rows with "expected_relations", "relations" or "messages"',
                found='a row with "chosen" and "rejected"' if pairs else type(row).__name__,
                next_step="preference pairs train with DPO, not with SFT" if pairs else "ucotron-ray validate PATH",
            )
        rows.append(row)
    return rows


def read_preferences(path: Path) -> list[PreferenceRow]:
    """The rows of a file that holds preference pairs only."""
    rows = read_rows(path)
    return _all_are(PreferenceRow, rows, path, "this row is no preference pair", '{"prompt", "chosen", "rejected"}')


def read_relations(path: Path) -> list[RawRow]:
    """The rows of a file that holds relation rows only, raw or as the relation generator writes them."""
    rows = [row.raw() if isinstance(row, GeneratedRow) else row for row in read_rows(path)]
    return _all_are(RawRow, rows, path, "this row cannot be scored", '{"text", "entities", "expected_relations"}')


def _all_are(kind: type[R], rows: Sequence[Row], path: Path, problem: str, expected: str) -> list[R]:
    kept: list[R] = []
    for number, row in enumerate(rows, 1):
        if not isinstance(row, kind):
            raise InputError(problem, where=f"{path}, row {number}", expected=expected, found=type(row).__name__)
        kept.append(row)
    return kept


def relations_among(path: Path) -> list[RawRow]:
    """The relation rows of a dataset's file. Chat rows that hold none train as they are: those are left out."""
    rows = [row.raw() if isinstance(row, GeneratedRow) else row for row in read_rows(path)]
    return [row for row in rows if isinstance(row, RawRow)]


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows, one JSON object a line, atomically; return how many. The same rows give the same bytes."""
    lines = [row.model_dump_json(exclude_none=True) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(line + "\n" for line in lines))
    return len(lines)


def kinds(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows of each type there are."""
    return dict(Counter(type(row).__name__ for row in rows))


def _objects(path: Path, split: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    for entry in readers.entries(path):
        if split is not None and entry.split != split:
            continue
        if entry.value is None:
            raise _bad(path, entry.where, entry.problem or "nothing")
        yield entry.where, entry.value


def _row(value: dict[str, Any], path: Path, where: str) -> Row:
    kind = kind_of(value)
    if kind is None:
        raise _bad(path, where, "an object with the keys " + ", ".join(sorted(value)[:8]))
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        part = ".".join(str(part) for part in first["loc"])
        raise _bad(path, where, f"{part}: {first['msg']}") from error


def kind_of(value: Mapping[str, Any]) -> type[Row] | None:
    """The model of an object by the key that tells what it is; None if it has none of them."""
    return next((kind for key, kind in _KEYS if key in value), None)


def _bad(path: Path, where: str, found: str) -> InputError:
    return InputError(
        "a line cannot be used as a row",
        where=f"{path}, {where}",
        expected=EXPECTED,
        found=found,
        next_step="correct or remove this line; the training data format is in README.md",
    )
