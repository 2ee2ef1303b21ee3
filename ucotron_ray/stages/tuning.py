"""Sweeps: many trainings of one stage → `sweep/<name>` with the record, the page, the best adapters and `best.yaml`."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic import BaseModel

from ucotron_ray import jsonl
from ucotron_ray.artifacts import Artifact, Build, Input, Request, Result
from ucotron_ray.config import Config, LoraSettings, Projection, TrialShare, Workers
from ucotron_ray.errors import ConfigError, InputError
from ucotron_ray.models import base as base_models
from ucotron_ray.models.shape import shape_of
from ucotron_ray.run import Run
from ucotron_ray.stages import embeddings, export, preparation, promotion, requirements, training
from ucotron_ray.stages.datasets import VAL
from ucotron_ray.stages.models import prompt_identity
from ucotron_ray.tuning import record as records
from ucotron_ray.tuning import space, sweep
from ucotron_ray.tuning.job import TrialJob
from ucotron_ray.tuning.record import Record, TierFacts, Trial
from ucotron_ray.tuning.space import Stage

if TYPE_CHECKING:
    pass

PROJECTION = "projection"
"""The one «tier» of a sweep of the projection, which has none."""


@dataclass(frozen=True)
class Template:
    """What all trials of a tier share: the fields of the stage's job without directory and settings."""

    fields: dict[str, Any]
    rows: int
    model: str
    identity: str
    parameters: int | None


@dataclass(frozen=True)
class Subject:
    """What is tuned: a stage, its settings by tier, what they are hashed with, and how trials are got ready."""

    stage: Stage
    data: Artifact
    inputs: tuple[Input, ...]
    settings: Mapping[str, BaseModel]
    identity: Mapping[str, Any]
    prepare: Callable[[Mapping[str, Workers]], Mapping[str, Template]]


def sft_subject(run: Run, data: Artifact) -> Subject:
    """LoRA on relation rows, for the tiers of the recipe. Finds mistakes; starts nothing."""
    tiers = run.config.recipe.tuning.tiers or [run.config.recipe.tier]
    recipe = run.config.recipe
    bases = {tier: base_models.resolve(getattr(recipe.models.fine_tuning, tier).local_model) for tier in tiers}
    settings = {tier: getattr(recipe.training.sft, tier) for tier in tiers}
    _check_rows(data, settings.values())
    preparation.refuse_overlap(data, "sft")
    for tier, base in bases.items():
        with at_tier(run, tier):
            preparation.check(run, "sft", base)
    run.hub_needed = run.hub_needed or any(base.kind == "hub" for base in bases.values())

    def prepare(workers: Mapping[str, Workers]) -> Mapping[str, Template]:
        made = {}
        for tier, base in bases.items():
            with at_tier(run, tier, workers[tier]):
                prepared = preparation.prepare(run, "sft", data, base)
                fields = training.job_fields(run, prepared.loadable, data, Path(), prepared)
                made[tier] = _template(fields, base, prepared.tokens.manifest.counts["rows"])
        return made

    identity = {tier: {"reference": base.reference, "identity": base.identity} for tier, base in bases.items()}
    return Subject("sft", data, (data.as_input("data"),), settings, identity, prepare)


def dpo_subject(run: Run, pairs: Artifact, base: base_models.BaseModel, adapter: Artifact) -> Subject:
    """Preferences on one adapter, merged into its base: one tier, the run's."""
    tier, recipe = run.config.recipe.tier, run.config.recipe
    if (recipe.tuning.tiers or [tier]) != [tier]:
        raise ConfigError(
            "preferences are trained on one adapter, which is of one tier",
            where="tuning.tiers",
            expected=f"null or [{tier}], the run's tier",
            found=", ".join(recipe.tuning.tiers or []),
        )
    _check_rows(pairs, [recipe.dpo])
    preparation.refuse_overlap(pairs, "dpo")
    preparation.check(run, "dpo", base)

    def prepare(workers: Mapping[str, Workers]) -> Mapping[str, Template]:
        with at_tier(run, tier, workers[tier]):
            prepared = preparation.prepare(run, "dpo", pairs, base)
            merged = export.merge(run, base, adapter, name=f"{adapter.manifest.name}-merged")
            kept = training.reference_of(run, pairs, merged, prepared)
            fields = training.job_fields(run, str(merged.path), pairs, Path(), prepared)
        template = _template(fields | {"reference": str(kept.path)}, base, prepared.tokens.manifest.counts["rows"])
        return {tier: replace(template, model=f"{base.reference} + {adapter.manifest.name}")}

    inputs = (pairs.as_input("data"), adapter.as_input("adapter"))
    identity = {tier: {"reference": base.reference, "identity": base.identity}}
    return Subject("dpo", pairs, inputs, {tier: recipe.dpo}, identity, prepare)


