"""Objects out of tables: CSV, Parquet, what `datasets` saved. A cell without a value is as if it were not there."""

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ucotron_ray.core.errors import InputError, MissingPackage
from ucotron_ray.data.documents import MAX_LINE_BYTES, Item, parse_value

BATCH_ROWS = 1024
SEPARATED = (".csv", ".tsv", ".tab")

_TURNS = ("prompt", "completion", "chosen", "rejected")
"""Columns of text, or of turns as JSON."""

_TYPED = (
    "entities", "expected_relations", "relations", "messages", "conversations", "tokens", "triplets", "triples",
    "input", "preferred_output", "non_preferred_output", "metadata", "tools",
)  # fmt: skip
"""Columns whose cells are JSON."""


def separated(file: BinaryIO, ending: str) -> Iterator[Item]:
    """The rows of a CSV or TSV text in UTF-8, named by its first line."""
    text = io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="")
    csv.field_size_limit(MAX_LINE_BYTES)
    header = text.readline()
    delimiter = "\t" if ending != ".csv" else max(",;\t", key=header.count)
    names = next(csv.reader([header], delimiter=delimiter), [])
    reader = csv.reader(text, delimiter=delimiter)
    line = 2
    try:
        for cells in reader:
            if cells:
                yield _separated_row(f"line {line}", names, cells)
            line = reader.line_num + 2
    except csv.Error as error:
        yield Item(f"line {line}", None, f"no CSV: {error}")
    finally:
        # Whoever opened the file closes it.
        text.detach()


def _separated_row(where: str, names: list[str], cells: list[str]) -> Item:
    if len(cells) > len(names):
        return Item(where, None, f"{len(cells)} cells under {len(names)} names: is a comma or a quote not quoted?")
    value: dict[str, Any] = {}
    for name, cell in zip((name.strip() for name in names), cells, strict=False):
        if not cell.strip():
            continue
        if not cell.isascii() and any("\udc80" <= character <= "\udcff" for character in cell):
            return Item(where, None, f"not UTF-8: column {name}; save the file as UTF-8")
        try:
            value[name] = _cell(name, cell)
        except ValueError as error:
            return Item(where, None, f"column {name}: its cells are JSON, and this is none ({error})")
    return Item(where, value) if value else Item(where, None, "no cell has a value")


def _cell(name: str, cell: str) -> Any:
    if name in _TYPED and cell.lstrip()[:1] in ("[", "{"):
        return parse_value(cell)
    if name in _TURNS and cell.lstrip().startswith("["):
        try:
            turns = parse_value(cell)
        except ValueError:
            return cell
        # An answer may be an array of relations, which is text.
        is_turns = turns and all(isinstance(turn, dict) and "role" in turn for turn in turns)
        return turns if is_turns else cell
    return float(cell) if name == "confidence" else cell


def parquet(path: Path) -> Iterator[Item]:
    """The rows of a Parquet file. Raises InputError if it cannot be read, MissingPackage without pyarrow."""
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
                    yield _row(f"row {number}", value)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            "the Parquet file cannot be read", where=str(path), found=str(error).splitlines()[0]
        ) from error


def hugging_face(path: Path) -> Iterator[tuple[str, Item]]:
    """The splits of what `Dataset.save_to_disk` wrote, and their rows. Raises InputError if it is none."""
    import datasets  # noqa: PLC0415 - a second; only for directories of this kind

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            "the directory is no dataset of Hugging Face `datasets`", where=str(path), found=str(error).splitlines()[0]
        ) from error
    parts = loaded.items() if hasattr(loaded, "items") else [("train", loaded)]
    for name, part in parts:
        for number, value in enumerate(part, 1):
            yield name, _row(f"{name}, row {number}", value)


def _row(where: str, value: dict[str, Any]) -> Item:
    return Item(where, None, "a number that is not finite") if _has_nan(value) else Item(where, value)


def _has_nan(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(map(_has_nan, value.values()))
    return isinstance(value, list) and any(map(_has_nan, value))
