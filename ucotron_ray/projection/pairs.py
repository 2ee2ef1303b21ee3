"""Encoded pairs as Parquet shards of fixed-size float lists, and what is read from them.

    shard-00012.parquet    key, description, category, image?, clip [512] float32, minilm [384] float32

Both vectors have length 1, as the server has them (`cross_modal.rs`). Shards are written whole and renamed into place.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ucotron_ray.core.errors import InputError, StageFailed
from ucotron_ray.projection import descriptions
from ucotron_ray.projection.descriptions import GIVEN_KEYS, Description

CLIP_DIM, TEXT_DIM = 512, 384
ROWS_PER_SHARD = 1000
"""What a kill loses at most, for each encoder: 4 MB, half a minute of two cores."""

NORM_TOLERANCE = 0.01
"""How far from 1 the length of a given vector may be, as the guide's `validate` has it."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Pairs:
    """All pairs of an artifact: `clip` [N, 512], `minilm` [N, 384], and the keys that the split goes by."""

    keys: list[str]
    clip: Floats
    minilm: Floats


def shard_path(directory: Path, number: int) -> Path:
    """Where a shard lies."""
    return directory / f"shard-{number:05d}.parquet"


def write_shard(path: Path, rows: Sequence[Description], clip: Floats, minilm: Floats, *, num_cut: int = 0) -> None:
    """Write one shard aside and rename it. Raises StageFailed if a vector has not the length 1.

    `num_cut` is how many descriptions were longer than what CLIP takes; it stands in the shard's own metadata.
    """
    for name, vectors, size in (("clip", clip, CLIP_DIM), ("minilm", minilm, TEXT_DIM)):
        check_vectors(name, vectors, size, len(rows), where=str(path))
    table = pa.table(
        {
            "key": [row.key for row in rows],
            "description": [row.description for row in rows],
            "category": [row.category for row in rows],
            "image": [row.image for row in rows],
            "clip": _fixed_size(clip),
            "minilm": _fixed_size(minilm),
        },
        schema=_schema().with_metadata(
            {"cut": str(num_cut), "images": str(sum(row.image is not None for row in rows))}
        ),
    )
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    # Floats of a neural network do not compress.
    pq.write_table(table, aside, compression="none", use_dictionary=False)
    os.replace(aside, path)


def check_vectors(name: str, vectors: Floats, size: int, rows: int, *, where: str) -> None:
    """Raise StageFailed unless there is one finite vector of length 1 and of this size for every row."""
    shape_ok = vectors.shape == (rows, size)
    off = float(np.abs(np.linalg.norm(vectors, axis=1) - 1).max(initial=0.0)) if shape_ok else float("nan")
    if not off <= NORM_TOLERANCE:
        raise StageFailed(
            f"the {name} vectors cannot be used",
            where=where,
            expected=f"[{rows}, {size}] with rows of length 1",
            found=f"{list(vectors.shape)}, lengths up to {off:.3g} away from 1",
        )


def shard_files(directory: Path) -> list[Path]:
    """All shards, in order."""
    return sorted(directory.glob("shard-*.parquet"))


def shard_counts(directory: Path) -> dict[str, int]:
    """Rows, rows with an image, and rows whose description was cut, over all shards."""
    totals = {"rows": 0, "images": 0, "cut": 0}
    for file in shard_files(directory):
        opened = pq.ParquetFile(file)
        totals["rows"] += opened.metadata.num_rows
        for name in ("images", "cut"):
            totals[name] += int(opened.schema_arrow.metadata[name.encode()])
    return totals


def load(directory: Path) -> Pairs:
    """All pairs, shard by shard into two arrays: 3.6 kB a pair and no Python list of floats."""
    files = shard_files(directory)
    total = sum(pq.ParquetFile(file).metadata.num_rows for file in files)
    keys: list[str] = []
    clip, minilm = np.empty((total, CLIP_DIM), np.float32), np.empty((total, TEXT_DIM), np.float32)
    for file in files:
        table = pq.read_table(file, columns=["key", "clip", "minilm"])
        part = slice(len(keys), len(keys) + table.num_rows)
        clip[part] = _matrix(table["clip"], CLIP_DIM)
        minilm[part] = _matrix(table["minilm"], TEXT_DIM)
        keys.extend(table["key"].to_pylist())
    return Pairs(keys, clip, minilm)


