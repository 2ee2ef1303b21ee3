"""The part of the chain that runs at the vendor: SFT job → DPO job → scores of the deployed model, as steps.

A job that was created is found again, so the same command goes on wherever it was stopped.
"""

from collections.abc import Callable
from functools import cache

from ucotron_ray.core.artifacts import Artifact, Request
from ucotron_ray.core.run import Run
from ucotron_ray.core.steps import Made, Step
from ucotron_ray.fireworks import stage as vendor
from ucotron_ray.fireworks.account import Account


def steps(run: Run, *, aligns: bool) -> list[Step]:
    """From `rows`, `held-out` and, if it `aligns`, `pairs` to the scores of what was trained and of its base."""
    # Once it is asked for: an estimate needs no account.
    who = cache(lambda: vendor.account(run.config))
    return [*training_steps(run, who, aligns=aligns), *scoring_steps(run, who, aligns=aligns)]


def training_steps(run: Run, who: Callable[[], Account], *, aligns: bool) -> list[Step]:
    """From `rows` (and `pairs`, if it `aligns`) to the model that is scored: `remote-sft`, `remote-dpo`."""
    sft = Step(
        key="remote-sft",
        stage="remote-sft",
        kind="model",
        name=f"{run.name}-remote-sft",
        needs=("rows",),
        request=lambda made: vendor.sft_request(run, made["rows"]),
        make=lambda made: vendor.sft(run, who(), made["rows"]),
    )
    dpo = Step(
        key="remote-dpo",
        stage="remote-dpo",
        kind="model",
        name=f"{run.name}-remote-dpo",
        needs=("pairs", "remote-sft"),
        request=lambda made: vendor.dpo_request(run, made["pairs"], made["remote-sft"]),
        make=lambda made: vendor.dpo(run, who(), made["pairs"], made["remote-sft"]),
    )
    return [sft, dpo] if aligns else [sft]


def scoring_steps(run: Run, who: Callable[[], Account], *, aligns: bool) -> list[Step]:
    """The trained model on the held-out rows, and the vendor's base model beside it if the recipe wants it."""

    def scores(key: str, name: str, model: Callable[[Made], Artifact | None], needs: tuple[str, ...]) -> Step:
        def request(made: Made) -> Request | None:
            # Which model that will be is known once it is known whether there were pairs.
            waits = key == "scores" and aligns and "remote-dpo" not in made
            return None if waits else vendor.evaluate_request(run, model(made), made["held-out"])

        def make(made: Made) -> Artifact:
            return vendor.evaluate(run, who(), model(made), made["held-out"])

        return Step(key, "remote-evaluate", "scores", name, make, request, (*needs, "held-out"))

    steps = [scores("scores", f"{run.name}-remote", trained, ("remote-sft",))]
    if run.config.recipe.evaluation.base:
        steps.append(scores("base-scores", f"{run.name}-remote-base", lambda made: None, ()))
    return steps


def trained(made: Made) -> Artifact:
    """The model that training ended with."""
    return made.get("remote-dpo") or made["remote-sft"]
