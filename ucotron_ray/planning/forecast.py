"""What a run of the chain will take, stage by stage, and afterwards what it took: kept in the store, side by side.

<store>/estimates/<name>.json     {"estimated", "actual", "stages": [{stage, minutes, actual_minutes, …}]}
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ucotron_ray.core.artifacts import Artifact, Kind, write_json
from ucotron_ray.core.run import Run
from ucotron_ray.planning import estimate
from ucotron_ray.planning.rates import Rates, measured

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


def forecast(run: Run, rates: Rates, *, skip_train: bool = False, skip_export: bool = False) -> list[Stage]:
    """The stages that this run will build: those whose artifacts are not there yet."""
    stages = every_stage(run, rates, skip_train=skip_train, skip_export=skip_export)
    return [stage for stage in stages if _artifact(run, stage) is None]


def every_stage(run: Run, rates: Rates, *, skip_train: bool = False, skip_export: bool = False) -> list[Stage]:
    """The stages of the chain with this recipe, done or not."""
    recipe = run.config.recipe
    stages = []
    if recipe.generation.in_pipeline:
        figures = estimate.synthesis(run.config, "relation_extraction", recipe.generation.in_pipeline, rates)
        tokens, minutes = figures.prompt_tokens + figures.completion_tokens, figures.minutes
        stages.append(Stage("synthesize", f"dataset/{run.name}-teacher", minutes, tokens, figures.usd))
    if not skip_train:
        tokens = _training_tokens(run, rates)
        params = estimate.parameters(recipe.tier_model.params)
        # Without a run of this machine only a GPU could be assumed, and of this run nobody knows that it has one.
        trained = rates.training.get("sft")
        is_known = trained is not None and estimate.measured_billions(run.config, trained.base) is not None
        gpu = estimate.tables()["assumed_gpu"]
        seconds = estimate.training_seconds(run.config, params, tokens, rates, gpu)[0] if params and is_known else None
        stages.append(Stage("sft", f"adapter/{run.name}", seconds / 60 if seconds is not None else None, tokens))
    settings = recipe.evaluation
    answers = (settings.max_rows or 0) + settings.raw_rows + settings.end_to_end_rows + GUIDE_PROMPTS
    for stage, name in (("evaluate", run.name), ("evaluate-base", f"{run.name}-base")):
        if stage == "evaluate" or recipe.evaluation.base:
            rate = rates.seconds_per_answer.get(stage)
            minutes = answers * rate / 60 if rate is not None and recipe.evaluation.max_rows else None
            stages.append(Stage(stage, f"scores/{name}", minutes))
    if not skip_export:
        seconds = rates.seconds.get("export")
        stages.append(Stage("export", f"bundle/{run.name}", seconds / 60 if seconds is not None else None))
    return stages


def before(run: Run, *, skip_train: bool = False, skip_export: bool = False) -> list[Stage]:
    """The forecast by the rates of the run's own store, logged."""
    stages = forecast(run, measured(run.store), skip_train=skip_train, skip_export=skip_export)
    known = [stage.minutes for stage in stages if stage.minutes is not None]
    if known:
        log.info("estimate: %.0f minutes for %d of %d stages", sum(known), len(known), len(stages))
    return stages


def before_remote(run: Run, rows: int, pairs: int) -> list[Stage]:
    """The jobs that `pipeline --remote` will create for so many rows and pairs (0 = no preference job)."""
    rates, recipe = measured(run.store), run.config.recipe
    stages = []
    for method, count, epochs in (("sft", rows, recipe.sft.epochs), ("dpo", pairs, recipe.dpo.epochs)):
        if count:
            figures = estimate.remote_training(run.config, recipe.tier, method, count, epochs, rates)
            name = f"model/{run.name}-remote-{method}"
            stages.append(Stage(f"remote-{method}", name, figures.minutes, figures.tokens, figures.usd))
    return [stage for stage in stages if _artifact(run, stage) is None]


def settle(run: Run, stages: Sequence[Stage]) -> list[Stage]:
    """What the stages took; stored beside what was expected, and logged as a table."""
    settled = taken(run, stages)
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
    known: Kind = kind  # type: ignore[assignment]  # one of the kinds above
    return run.store.find(known, name)


def _pair(expected: float | None, actual: float | None, form: str) -> str:
    shown = [form.format(value) if value is not None else "?" for value in (expected, actual)]
    return "–" if shown == ["?", "?"] else " → ".join(shown)
