"""Makes shards of a journal's finished segments."""

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from ucotron_ray.core.files import file_hash, fsync_directory, write_json
from ucotron_ray.synthesis.journal import MANIFEST, checked_id, lines_of, shards_of

SHARD_BYTES = 64 * 1024**2


def compact(directory: Path) -> int:
    """Turn the segments into shards; return how many lines were moved. Only for a journal that nobody writes to.

    Every line is kept, since each was paid; only copies of one line are dropped. A kill at any moment leaves a line in
    a segment, a shard, or both.
    """
    with (directory / "compacting").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        segments = sorted((directory / "segments").glob("*.log"))
        seen: set[bytes] = set()
        for shard in shards_of(directory):
            seen.update(_fingerprint(line) for _, line in lines_of(shard, 0))
        before = len(seen)
        for segment in segments:
            for lines in _new_lines(segment, seen):
                _write_shard(directory / "shards", lines)
        entries = [{"path": p.name, "size": p.stat().st_size, "sha256": file_hash(p)} for p in shards_of(directory)]
        write_json(directory / MANIFEST, {"lines": len(seen), "shards": entries})
        for segment in segments:
            segment.unlink()
        return len(seen) - before


def _fingerprint(line: bytes) -> bytes:
    return hashlib.blake2b(line, digest_size=16).digest()


def _new_lines(segment: Path, seen: set[bytes]) -> Iterator[list[bytes]]:
    lines: list[bytes] = []
    size = 0
    for offset, line in lines_of(segment, 0):
        checked_id(line, segment, offset)
        fingerprint = _fingerprint(line)
        if fingerprint in seen:
            continue
        seen.add(fingerprint)
        lines.append(line)
        size += len(line)
        if size >= SHARD_BYTES:
            yield lines
            lines, size = [], 0
    if lines:
        yield lines


def _write_shard(folder: Path, lines: list[bytes]) -> None:
    folder.mkdir(exist_ok=True)
    # Behind the last one, not as many as there are: one may have been moved away.
    last = max((int(path.stem.split("-")[1]) for path in folder.glob("part-*.log")), default=-1)
    target = folder / f"part-{last + 1:05d}-{uuid.uuid4().hex[:8]}.log"
    aside = target.with_suffix(".partial")
    with aside.open("wb") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, target)
    fsync_directory(folder)
