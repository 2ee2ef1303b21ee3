"""What happened in a run, as events in files, until it is sent to MLflow (`tracking.py`).

<store>/tracking/spool/<run>-<host>-<pid>.jsonl    what happened, one event a line, appended by any process
<store>/tracking/spool/sent.json                   how far each file was sent, and the ids that MLflow gave
"""

import fcntl
import json
import logging
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ucotron_ray.core import redaction
from ucotron_ray.core.artifacts import Artifact

log = logging.getLogger(__name__)


MAX_KEY = 250
"""Letters of a metric's or parameter's name at MLflow."""


class Spool:
    """Where one process writes the events of one run. Opened for each event: no handle to lose, none to share."""

    def __init__(self, directory: Path, run: str) -> None:
        self.directory = directory
        self.run = run

    def start(self, *, name: str, parent: str | None = None, tags: Mapping[str, str] | None = None) -> None:
        """The run exists, below its parent."""
        self._write({"type": "start", "name": name, "parent": parent, "tags": dict(tags or {})})

    def params(self, values: Mapping[str, object]) -> None:
        """What it was asked to do, flattened to dotted keys."""
        self._write({"type": "params", "values": {key_of(key): str(value) for key, value in flat(values).items()}})

    def tags(self, values: Mapping[str, str]) -> None:
        """What it is."""
        self._write({"type": "tags", "values": dict(values)})

    def metrics(self, values: Mapping[str, float], *, step: int = 0) -> None:
        """What was measured at a step."""
        finite = {key_of(key): float(value) for key, value in values.items() if abs(float(value)) < float("inf")}
        self._write({"type": "metrics", "values": finite, "step": step})

    def dataset(self, artifact: Artifact, context: str) -> None:
        """Data that went in."""
        manifest = artifact.manifest
        self._write(
            {
                "type": "dataset",
                "name": manifest.name,
                "digest": manifest.content[:32],
                "source": str(artifact.path),
                "context": context,
            }
        )

    def model(self, artifact: Artifact, direction: str) -> None:
        """A model that went in (`input`) or came out (`output`)."""
        manifest = artifact.manifest
        self._write(
            {
                "type": "model",
                "name": f"{manifest.kind}-{manifest.name}",
                "content": manifest.content,
                "path": str(artifact.path),
                "kind": manifest.kind,
                "direction": direction,
            }
        )

    def file(self, path: Path) -> None:
        """A small file to keep with the run."""
        self._write({"type": "file", "path": str(path)})

    def end(self, status: str) -> None:
        """FINISHED, FAILED or KILLED."""
        self._write({"type": "end", "status": status})

    def child(self, stage: str) -> "Spool":
        """The spool of one stage of this run."""
        return Spool(self.directory, f"{self.run}/{stage}")

    def _write(self, event: dict[str, Any]) -> None:
        line = json.dumps({"run": self.run, "time": int(time.time() * 1000), **event}, ensure_ascii=False) + "\n"
        line = redaction.in_places(line)
        name = f"{self.run.replace('/', '.')}-{platform.node()}-{os.getpid()}.jsonl"
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with (self.directory / name).open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            log.warning("tracking: an event could not be spooled (%s); the run goes on", error)


@dataclass
class SendingState:
    """How far the spool was sent."""

    offsets: dict[str, int] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Line:
    """A line of the spool: its file, the offset behind it, when it was written, and the event, if it is one."""

    file: str
    end: int
    time: int
    event: dict[str, Any] | None


def spool_directory(store: Path) -> Path:
    """Where the events of a store's runs lie."""
    return store / "tracking" / "spool"


def run_id(directory: Path, run: str) -> str | None:
    """The id that MLflow gave to a run, if it was sent."""
    return read_sent(directory).runs.get(run)


def has_pending(directory: Path) -> bool:
    """Whether the spool holds events that were not sent."""
    sent = read_sent(directory)
    return any(path.stat().st_size > sent.offsets.get(path.name, 0) for path in directory.glob("*.jsonl"))


def pending(directory: Path, sent: SendingState) -> Iterator[Line]:
    """Lines that were not sent, oldest first. A torn last line waits."""
    lines = []
    for path in directory.glob("*.jsonl"):
        with path.open("rb") as file:
            offset, moment = sent.offsets.get(path.name, 0), 0
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                event = _event(line)
                if event is None:
                    log.warning("tracking: a line of %s is no event and is skipped", path)
                moment = event["time"] if event else moment
                lines.append(Line(path.name, offset, moment, event))
    # Stable: lines of one file keep their order, so that its offset only grows.
    return iter(sorted(lines, key=lambda line: line.time))


def _event(line: bytes) -> dict[str, Any] | None:
    """The event of a whole line; None for what a writer left that was cut off, together with what came after it."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and {"run", "time", "type"} <= set(event) else None


def read_sent(directory: Path) -> SendingState:
    """How far a spool was sent; nothing of it where that cannot be read."""
    try:
        return SendingState(**json.loads((directory / "sent.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return SendingState()


@contextmanager
def only_sender(directory: Path) -> Iterator[bool]:
    """Whether this process is the one that sends, for as long as the block lasts."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "sending.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def key_of(name: str) -> str:
    """The name of a metric or parameter in the letters that MLflow takes."""
    return re.sub(r"[^\w.\- ]", "_", name)[:MAX_KEY]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Nested values under dotted names."""
    made: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            made |= flat(value, f"{prefix}{key}.")
        else:
            made[f"{prefix}{key}"] = value
    return made
