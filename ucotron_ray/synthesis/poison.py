"""Finds the sample that ends its process: what a process worked on lies in a file when it is gone.

A crash in a native library, or a kill for memory, raises nothing. Ray starts the process again and repeats its block,
which ends the new one too, without end. A mark of 8 bytes is written before each step of a sample and taken away after
it: no search by halves is needed to know which one it was.
"""

import os
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

DEATHS = 2
"""So many processes may end over a sample. One may have been killed from outside at that moment."""

SUFFIX = ".at"
_NONE = b"\xff" * 8
"""-1: no sample."""

Value = TypeVar("Value")


class Mark:
    """The mark of one process, in a directory that all processes of a run share. For one thread."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._path = directory / f"{uuid.uuid4().hex}{SUFFIX}"
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.pwrite(self._file, _NONE, 0)

    def at(self, number: int, step: Callable[[], Value]) -> Value:
        """Take one step of a sample, marked as long as it lasts."""
        os.pwrite(self._file, number.to_bytes(8, "little", signed=True), 0)
        try:
            return step()
        finally:
            os.pwrite(self._file, _NONE, 0)

    def killers(self) -> set[int]:
        """Samples over which DEATHS other processes ended."""
        deaths: Counter[bytes] = Counter()
        for path in self._directory.glob(f"*{SUFFIX}"):
            # One that ends in order meanwhile takes its file away.
            with suppress(FileNotFoundError):
                deaths[path.read_bytes()] += path != self._path
        del deaths[_NONE], deaths[b""]
        return {
            int.from_bytes(content, "little", signed=True) for content, number in deaths.items() if number >= DEATHS
        }

    def close(self) -> None:
        """Take the file away."""
        os.close(self._file)
        self._path.unlink(missing_ok=True)
