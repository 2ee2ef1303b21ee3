"""Scores as steps of a chain: those that are claimed, and those that something is chosen by."""

from collections.abc import Callable
from dataclasses import replace

from ucotron_ray.core.artifacts import Artifact, Request
from ucotron_ray.core.run import Run
from ucotron_ray.core.steps import Made, Step
from ucotron_ray.evaluation import stage as scoring
from ucotron_ray.models import base as base_models

Model = tuple[base_models.BaseModel, Artifact | None]
"""A base model, and the adapter on it."""


def scores_step(
    run: Run, key: str, stage: str, name: str, model: Callable[[Made], Model], needs: tuple[str, ...]
) -> Step:
    """A model's answers to the held-out rows."""
    return Step(
        key=key,
        stage=stage,
        kind="scores",
        name=name,
        make=lambda made: scoring.evaluate(run, name, *model(made), made["held-out"]),
        request=lambda made: scoring.evaluate_request(run, name, *model(made), made["held-out"]),
        needs=(*needs, "held-out"),
    )


def choice_step(run: Run, key: str, name: str, model: Callable[[Made], Model], needs: tuple[str, ...]) -> Step:
    """A model's answers to the rows that choices are made by; those that the store has of them under any name."""

    def request(made: Made) -> Request:
        wanted = scoring.evaluate_request(run, name, *model(made), made["gate-rows"])
        return replace(wanted, name=scoring.equal_scores(run, wanted) or name)

    return Step(
        key=key,
        stage=f"evaluate-{key}",
        kind="scores",
        name=name,
        make=lambda made: scoring.evaluate(run, request(made).name, *model(made), made["gate-rows"]),
        request=request,
        needs=(*needs, "gate-rows"),
    )
