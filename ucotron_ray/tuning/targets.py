"""What can be tuned: a stage with its data, its settings by tier, and how its trials are got ready."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from ucotron_ray.core.artifacts import Artifact, Input
from ucotron_ray.core.config import Config
from ucotron_ray.core.errors import ConfigError, InputError
from ucotron_ray.core.hyperparameters import LoraSettings
from ucotron_ray.core.place import TrialShare, Workers
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl
from ucotron_ray.data.stage import VAL
from ucotron_ray.models import base as base_models
from ucotron_ray.models import stage as models
from ucotron_ray.models.shape import shape_of
from ucotron_ray.projection import embeddings
from ucotron_ray.training import preparation
from ucotron_ray.training import stage as training
from ucotron_ray.tuning.space import Stage

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
class TuningTarget:
    """What is tuned: a stage, its settings by tier, what they are hashed with, and how trials are got ready."""

    stage: Stage
    data: Artifact
    inputs: tuple[Input, ...]
    settings: Mapping[str, BaseModel]
    identity: Mapping[str, Any]
    prepare: Callable[[Mapping[str, Workers]], Mapping[str, Template]]


def sft_target(run: Run, data: Artifact) -> TuningTarget:
    """LoRA on relation rows, for the tiers of the recipe. Finds mistakes; starts nothing."""
    tiers: list[str] = [*(run.config.recipe.tuning.tiers or [run.config.recipe.tier])]
    recipe = run.config.recipe
    bases = {tier: models.tier_base(run, tier) for tier in tiers}
    settings = {tier: getattr(recipe.training.sft, tier) for tier in tiers}
    _check_rows(data, settings.values())
    preparation.refuse_overlap(data, "sft")
    for tier, base in bases.items():
        with at_tier(run, tier):
            preparation.check(run, "sft", base)

    def prepare(workers: Mapping[str, Workers]) -> Mapping[str, Template]:
        made = {}
        for tier, base in bases.items():
            with at_tier(run, tier, workers[tier]):
                prepared = preparation.prepare(run, "sft", data, base)
                fields = training.job_fields(run, prepared.loadable, data, Path(), prepared)
                made[tier] = _template(fields, base, prepared.tokens.manifest.counts["rows"])
        return made

    identity = {tier: models.base_fields(base) for tier, base in bases.items()}
    return TuningTarget("sft", data, (data.as_input("data"),), settings, identity, prepare)


def dpo_target(run: Run, pairs: Artifact, base: base_models.BaseModel, adapter: Artifact) -> TuningTarget:
    """Preferences on one adapter, merged into its base: one tier, the run's."""
    recipe = run.config.recipe
    tier: str = recipe.tier
    if any(other != tier for other in recipe.tuning.tiers or []):
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
            merged = models.merge(run, base, adapter, name=f"{adapter.manifest.name}-merged")
            kept = training.reference_of(run, pairs, merged, prepared)
            fields = training.job_fields(run, str(merged.path), pairs, Path(), prepared)
        template = _template(fields | {"reference": str(kept.path)}, base, prepared.tokens.manifest.counts["rows"])
        return {tier: replace(template, model=f"{base.reference} + {adapter.manifest.name}")}

    inputs = (pairs.as_input("data"), adapter.as_input("adapter"))
    identity = {tier: models.base_fields(base)}
    return TuningTarget("dpo", pairs, inputs, {tier: recipe.dpo}, identity, prepare)


def projection_target(run: Run, pairs: Artifact) -> TuningTarget:
    """The layer from CLIP's space to MiniLM's, judged by its validation loss."""
    settings = run.config.recipe.projection
    if share_of(run, PROJECTION).num_workers not in (None, 1):
        raise ConfigError(
            "a trial of the projection has one worker", where="trials.projection.num_workers", expected="1"
        )

    def prepare(workers: Mapping[str, Workers]) -> Mapping[str, Template]:
        from ucotron_ray.core import session
        from ucotron_ray.projection import pairs as rows

        encoders = embeddings.labels_of(pairs)
        parts = rows.split(rows.keys(pairs.path), seed=settings.seed, val=settings.val_split, test=settings.test_split)
        threads = session.worker_resources(workers[PROJECTION]).threads
        fields = {"pairs": str(pairs.path), "encoders": encoders, "num_threads": threads}
        return {PROJECTION: Template(fields, len(parts["train"]), "projection", "projection", None)}

    inputs = (pairs.as_input("pairs"),)
    return TuningTarget("projection", pairs, inputs, {PROJECTION: settings}, {}, prepare)


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


def share_of(run: Run, tier: str) -> TrialShare:
    """What the place says about a trial of a tier."""
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