def projection_subject(run: Run, pairs: Artifact) -> Subject:
    """The layer from CLIP's space to MiniLM's, judged by its validation loss."""
    settings = run.config.recipe.projection
    if _share(run, PROJECTION).num_workers not in (None, 1):
        raise ConfigError(
            "a trial of the projection has one worker", where="trials.projection.num_workers", expected="1"
        )

    def prepare(workers: Mapping[str, Workers]) -> Mapping[str, Template]:
        from ucotron_ray import session
        from ucotron_ray.projection import pairs as rows

        encoders = embeddings.labels_of(pairs)
        parts = rows.split(rows.keys(pairs.path), seed=settings.seed, val=settings.val_split, test=settings.test_split)
        threads = session.worker_resources(workers[PROJECTION]).threads
        fields = {"pairs": str(pairs.path), "encoders": encoders, "num_threads": threads}
        return {PROJECTION: Template(fields, len(parts["train"]), "projection", "projection", None)}

    inputs = (pairs.as_input("pairs"),)
    return Subject("projection", pairs, inputs, {PROJECTION: settings}, {}, prepare)


def request(run: Run, subject: Subject) -> Request:
    """What the sweep would make."""
    tuning = run.config.recipe.tuning
    fields: dict[str, Any] = {
        "sweep": subject.stage,
        "tuning": tuning.model_dump(exclude={"space", "tiers"}),
        "space": tuning.model_dump()["space"][subject.stage],
        "settings": {tier: settings.model_dump() for tier, settings in subject.settings.items()},
        "base": dict(subject.identity),
    }
    if subject.stage != "projection":
        fields["prompt"] = prompt_identity()
    return Request("sweep", run.name, fields, subject.inputs)


def plan_of(run: Run, subject: Subject, rows: Mapping[str, int], at_once: Mapping[str, int]) -> sweep.Plan:
    """The sweep as its own code wants it. Raises ConfigError for a space that cannot be searched."""
    tuning = run.config.recipe.tuning
    if tuning.search == "optuna":
        requirements.require_packages("optuna")

    def steps_of(tier: str, settings: Mapping[str, Any]) -> int:
        return math.ceil(rows[tier] / (settings["batch_size"] or 16)) * int(settings["epochs"])

    side_by_side = run.config.place.trials.side_by_side
    return sweep.Plan(subject.stage, tuning, subject.settings, at_once, side_by_side, steps_of)


def check(run: Run, subject: Subject) -> list[Trial]:
    """Everything in the space that can be found wrong before anything is started; the trials that are known by then."""
    nobody = dict.fromkeys(subject.settings, 1)
    return sweep.first_trials(plan_of(run, subject, nobody, nobody))


def tune(run: Run, subject: Subject) -> Artifact:
    """Run the sweep, or what is left of it → `sweep/<name>`."""
    check(run, subject)
    wanted = request(run, subject)
    workers: dict[str, Workers] = {}
    templates: Mapping[str, Template] = {}
    at_once: dict[str, int] = {}
    if run.store.plan(wanted) != "reuse":
        run.connect(workers=False)
        workers, at_once = shares(run, list(subject.settings))
        templates = subject.prepare(workers)

    def build(build: Build) -> Result:
        from ucotron_ray.tuning import on_ray

        rows = {tier: template.rows for tier, template in templates.items()}
        plan = plan_of(run, subject, rows, at_once)
        record = records.read(build.path) or _begun(run, subject, plan, templates)
        spool = run.spool.child("tune")
        spool.dataset(subject.data, "training")
        schedulers = {tier: _scheduler(record, tier) for tier in record.tiers}
        pages = promotion.Pages(build.path, spool)
        running = sweep.Sweep(build.path, record, plan, schedulers, pages.told)
        if not running.is_over:
            launch = on_ray.Launch(
                jobs=lambda trial: _job(run, subject, templates[trial.tier], record, trial, build.path),
                workers=workers,
                max_failures=run.config.place.workers.max_failures,
                log_file=run.log_file,
                name=run.name,
            )
            pages.write(running.record)
            on_ray.sweep_on_ray(running, launch)
        return promotion.promote(running.record, build.path, spool, recipe=wanted.recipe)

    return run.make("tune", wanted, build)


