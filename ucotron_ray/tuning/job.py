"""What travels to a trial: plain data, written as `job.json` into its directory and read there. Light to import."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.core.files import write_json

JOB, OUTCOME, BEST, CHECKPOINTS = "job.json", "outcome.json", "best", "checkpoints"
STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """One trial. `training` holds the fields of the stage's own job, `run` is its key in the tracking."""

    trial: str
    stage: str
    directory: str
    training: dict[str, Any]
    f1_rows: int
    max_new_tokens: int
    eval_batch: int
    spool: str
    run: str
    log_file: str


def write(job: TrialJob) -> None:
    """Make the trial's directory, with the job in it, and let the sweep's stop file reach it."""
    directory = Path(job.directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / JOB, asdict(job))
    # The training function looks for a file of this name in its own directory.
    stop = directory / STOP
    if not stop.is_symlink():
        stop.symlink_to(Path("..", "..", STOP))


def read(directory: Path) -> TrialJob:
    """What `write` wrote."""
    return TrialJob(**json.loads((directory / JOB).read_text(encoding="utf-8")))
