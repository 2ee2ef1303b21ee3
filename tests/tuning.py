"""A sweep without Ray: the trials one after the other in this process, with the sweep's own decisions."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ucotron_ray.core import config
from ucotron_ray.tuning import job as jobs
from ucotron_ray.tuning import record as records
from ucotron_ray.tuning import sweep as sweeps
from ucotron_ray.tuning import trial as trials
from ucotron_ray.tuning.on_ray import Halving, Launch
from ucotron_ray.tuning.record import Record, Score, TierFacts

SFT = config.load().recipe.sft.model_copy(update={"epochs": 1})
STEPS = 27


class Halt(BaseException):
    """Ends a trial in the middle of its report, as Tune does by ending its process."""


class Killed(BaseException):
    """Ends everything, as kill -9 of the driver does."""


def plan(
    *, tiers: tuple[str, ...] = ("slm",), at_once: int = 1, side_by_side: bool = False, **tuning: object
) -> sweeps.Plan:
    values = {"search": "grid", "space.sft": {"learning_rate": [1e-4, 3e-4, 1e-3], "lora_rank": [8, 16, 32]}, **tuning}
    recipe = config.load(overrides=[(f"tuning.{key}", value) for key, value in values.items()]).recipe
    return sweeps.Plan(
        stage="sft",
        tuning=recipe.tuning,
        settings=dict.fromkeys(tiers, SFT),
        at_once=dict.fromkeys(tiers, at_once),
        side_by_side=side_by_side,
        steps_of=lambda tier, settings: STEPS * settings["epochs"],
    )


def begun(wanted: sweeps.Plan, **changes: Any) -> Record:
    facts = TierFacts(
        model="m", identity="i", parameters=1000, bytes=2000, rows=100, steps=STEPS, report_steps=3, grace_steps=3
    )
    fields: dict[str, Any] = {
        "name": "s",
        "stage": "sft",
        "data": "rows",
        "search": wanted.tuning.search,
        "scheduler": wanted.tuning.scheduler,
        "reduction_factor": wanted.tuning.reduction_factor,
        "searched": ["learning_rate", "lora_rank"],
        "tiers": dict.fromkeys(wanted.settings, facts),
        "trials": sweeps.first_trials(wanted),
    }
    return Record(**fields | changes)


def opened(
    directory: Path, wanted: sweeps.Plan, told: Callable[..., None] = lambda record, trial: None
) -> sweeps.Sweep:
    """The sweep in a directory, new or as it was left."""
    record = records.read(directory) or begun(wanted)
    schedulers = {tier: halving(wanted) for tier in record.tiers}
    return sweeps.Sweep(directory, record, wanted, schedulers, told)


def halving(wanted: sweeps.Plan) -> sweeps.Scheduler:
    if wanted.tuning.scheduler == "none":
        return sweeps.Never()
    return Halving(grace=3, factor=wanted.tuning.reduction_factor, steps=STEPS)


def f1(params: Mapping[str, Any], step: int) -> float:
    """A curve that rises to a height that the settings fix: best at 1e-3 and rank 16."""
    height = {1e-4: 0.3, 3e-4: 0.6, 1e-3: 0.9}[params["learning_rate"]] - abs(params["lora_rank"] - 16) / 400
    return height * step / STEPS


def played(sweep: sweeps.Sweep, *, until: int | None = None) -> None:
    """Train all trials by `f1`, in turn; with `until` only so many reports, then nothing more happens at all."""
    reports = 0
    while (trial := sweep.next()) is not None:
        sweep.launched(trial.id, {"CPU": 1.0})
        last = max((score.step for score in sweep.record.curve(trial.id)), default=0)
        for step in range(last + 3, trial.steps + 1, 3):
            if reports == until:
                return
            reports += 1
            value = f1(trial.params, step)
            if sweep.scored(Score(trial=trial.id, step=step, value=value, loss=1 - value, at=time.time()), began=1.0):
                break
        sweep.ended(trial.id, "finished", metrics={"step_p50": 0.1})


def in_process(killed_after: int | None = None) -> Callable[[sweeps.Sweep, Launch], None]:
    """A stand-in for `sweep_on_ray`; with a number it is killed at that report, and nothing is tidied up."""
    reports = 0

    def run(sweep: sweeps.Sweep, launch: Launch) -> None:
        while (trial := sweep.next()) is not None:
            job = launch.jobs(trial)
            jobs.write(job)
            sweep.launched(trial.id, {"CPU": 1.0})

            def tell(score: Mapping[str, Any], name: str = trial.id) -> None:
                nonlocal reports
                if reports == killed_after:
                    raise Killed
                reports += 1
                fields = {key: score[key] for key in Score.model_fields if key in score}
                if sweep.scored(Score(**fields, trial=name), began=score.get("began")):
                    raise Halt

            try:
                outcome = trials.run(job, tell)
            except Halt:
                outcome = {"state": "interrupted", "cause": None, "metrics": {}}
            sweep.ended(trial.id, outcome["state"], outcome["cause"], outcome["metrics"])

    return run
