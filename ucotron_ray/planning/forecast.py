"""What a run of the chain will take, stage by stage, and afterwards what it took: kept in the store, side by side.

<store>/estimates/<name>.json     {"estimated", "actual", "stages": [{stage, minutes, actual_minutes, …}]}
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from ucotron_ray.core.artifacts import Artifact, ArtifactKind
from ucotron_ray.core.files import write_json
from ucotron_ray.core.run import Run
from ucotron_ray.core.steps import Step
from ucotron_ray.planning import estimate
from ucotron_ray.planning.rates import Rates

log = logging.getLogger(__name__)

GUIDE_PROMPTS = 5
ESTIMATES = "estimates"


@dataclass(frozen=True)
class Stage:
    """One stage: what is expected of it, and, once it is done, what it took. None = not known."""

    stage: str
    artifact: str
    minutes: float | None = None
    tokens: float | None = None
    usd: float | None = None
    actual_minutes: float | None = None
    actual_tokens: float | None = None
    actual_usd: float | None = None


def every_stage(run: Run, steps: Sequence[Step], rates: Rates) -> list[Stage]:
    """The stages of a chain that can be foretold, done or not."""
    known: dict[str, Callable[[Run, Rates, Stage], Stage]] = {
        "synthesize": partial(_synthesis, task="relation_extraction"),
        "synthesize-pairs": partial(_synthesis, task="preference"),
        "sft": _training,
        "evaluate": _scoring,
        "evaluate-dpo": _scoring,
        "evaluate-base": _scoring,
        "evaluate-choice": _scoring,
        "evaluate-aligned-choice": _scoring,
        "export": _export,
        "remote-sft": partial(_remote, method="sft"),
        "remote-dpo": partial(_remote, method="dpo"),
    }
    # What only looks takes no time.
    worked = [step for step in steps if step.request is not None and step.stage in known]
    return [known[step.stage](run, rates, Stage(step.stage, step.artifact)) for step in worked]


def before(run: Run, steps: Sequence[Step], rates: Rates) -> list[Stage]:
    """The stages that this run will build, those whose artifacts are not there yet; logged."""
    stages = [stage for stage in every_stage(run, steps, rates) if _artifact(run, stage) is None]
    known = [stage.minutes for stage in stages if stage.minutes is not None]
    if known:
        log.info("estimate: %.0f minutes for %d of %d stages", sum(known), len(known), len(stages))
    return stages


def settle(run: Run, stages: Sequence[Stage], rates: Rates) -> list[Stage]:
    """What the stages took; stored beside what was expected, and logged as a table.

    How many rows a job at the vendor would get was not known before: by the same rates it is told now.
    """
    settled = taken(run, [_remote_again(run, rates, stage) for stage in stages])
    if settled:
        folder = run.store.root / ESTIMATES
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{run.name}.json", {"stages": [asdict(stage) for stage in settled]})
        for line in table(settled):
            log.info("%s", line)
    return settled


def taken(run: Run, stages: Sequence[Stage]) -> list[Stage]:
    """The stages that are done, with what they took."""
    found = [(stage, _artifact(run, stage)) for stage in stages]
    return [_with_actual(stage, artifact) for stage, artifact in found if artifact is not None]


def table(stages: Sequence[Stage]) -> list[str]:
    """Estimate against actual, a line a stage."""
    lines = [f"{'stage':<14} {'minutes':>18} {'tokens':>22} {'dollars':>20}   (estimated → actual)"]
    for stage in stages:
        minutes = _pair(stage.minutes, stage.actual_minutes, "{:.1f}")
        tokens = _pair(stage.tokens, stage.actual_tokens, "{:,.0f}")
        usd = _pair(stage.usd, stage.actual_usd, "{:.4f}")
        lines.append(f"{stage.stage:<14} {minutes:>18} {tokens:>22} {usd:>20}")
    return lines


def shown(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """For the JSON of a verb."""
    return [asdict(stage) for stage in stages]


def _with_actual(stage: Stage, artifact: Artifact) -> Stage:
    manifest = artifact.manifest
    metrics, counts = manifest.metrics, manifest.counts
    tokens: float | None = None
    if "completion_tokens" in metrics:
        tokens = metrics["prompt_tokens"] + metrics["completion_tokens"]
    elif manifest.recipe_fields.get("remote") in ("sft", "dpo"):
        tokens = metrics["tokens"] * manifest.recipe_fields[manifest.recipe_fields["remote"]]["epochs"]
    elif "tokens" in counts:
        tokens = float(counts["tokens"]) * manifest.recipe_fields["sft"]["epochs"]
    # Of what went on after a stop only the last attempt's time is known.
    resumed = manifest.provenance.get("resumed")
    minutes = None if resumed else float(manifest.provenance["seconds"]) / 60
    return replace(stage, actual_minutes=minutes, actual_tokens=tokens, actual_usd=metrics.get("cost_usd"))


def _synthesis(run: Run, rates: Rates, stage: Stage, *, task: str) -> Stage:
    generation = run.config.recipe.generation
    count = generation.in_pipeline if task == "relation_extraction" else generation.preferences_in_pipeline
    figures = estimate.synthesis(run.config, task, count, rates)
    tokens = figures.prompt_tokens + figures.completion_tokens
    return replace(stage, minutes=figures.minutes, tokens=tokens, usd=figures.usd)


def _training(run: Run, rates: Rates, stage: Stage) -> Stage:
    tokens = _training_tokens(run, rates)
    params = estimate.parameters(run.config.recipe.tier_model.params)
    # Without a run of this machine only a GPU could be assumed, and of this run nobody knows that it has one.
    trained = rates.training.get("sft")
    is_known = trained is not None and estimate.measured_billions(run.config, trained.base) is not None
    if not params or not is_known:
        return replace(stage, tokens=tokens)
    gpu = estimate.tables()["assumed_gpu"]
    seconds, _ = estimate.training_seconds(run.config, params, tokens, rates, gpu)
    return replace(stage, tokens=tokens, minutes=seconds / 60)


def _scoring(run: Run, rates: Rates, stage: Stage) -> Stage:
    settings = run.config.recipe.evaluation
    rate = rates.seconds_per_answer.get("evaluate-base" if stage.stage == "evaluate-base" else "evaluate")
    if rate is None or not settings.max_rows:
        return stage
    answers = settings.max_rows + settings.raw_rows + settings.end_to_end_rows + GUIDE_PROMPTS
    return replace(stage, minutes=answers * rate / 60)


def _export(run: Run, rates: Rates, stage: Stage) -> Stage:
    seconds = rates.seconds.get("export")
    return replace(stage, minutes=seconds / 60 if seconds is not None else None)


def _remote(run: Run, rates: Rates, stage: Stage, *, method: str) -> Stage:
    """A job at the vendor, for as many rows as it was sent; not known before it was."""
    artifact = _artifact(run, stage)
    rows = artifact.manifest.counts.get("rows") if artifact is not None else None
    if not rows:
        return stage
    recipe = run.config.recipe
    epochs = recipe.sft.epochs if method == "sft" else recipe.dpo.epochs
    figures = estimate.remote_training(run.config, recipe.tier, method, rows, epochs, rates)
    return replace(stage, minutes=figures.minutes, tokens=figures.tokens, usd=figures.usd)


def _remote_again(run: Run, rates: Rates, stage: Stage) -> Stage:
    method = stage.stage.removeprefix("remote-")
    return _remote(run, rates, stage, method=method) if method in ("sft", "dpo") and method != stage.stage else stage


def _training_tokens(run: Run, rates: Rates) -> float:
    """Rows × tokens a row × epochs. Rows: those of the dataset if it is there, else the most that the recipe takes."""
    recipe = run.config.recipe
    rows = recipe.graph.max_samples * recipe.graph.train_ratio + recipe.generation.in_pipeline
    for name in (f"{run.name}-mix", run.name):
        found = run.store.find("dataset", name)
        if found is not None:
            rows = found.manifest.counts.get("train", rows)
            break
    rows = min(rows, recipe.sft.max_rows or rows)
    rate = rates.training.get("sft")
    per_row = rate.tokens_per_row if rate else float(estimate.tables()["tokens_per_row"]["sft"])
    return rows * per_row * recipe.sft.epochs


def _artifact(run: Run, stage: Stage) -> Artifact | None:
    kind, _, name = stage.artifact.partition("/")
    known: ArtifactKind = kind  # type: ignore[assignment]  # one of the kinds above
    return run.store.find(known, name)


def _pair(expected: float | None, actual: float | None, form: str) -> str:
    shown = [form.format(value) if value is not None else "?" for value in (expected, actual)]
    return "–" if shown == ["?", "?"] else " → ".join(shown)
