"""The sweep's own record: one JSON file, written whole at every change. Everything else is drawn from it.

A kill at any moment leaves the file of before or after a change. Ray Tune keeps state of its own, pickled and not
always whole; none of it is ever read.
"""

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ucotron_ray.core.errors import CorruptArtifact
from ucotron_ray.core.files import write_json

SCHEMA_VERSION = 1
RECORD = "sweep.json"

State = Literal["waiting", "running", "interrupted", "finished", "stopped", "failed"]
OPEN: tuple[State, ...] = ("waiting", "running", "interrupted")

TIE = 1e-4
"""Share of the validation loss that is taken off F1 where trials are compared: at equal F1 the smaller loss wins. All
of it, up to `LARGEST_LOSS`, is less than one more right triple of 250 adds to F1."""

LARGEST_LOSS = 20.0
"""Beyond which a loss counts as this one in a tie; of a model that knows nothing it is ln(vocabulary), 12 at most."""


class Entry(BaseModel):
    """Base of all parts of the record."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(Entry):
    """One report of a trial. `value` is F1 with its 95 % interval by row, or a loss; `at` is the clock's time."""

    trial: str
    step: int
    value: float
    low: float | None = None
    high: float | None = None
    loss: float | None = None
    answer_seconds: float | None = None
    seconds: float = 0.0
    at: float
    stop: bool = False


class Trial(Entry):
    """One training. `of` names the trial that it repeats with another seed; `cause` says why it failed or stopped.

    `launched`, `began` (its first step was done) and `ended` are the clock's times of the last attempt; `seconds` are
    those of all attempts; `fixed_seconds` is what an attempt without a break cost beside its steps and scores.
    """

    id: str
    tier: str
    number: int
    params: dict[str, Any]
    seed: int
    steps: int
    of: str | None = None
    state: State = "waiting"
    cause: str | None = None
    attempts: int = 0
    launched: float | None = None
    began: float | None = None
    ended: float | None = None
    seconds: float = 0.0
    fixed_seconds: float | None = None
    resources: dict[str, float] = {}
    metrics: dict[str, float] = {}

    @property
    def is_open(self) -> bool:
        """Whether it has still to train."""
        return self.state in OPEN


class TierFacts(Entry):
    """What all trials of a tier share."""

    model: str
    identity: str
    parameters: int | None
    bytes: int | None
    rows: int
    steps: int
    report_steps: int
    grace_steps: int
    at_once: int = 1


class Record(Entry):
    """The whole sweep. `scores` stand in the order in which they arrived: what a scheduler decided follows from it."""

    schema_version: int = SCHEMA_VERSION
    name: str
    stage: Literal["sft", "dpo", "projection"]
    data: str
    search: str
    scheduler: str
    reduction_factor: int
    searched: list[str]
    tiers: dict[str, TierFacts]
    trials: list[Trial] = []
    scores: list[Score] = []

    @property
    def higher_is_better(self) -> bool:
        """F1 should be high; the projection's loss low."""
        return self.stage != "projection"

    def trial(self, name: str) -> Trial:
        """The trial of a name."""
        return next(trial for trial in self.trials if trial.id == name)

    def of_tier(self, tier: str) -> list[Trial]:
        """The trials of a tier, in their order."""
        return [trial for trial in self.trials if trial.tier == tier]

    def curve(self, name: str) -> list[Score]:
        """The scores of a trial by step."""
        return sorted((score for score in self.scores if score.trial == name), key=lambda score: score.step)

    def rank(self, score: Score) -> float:
        """What trials are compared by, the more the better; a tie of F1 goes to the smaller loss."""
        if not self.higher_is_better:
            return -score.value
        return rank_of_f1(score.value, score.loss)

    def best(self, name: str) -> Score | None:
        """The best score of a trial, the earliest of equal ones."""
        return max(self.curve(name), key=self.rank, default=None)

    def with_trial(self, name: str, **changes: Any) -> "Record":
        """A copy in which a trial has other values."""
        trials = [trial.model_copy(update=changes) if trial.id == name else trial for trial in self.trials]
        return self.model_copy(update={"trials": trials})

    def with_score(self, score: Score) -> "Record":
        """A copy with a score more. One of the same trial and step (after a resume) keeps its place and its verdict."""
        for index, old in enumerate(self.scores):
            if (old.trial, old.step) == (score.trial, score.step):
                again = score.model_copy(update={"stop": old.stop, "at": old.at})
                return self.model_copy(update={"scores": [*self.scores[:index], again, *self.scores[index + 1 :]]})
        return self.model_copy(update={"scores": [*self.scores, score]})


def report_steps(steps: int) -> int:
    """Steps between two scores so that a trial has about nine and the last one is at its end."""
    for count in (9, 8, 10, 7, 6, 12, 11):
        if steps % count == 0:
            return steps // count
    return max(1, steps // 9)


def rungs(grace: int, factor: int, steps: int) -> list[int]:
    """Steps at which a trial can be stopped before its end."""
    made = []
    rung = grace
    while rung < steps:
        made.append(rung)
        rung *= factor
    return made


def is_number(value: float | None) -> bool:
    """Whether it is there and finite."""
    return value is not None and math.isfinite(value)


def rank_of_f1(f1: float, loss: float | None) -> float:
    """What scores of one stage are compared by: F1, and at equal F1 the smaller validation loss."""
    return f1 - TIE * min(LARGEST_LOSS, LARGEST_LOSS if loss is None else loss)


def read(path: Path) -> Record | None:
    """The record in a directory; None if there is none yet. Raises CorruptArtifact if it cannot be read."""
    file = path / RECORD
    if not file.is_file():
        return None
    try:
        return Record.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        raise CorruptArtifact(
            "the record of the sweep cannot be read",
            where=str(file),
            found=str(error).splitlines()[0],
            next_step="start it again with --replace, or under another --name",
        ) from error


def is_fruitless(path: Path) -> bool:
    """Whether nothing comes of the sweep in a directory: no record that can be read, or all trials without a score."""
    try:
        record = read(path)
    except CorruptArtifact:
        return True
    return record is not None and not record.scores and not any(trial.is_open for trial in record.trials)


def forget(path: Path) -> None:
    """Take record and trials of a sweep away."""
    (path / RECORD).unlink(missing_ok=True)
    shutil.rmtree(path / "trials", ignore_errors=True)


def write(path: Path, record: Record) -> None:
    """Write the record as a whole."""
    write_json(path / RECORD, record.model_dump(mode="json"))


def resumed(record: Record) -> Record:
    """The record as the next process takes it up: what was running then was interrupted, at its last score or later."""
    trials = []
    for trial in record.trials:
        if trial.state == "running":
            last = max((score.at for score in record.curve(trial.id)), default=0.0)
            lost = max(0.0, last - trial.launched) if trial.launched else 0.0
            trial = trial.model_copy(update={"state": "interrupted", "seconds": trial.seconds + lost})
        trials.append(trial)
    return record.model_copy(update={"trials": trials})


def steps_run(record: Record, trials: Sequence[Trial]) -> int:
    """Optimizer steps that these trials made, by their scores."""
    last = [max((score.step for score in record.curve(trial.id)), default=0) for trial in trials]
    return sum(
        int(trial.metrics.get("steps", trial.steps)) if trial.state == "finished" else step
        for trial, step in zip(trials, last, strict=True)
    )
