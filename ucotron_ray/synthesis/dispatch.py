"""Generators by their names: one of them, or all under one governor, one budget and one resume."""

import logging
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ucotron_ray.core.artifacts import Artifact, Request
from ucotron_ray.core.errors import ArtifactError, ConfigError
from ucotron_ray.core.generators import NAMES
from ucotron_ray.core.run import Run
from ucotron_ray.synthesis import path_reward
from ucotron_ray.synthesis import stage as synthesis
from ucotron_ray.synthesis.generator import builds_on_rows
from ucotron_ray.synthesis.path_reward import PathOrder
from ucotron_ray.synthesis.stage import SynthesisOrder
from ucotron_ray.synthesis.tasks import path_reward as path_task
from ucotron_ray.teacher import stage as teachers
from ucotron_ray.teacher.stage import Shared, Teacher

log = logging.getLogger(__name__)

ALL = "all"


@dataclass(frozen=True)
class GeneratorOutcome:
    """What came of one generator: its dataset, or why there is none."""

    task: str
    artifact: Artifact | None
    problem: str | None = None

    @property
    def is_ok(self) -> bool:
        """Whether the dataset is there and its gate is green."""
        return self.artifact is not None and self.artifact.manifest.state == "ok"

    def figures(self) -> dict[str, Any]:
        """For the last line of the verb."""
        if self.artifact is None:
            return {"status": "failed", "error": self.problem}
        manifest = self.artifact.manifest
        made = {"status": manifest.state, "artifact": str(self.artifact.path), **manifest.counts, **manifest.metrics}
        return made if self.is_ok else {**made, "failures": manifest.notes}


def wanted(run: Run, task: str, count: int | None, reference: str | None, *, name: str | None = None) -> Any:
    """What is asked for of one generator. Raises ConfigError or InputError for what cannot be used."""
    if task == path_task.NAME:
        return path_reward.wanted(run, count, reference, name=name)
    return synthesis.wanted(run, task, count, reference, name=name)


def make(run: Run, want: SynthesisOrder | PathOrder) -> GeneratorOutcome:
    """One generator's dataset."""
    if isinstance(want, PathOrder):
        return GeneratorOutcome(want.task, path_reward.compute(run, want))
    return GeneratorOutcome(want.task, synthesis.synthesize(run, want))


def estimate(run: Run, want: SynthesisOrder | PathOrder) -> dict[str, Any]:
    """Rows, requests, tokens and dollars before anything is paid."""
    return path_reward.estimate(run, want) if isinstance(want, PathOrder) else synthesis.estimate(run, want)


def make_all(run: Run, *, share: float = 1.0, prefix: str | None = None) -> list[GeneratorOutcome]:
    """Every generator at its recipe's count (times `share`), one after the other, on one ledger.

    A dataset that the gate rejects does not stop the others, but those that build on it. What is there already is
    reused. Raises Stopped where the same command goes on: it knows by the store what is done, and by the journals what
    was answered.
    """
    without_input = _all_without_input(run, share, prefix)
    teacher: Teacher | None = None
    requests = [synthesis.request(run, want) for want in without_input if isinstance(want, SynthesisOrder)]
    outcomes: list[GeneratorOutcome] = []
    for task in NAMES:
        want = next((entry for entry in without_input if entry.task == task), None) or _on_rows(
            run, task, share, prefix, outcomes
        )
        if isinstance(want, GeneratorOutcome):
            outcomes.append(want)
            continue
        if isinstance(want, SynthesisOrder):
            asked = synthesis.request(run, want)
            # One that is reused has its share in the budget too.
            requests.append(asked)
            if teacher is None and synthesis.will_run(run, asked):
                teacher = teachers.checked(run)
                teacher.shared = _shared(run, requests)
            outcomes.append(GeneratorOutcome(task, synthesis.synthesize(run, want, teacher)))
        else:
            outcomes.append(make(run, want))
        log.info("synthesize: %s is %s", task, outcomes[-1].figures()["status"])
    return outcomes


def estimate_all(run: Run, *, share: float = 1.0, prefix: str | None = None) -> dict[str, Any]:
    """The estimates of the generators that need no rows; of the others it is known once the rows are there."""
    tasks = {want.task: estimate(run, want) for want in _all_without_input(run, share, prefix)}
    sums = {key: _sum(entry[key] for entry in tasks.values()) for key in ("rows", "requests", "usd_at_most")}
    return {**sums, "tasks": tasks}


def _sum(figures: Iterable[float | None]) -> float | None:
    """None where one of them is not known: a sum of the others would look like all of it."""
    known = list(figures)
    return None if None in known else sum(figure for figure in known if figure is not None)


def _all_without_input(run: Run, share: float, prefix: str | None) -> list[SynthesisOrder | PathOrder]:
    return [
        wanted(run, task, _count(run, task, share), None, name=_name(task, prefix))
        for task in NAMES
        if not builds_on_rows(task)
    ]


def _on_rows(
    run: Run, task: str, share: float, prefix: str | None, outcomes: list[GeneratorOutcome]
) -> SynthesisOrder | GeneratorOutcome:
    """A generator over the relation rows that were just made; what became of it where they are no input."""
    rows = next(iter(outcomes))
    name = rows.artifact.manifest.name if rows.artifact else _name(rows.task, prefix)
    try:
        return synthesis.wanted(run, task, _count(run, task, share), name, name=_name(task, prefix))
    except ArtifactError as error:
        return GeneratorOutcome(task, None, f"{rows.task}: {error.problem}")


def _count(run: Run, task: str, share: float) -> int:
    target: int = run.config.recipe.generation.task(task).target_samples
    return max(1, round(target * share))


def _name(task: str, prefix: str | None) -> str:
    return task if prefix is None else f"{prefix}-{task}"


def _shared(run: Run, requests: list[Request]) -> Shared:
    """One ledger: what all of these have cost so far counts for the budget of each."""
    if not requests:
        raise ConfigError("there is nothing to ask a teacher for")
    spent, perhaps = zip(
        *(synthesis.spent_on(run, what) for what in {w.recipe: w for w in requests}.values()), strict=True
    )
    return Shared(f"all-{requests[0].recipe[:16]}-{uuid.uuid4().hex[:8]}", sum(spent), sum(perhaps))
