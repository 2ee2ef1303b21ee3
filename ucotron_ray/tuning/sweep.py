"""A sweep while it runs: which trial is next, what a score means, and the record of it all. No Ray in it."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from ucotron_ray.core.recipe import Tuning
from ucotron_ray.tuning import record as records
from ucotron_ray.tuning import space
from ucotron_ray.tuning.job import CHECKPOINTS
from ucotron_ray.tuning.record import Record, Score, State, Trial

log = logging.getLogger(__name__)


class Scheduler(Protocol):
    """Who says when a trial is behind the others."""

    def stops(self, trial: str, step: int, value: float) -> bool:
        """Whether to stop it. `value` is the more the better. Remembers what it was told."""


class Never:
    """No trial is stopped."""

    def stops(self, trial: str, step: int, value: float) -> bool:
        return False


@dataclass(frozen=True)
class Plan:
    """What a sweep is asked to do. `settings` and `at_once` are by tier."""

    stage: space.Stage
    tuning: Tuning
    settings: Mapping[str, BaseModel]
    at_once: Mapping[str, int]
    side_by_side: bool
    steps_of: Callable[[str, Mapping[str, Any]], int]
    """(tier, its settings with those of a trial) → optimizer steps."""


class Sweep:
    """The record and its changes; each is on disk before anything follows from it.

    Args:
        directory: of the sweep.
        record: as it was read or begun.
        plan: what is asked.
        schedulers: by tier; they are told at once what the record knows.
        told: called after every change with the record, for pages and tracking.
    """

    def __init__(
        self,
        directory: Path,
        record: Record,
        plan: Plan,
        schedulers: Mapping[str, Scheduler],
        told: Callable[[Record, Trial], None],
    ) -> None:
        self.directory, self.plan = directory, plan
        self._schedulers, self._told = schedulers, told
        self.record = records.resumed(record)
        for score in self.record.scores:
            trial = self.record.trial(score.trial)
            if trial.of is None:
                schedulers[trial.tier].stops(score.trial, score.step, self.record.rank(score))
        self._grow()
        self._keep()

    def path(self, trial: str) -> Path:
        """A trial's own directory."""
        return self.directory / "trials" / trial

    def next(self) -> Trial | None:
        """The trial to start now, marked as running; None where all that may run does, or all is done."""
        self._grow()
        trial = due(self.record, self.plan.at_once, side_by_side=self.plan.side_by_side)
        if trial is not None:
            self._change(trial.id, state="running", launched=time.time(), attempts=0, cause=None)
        return trial

    def launched(self, name: str, resources: Mapping[str, float]) -> None:
        """Its process has started, for the first time or after it was lost."""
        trial, now = self.record.trial(name), time.time()
        changes: dict[str, Any] = {"attempts": trial.attempts + 1, "resources": dict(resources)}
        if trial.attempts and trial.launched is not None:
            changes |= {"seconds": trial.seconds + now - trial.launched, "launched": now}
        self._change(name, **changes)

    def scored(self, score: Score, *, began: float | None = None) -> bool:
        """Take a score; whether the trial is stopped for it. `began`: when its first step was done."""
        if began is not None:
            self.record = self.record.with_trial(score.trial, began=began)
        trial = self.record.trial(score.trial)
        again = any((old.trial, old.step) == (score.trial, score.step) for old in self.record.scores)
        # A trial that repeats another one with a new seed runs to its end: it is there to be compared.
        stop = (
            not again
            and trial.of is None
            and self._schedulers[trial.tier].stops(trial.id, score.step, self.record.rank(score))
            and score.step < trial.steps
        )
        self.record = self.record.with_score(score.model_copy(update={"stop": stop}))
        if stop:
            cause = f"behind the other trials at step {score.step}"
            self.record = self.record.with_trial(trial.id, state="stopped", cause=cause)
        self._keep()
        log.info(
            "tune: %s step %d/%d  %s %.4f%s",
            trial.id,
            score.step,
            trial.steps,
            "F1" if self.record.higher_is_better else "loss",
            score.value,
            "  stopped" if stop else "",
        )
        self._told(self.record, self.record.trial(trial.id))
        return stop

    def ended(
        self, name: str, state: State, cause: str | None = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        """A trial's process is over. One that was stopped stays stopped, whatever its end looked like."""
        trial, now = self.record.trial(name), time.time()
        if trial.state == "stopped":
            state, cause = "stopped", trial.cause
        figures = {key: value for key, value in (metrics or {}).items() if records.is_number(value)}
        changes: dict[str, Any] = {"state": state, "cause": cause, "ended": now}
        if trial.launched is not None:
            changes["seconds"] = trial.seconds + now - trial.launched
        changes |= {"metrics": figures, "fixed_seconds": fixed_seconds(self.record, trial, now)}
        if state in ("finished", "stopped"):
            # It never goes on: its best adapter lies beside.
            shutil.rmtree(self.path(name) / CHECKPOINTS, ignore_errors=True)
        self._change(name, **changes)
        if state == "failed":
            log.warning("tune: %s failed, the others go on: %s", name, cause)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train."""
        self._grow()
        return not any(trial.is_open for trial in self.record.trials)

    def _change(self, name: str, **changes: Any) -> None:
        self.record = self.record.with_trial(name, **changes)
        self._keep()
        self._told(self.record, self.record.trial(name))

    def _keep(self) -> None:
        records.write(self.directory, self.record)

    def _grow(self) -> None:
        grown = with_new_trials(self.record, self.plan)
        if grown is not self.record:
            self.record = grown
            self._keep()


def due(record: Record, at_once: Mapping[str, int], *, side_by_side: bool) -> Trial | None:
    """The trial that may start next: of the first tier that has work, or of any; those that were interrupted first."""
    for tier in record.tiers:
        trials = record.of_tier(tier)
        running = sum(trial.state == "running" for trial in trials)
        waiting = [trial for state in ("interrupted", "waiting") for trial in trials if trial.state == state]
        if waiting and running < at_once[tier]:
            return waiting[0]
        if (waiting or running) and not side_by_side:
            return None
    return None


def with_new_trials(record: Record, plan: Plan) -> Record:
    """The record with the trials that can be known now: Optuna's next ones, and repetitions of the best."""
    made: list[Trial] = []
    for tier in record.tiers:
        trials = record.of_tier(tier)
        search = [trial for trial in trials if trial.of is None]
        if plan.tuning.search == "optuna":
            made += _suggestions(record, plan, tier, search)
        if not made and not any(trial.is_open for trial in search) and len(trials) == len(search):
            made += _repetitions(record, plan, tier, search)
    return record.model_copy(update={"trials": [*record.trials, *made]}) if made else record


def first_trials(plan: Plan) -> list[Trial]:
    """The trials that are known before the sweep begins."""
    return [
        _trial(plan, tier, number, params)
        for tier, settings in plan.settings.items()
        for number, params in enumerate(space.planned(plan.tuning, plan.stage, settings))
    ]


def fixed_seconds(record: Record, trial: Trial, now: float) -> float | None:
    """What a trial costs beside training and scoring: its process, its imports, its model, one step, and its end.

    None for one that was interrupted, or did not come to a first score.
    """
    curve = record.curve(trial.id)
    if trial.launched is None or trial.began is None or not curve or trial.attempts > 1:
        return None
    return max(0.0, trial.began - trial.launched) + max(0.0, now - curve[-1].at)


def _suggestions(record: Record, plan: Plan, tier: str, search: Sequence[Trial]) -> list[Trial]:
    is_open = sum(trial.is_open for trial in search)
    if len(search) >= plan.tuning.trials or is_open >= plan.at_once[tier]:
        return []
    ended = []
    for trial in search:
        best = record.best(trial.id)
        if best is not None and not trial.is_open:
            ended.append((trial.params, record.rank(best)))
    number = len(search)
    params = space.suggested(plan.tuning, plan.stage, plan.settings[tier], number, ended)
    return [_trial(plan, tier, number, params)]


def _repetitions(record: Record, plan: Plan, tier: str, search: Sequence[Trial]) -> list[Trial]:
    confirm = plan.tuning.confirm
    return [
        _trial(plan, tier, trial.number, trial.params, seed=seed, of=trial.id)
        for trial in ranked(record, search)[: confirm.top]
        for seed in confirm.seeds
    ]


def ranked(record: Record, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that ran to their end, the best first; where none did, those that were stopped."""
    scored = [(trial, best) for trial in trials if (best := record.best(trial.id)) is not None]
    finished = [pair for pair in scored if pair[0].state == "finished"]
    wanted = finished or [pair for pair in scored if pair[0].state == "stopped"]
    return [trial for trial, best in sorted(wanted, key=lambda pair: -record.rank(pair[1]))]


def _trial(
    plan: Plan, tier: str, number: int, params: space.Params, *, seed: int | None = None, of: str | None = None
) -> Trial:
    settings = plan.settings[tier].model_dump() | params
    own = int(settings["seed"])
    return Trial(
        id=f"{tier}-{number:03d}" + ("" if seed is None else f"-seed{seed}"),
        tier=tier,
        number=number,
        params=params,
        seed=own if seed is None else seed,
        steps=plan.steps_of(tier, settings),
        of=of,
    )
