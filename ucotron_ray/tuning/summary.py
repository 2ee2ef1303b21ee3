"""What a sweep says: winners with their intervals, importance, cost. From the record alone, as plain data."""

import math
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

from ucotron_ray.tuning import record as records
from ucotron_ray.tuning.record import Record, Score, Trial
from ucotron_ray.tuning.sweep import ranked

MOST_VALUES = 8
"""Of a setting that are told apart; more are put into bins of equally many trials."""

BINS = 4


def summary(record: Record) -> dict[str, Any]:
    """Everything that the page shows and that is promoted."""
    trials = record.trials
    # Of a trial that failed or has still to run no step was saved.
    over = [trial for trial in trials if trial.state in ("finished", "stopped")]
    planned = sum(trial.steps for trial in over)
    states = {
        state: sum(trial.state == state for trial in trials)
        for state in ("finished", "stopped", "failed", "running", "interrupted", "waiting")
    }
    fixed = [trial.fixed_seconds for trial in trials if trial.fixed_seconds is not None]
    return {
        "name": record.name,
        "stage": record.stage,
        "data": record.data,
        "metric": "f1" if record.higher_is_better else "val_loss",
        "search": record.search,
        "scheduler": record.scheduler,
        "over": not any(trial.is_open for trial in trials),
        "states": states,
        "trials": len(trials),
        "steps_run": records.steps_run(record, trials),
        "steps_full": sum(trial.steps for trial in trials),
        "steps_saved": 1 - records.steps_run(record, over) / planned if planned else None,
        "seconds": sum(trial.seconds for trial in trials),
        "fixed_seconds_median": sorted(fixed)[len(fixed) // 2] if fixed else None,
        "winners": {tier: won for tier in record.tiers if (won := winner(record, tier)) is not None},
        "importance": {tier: importance(record, tier) for tier in record.tiers},
        "tiers": {tier: _tier(record, tier) for tier in record.tiers},
        "table": [_row(record, trial) for trial in trials],
    }


def winner(record: Record, tier: str) -> dict[str, Any] | None:
    """The best trial of a tier: by its own score, or by its mean over seeds where the best were repeated."""
    trials = record.of_tier(tier)
    search = [trial for trial in trials if trial.of is None]
    candidates = ranked(record, search)
    if not candidates:
        return None
    seeds = {trial.id: [trial, *_repeats(record, trials, trial)] for trial in candidates}
    repeated = [trial for trial in candidates if len(seeds[trial.id]) > 1]
    if repeated:
        candidates = sorted(repeated, key=lambda trial: -fmean(_ranks(record, seeds[trial.id])))
    best = candidates[0]
    score = record.best(best.id)
    assert score is not None
    values = [found.value for trial in seeds[best.id] if (found := record.best(trial.id)) is not None]
    return {
        "trial": best.id,
        "params": best.params,
        "value": score.value,
        "low": score.low,
        "high": score.high,
        "loss": score.loss,
        "step": score.step,
        "steps": best.steps,
        "state": best.state,
        "seeds": [trial.seed for trial in seeds[best.id]],
        "mean": fmean(values),
        "deviation": pstdev(values) if len(values) > 1 else None,
        "answer_seconds": score.answer_seconds,
        "candidates": len(search),
    }


def importance(record: Record, tier: str) -> dict[str, float]:
    """How much of the variance of the trials' best scores each setting explains alone, from 0 to 1.

    Epsilon squared of a one-way analysis (Kelley 1935): the explained share, less what as many groups would explain by
    chance. A trial that was stopped counts with the best score that it had.
    """
    scored = [
        (trial, best.value)
        for trial in record.of_tier(tier)
        if trial.of is None and (best := record.best(trial.id)) is not None
    ]
    shares = {}
    for name in record.searched:
        groups: dict[str, list[float]] = {}
        labels = binned([trial.params[name] for trial, _ in scored])
        for label, (_, value) in zip(labels, scored, strict=True):
            groups.setdefault(label, []).append(value)
        shares[name] = _explained(list(groups.values()))
    return shares


def binned(values: Sequence[Any]) -> list[str]:
    """A label for each value: itself, or for many different numbers the bounds of its bin."""
    different = sorted(set(values), key=lambda value: (str(type(value)), value))
    if len(different) <= MOST_VALUES or not all(isinstance(value, (int, float)) for value in different):
        return [shown(value) for value in values]
    size = math.ceil(len(different) / BINS)
    label = {
        value: f"{shown(part[0])} to {shown(part[-1])}"
        for start in range(0, len(different), size)
        for part in [different[start : start + size]]
        for value in part
    }
    return [label[value] for value in values]


def shown(value: Any) -> str:
    """A setting's value, short."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def best_so_far(record: Record, tier: str) -> list[tuple[int, float]]:
    """(steps that all trials of the tier had made, best score by then), in the order in which scores arrived."""
    made: list[tuple[int, float]] = []
    steps: dict[str, int] = {}
    best: Score | None = None
    members = {trial.id for trial in record.of_tier(tier)}
    for score in record.scores:
        if score.trial not in members:
            continue
        steps[score.trial] = max(score.step, steps.get(score.trial, 0))
        if best is None or record.rank(score) > record.rank(best):
            best = score
        made.append((sum(steps.values()), best.value))
    return made


def _explained(groups: Sequence[Sequence[float]]) -> float:
    values = [value for group in groups for value in group]
    if len(values) <= len(groups):
        return 0.0
    mean = fmean(values)
    total = sum((value - mean) ** 2 for value in values)
    within = sum((value - fmean(group)) ** 2 for group in groups for value in group)
    if total == 0:
        return 0.0
    chance = (len(values) - 1) / (len(values) - len(groups))
    return max(0.0, 1 - within / total * chance)


def _repeats(record: Record, trials: Sequence[Trial], trial: Trial) -> list[Trial]:
    return [other for other in trials if other.of == trial.id and other.state == "finished" and record.curve(other.id)]


def _ranks(record: Record, trials: Sequence[Trial]) -> list[float]:
    return [record.rank(best) for trial in trials if (best := record.best(trial.id)) is not None]


def _tier(record: Record, tier: str) -> dict[str, Any]:
    facts, won = record.tiers[tier], winner(record, tier)
    figures = facts.model_dump(include={"model", "parameters", "bytes", "rows", "steps", "report_steps", "grace_steps"})
    return {**figures, **({key: won[key] for key in ("value", "low", "high", "answer_seconds")} if won else {})}


def _row(record: Record, trial: Trial) -> dict[str, Any]:
    best, curve = record.best(trial.id), record.curve(trial.id)
    names = {"id", "tier", "params", "seed", "of", "state", "cause", "steps", "seconds", "fixed_seconds", "resources"}
    return {
        **trial.model_dump(include=names),
        "best": best.value if best else None,
        "low": best.low if best else None,
        "high": best.high if best else None,
        "best_step": best.step if best else None,
        "last_step": curve[-1].step if curve else 0,
        "scoring_seconds": sum(score.seconds for score in curve),
    }
