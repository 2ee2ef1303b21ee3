"""What is encoded: descriptions from JSONL, plain text, or a folder of images with captions; one normal layout of them.

    {"description": "...", "category": "...", "image": "/where/it/lies.jpg"}    the last two are optional

An image folder has a `metadata.jsonl` with `file_name` and `text` in each line, as Hugging Face's `imagefolder` has it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ucotron_ray.core.errors import InputError
from ucotron_ray.core.files import file_hash
from ucotron_ray.projection.job import Shard

FILE = "descriptions.jsonl"
METADATA = "metadata.jsonl"
TEXT_KEYS = ("description", "text", "caption")
IMAGE_KEYS = ("image", "file_name")
GIVEN_KEYS = ("clip_embedding", "minilm_embedding")
"""Of rows that are encoded already, as the guide's generator writes them (§8 of the server's formats)."""

MIN_CHARACTERS = 10
"""As the guide's `validate` asks."""

EXPECTED = (
    'one JSON object a line with "description" (and "category", "image"), one description a line in a .txt file, '
    f"or a folder of images with {METADATA}"
)


@dataclass(frozen=True)
class Description:
    """A text about an image, and the image if there is one, with the sha256 of its bytes once it is imported."""

    description: str
    category: str = "general"
    image: str | None = None
    image_sha256: str | None = None

    @property
    def key(self) -> str:
        """What the split goes by: rows of one image, wherever it lies, or of one text stay on one side."""
        return self.image_sha256 or self.image or self.description


def read(path: Path) -> Iterator[Description]:
    """The descriptions of a file or folder, one after the other. Raises InputError with the line of the first bad one.

    A description that was there before (with the same image) is left out.
    """
    seen: set[int] = set()
    file = path / METADATA if path.is_dir() else path
    for number, line in lines(file):
        row = _of_text(line) if file.suffix == ".txt" else _of_json(line, file, number)
        if len(row.description) < MIN_CHARACTERS:
            raise _bad(file, number, f"a description of {len(row.description)} characters")
        identity = hash((row.description, row.image))
        if identity not in seen:
            seen.add(identity)
            yield row


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file that hold something, with their numbers. Raises InputError if it cannot be read."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.strip()
    except UnicodeDecodeError as error:
        raise InputError(
            "the file is not UTF-8", where=str(path), found=str(error), next_step="convert it to UTF-8"
        ) from error
    except OSError as error:
        raise InputError(
            "the file cannot be read", where=str(path), expected=EXPECTED, found=error.strerror, next_step="check it"
        ) from error


def is_encoded(path: Path) -> bool:
    """Whether the rows of a file carry both embeddings already."""
    if path.is_dir() or path.suffix == ".txt":
        return False
    first = next(lines(path), None)
    return first is not None and all(f'"{key}"' in first[1] for key in GIVEN_KEYS)


def write(path: Path, rows: Iterator[Description]) -> dict[str, int]:
    """Write descriptions in the normal layout; return how many, and how many of them have an image.

    The images' hashes are written with them: other bytes under the same name make another dataset.
    """
    counts = {"rows": 0, "images": 0}
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            known = replace(row, image_sha256=image_hash(row))
            values = {key: value for key, value in vars(known).items() if value is not None}
            file.write(json.dumps(values, ensure_ascii=False) + "\n")
            counts["rows"] += 1
            counts["images"] += row.image is not None
    return counts


def image_hash(row: Description) -> str | None:
    """sha256 of the image's bytes; None for a text alone."""
    return file_hash(Path(row.image)) if row.image is not None else None


def shards(path: Path, rows_per_shard: int) -> list[Shard]:
    """Where each stretch of a file of descriptions begins. Nothing but the offsets is kept."""
    found: list[Shard] = []
    offset = start = count = 0
    with path.open("rb") as file:
        for line in file:
            count += bool(line.strip())
            offset += len(line)
            if count == rows_per_shard:
                found.append(Shard(len(found), start, count))
                start, count = offset, 0
    if count:
        found.append(Shard(len(found), start, count))
    return found


def read_shard(path: Path, shard: Shard) -> list[Description]:
    """The descriptions of one stretch."""
    rows: list[Description] = []
    with path.open("rb") as file:
        file.seek(shard.offset)
        while len(rows) < shard.rows:
            line = file.readline().decode("utf-8")
            if line.strip():
                rows.append(_of_json(line, path, shard.number))
    return rows


def _of_text(line: str) -> Description:
    return Description(line)


def _of_json(line: str, path: Path, number: int) -> Description:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _bad(path, number, str(error)) from error
    if not isinstance(value, dict):
        raise _bad(path, number, type(value).__name__)
    text = _first_text(value, TEXT_KEYS)
    if text is None:
        raise _bad(path, number, "an object with the keys " + ", ".join(sorted(value)[:8]))
    image = _first_text(value, IMAGE_KEYS)
    if image is not None:
        # Absolute, since the row is read again elsewhere.
        image = str((path.parent / image).absolute())
        if not Path(image).is_file():
            raise _bad(path, number, f"the image {image} does not exist")
    known = value.get("image_sha256") if image is not None else None
    return Description(text, str(value.get("category") or "general"), image, str(known) if known else None)


def _first_text(value: dict[str, Any], keys: tuple[str, ...]) -> str | None:
    """The first of these keys that holds some text."""
    texts = (value.get(key) for key in keys)
    return next((" ".join(text.split()) for text in texts if isinstance(text, str) and text.strip()), None)


def _bad(path: Path, number: int, found: str) -> InputError:
    return InputError(
        "a line cannot be used as a description",
        where=f"{path}, line {number}",
        expected=EXPECTED,
        found=found,
        next_step="correct or remove this line",
    )
