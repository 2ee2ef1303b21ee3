"""Files of rows: what an object is, reading with line numbers, writing. Which row types exist says `records.py`.

Written is JSONL; read is what `readers.py` reads.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from ucotron_ray.core.errors import InputError
from ucotron_ray.core.files import write_text
from ucotron_ray.data import checks, layouts, readers
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
R_co = TypeVar("R_co", bound=Row, covariant=True)

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
"""The key that tells what a row is, and its model."""

EXPECTED = (
    'one JSON object a line: {"text", "entities", "expected_relations"}, {"messages"} '
    'or {"prompt", "chosen", "rejected"}'
)


@dataclass(frozen=True)
class Placed(Generic[R_co]):
    """A row, where it stands in its file, and what it was read as (see `readers.Entry`)."""

    row: R_co
    where: str
    split: str
    layout: str
    honoured: frozenset[str]


def placed_rows(path: Path, layout: str | None = None) -> list[Placed[Row]]:
    """Every row of a file or directory with its place. Raises InputError with the place of the first bad one."""
    rows = []
    for entry in readers.entries(path, layout):
        if entry.value is None:
            raise _bad(path, entry.where, entry.problem or "nothing")
        row = _row(entry.value, path, entry.where)
        rows.append(Placed(row, entry.where, entry.split, entry.layout, entry.honoured))
    if not rows:
        raise InputError("the file has no rows", where=str(path), expected=EXPECTED, found="an empty file")
    return rows


def read_rows(path: Path, split: str | None = None) -> list[Row]:
    """Every row of a file or directory, or of one split of it; blank lines are skipped.

    Raises InputError with the line number of the first bad one.
    """
    return [placed.row for placed in _of_split(placed_rows(path), path, split)]


def training_rows(path: Path, layout: str | None = None) -> list[Placed[TrainingRow]]:
    """The rows for supervised training with their places; a pair is refused, and so is a row without an answer."""
    return [_for_training(placed, path) for placed in placed_rows(path, layout)]


def read_training_rows(path: Path, split: str | None = None) -> list[TrainingRow]:
    """The rows of a file for supervised training, as `training_rows`, without their places."""
    return [placed.row for placed in _of_split(training_rows(path), path, split)]


def preferences(path: Path, layout: str | None = None) -> list[Placed[PreferenceRow]]:
    """The rows of a file that holds preference pairs only, with their places."""
    rows = placed_rows(path, layout)
    return _all_are(PreferenceRow, rows, path, "this row is no preference pair", '{"prompt", "chosen", "rejected"}')


def read_preferences(path: Path) -> list[PreferenceRow]:
    """The rows of a file that holds preference pairs only."""
    return [placed.row for placed in preferences(path)]


def read_relations(path: Path) -> list[RawRow]:
    """The rows of a file that holds relation rows only, raw or as the relation generator writes them."""
    rows = [replace(placed, row=_raw(placed.row)) for placed in placed_rows(path)]
    expected = '{"text", "entities", "expected_relations"}'
    return [placed.row for placed in _all_are(RawRow, rows, path, "this row cannot be scored", expected)]


def _of_split(rows: list[Placed[R]], path: Path, split: str | None) -> list[Placed[R]]:
    kept = [placed for placed in rows if split in (None, placed.split)]
    if not kept:
        raise InputError(f"there are no rows of the split {split}", where=str(path), expected=EXPECTED, found="none")
    return kept


def _for_training(placed: Placed[Row], path: Path) -> Placed[TrainingRow]:
    row, where = _raw(placed.row), f"{path}, {placed.where}"
    problem = checks.unlearnable(row)
    if problem is not None:
        raise InputError(
            checks.WORDS[problem[0]],
            where=where,
            expected="system (optional), user, assistant with a text",
            found=problem[1],
            next_step="write the answer, or remove the row; `ucotron-ray validate FILE` names all such rows",
        )
    if not isinstance(row, (RawRow, ChatRow)):
        pairs = isinstance(row, PreferenceRow)
        raise InputError(
            "these are preference pairs" if pairs else "these rows train nothing that SFT can learn",
            where=where,
            expected='rows with "expected_relations", "relations" or "messages"',
            found='a row with "chosen" and "rejected"' if pairs else type(row).__name__,
            next_step="preference pairs train with DPO, not with SFT" if pairs else "ucotron-ray validate PATH",
        )
    return Placed(row, placed.where, placed.split, placed.layout, placed.honoured)


def _raw(row: Row) -> Row:
    return row.raw() if isinstance(row, GeneratedRow) else row


def _all_are(kind: type[R], rows: Sequence[Placed[Row]], path: Path, problem: str, expected: str) -> list[Placed[R]]:
    kept: list[Placed[R]] = []
    for placed in rows:
        if not isinstance(placed.row, kind):
            found = type(placed.row).__name__
            raise InputError(problem, where=f"{path}, {placed.where}", expected=expected, found=found)
        kept.append(Placed(placed.row, placed.where, placed.split, placed.layout, placed.honoured))
    return kept


def relations_among(path: Path) -> list[RawRow]:
    """The relation rows of a dataset's file. Chat rows that hold none train as they are: those are left out."""
    return [row for row in map(_raw, read_rows(path)) if isinstance(row, RawRow)]


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows, one JSON object a line, atomically; return how many. The same rows give the same bytes."""
    lines = [row.model_dump_json(exclude_none=True) for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(line + "\n" for line in lines))
    return len(lines)


def kinds(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows of each type there are."""
    return dict(Counter(type(row).__name__ for row in rows))


def _row(value: dict[str, Any], path: Path, where: str) -> Row:
    kind = kind_of(value)
    if kind is None:
        found = "an object with the keys " + ", ".join(sorted(value)[:8])
        raise _bad(path, where, found, "layouts of other tools that are read: " + ", ".join(layouts.LAYOUTS))
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        part = ".".join(str(part) for part in first["loc"])
        raise _bad(path, where, f"{part}: {first['msg']}") from error


def kind_of(value: Mapping[str, Any]) -> type[Row] | None:
    """The model of an object by the key that tells what it is; None if it has none of them."""
    return next((kind for key, kind in _KEYS if key in value), None)


def _bad(
    path: Path,
    where: str,
    found: str,
    next_step: str = "correct or remove this line; the training data format is in README.md",
) -> InputError:
    return InputError(
        "a line cannot be used as a row",
        where=f"{path}, {where}",
        expected=EXPECTED,
        found=found,
        next_step=next_step,
    )