def shares(run: Run, tiers: list[str]) -> tuple[dict[str, Workers], dict[str, int]]:
    """The workers of one trial of each tier, and how many trials there are at once. Needs the connection.

    Raises ResourceError if a trial could only wait for ever.
    """
    from ucotron_ray import session

    workers, at_once = {}, {}
    for tier in tiers:
        share, place = _share(run, tier), run.config.place.workers
        num = 1 if tier == PROJECTION else share.num_workers or place.num_workers
        asked = {"cpus_per_worker": share.cpus_per_worker or place.cpus_per_worker}
        asked["gpus_per_worker"] = share.gpus_per_worker if share.gpus_per_worker is not None else place.gpus_per_worker
        wanted = place.model_copy(update={**asked, "num_workers": num})
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


@contextmanager
def at_tier(run: Run, tier: str, workers: Workers | None = None) -> Iterator[None]:
    """For the time of the block the run is of another tier, and its workers are those of a trial."""
    config = run.config
    recipe = config.recipe.model_copy(update={"tier": tier})
    place = config.place.model_copy(update={"workers": workers}) if workers else config.place
    run.config = Config(recipe=recipe, place=place)
    try:
        yield
    finally:
        run.config = config


def with_winner(run: Run, made: Artifact) -> Config:
    """The run's configuration with what a sweep chose over it."""
    return promotion.over(run.config, made)


def _share(run: Run, tier: str) -> TrialShare:
    return cast(TrialShare, getattr(run.config.place.trials, tier))


def _check_rows(data: Artifact, settings: Iterable[LoraSettings]) -> None:
    if any(entry.eval_rows == 0 for entry in settings):
        raise ConfigError("trials are compared on validation rows", where="eval_rows", expected="1 or more", found="0")
    from ucotron_ray.evaluation.scoring import relation_row

    val = data.path / VAL
    if not val.is_file() or not val.stat().st_size:
        raise InputError(
            "there are no validation rows: trials cannot be compared by F1",
            where=str(data.path),
            expected="a dataset with validation rows, or --val-data FILE",
            next_step="keep some rows back, for example with graph.train_ratio",
        )
    if not any(relation_row(row) for row in jsonl.read_rows(val)):
        raise InputError(
            "no validation row says which triples are right: there is no F1 to compare trials by",
            where=str(val),
            expected="relation rows, or rows in the server's prompt",
        )


def _template(fields: dict[str, Any], base: base_models.BaseModel, rows: int) -> Template:
    shape = shape_of(base)
    shared = {name: value for name, value in fields.items() if name != "directory"}
    return Template(shared, rows, base.reference, base.identity, shape.total if shape else None)


def _begun(run: Run, subject: Subject, plan: sweep.Plan, templates: Mapping[str, Template]) -> Record:
    """The record of a sweep that was not begun before."""
    tuning = plan.tuning
    trials = sweep.first_trials(plan)
    tiers = {}
    for tier, template in templates.items():
        own = plan.steps_of(tier, subject.settings[tier].model_dump())
        longest = max((trial.steps for trial in trials if trial.tier == tier), default=own)
        every = tuning.report_steps or records.report_steps(longest)
        if subject.stage == "projection":
            # Its loss is known at the end of every epoch.
            settings = cast(Projection, subject.settings[tier])
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
        stage=subject.stage,
        data=subject.data.manifest.name,
        search=tuning.search,
        scheduler=tuning.scheduler,
        reduction_factor=tuning.reduction_factor,
        searched=list(space.space_of(tuning, subject.stage)),
        tiers=tiers,
        trials=trials,
    )


def _scheduler(record: Record, tier: str) -> sweep.Scheduler:
    from ucotron_ray.tuning.on_ray import Halving

    if record.scheduler == "none":
        return sweep.Never()
    facts = record.tiers[tier]
    return Halving(grace=facts.grace_steps, factor=record.reduction_factor, steps=facts.steps)


def _job(run: Run, subject: Subject, template: Template, record: Record, trial: Trial, directory: Path) -> TrialJob:
    """A trial's job: the stage's own, with the settings of this trial."""
    tuning, workers = run.config.recipe.tuning, run.config.place.workers
    path = directory / "trials" / trial.id
    settings = subject.settings[trial.tier].model_dump() | trial.params | {"seed": trial.seed}
    if subject.stage != "projection":
        every = record.tiers[trial.tier].report_steps
        settings |= {"eval_steps": every, "save_steps": every, "eval_f1_rows": tuning.f1_rows}
    return TrialJob(
        trial=trial.id,
        stage=subject.stage,
        directory=str(path),
        training={**template.fields, "directory": str(path), "settings": settings},
        f1_rows=tuning.f1_rows,
        max_new_tokens=tuning.max_new_tokens,
        eval_batch=workers.eval_batch,
        resamples=run.config.recipe.evaluation.resamples,
        spool=str(run.spool.directory),
        run=f"{run.spool.child('tune').run}/{trial.id}",
        log_file=run.log_file,
    )
