"""Reads a sample of the rows with another model, in rounds; a row that it never answers is left out of its figures."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ucotron_ray.synthesis import outcomes
from ucotron_ray.synthesis.job import SynthesisJob
from ucotron_ray.synthesis.rounds import Tally, raise_stopped
from ucotron_ray.synthesis.tasks import judge as judge_task

log = logging.getLogger(__name__)


def read_by_judge(
    judge: SynthesisJob, ask: Callable[[int, tuple[int, ...]], None], status: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """The judge's marks. `ask` runs the samples from a number on, and some again.

    Raises Stopped for a run that stopped, and where most of its answers are missing.
    """
    directory = Path(judge.directory)
    again: tuple[int, ...] = ()
    for first in (0, *[judge.count] * (judge.max_failures - 1)):
        ask(first, again)
        lying = outcomes.places(directory)
        done = [outcomes.read(lying[number]) for number in sorted(lying)]
        again = tuple(outcome["number"] for outcome in done if outcome["status"] == "pending")
        now = status()
        if not again or now["stop"]:
            break
    accepted = [outcome["row"] for outcome in done if outcome["status"] == "accepted"]
    if again and (now["stop"] or len(again) > len(accepted)):
        raise_stopped(judge, now, Tally({"accepted": len(accepted)}, again, len(again)))
    if again:
        log.warning("synthesize: the judge answered nothing for %d rows; most failures: %s", len(again), now["cause"])
    shutil.rmtree(directory)
    return judge_task.marks(judge.endpoint.model, accepted)
