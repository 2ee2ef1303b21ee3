"""The chain with training at the vendor: rows → upload → SFT job → DPO job → scores of the deployed model.

Every step is an artifact, so the same command goes on wherever it was stopped: a job that was created is found again.
"""

import logging
from typing import Any

from ucotron_ray import pipeline, pipeline_plan
from ucotron_ray.core import artifacts
from ucotron_ray.core.artifacts import Artifact, Request
from ucotron_ray.core.errors import AuthError, ConfigError, Stopped
from ucotron_ray.core.run import Run
from ucotron_ray.data import stage as datasets
from ucotron_ray.evaluation import stage as scoring
from ucotron_ray.fireworks import stage as remote
from ucotron_ray.fireworks.account import Account
from ucotron_ray.pipeline import Options
from ucotron_ray.planning import forecast
from ucotron_ray.training import preferences

log = logging.getLogger(__name__)


def execute(run: Run, options: Options) -> dict[str, Any]:
    """Run the chain; return the figures of the last line.

    Raises AuthError for a key that is refused at the first probe, and Stopped for one that is refused later.
    """
    who = _checked(run, options)
    try:
        return _execute(run, options, who)
    except AuthError as error:
        raise Stopped(
            f"stopped: {error.problem}",
            where=error.where,
            found=error.found,
            next_step=f"{error.next_step}; then run the same command again: nothing is made twice",
        ) from error


def _checked(run: Run, options: Options) -> Account:
    """Everything that can be found wrong before anything is made or paid; returns the account."""
    here_only = {"--skip-train": options.skip_train, "--output-dir": options.output_dir is not None}
    for flag, given in here_only.items():
        if given:
            raise ConfigError(
                f"{flag} is for training here",
                found="--remote",
                expected="without it: the model stays at the vendor",
            )
    pipeline.check_rows(run, options)
    pipeline.check_teacher(run, options)
    return remote.check(run)


def _execute(run: Run, options: Options, who: Account) -> dict[str, Any]:
    dataset = pipeline.dataset_stage(run, options)
    data = datasets.held_out(run, run.config.recipe.evaluation.data, dataset)
    pairs = _pairs(run, options, dataset)
    expected = forecast.before_remote(run, _count(dataset), _count(pairs) if pairs else 0)
    trained = remote.sft(run, who, dataset)
    supervised = trained
    if pairs is not None:
        trained = remote.dpo(run, who, pairs, trained)
    result: dict[str, Any] = {"artifact": str(trained.path), "model": remote.remote_model(trained)}
    tuned = scoring.scores_of(remote.evaluate(run, who, trained, data))
    figures: dict[str, Any] = {"base_f1": None, **pipeline.headline(tuned)}
    if run.config.recipe.evaluation.base:
        before = scoring.scores_of(remote.evaluate(run, who, None, data))
        figures["base_f1"] = pipeline.headline(before)["tuned_f1"]
    jobs = [supervised] if trained is supervised else [supervised, trained]
    figures["cost_usd"] = sum(job.manifest.metrics.get("cost_usd", 0.0) for job in jobs)
    figures["estimate"] = forecast.shown(forecast.settle(run, expected))
    return {**result, **figures, "parity": None, "bundle": None}


def plan(run: Run, options: Options) -> list[dict[str, str]]:
    """What `execute` would do, step by step. Asks the vendor for the base model, makes and pays nothing."""
    _checked(run, options)
    steps: list[dict[str, str]] = []
    dataset = pipeline_plan.planned_dataset(run, options, steps)
    names: list[tuple[str, artifacts.Kind, str]] = [("remote-sft", "model", f"{run.name}-remote-sft")]
    if pipeline.aligns(run, options):
        names.append(("remote-dpo", "model", f"{run.name}-remote-dpo"))
    names.append(("remote-evaluate", "scores", f"{run.name}-remote"))
    if run.config.recipe.evaluation.base:
        names.append(("remote-evaluate", "scores", f"{run.name}-remote-base"))
    for stage, kind, name in names:
        request: Request | None = remote.sft_request(run, dataset) if dataset and stage == "remote-sft" else None
        action = run.store.plan(request) if request else _guess(run, kind, name)
        steps.append({"stage": stage, "artifact": f"{kind}/{name}", "action": action})
    return steps


def _count(dataset: Artifact) -> int:
    return (dataset.path / datasets.TRAIN).read_bytes().count(b"\n")


def _guess(run: Run, kind: artifacts.Kind, name: str) -> str:
    if run.store.find(kind, name) is not None:
        return "reuse"
    return "resume" if run.store.partial(kind, name).exists() else "run"


def _pairs(run: Run, options: Options, dataset: Artifact) -> Artifact | None:
    """Preference pairs as in the chain that trains here: those at hand, those of a teacher, or None."""
    if options.skip_dpo:
        return None
    reference = pipeline.preference_reference(run, options)
    return pipeline.teacher_pairs(run, dataset) if reference is None else preferences.pairs_only(run, reference)
