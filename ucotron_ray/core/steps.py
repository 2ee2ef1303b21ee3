"""A chain of artifacts as one list of steps: the same list is planned, estimated and made.

A step is an artifact: what it needs of the steps before it, what it asks the store for, how it is made. What a step
makes goes by its key to the steps after it. A step whose needs were not made is passed over.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ucotron_ray.core.artifacts import Artifact, ArtifactKind, Request
from ucotron_ray.core.run import Run

Made = dict[str, Artifact]
"""Artifacts by the keys of their steps."""

Action = Literal["run", "resume", "reuse", "conflict", "skip"]


@dataclass(frozen=True)
class Step:
    """One artifact of a chain. Nothing is read or asked when a step is declared, only when it is planned or made."""

    key: str
    stage: str
    """What plans, estimates and logs call it."""
    kind: ArtifactKind
    name: str
    make: Callable[[Made], Artifact | None]
    """Make it, or take what the store has of it. None where it turns out that there is nothing to make."""
    request: Callable[[Made], Request | None] | None = None
    """What it asks the store for; gives None as long as that cannot be known. None: it makes nothing, it only looks."""
    needs: tuple[str, ...] = ()
    then: Callable[[Artifact], None] | None = None
    """What follows from it for the steps after it."""
    shown: bool = True
    """Whether a plan names it."""

    @property
    def artifact(self) -> str:
        """`kind/name`."""
        return f"{self.kind}/{self.name}"


def planned(run: Run, steps: Sequence[Step]) -> list[dict[str, str]]:
    """What `make` would do, step by step: {stage, artifact, action}. Makes and starts nothing.

    Raises what making would raise before it starts anything.
    """
    made: Made = {}
    lines = []
    for step in steps:
        action, found = _look(run, step, made)
        if found is not None:
            made[step.key] = found
            if step.then is not None:
                step.then(found)
        if step.shown:
            lines.append({"stage": step.stage, "artifact": step.artifact, "action": action})
    return lines


def make(steps: Sequence[Step]) -> Made:
    """Make every step whose needs are there, in the order of the list."""
    made: Made = {}
    for step in steps:
        artifact = step.make(made) if made.keys() >= set(step.needs) else None
        if artifact is not None:
            made[step.key] = artifact
            if step.then is not None:
                step.then(artifact)
    return made


def _look(run: Run, step: Step, made: Made) -> tuple[Action, Artifact | None]:
    """What would become of a step, and its artifact if it is there already."""
    is_ready = made.keys() >= set(step.needs)
    if step.request is None:
        return "skip", step.make(made) if is_ready else None
    request = step.request(made) if is_ready else None
    if request is None:
        # Its input is not made yet: it runs, or goes on where it was left.
        return "resume" if run.store.partial(step.kind, step.name).exists() else "run", None
    action = run.store.plan(request)
    if action == "conflict" and run.replace:
        action = "run"
    return action, run.store.find(request.kind, request.name) if action == "reuse" else None
