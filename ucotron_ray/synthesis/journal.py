"""Every answer that was paid for, kept: append-only segments, a checksum a line, fsynced in groups.

    <directory>/segments/<writer>.log     one file a writing process; never written by a second one
    <directory>/shards/part-00000-*.log   what compaction made of finished segments
    <directory>/manifest.json             the shards with their sha256

A line is `<request id> <crc32 of id and JSON> <JSON>`. It reaches the operating system before the answer is looked at,
so a killed process loses nothing, and the disk at most SYNC_SECONDS later, so a lost machine loses at most that.
A last line without line feed was cut off by a kill and is dropped; any other line that does not fit its checksum is
damage, and stops the run with file and offset.
"""

import errno
import fcntl
import json
import os
import platform
import threading
import uuid
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ucotron_ray.core.errors import ArtifactError, CorruptArtifact
from ucotron_ray.core.files import fsync_directory
from ucotron_ray.synthesis.plan import ID_BYTES
from ucotron_ray.teacher.outcome import OutcomeKind

MANIFEST = "manifest.json"
SYNC_SECONDS = 0.2

_ID_LENGTH = 2 * ID_BYTES
_HEAD_LENGTH = _ID_LENGTH + 1 + 8 + 1
_NO_ANSWERS = (OutcomeKind.TRANSIENT, OutcomeKind.POISON, OutcomeKind.REJECTED)
_TRANSIENT, _REJECTED, _REFUSAL = b'"kind":"transient"', b'"kind":"rejected"', b'"kind":"poison"'


@dataclass(frozen=True)
class Record:
    """One journaled answer, or a request that got none.

    Then `kind` is poison (it is not taken), rejected (not now), or transient (it failed and may be billed).
    """

    rid: str
    kind: str
    text: str
    finish: str | None
    run: str
    step: str
    model: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    estimated: bool
    cost_usd: float
    attempts: int
    server: str | None = None
    """Who gave it (`server_of`); journals of before do not say."""
    at: float = 0.0
    """When, in seconds since 1970. Two failures of one request are two lines that may each be billed: without it they
    would be equal, and compaction keeps one of equal lines."""


class Writer:
    """Appends to a segment of its own. Safe to call from several threads."""

    def __init__(self, directory: Path) -> None:
        folder = directory / "segments"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.log"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._lock = threading.Lock()
        self._offset = 0
        self._dirty = threading.Event()
        self._closing = threading.Event()
        self._error: OSError | None = None
        # The name of a new file is durable only with its directory.
        fsync_directory(folder)
        self._syncing = threading.Thread(target=self._sync_loop, name="journal", daemon=True)
        self._syncing.start()

    def append(self, record: Record) -> tuple[int, int]:
        """Hand the record to the operating system; return its offset and length. Raises OSError if it cannot."""
        line = encode(record)
        with self._lock:
            if self._error:
                raise self._error
            offset = self._offset
            try:
                written = os.write(self._file, line)
                if written != len(line):
                    raise OSError(errno.ENOSPC, "the journal's disk is full", str(self.path))
            except OSError as error:
                # Half a line in the middle would be damage: take it back, and write no more here.
                self._error = error
                os.ftruncate(self._file, offset)
                raise
            self._offset += written
        self._dirty.set()
        return offset, written

    def close(self) -> None:
        """Make everything durable. Raises OSError if it cannot be, or could not be before."""
        self._closing.set()
        self._dirty.set()
        self._syncing.join()
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)
        if self._error:
            raise self._error

    def _sync_loop(self) -> None:
        while not self._closing.is_set():
            self._dirty.wait()
            self._dirty.clear()
            try:
                os.fsync(self._file)
            except OSError as error:
                self._error = error
                return
            self._closing.wait(SYNC_SECONDS)


