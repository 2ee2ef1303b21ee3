"""Sweeps: many trainings of one stage → `sweep/<name>` with the record, the page, the best adapters and `best.yaml`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from ucotron_ray.core import requirements
from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request
from ucotron_ray.core.errors import ConfigError, InputError
from ucotron_ray.core.hyperparameters import LoraSettings
from ucotron_ray.core.place import Workers
from ucotron_ray.core.recipe import Projection
from ucotron_ray.core.run import Run
from ucotron_ray.data import uses
from ucotron_ray.evaluation.scoring import MEASURE
from ucotron_ray.models import stage as models
from ucotron_ray.models.shape import shape_of
from ucotron_ray.models.stage import prompt_identity
from ucotron_ray.training import plan as plans
from ucotron_ray.tuning import record as records
from ucotron_ray.tuning import space, sweep, winners
from ucotron_ray.tuning.job import TrialJob
from ucotron_ray.tuning.record import Record, TierFacts, Trial
from ucotron_ray.tuning.targets import PROJECTION, Template, TuningTarget, share_of


def request(run: Run, target: TuningTarget) -> Request:
    """What the sweep would make."""
    tuning = run.config.recipe.tuning
    fields: dict[str, Any] = {
        "sweep": target.stage,
        "tuning": tuning.model_dump(exclude={"space", "tiers"}),
        "space": tuning.model_dump()["space"][target.stage],
        "settings": {tier: _identity(settings) for tier, settings in target.settings.items()},
        "base": dict(target.identity),
    }
    if target.stage != "projection":
        fields |= {"prompt": prompt_identity(), "measure": MEASURE}
    return Request("sweep", run.name, fields, target.inputs)


def plan_of(run: Run, target: TuningTarget, rows: Mapping[str, int], at_once: Mapping[str, int]) -> sweep.Plan:
    """The sweep as its own code wants it. Raises ConfigError for a space that cannot be searched."""
    tuning = run.config.recipe.tuning
    if tuning.search == "optuna":
        requirements.require_packages("optuna")

    def steps_of(tier: str, settings: Mapping[str, Any]) -> int:
        return math.ceil(rows[tier] / (settings["batch_size"] or 16)) * int(settings["epochs"])

    side_by_side = run.config.place.trials.side_by_side
    return sweep.Plan(target.stage, tuning, target.settings, at_once, side_by_side, steps_of)


def check(run: Run, target: TuningTarget) -> list[Trial]:
    """Everything in the space that can be found wrong before anything is started; the trials that are known by then."""
    nobody = dict.fromkeys(target.settings, 1)
    trials = sweep.first_trials(plan_of(run, target, nobody, nobody))
    if target.stage != "projection":
        known = [trial.params for trial in trials]
        for tier, settings in target.settings.items():
            _check_batches(run, target, tier, cast(LoraSettings, settings), known)
            _check_targets(run, target, tier, known)
    return trials


def _check_batches(
    run: Run, target: TuningTarget, tier: str, settings: LoraSettings, known: Sequence[space.Params]
) -> None:
    """Raise ConfigError for a batch that the workers of a trial cannot share: each such trial would fail."""
    tuning, workers = run.config.recipe.tuning, run.config.place.workers
    values, searched = space.candidates(tuning, target.stage, settings, "batch_size", known)
    for value in values:
        try:
            plans.per_device_batch(
                settings.model_copy(update={"batch_size": value}),
                longest=1,
                world=share_of(run, tier).num_workers or workers.num_workers,
                wanted=workers.per_device_batch,
                max_tokens_per_microbatch=workers.max_tokens_per_microbatch,
            )
        except InputError as error:
            batch = f"tuning.space.{target.stage}" if searched else f"training.{target.stage}.{tier}"
            raise ConfigError(
                error.problem,
                where=f"{batch}.batch_size, trials.{tier}.num_workers, workers.per_device_batch",
                expected=error.expected,
                found=error.found,
                next_step="list the values that can be shared, or give a trial another number of workers",
            ) from error


def _check_targets(run: Run, target: TuningTarget, tier: str, known: Sequence[space.Params]) -> None:
    """Raise ConfigError for target modules that the model has not. Those of the recipe are looked at by its stage."""
    tuning = run.config.recipe.tuning
    values, searched = space.candidates(tuning, target.stage, target.settings[tier], "target_modules", known)
    if not searched:
        return
    shape = shape_of(models.named_base(target.identity[tier], run.store))
    unknown = [value for value in values if not shape.targets(value)] if shape else []
    if shape and unknown:
        names = ", ".join(name.partition(".")[2] for name in shape.linears)
        raise ConfigError(
            "the LoRA target modules do not exist in this model",
            where=f"tuning.space.{target.stage}.target_modules",
            expected=rf"all-linear, or patterns for the whole path of a module, such as .*\.q_proj: {names}",
            found=", ".join(unknown),
        )


def tune(run: Run, target: TuningTarget) -> Artifact:
    """Run the sweep, or what is left of it → `sweep/<name>`."""
    wanted = request(run, target)
    run.store.refuse_other_recipe(wanted, replace=run.replace)
    workers: dict[str, Workers] = {}
    templates: Mapping[str, Template] = {}
    at_once: dict[str, int] = {}
    if run.store.plan(wanted) != "reuse":
        check(run, target)
        run.connect(workers=False)
        workers, at_once = shares(run, list(target.settings))
        templates = target.prepare(workers)

    def build(build: Build) -> BuildResult:
        from ucotron_ray.tuning import on_ray

        rows = {tier: template.rows for tier, template in templates.items()}
        plan = plan_of(run, target, rows, at_once)
        if run.replace and records.is_fruitless(build.path):
            # Of the same recipe, so it would be gone on with, and end at once in what it ended in before.
            records.forget(build.path)
        record = records.read(build.path) or _begun(run, target, plan, templates)
        spool = run.spool.child("tune")
        spool.dataset(target.data, "training")
        schedulers = {tier: _scheduler(record, tier) for tier in record.tiers}
        pages = winners.Pages(build.path, spool)
        running = sweep.Sweep(build.path, record, plan, schedulers, pages.told)
        if not running.is_over:
            launch = on_ray.Launch(
                jobs=lambda trial: _job(run, target, templates[trial.tier], record, trial, build.path),
                workers=workers,
                max_failures=run.config.place.workers.max_failures,
                log_file=run.log_file,
                name=run.name,
            )
            pages.write(running.record)
            on_ray.sweep_on_ray(running, launch)
        chosen = winners.promote(running.record, build.path, spool, recipe=wanted.recipe)
        chose_by = [] if target.stage == "projection" else uses.validation("the settings", target.data)
        return replace(chosen, rows=chose_by)

    return run.make("tune", wanted, build)


def shares(run: Run, tiers: list[str]) -> tuple[dict[str, Workers], dict[str, int]]:
    """The workers of one trial of each tier, and how many trials there are at once. Needs the connection.

    Raises ResourceError if a trial could only wait for ever.
    """
    from ucotron_ray.core import session

    workers, at_once = {}, {}
    for tier in tiers:
        share, place = share_of(run, tier), run.config.place.workers
        num = 1 if tier == PROJECTION else share.num_workers or place.num_workers
        asked = {"cpus_per_worker": share.cpus_per_worker or place.cpus_per_worker}
        asked["gpus_per_worker"] = share.gpus_per_worker if share.gpus_per_worker is not None else place.gpus_per_worker
        wanted = place.model_copy(update={**asked, "num_workers": num})
        if run.config.place.ray.wait_for_nodes:
            together = wanted.model_copy(update={"num_workers": num * (share.at_once or 1)})
            session.wait_for_nodes(together, run.config.place.ray.wait_for_nodes)
        # Processors are shared by as many trials as there are to be, or as the GPUs hold.
        groups = share.at_once or session.groups_on_gpus(wanted)
        held = session.worker_resources(wanted.model_copy(update={"num_workers": num * groups}))
        one = wanted.model_copy(update={"cpus_per_worker": held.cpus, "gpus_per_worker": held.gpus})
        session.check_resources(one)
        fitting = session.room_for(one) // num
        if run.config.place.trials.side_by_side and share.at_once is None:
            fitting = max(1, fitting // len(tiers))
        workers[tier], at_once[tier] = one, min(share.at_once or fitting, fitting)
    return workers, at_once


def adopt(run: Run, made: Artifact) -> None:
    """From now on the run has the settings that a sweep chose."""
    run.config = winners.over(run.config, made)


def _begun(run: Run, target: TuningTarget, plan: sweep.Plan, templates: Mapping[str, Template]) -> Record:
    """The record of a sweep that was not begun before."""
    tuning = plan.tuning
    trials = sweep.first_trials(plan)
    tiers = {}
    for tier, template in templates.items():
        own = plan.steps_of(tier, target.settings[tier].model_dump())
        longest = max((trial.steps for trial in trials if trial.tier == tier), default=own)
        every = tuning.report_steps or records.report_steps(longest)
        if target.stage == "projection":
            # Its loss is known at the end of every epoch.
            settings = cast(Projection, target.settings[tier])
            every = max(1, plan.steps_of(tier, {**settings.model_dump(), "epochs": 1}))
        shortest = min((trial.steps for trial in trials if trial.tier == tier), default=own)
        every, parameters = min(every, shortest), template.parameters
        tiers[tier] = TierFacts(
            model=template.model,
            identity=template.identity,
            parameters=parameters,
            bytes=2 * parameters if parameters else None,
            rows=template.rows,
            steps=longest,
            report_steps=every,
            grace_steps=tuning.grace_steps or every,
            at_once=plan.at_once[tier],
        )
    return Record(
        name=run.name,
        stage=target.stage,
        data=target.data.manifest.name,
        search=tuning.search,
        scheduler=tuning.scheduler,
        reduction_factor=tuning.reduction_factor,
        searched=list(space.space_of(tuning, target.stage)),
        tiers=tiers,
        trials=trials,
    )


def _identity(settings: BaseModel) -> dict[str, Any]:
    return settings.identity() if isinstance(settings, LoraSettings) else settings.model_dump()


def _scheduler(record: Record, tier: str) -> sweep.Scheduler:
    from ucotron_ray.tuning.on_ray import Halving

    if record.scheduler == "none":
        return sweep.Never()
    facts = record.tiers[tier]
    return Halving(grace=facts.grace_steps, factor=record.reduction_factor, steps=facts.steps)


def _job(run: Run, target: TuningTarget, template: Template, record: Record, trial: Trial, directory: Path) -> TrialJob:
    """A trial's job: the stage's own, with the settings of this trial."""
    tuning, workers = run.config.recipe.tuning, run.config.place.workers
    path = directory / "trials" / trial.id
    settings = target.settings[trial.tier].model_dump() | trial.params | {"seed": trial.seed}
    if target.stage != "projection":
        every = record.tiers[trial.tier].report_steps
        settings |= {"eval_steps": every, "save_steps": every, "eval_f1_rows": tuning.f1_rows}
    return TrialJob(
        trial=trial.id,
        stage=target.stage,
        directory=str(path),
        training={**template.fields, "directory": str(path), "settings": settings},
        f1_rows=tuning.f1_rows,
        max_new_tokens=tuning.max_new_tokens,
        eval_batch=workers.eval_batch,
        spool=str(run.spool.directory),
        run=f"{run.spool.child('tune').run}/{trial.id}",
        log_file=run.log_file,
    )


def check_for_chain(run: Run) -> None:
    """Refuse a sweep that a chain cannot have: of other tiers than it trains, without a space or without packages."""
    recipe = run.config.recipe
    if recipe.tuning.tiers not in (None, [recipe.tier]):
        raise ConfigError(
            "the chain trains one tier, and tunes that one",
            where="tuning.tiers",
            expected=f"null or [{recipe.tier}], the run's tier",
            found=str(recipe.tuning.tiers),
        )
    requirements.require_packages("matplotlib", *(["optuna"] if recipe.tuning.search == "optuna" else []))
    space.planned(recipe.tuning, "sft", recipe.sft)
