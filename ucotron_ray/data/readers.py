"""Objects out of files that people have: JSONL, Parquet, directories of Hugging Face `datasets`.

No code of theirs runs. What an object means as a row says `jsonl.py`. A line that cannot be used is an entry with a
problem, not an exception: the caller decides whether one bad line stops it.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.core.errors import InputError, MissingPackage

MAX_LINE_BYTES = 4 * 1024**2
"""No row is as long: a line beyond that is skipped, and not held in memory."""

BATCH_ROWS = 1024
PARQUET_SUFFIXES = (".parquet", ".pq")
SPLITS = {"train": "train", "validation": "val", "val": "val", "valid": "val", "dev": "val", "test": "val"}
"""Names of splits and of their files, and whether they are for training or for validation."""

_PAIRS = (("train.jsonl", "val.jsonl"), ("train_sft.jsonl", "val_sft.jsonl"), ("train.parquet", "val.parquet"))
"""Files that are the two splits of one set, as this application and the guide name them."""


@dataclass(frozen=True)
class Entry:
    """One object: where it stands, the split it is for, and its value, or what keeps it from being one."""

    where: str
    split: str
    value: dict[str, Any] | None
    problem: str | None = None


def entries(path: Path) -> Iterator[Entry]:
    """Every object of a file or directory, one at a time. Raises InputError if it cannot be read at all."""
    if path.is_dir():
        yield from _directory(path)
    elif path.suffix in PARQUET_SUFFIXES:
        yield from _parquet(path, SPLITS.get(path.stem, "train"))
    else:
        yield from _lines(path, SPLITS.get(path.stem.removesuffix("_sft"), "train"))


def parse(text: str) -> tuple[dict[str, Any] | None, str | None]:
    """The object of a line, or why it is none: JSON without NaN, without a key twice, not too deep, an object."""
    try:
        value = json.loads(
            text, parse_constant=_refuse, parse_float=_finite, parse_int=_bounded, object_pairs_hook=_without_repeats
        )
    except RecursionError:
        return None, "it is nested too deep"
    except ValueError as error:
        return None, str(error)
    if not isinstance(value, dict):
        return None, f"a {type(value).__name__}, no object"
    return value, None


def _lines(path: Path, split: str) -> Iterator[Entry]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                where = f"line {number}"
                if len(line) > MAX_LINE_BYTES:
                    while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES)):
                        pass
                    yield Entry(where, split, None, f"the line is longer than {MAX_LINE_BYTES} bytes")
                elif line.strip():
                    yield _entry(line, where, split)
    except OSError as error:
        raise InputError(
            "the file cannot be read", where=str(path), found=error.strerror, next_step="check the path"
        ) from error


def _entry(line: bytes, where: str, split: str) -> Entry:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return Entry(where, split, None, f"not UTF-8: {error.reason} at byte {error.start}")
    value, problem = parse(text)
    return Entry(where, split, value, problem)


def _parquet(path: Path, split: str) -> Iterator[Entry]:
    try:
        import pyarrow as pa  # noqa: PLC0415 - only for files of this kind
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise MissingPackage("Parquet files need pyarrow", next_step="make setup") from error
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield _cell_entry(f"row {number}", split, value)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            "the Parquet file cannot be read", where=str(path), found=str(error).splitlines()[0]
        ) from error


def _directory(path: Path) -> Iterator[Entry]:
    for train, val in _PAIRS:
        if (path / train).is_file():
            for name in (train, val):
                if (path / name).is_file():
                    yield from (_within(name, entry) for entry in entries(path / name))
            return
    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        yield from _hugging_face(path)
        return
    tables = sorted(file for suffix in PARQUET_SUFFIXES for file in path.rglob(f"*{suffix}"))
    if not tables:
        raise InputError(
            "the directory holds no rows",
            where=str(path),
            expected="train.jsonl, a directory that `Dataset.save_to_disk` wrote, or Parquet files",
            found=", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing",
        )
    for table in tables:
        # As the hub stores them: data/train-00000-of-00001.parquet.
        split = SPLITS.get(table.name.split("-")[0].split(".")[0], "train")
        yield from (_within(table.name, entry) for entry in _parquet(table, split))


def _hugging_face(path: Path) -> Iterator[Entry]:
    import datasets  # noqa: PLC0415 - a second; only for directories of this kind

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            "the directory is no dataset of Hugging Face `datasets`", where=str(path), found=str(error).splitlines()[0]
        ) from error
    parts = loaded.items() if hasattr(loaded, "items") else [("train", loaded)]
    for name, part in parts:
        split = SPLITS.get(name, "train")
        for number, value in enumerate(part, 1):
            yield _within(name, _cell_entry(f"row {number}", split, value))


def _cell_entry(where: str, split: str, value: dict[str, Any]) -> Entry:
    """A row of a table: columns without a value in this row are as if they were not there."""
    present = {key: cell for key, cell in value.items() if cell is not None}
    problem = "a number that is not finite" if _has_nan(present) else None
    return Entry(where, split, None if problem else present, problem)


def _within(name: str, entry: Entry) -> Entry:
    return Entry(f"{name}, {entry.where}", entry.split, entry.value, entry.problem)


def _has_nan(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_has_nan, value.values()))
    return isinstance(value, list) and any(map(_has_nan, value))


def _refuse(token: str) -> object:
    raise ValueError(f"{token} is no JSON")


def _finite(token: str) -> float:
    value = float(token)
    if not math.isfinite(value):
        raise ValueError(f"{token[:20]} is no finite number")
    return value


def _bounded(token: str) -> int:
    if len(token) > 30:
        raise ValueError("a number of more than 30 digits")
    return int(token)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:40]!r} stands twice in one object")
    return value
