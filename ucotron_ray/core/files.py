"""Files of artifacts: what lies in a directory, hashes, and writing that a kill leaves whole or not there."""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


class FileEntry(BaseModel):
    """One file of an artifact: path relative to its directory, size in bytes, sha256 of its bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size: int
    sha256: str


def list_files(directory: Path) -> list[FileEntry]:
    """Every file below the directory but its manifest, sorted by path."""
    entries = []
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory).as_posix()
        if path.is_file() and relative not in {MANIFEST, RECIPE}:
            entries.append(FileEntry(path=relative, size=path.stat().st_size, sha256=file_hash(path)))
    return entries


def content_hash(files: list[FileEntry]) -> str:
    """sha256 over path, size and sha256 of every file, sorted by path."""
    digest = hashlib.sha256()
    for entry in sorted(files, key=lambda entry: entry.path):
        digest.update(f"{entry.path}\0{entry.size}\0{entry.sha256}\n".encode())
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_hash(value: object) -> str:
    """sha256 of canonical JSON. Raises TypeError or ValueError on what JSON cannot hold, rather than guess."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differing_fields(new: Mapping[str, Any], old: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`key: old → new` for every leaf that differs."""
    lines = []
    for key in sorted({*new, *old}):
        ours, theirs = new.get(key), old.get(key)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            lines.extend(differing_fields(ours, theirs, f"{prefix}{key}."))
        elif ours != theirs:
            lines.append(f"{prefix}{key}: {json.dumps(theirs)} → {json.dumps(ours)}")
    return lines


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a half."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file aside, fsync it and rename it into place."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def fsync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


MANIFEST = "manifest.json"

RECIPE = "recipe.json"


def remove_asides(directory: Path) -> None:
    """Remove what `write_text` left of a process that was killed between writing a file aside and renaming it."""
    for path in directory.rglob(".*"):
        if _ASIDE.fullmatch(path.name) and path.is_file():
            path.unlink()


_ASIDE = re.compile(r"\..+\.\d+")
"""Names that `write_text` gives to files before they are renamed."""
