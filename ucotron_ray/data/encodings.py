"""A file's text as UTF-8 bytes: unpacked if it is compressed, decoded if it is UTF-16, without a byte order mark.

What a file is say its first bytes, not its name: people rename files.
"""

import bz2
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from ucotron_ray.core.errors import InputError

PACKED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
"""Endings of compressed files, behind the ending that says what is in them."""

MAX_TEXT_BYTES = 2 * 1024**3
"""A text that has to be held in memory as a whole (UTF-16, one JSON document) may be so long."""

FOREIGN = {
    b"PK\x03\x04": "a ZIP archive, such as .zip or .xlsx",
    b"SQLite format 3\x00": "an SQLite database",
    b"ARROW1": "an Arrow file",
    b"ORC": "an ORC file",
    b"Obj\x01": "an Avro file",
    b"\x93NUMPY": "a NumPy array",
}
PARQUET = b"PAR1"


def begins_with(path: Path, magic: bytes) -> bool:
    """Whether these are a file's first bytes; False for a file that is not there."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def ending(path: Path) -> str:
    """The ending of a file's name without that of its compression, in lower case: `.csv` of `rows.CSV.gz`."""
    name = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return name.suffix.lower()


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The text of a file as UTF-8 bytes. Raises InputError if it cannot be read, unpacked or decoded."""
    try:
        with path.open("rb") as file:
            head = file.peek(16)
            found = next((name for magic, name in FOREIGN.items() if head.startswith(magic)), None)
            if found is not None:
                raise InputError(
                    "the file holds no rows that can be read",
                    where=str(path),
                    expected="JSONL, a JSON array, CSV or Parquet; .gz and .zst are unpacked",
                    found=found,
                    next_step="export it as one of these",
                )
            unpack = next((unpack for magic, unpack in _UNPACK.items() if head.startswith(magic)), None)
            with io.BufferedReader(cast(io.RawIOBase, unpack(file))) if unpack else file as raw:
                yield _as_utf8(cast(io.BufferedReader, raw), path)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(
            "the file cannot be read",
            where=str(path),
            found=getattr(error, "strerror", None) or str(error),
            next_step="check the path and that the file is whole",
        ) from error


def _ungzip(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=file))


def _unzstd(file: BinaryIO) -> BinaryIO:
    import pyarrow as pa  # noqa: PLC0415 - only for files of this kind

    return cast(BinaryIO, pa.CompressedInputStream(file, "zstd"))


_UNPACK: dict[bytes, Callable[[BinaryIO], object]] = {
    b"\x1f\x8b": _ungzip,
    b"\x28\xb5\x2f\xfd": _unzstd,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}


def _as_utf8(raw: io.BufferedReader, path: Path) -> BinaryIO:
    # RFC 4627, section 3: where the zeros stand among the first four bytes. A byte order mark says it too.
    encoding = json.detect_encoding(raw.peek(4)[:4])
    if encoding == "utf-8":
        return raw
    if encoding == "utf-8-sig":
        raw.read(3)
        return raw
    try:
        text = raw.read(MAX_TEXT_BYTES).decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            f"the file begins like {encoding.upper()} and is not",
            where=f"{path}, byte {error.start}",
            expected="UTF-8, or UTF-16 with a byte order mark",
            found=error.reason,
            next_step="save it as UTF-8",
        ) from error
    return io.BytesIO(text.encode("utf-8", "surrogatepass"))