def keys(directory: Path) -> list[str]:
    """The keys of all pairs, without their vectors."""
    return [key for file in shard_files(directory) for key in pq.read_table(file, columns=["key"])["key"].to_pylist()]


def split(keys: Sequence[str], *, seed: int, val: float, test: float) -> dict[str, NDArray[np.int64]]:
    """Row numbers of `train`, `val` and `test`.

    A row's side follows from its key alone: the same description is on the same side in every set of pairs.
    """
    draws = np.array([_draw(seed, key) for key in keys])
    parts = {"test": draws < test, "val": (draws >= test) & (draws < test + val), "train": draws >= test + val}
    return {name: np.flatnonzero(chosen) for name, chosen in parts.items()}


def import_given(path: Path, directory: Path) -> int:
    """Make shards of rows that the guide's generator encoded; return how many. Raises InputError on a bad line."""
    batch: list[tuple[Description, Floats, Floats]] = []
    count = number = 0
    for row in _given_rows(path):
        batch.append(row)
        if len(batch) == ROWS_PER_SHARD:
            _write_given(directory, number, batch)
            count, number, batch = count + len(batch), number + 1, []
    if batch:
        _write_given(directory, number, batch)
    return count + len(batch)


def write_guide_rows(directory: Path, path: Path) -> int:
    """Write all pairs as the guide's JSONL (§8 of the server's formats), shard by shard; return how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with path.open("w", encoding="utf-8") as output:
        for file in shard_files(directory):
            for row in pq.read_table(file).to_pylist():
                values = {"description": row["description"], "clip_embedding": row["clip"]}
                values |= {"minilm_embedding": row["minilm"], "category": row["category"]}
                output.write(json.dumps(values, ensure_ascii=False) + "\n")
                count += 1
    return count


def _given_rows(path: Path) -> Iterator[tuple[Description, Floats, Floats]]:
    for number, line in descriptions.lines(path):
        try:
            value = json.loads(line)
            clip, minilm = (np.asarray(value[key], np.float32) for key in GIVEN_KEYS)
            row = Description(" ".join(str(value["description"]).split()), str(value.get("category") or "general"))
            check_vectors(GIVEN_KEYS[0], clip[None], CLIP_DIM, 1, where=f"{path}, line {number}")
            check_vectors(GIVEN_KEYS[1], minilm[None], TEXT_DIM, 1, where=f"{path}, line {number}")
        except (ValueError, KeyError, TypeError, StageFailed) as error:
            raise InputError(
                "a line is no pair of embeddings",
                where=f"{path}, line {number}",
                expected='{"description", "clip_embedding": [512 numbers], "minilm_embedding": [384], "category"}, '
                "both vectors of length 1",
                found=getattr(error, "found", None) or f"{type(error).__name__}: {error}",
                next_step="correct or remove this line, or encode the descriptions again: projection encode",
            ) from error
        yield row, clip, minilm


def _write_given(directory: Path, number: int, batch: Sequence[tuple[Description, Floats, Floats]]) -> None:
    rows, clip, minilm = zip(*batch, strict=True)
    write_shard(shard_path(directory, number), rows, np.stack(clip), np.stack(minilm))


def _draw(seed: int, key: str) -> float:
    """A number in [0, 1) that depends on nothing but these two."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") / 2**64


def _schema() -> Any:
    """The columns of a shard."""
    texts = [(name, pa.string()) for name in ("key", "description", "category", "image")]
    return pa.schema([*texts, ("clip", pa.list_(pa.float32(), CLIP_DIM)), ("minilm", pa.list_(pa.float32(), TEXT_DIM))])


def _fixed_size(vectors: Floats) -> Any:
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def _matrix(column: Any, size: int) -> Floats:
    values: Floats = np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])
    return values.reshape(-1, size)


def counts(parts: Mapping[str, NDArray[np.int64]]) -> dict[str, int]:
    """How many rows each side has."""
    return {name: len(rows) for name, rows in parts.items()}
