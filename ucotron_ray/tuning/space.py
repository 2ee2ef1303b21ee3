"""The search space: what may vary, and which values are tried: all of a grid, seeded draws, or Optuna's suggestions.

A proposal depends on the settings, on its number and on the trials that have ended, and on nothing else: after a kill
the same trials come out of it.
"""

import difflib
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.hyperparameters import DpoSettings, SftSettings
from ucotron_ray.core.recipe import Projection, Span, Tuning

Stage = Literal["sft", "dpo", "projection"]
Params = dict[str, Any]
Ended = Sequence[tuple[Params, float]]
"""Values of the trials that have ended, with how good they were (the more the better)."""

SETTINGS: dict[str, type[BaseModel]] = {"sft": SftSettings, "dpo": DpoSettings, "projection": Projection}

FIXED = {
    "sft": {"max_context_length", "max_rows", "raw_share", "seed", "quantize"},
    "dpo": {"max_context_length", "max_rows", "max_longer_share", "on_policy", "seed", "quantize"},
    "projection": {"clip", "text", "val_split", "test_split", "seed", "opset", "target"},
}
"""Not searched: rows, tokens, seed and base are the same for all trials, or their scores could not be compared."""

HOW_OFTEN = {"eval_rows", "eval_f1_rows", "eval_steps", "save_steps"}
"""The sweep sets these itself."""

MAX_DRAWS = 1000
"""Attempts to draw a combination that is new, before a space counts as used up."""


def space_of(tuning: Tuning, stage: Stage) -> dict[str, Span | list[Any]]:
    """What is searched for a stage. Raises ConfigError for a setting that it does not have or that must not vary."""
    wanted: Mapping[str, Any] = getattr(tuning.space, stage)
    space = {name: values for name, values in wanted.items() if values}
    allowed = sorted(set(SETTINGS[stage].model_fields) - FIXED[stage] - HOW_OFTEN)
    for name, values in space.items():
        where = f"tuning.space.{stage}.{name}"
        if name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            next_step = f"did you mean `{near[0]}`?" if near else None
            found = "a setting that is the same for all trials" if name in FIXED[stage] | HOW_OFTEN else name
            raise ConfigError(
                f"`{name}` cannot be searched",
                where=where,
                expected=", ".join(allowed),
                found=found,
                next_step=next_step,
            )
        if isinstance(values, Span) and (values.low > values.high or tuning.search == "grid"):
            raise ConfigError(
                "a grid needs values, not bounds" if tuning.search == "grid" else "the bounds are the wrong way round",
                where=where,
                expected="a list of values" if tuning.search == "grid" else "low <= high",
                found=f"{values.low:g} to {values.high:g}",
            )
    if not space:
        raise ConfigError("nothing is searched", where=f"tuning.space.{stage}", expected="at least one setting")
    return space


def planned(tuning: Tuning, stage: Stage, settings: BaseModel) -> list[Params]:
    """The combinations that are known before the first trial: all of a grid, all draws, none of Optuna's.

    Raises ConfigError if a value is none that the setting can have.
    """
    space = space_of(tuning, stage)
    if tuning.search == "grid":
        every = itertools.product(*(values for values in space.values() if isinstance(values, list)))
        made = [checked(settings, stage, dict(zip(space, values, strict=True))) for values in every]
        if tuning.scheduler == "asha":
            # Who comes first is compared with nobody and goes on: in the order of their values, the worst often first,
            # halving would save the least that it can.
            random.Random(tuning.seed).shuffle(made)
        return made
    for values in space.values():
        for value in (values.low, values.high) if isinstance(values, Span) else values:
            name = next(key for key, held in space.items() if held is values)
            checked(settings, stage, {name: _shaped(settings, name, value)})
    return _draws(tuning, stage, settings, space) if tuning.search == "random" else []


def candidates(
    tuning: Tuning, stage: Stage, settings: BaseModel, name: str, known: Sequence[Params]
) -> tuple[list[Any], bool]:
    """The values that a setting may have in a trial, and whether it is searched at all. `known`: the planned trials."""
    values = space_of(tuning, stage).get(name)
    if values is None:
        return [getattr(settings, name)], False
    if isinstance(values, list):
        return [checked(settings, stage, {name: value})[name] for value in values], True
    if known:
        return [params[name] for params in known], True
    # Optuna may propose any of them.
    return list(range(round(values.low), round(values.high) + 1)), True


def suggested(tuning: Tuning, stage: Stage, settings: BaseModel, number: int, ended: Ended) -> Params:
    """Optuna's proposal for the trial of this number, after those that have ended (its TPE sampler, seeded)."""
    import optuna  # noqa: PLC0415 - an extra: `pip install optuna`

    space = space_of(tuning, stage)
    distributions: dict[str, Any] = {
        name: optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)
        if isinstance(values, Span)
        else optuna.distributions.CategoricalDistribution(values)
        for name, values in space.items()
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A sampler of its own for every number: what it proposes does not hang on what this process did before.
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=tuning.seed * 1009 + number)
    )
    for params, value in ended:
        within = {name: params[name] for name in space}
        study.add_trial(optuna.trial.create_trial(params=within, distributions=distributions, value=value))
    proposal = study.ask(distributions).params
    return checked(settings, stage, {name: _shaped(settings, name, value) for name, value in proposal.items()})


def checked(settings: BaseModel, stage: Stage, params: Params) -> Params:
    """The values as the setting's type has them (8.0 → 8, "2e-4" → 0.0002). Raises ConfigError for another kind."""
    try:
        made = type(settings).model_validate({**settings.model_dump(), **params})
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            "a value of the search space cannot be used",
            where=f"tuning.space.{stage}.{'.'.join(str(part) for part in first['loc'])}",
            expected=first["msg"],
            found=repr(first["input"]),
        ) from error
    return {name: getattr(made, name) for name in params}


def _draws(tuning: Tuning, stage: Stage, settings: BaseModel, space: Mapping[str, Span | list[Any]]) -> list[Params]:
    """Seeded draws, none of them twice: a small space can hold fewer than were wanted."""
    drawn = random.Random(tuning.seed)
    made: list[Params] = []
    for _ in range(MAX_DRAWS):
        if len(made) == tuning.trials:
            break
        values = {name: _drawn(drawn, held) for name, held in space.items()}
        params = checked(settings, stage, {name: _shaped(settings, name, value) for name, value in values.items()})
        if params not in made:
            made.append(params)
    return made


def _drawn(drawn: random.Random, values: Span | list[Any]) -> Any:
    if isinstance(values, list):
        return drawn.choice(values)
    if values.log:
        return math.exp(drawn.uniform(math.log(values.low), math.log(values.high)))
    return drawn.uniform(values.low, values.high)


def _shaped(settings: BaseModel, name: str, value: Any) -> Any:
    """A number between bounds, as a setting is written: three digits, or whole where the setting counts something."""
    if not isinstance(value, float):
        return value
    if isinstance(getattr(settings, name), int) or name == "lora_alpha":
        return round(value)
    return float(f"{value:.3g}")
