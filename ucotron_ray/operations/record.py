"""What a submitted run leaves on this side, for the time after the cluster: Ray keeps no history of its jobs.

<store>/tracking/jobs/<run>/job.json        the command, and each attempt with how it ended; written whole
<store>/tracking/jobs/<run>/events.jsonl    what happened when, one event a line
<store>/tracking/jobs/<run>/<attempt>.log   the driver's output, copied while it runs
"""

import json
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.files import write_json

RECORD, EVENTS = "job.json", "events.jsonl"


class Attempt(BaseModel):
    """One job of Ray's. Times are the clock's of this machine; `code` is the exit code of this command for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    submitted_at: float
    status: str = "SUBMITTED"
    ended_at: float | None = None
    driver_exit_code: int | None = None
    code: int | None = None
    cause: str | None = None


class JobRecord(BaseModel):
    """A run that was submitted, with its attempts in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    command: list[str]
    address: str
    package: str
    attempts: list[Attempt] = []
    seen_at: float = 0.0


def directory_of(store: Path) -> Path:
    """Where the records of a store's submitted runs lie."""
    return store / "tracking" / "jobs"


def read(directory: Path) -> JobRecord | None:
    """The record in a run's directory; None if there is none that can be read."""
    try:
        return JobRecord.model_validate_json((directory / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None


class Keeper:
    """Writes the record of one run."""

    def __init__(self, directory: Path, record: JobRecord) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                "the log of the job cannot be kept here",
                where=str(directory),
                found=str(error),
                next_step="give --run-dir DIR: the store is on the cluster, the log is kept on this machine",
            ) from error
        earlier = read(directory)
        self.record = record.model_copy(update={"attempts": earlier.attempts if earlier else []})

    def attempt(self, name: str) -> Attempt | None:
        """What is known of an attempt."""
        return next((entry for entry in self.record.attempts if entry.id == name), None)

    def note(self, name: str, event: str, **changes: Any) -> None:
        """An event of an attempt, and what changed with it."""
        now = time.time()
        known = self.attempt(name) or Attempt(id=name, submitted_at=now)
        others = [entry for entry in self.record.attempts if entry.id != name]
        attempts = sorted([*others, known.model_copy(update=changes)], key=lambda entry: number_of(entry.id))
        self.record = self.record.model_copy(update={"attempts": attempts, "seen_at": now})
        with (self.directory / EVENTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at": now, "attempt": name, "event": event, **changes}, ensure_ascii=False) + "\n")
        write_json(self.directory / RECORD, self.record.model_dump(mode="json"))

    def copy_log(self, name: str, text: str) -> str:
        """Add what is new of the driver's output to our copy; the new part. A shorter text changes nothing."""
        path = self.directory / f"{name}.log"
        raw = text.encode("utf-8", "replace")
        have = path.stat().st_size if path.exists() else 0
        if len(raw) <= have:
            return ""
        with path.open("ab") as file:
            file.write(raw[have:])
        return raw[have:].decode("utf-8", "replace")

    def log_text(self, name: str) -> str:
        """Our copy of an attempt's output."""
        path = self.directory / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def number_of(attempt: str) -> int:
    """Which attempt of its run an id is, from 1."""
    tail = attempt.rpartition("-")[2]
    return int(tail) if tail.isdecimal() else 0
