"""The state of a store's runs, from its files alone: no cluster, no tracking server and no Ray is asked.

What is read: the spool of events (`tracking.py`), the partial directories and manifests (`artifacts.py`), the live
figures of a synthesis (`synthesis/watch.py`), the record of a sweep (`tuning/record.py`) and of submitted jobs
(`record.py`). A file that a kill cut short is read as far as it goes.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ucotron_ray.core.files import MANIFEST, RECIPE
from ucotron_ray.operations import record

SWEEP = "sweep.json"
PARTIAL = ".partial"

SILENT_SECONDS = 300.0
"""Without a sign for so long a run whose lock cannot be seen counts as lost. Loading or exporting a 7B model is silent
for minutes."""

ENDS = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "stopped"}


@dataclass(frozen=True)
class ArtifactState:
    """One artifact, made or in the making. `state`: that of the manifest, or building, or interrupted.

    `seen` is the last sign of life in seconds of the clock, `rows` and `usd` what is known so far.
    """

    kind: str
    name: str
    state: str
    seen: float
    rows: int | None = None
    usd: float | None = None
    trials: dict[str, int] = field(default_factory=dict)

    @property
    def resumable(self) -> bool:
        """Whether the command that began it would go on."""
        return self.state == "interrupted"


@dataclass(frozen=True)
class StageState:
    """One stage of a run: how it ended, or running or lost."""

    name: str
    state: str
    artifact: str | None
    seconds: float


@dataclass(frozen=True)
class RunState:
    """One run, over all processes that worked on it. `resumable`: the same command goes on from what is there."""

    key: str
    name: str
    state: str
    began: float
    seen: float
    stages: list[StageState]
    rows: int | None
    usd: float | None
    trials: dict[str, int]
    resumable: bool


@dataclass(frozen=True)
class StoreState:
    """Everything that `status` shows, the newest first."""

    store: str
    runs: list[RunState]
    building: list[ArtifactState]
    artifacts: list[ArtifactState]
    jobs: list[record.JobRecord]

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        plain = asdict(self)
        plain["jobs"] = [job.model_dump(mode="json") for job in self.jobs]
        return plain


@dataclass
class _Events:
    """What the spool says of one run or stage."""

    name: str = ""
    parent: str | None = None
    artifact: str | None = None
    began: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    status: str = ""
    seen: float = 0.0


def look(store: Path, *, now: float | None = None) -> StoreState:
    """The state of a store. An empty or missing one has no runs."""
    now = time.time() if now is None else now
    artifacts = {f"{entry.kind}/{entry.name}": entry for entry in _artifacts(store, now)}
    building = {f"{entry.kind}/{entry.name}": entry for entry in _partials(store, now)}
    events = _events(store)
    runs = [
        _run(store, key, found, events, artifacts, building, now) for key, found in events.items() if not found.parent
    ]
    jobs = [found for path in record.directory_of(store).glob("*") if (found := record.read(path)) is not None]
    return StoreState(
        str(store),
        sorted(runs, key=lambda run: -run.began),
        sorted(building.values(), key=lambda entry: -entry.seen),
        sorted(artifacts.values(), key=lambda entry: -entry.seen),
        sorted(jobs, key=lambda job: -job.seen_at),
    )


def _run(
    store: Path,
    key: str,
    found: _Events,
    events: dict[str, _Events],
    artifacts: dict[str, ArtifactState],
    building: dict[str, ArtifactState],
    now: float,
) -> RunState:
    children = {name: child for name, child in events.items() if child.parent == key}
    mine = {child.artifact for child in children.values() if child.artifact}
    open_ = [building[name] for name in sorted(mine) if name in building]
    known = [*open_, *(artifacts[name] for name in sorted(mine) if name in artifacts and name not in building)]
    signs = [found.seen, _mtime(store / "tracking" / "logs" / f"{key}.log")]
    seen = max([*signs, *(child.seen for child in children.values()), *(entry.seen for entry in open_)])
    alive = any(entry.state == "building" for entry in open_) or now - seen < SILENT_SECONDS
    state = _state(found, alive=alive)
    trials: dict[str, int] = {}
    for entry in known:
        trials |= entry.trials
    return RunState(
        key,
        found.name,
        state,
        found.began,
        seen,
        [_stage(key, name, child, alive=alive and state == "running", now=now) for name, child in children.items()],
        _sum(entry.rows for entry in known),
        _sum(entry.usd for entry in known),
        trials,
        resumable=state in ("stopped", "lost") or (state == "failed" and bool(open_)),
    )


def _stage(run: str, key: str, found: _Events, *, alive: bool, now: float) -> StageState:
    state = _state(found, alive=alive)
    end = found.ended if found.ended >= found.started else now if state == "running" else found.seen
    return StageState(key.removeprefix(f"{run}/"), state, found.artifact, round(max(0.0, end - found.started), 1))


def _state(found: _Events, *, alive: bool) -> str:
    if found.status and found.ended >= found.started:
        return ENDS.get(found.status, found.status.lower())
    return "running" if alive else "lost"


def _events(store: Path) -> dict[str, _Events]:
    known: dict[str, _Events] = {}
    for path in sorted((store / "tracking" / "spool").glob("*.jsonl")):
        for event in _lines(path):
            at, run = float(event.get("time", 0)) / 1000, str(event.get("run", ""))
            found = known.setdefault(run, _Events(began=at))
            found.seen = max(found.seen, at)
            if event.get("type") == "start":
                found.name, found.parent = str(event.get("name")), event.get("parent")
                found.artifact = (event.get("tags") or {}).get("ucotron.artifact", found.artifact)
                found.began, found.started = min(found.began, at), max(found.started, at)
            elif event.get("type") == "end" and at >= found.ended:
                found.ended, found.status = at, str(event.get("status"))
    return known


def _artifacts(store: Path, now: float) -> Iterator[ArtifactState]:
    for path in store.glob(f"*/*/{MANIFEST}"):
        if PARTIAL in path.parent.name:
            continue
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            manifest = {"state": "unreadable"}
        counts, metrics = manifest.get("counts") or {}, manifest.get("metrics") or {}
        rows = [counts[name] for name in ("train", "val") if name in counts]
        yield ArtifactState(
            path.parent.parent.name,
            path.parent.name,
            str(manifest.get("state", "ok")),
            _mtime(path),
            sum(rows) if rows else None,
            metrics.get("cost_usd"),
            _trials(path.parent / SWEEP),
        )


def _partials(store: Path, now: float) -> Iterator[ArtifactState]:
    held = _locked_inodes()
    for path in store.glob(f"*/*{PARTIAL}"):
        if not (path / RECIPE).is_file():
            continue
        kind, name = path.parent.name, path.name.removesuffix(PARTIAL)
        live = _last_line(store / "tracking" / "metrics" / f"{name}.jsonl") if kind == "dataset" else {}
        seen = max([float(live.get("at", 0.0)), *(_mtime(file) for file in path.rglob("*")), _mtime(path)])
        lock = path.with_name(f"{name}.lock")
        building = lock.exists() and lock.stat().st_ino in held if held is not None else now - seen < SILENT_SECONDS
        state = "building" if building else "interrupted"
        rows = live.get("rows")
        yield ArtifactState(kind, name, state, seen, rows, live.get("usd"), _trials(path / SWEEP))


def _locked_inodes() -> set[int] | None:
    """Inodes that some process of this machine holds a lock on; None where the kernel does not say."""
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    fields = [line.split() for line in lines]
    return {int(parts[5].rpartition(":")[2]) for parts in fields if len(parts) > 5 and parts[1] == "FLOCK"}


def _trials(path: Path) -> dict[str, int]:
    if not path.is_file():
        return {}
    try:
        trials = json.loads(path.read_text(encoding="utf-8")).get("trials") or []
        states = [str(trial["state"]) for trial in trials]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {state: states.count(state) for state in sorted(set(states))}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                # The last line of a killed process.
                continue
            if isinstance(event, dict):
                yield event


def _last_line(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if path.is_file():
        # A line a second and some 300 bytes a line: the end is enough.
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 65536))
            for line in file.read().decode("utf-8", "replace").splitlines():
                try:
                    found = json.loads(line)
                except ValueError:
                    continue
    return found if isinstance(found, dict) else {}


def _mtime(path: Path) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _sum(values: Iterable[Any]) -> Any:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