class Reader:
    """Finds answers by request id, in everything that lies in the directory. `refresh` takes in what others added.

    A refusal that the first `refresh` finds is an earlier process's, and no answer: nothing was paid for it, and a
    mended server or another `api.dialect` may take the request. One that comes later stands, so that nothing is asked
    again and again.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._paths: list[Path] = []
        self._known: dict[str, int] = {}
        self._read_to: list[int] = []
        self._index: dict[bytes, tuple[int, int, int]] = {}
        self._skipped: tuple[bytes, ...] = (_TRANSIENT, _REJECTED, _REFUSAL)
        self._refused: set[bytes] = set()

    def __len__(self) -> int:
        return len(self._index)

    def refresh(self) -> None:
        """Index the lines that are new since the last call. Raises CorruptArtifact."""
        for path in _files(self._directory):
            number = self._known.setdefault(path.name, len(self._paths))
            if number == len(self._paths):
                self._paths.append(path)
                self._read_to.append(0)
            if path.stat().st_size > self._read_to[number]:
                self._index_from(number)
        self._skipped = (_TRANSIENT, _REJECTED)

    def get(self, rid: str) -> Record | None:
        """The answer to a request, if it is there."""
        found = self._index.get(bytes.fromhex(rid))
        if found is None:
            return None
        number, offset, length = found
        with self._paths[number].open("rb") as file:
            file.seek(offset)
            return decode(file.read(length), self._paths[number], offset)

    def _index_from(self, number: int) -> None:
        path = self._paths[number]
        for offset, line in lines_of(path, self._read_to[number]):
            self._read_to[number] = offset + len(line)
            if not any(kind in line[:128] for kind in self._skipped):
                # The first answer wins: later ones repeat it.
                self._index.setdefault(checked_id(line, path, offset), (number, offset, len(line)))
            elif _TRANSIENT not in line[:128]:
                self._refused.add(checked_id(line, path, offset))

    def was_refused(self, rid: str) -> bool:
        """Whether somebody refused this request before."""
        return bytes.fromhex(rid) in self._refused


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Hold a journal against another run. Raises ArtifactError that names who has it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise ArtifactError(
                "another run writes into this journal",
                where=str(directory),
                found=file.read().strip() or None,
                next_step="wait for it, or use another store",
            ) from None
        file.truncate(0)
        file.write(f"{platform.node()}, process {os.getpid()}\n")
        file.flush()
        yield


def records(directory: Path) -> Iterator[Record]:
    """Every record of a journal, checked. Raises CorruptArtifact with file and offset."""
    check_shards(directory)
    for path in _files(directory):
        for offset, line in lines_of(path, 0):
            yield decode(line, path, offset)


def spent(directory: Path, run: str) -> float:
    """Dollars that the journal says a run has cost. Reads and checks every line."""
    return sum(record.cost_usd for record in records(directory) if record.run == run)


def settled(directory: Path, run: str, rids: Collection[str]) -> set[str]:
    """Which of these requests of a run the journal knows something of: what they cost is counted there."""
    return {record.rid for record in records(directory) if record.run == run and record.rid in rids}


def server_of(base_url: str) -> str:
    """A server by its address, without what may be a password or a key."""
    address = urlsplit(base_url)
    port = f":{address.port}" if address.port else ""
    return f"{address.scheme}://{address.hostname}{port}{address.path.rstrip('/')}"


def paid(directory: Path, run: str) -> dict[str, Any]:
    """What the answers of a run cost, each once: dollars and tokens. The same however the run was disturbed.

    A refusal costs nothing, and must not stand for the answer that the same request got later.
    """
    seen: set[str] = set()
    usd, prompt, completion = 0.0, 0, 0
    # By id, so that the sum of floats does not depend on the order in which answers came.
    for record in sorted(
        (entry for entry in records(directory) if entry.run == run and entry.kind not in _NO_ANSWERS),
        key=lambda entry: (entry.rid, entry.cost_usd),
    ):
        if record.rid not in seen:
            seen.add(record.rid)
            usd += record.cost_usd
            prompt, completion = prompt + record.prompt_tokens, completion + record.completion_tokens
    return {"answers": len(seen), "cost in dollars": round(usd, 6), "tokens in": prompt, "tokens out": completion}


def check_shards(directory: Path) -> None:
    """Compare the shards with the manifest. Raises CorruptArtifact for one that is missing, or cut off."""
    if not (directory / MANIFEST).is_file():
        return
    listed = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))["shards"]
    for entry in listed:
        path = directory / "shards" / entry["path"]
        size = path.stat().st_size if path.is_file() else None
        if size != entry["size"]:
            raise CorruptArtifact(
                "the journal is damaged",
                where=str(path),
                expected=f"{entry['size']} bytes",
                found="no such file" if size is None else f"{size} bytes",
                next_step=f"bring the file back; or remove {directory / MANIFEST}, and pay again for its answers",
            )


def encode(record: Record) -> bytes:
    """The line of a record. `kind` comes first, where the reader looks for it."""
    # Not `asdict`: it copies every value deeply, 0.2 ms a request under a profiler.
    fields = dict(vars(record))
    rid = fields.pop("rid")
    body = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    return b"%s %08x %s\n" % (rid.encode(), zlib.crc32(rid.encode() + body), body)


def decode(line: bytes, path: Path, offset: int) -> Record:
    """The record of a line. Raises CorruptArtifact."""
    rid = checked_id(line, path, offset)
    fields: dict[str, Any] = json.loads(line[_HEAD_LENGTH:])
    return Record(rid=rid.hex(), **fields)


def checked_id(line: bytes, path: Path, offset: int) -> bytes:
    """The request id of a line that fits its checksum. Raises CorruptArtifact."""
    try:
        rid, crc = bytes.fromhex(line[:_ID_LENGTH].decode("ascii")), int(line[_ID_LENGTH + 1 : _HEAD_LENGTH - 1], 16)
        sound = line.endswith(b"\n") and zlib.crc32(line[:_ID_LENGTH] + line[_HEAD_LENGTH:-1]) == crc
    except ValueError:
        sound = False
    if not sound:
        raise CorruptArtifact(
            "the journal is damaged",
            where=f"{path}, byte {offset}",
            expected="a line that fits its checksum",
            found=f"{len(line)} bytes that do not",
            next_step="bring the file back from a copy; or move it away, and pay again for the answers in it",
        )
    return rid


def lines_of(path: Path, start: int) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of each whole line; a last one without line feed is still being written, or was cut off."""
    with path.open("rb") as file:
        file.seek(start)
        offset = start
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield offset, line
            offset += len(line)


def _files(directory: Path) -> list[Path]:
    return [*shards_of(directory), *sorted((directory / "segments").glob("*.log"))]


def shards_of(directory: Path) -> list[Path]:
    """The shards of a journal, in order."""
    return sorted((directory / "shards").glob("part-*.log"))
