"""What must hold after any fault, as one function: each broken invariant is a line that says what is wrong.

I1 ids add up · I2 nothing is paid twice but what was in flight · I3 the bytes of an undisturbed run · I4 exit code and
a cause in one line · I5 hashes hold and nothing half is left · I6 no secret in any file · I7 nothing is left running.
"""

import base64
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args
from urllib.parse import quote

import psutil

from ucotron_ray.core.artifacts import ArtifactKind, read_artifact, verify
from ucotron_ray.core.errors import UcotronRayError
from ucotron_ray.core.files import MANIFEST, RECIPE, file_hash


@dataclass(frozen=True)
class Ended:
    """A command that ended: its exit code and what it wrote to stderr."""

    code: int
    stderr: str


@dataclass(frozen=True)
class After:
    """What is known after a fault and, where there was one, the resume. What is left out is not looked at."""

    store: Path
    planned: Iterable[str] = ()
    by_status: Mapping[str, Iterable[str]] = field(default_factory=dict)
    ledger: Path | None = None
    may_repeat: int = 0
    made: Path | None = None
    straight: Path | None = None
    files: str = "*"
    """Which files of the two must be equal; reports and cards have times in them."""
    ended: Sequence[tuple[Ended, int]] = ()
    """Commands, each with the exit code that it should have."""
    canary: str | None = None
    outside: Sequence[Path] = ()
    """Further directories in which no canary may be, such as Ray's session directory."""
    processes_before: frozenset[int] | None = None


def broken(after: After) -> list[str]:
    """Every invariant that does not hold; an empty list is what a test asserts."""
    lines = [*_ids(after), *_ledger(after), *_bytes(after), *_codes(after), *_hashes(after), *_canary(after)]
    return [*lines, *_running(after)]


def running() -> frozenset[int]:
    """Processes below this one, to compare with later."""
    return frozenset(child.pid for child in psutil.Process().children(recursive=True))


def _ids(after: After) -> list[str]:
    counted = Counter(row for ids in after.by_status.values() for row in ids)
    planned = set(after.planned)
    twice = sorted(row for row, count in counted.items() if count > 1)
    lines = [f"I1: {row} has {counted[row]} ends" for row in twice]
    lines += [f"I1: {row} has no end" for row in sorted(planned - set(counted))]
    return lines + [f"I1: {row} was never planned" for row in sorted(set(counted) - planned)]


def _ledger(after: After) -> list[str]:
    if after.ledger is None:
        return []
    entries = [json.loads(line) for line in after.ledger.read_text(encoding="utf-8").splitlines()]
    answered = Counter(entry["request"] for entry in entries if entry["event"] == "out" and entry["status"] == "200")
    repeats = sum(count - 1 for count in answered.values())
    return [f"I2: {repeats} requests answered again, at most {after.may_repeat}"] if repeats > after.may_repeat else []


def _bytes(after: After) -> list[str]:
    if after.made is None or after.straight is None:
        return []
    ours, theirs = _contents(after.made, after.files), _contents(after.straight, after.files)
    return [f"I3: {name} differs" for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]


def _codes(after: After) -> list[str]:
    lines = []
    for ended, code in after.ended:
        if ended.code != code:
            lines.append(f"I4: exit code {ended.code}, not {code}")
        if "Traceback (most recent call last)" in ended.stderr:
            lines.append("I4: a traceback")
        causes = len(re.findall(r"^error: \S", ended.stderr, re.MULTILINE))
        if causes != (1 if code else 0):
            lines.append(f"I4: {causes} causes for exit code {code}")
    return lines


def _hashes(after: After) -> list[str]:
    lines = []
    # A journal has a manifest of its own kind.
    for path in sorted(path for kind in get_args(ArtifactKind) for path in after.store.glob(f"{kind}/*/{MANIFEST}")):
        if ".partial" in path.parent.name:
            lines.append(f"I5: {path.parent.name} has a manifest and is no artifact")
            continue
        try:
            verify(read_artifact(path.parent))
        except UcotronRayError as error:
            lines.append(f"I5: {error.problem}")
        half = [file for file in path.parent.rglob("*") if re.search(r"\.tmp$|^\.[\w.-]+\.\d+$", file.name)]
        lines += [f"I5: {file.name} is half a file" for file in sorted(half)]
    return lines


def _canary(after: After) -> list[str]:
    if after.canary is None:
        return []
    forms = {after.canary, quote(after.canary, safe=""), json.dumps(after.canary)[1:-1]}
    raw = {form.encode() for form in forms} | {base64.b64encode(after.canary.encode()).rstrip(b"=")}
    lines = [f"I6: the secret is on stderr ({ended.code})" for ended, _ in after.ended if after.canary in ended.stderr]
    for root in (after.store, *after.outside):
        for path in sorted(root.rglob("*")):
            if path.is_file() and not path.is_symlink() and any(form in path.read_bytes() for form in raw):
                lines.append(f"I6: the secret is in {path.name}")
    return lines


def _running(after: After) -> list[str]:
    if after.processes_before is None:
        return []
    left = [pid for pid in running() - after.processes_before if psutil.pid_exists(pid)]
    alive = [pid for pid in left if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    return [f"I7: process {pid} is left: {' '.join(psutil.Process(pid).cmdline())[:100]}" for pid in alive]


def _contents(directory: Path, pattern: str) -> dict[str, str]:
    """sha256 of every file but the manifest, which holds times, and what a build leaves beside it."""
    files = (path for path in directory.rglob(pattern) if path.is_file() and path.name not in (MANIFEST, RECIPE))
    return {path.relative_to(directory).as_posix(): file_hash(path) for path in files}
