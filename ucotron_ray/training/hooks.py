"""What a training function is given from outside: it is the same in plain Python, in Ray Train and in Ray Tune."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Report = Callable[[Mapping[str, float]], None]

Score = Callable[[Any, Any, int, int], tuple[int, int, int]]
"""(model, tokenizer, rank, world) → right, predicted and expected triples of this worker's share of the rows."""


def _nothing(metrics: Mapping[str, float]) -> None:
    pass


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Hooks:
    """Called on every worker at the same step, so that they may be collective."""

    evaluated: Report = _nothing
    """With the figures of an evaluation, F1 among them if `score` is given."""
    score: Score | None = None
    preempted: Callable[[], bool] = _never
    """Whether the machine is about to be taken away; asked at every log."""


NO_HOOKS = Hooks()
