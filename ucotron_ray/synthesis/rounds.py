"""How many samples are planned until enough are accepted, and what is said where they are not. No Ray in here."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.core.errors import InputError, StageFailed, Stopped
from ucotron_ray.synthesis.job import SynthesisJob
from ucotron_ray.synthesis.outcomes import REJECTED
from ucotron_ray.synthesis.watch import Progress
from ucotron_ray.teacher.outcome import FATAL

MOST_REPEATS = 3
"""Rounds in a row that only ask again for samples without a final answer."""

SURPLUS = 1.1
LOWEST_RATE = 0.05
"""No round plans more than twenty samples for a missing row."""


@dataclass(frozen=True)
class Tally:
    """Where the samples are: by status, those without a final answer, and how many accepted ones are missing."""

    counts: dict[str, int]
    unfinished: tuple[int, ...]
    missing: int


@dataclass(frozen=True)
class Crew:
    """Who does the work of a round."""

    ask: Callable[[int, tuple[int, ...], int], None]
    """Ask for the samples from `first` to `planned`, and for some `again`."""
    tally: Callable[[int], Tally]
    """Where the planned samples are."""
    is_stopped: Callable[[], bool]


def run_rounds(job: SynthesisJob, crew: Crew, progress: Progress) -> tuple[Tally, int]:
    """Ask for samples until enough are accepted; returns where they are and how many samples were planned."""
    planned, first = job.count, 0
    again: tuple[int, ...] = ()
    rounds = repeats = 0
    while True:
        progress.round += 1
        crew.ask(first, again, planned)
        tally = crew.tally(planned)
        again, accepted = tally.unfinished, tally.counts["accepted"]
        progress.accepted = accepted
        rounds, repeats = (rounds, repeats + 1) if again else (rounds + 1, 0)
        # Of a few samples all may be of a class that is not wanted, or bad by chance: that says nothing of the others.
        is_hopeless = not accepted and planned * LOWEST_RATE >= 1
        is_over = repeats > MOST_REPEATS if again else rounds >= job.max_rounds or is_hopeless
        if tally.missing <= 0 or crew.is_stopped() or is_over:
            return tally, planned
        first = planned
        if not again:
            # Only once all samples have ended: else the plan would depend on how the run was disturbed.
            rate = max(LOWEST_RATE, accepted / planned)
            planned += math.ceil(tally.missing / rate * SURPLUS)


def raise_stopped(job: SynthesisJob, status: Mapping[str, Any], tally: Tally) -> None:
    """Raise InputError for a teacher that refused at once, Stopped for a run that the same command goes on with."""
    stop, kind = status["stop"], status["stop_kind"]
    if stop and not status["answered"] and kind in FATAL:
        raise InputError("the teacher refused the first request", where=job.endpoint.chat_url, found=stop)
    # Not those that are pending because their class is full.
    unanswered = len(tally.unfinished)
    if stop or unanswered:
        raise Stopped(
            f"stopped: {stop}" if stop else f"stopped: {unanswered} samples have no answer yet",
            where=job.endpoint.base_url,
            found=_so_far(job, status, tally),
            next_step="run the same command again: what was answered is kept and not paid again"
            + ("; with a higher --max-usd" if stop and stop.startswith("budget") else ""),
        )


def too_few(job: SynthesisJob, status: Mapping[str, Any], tally: Tally, planned: int) -> StageFailed:
    """What to raise where all samples have ended and too few of them are accepted."""
    return StageFailed(
        "stopped: accept rate too low",
        where=str(Path(job.directory) / REJECTED),
        expected=f"{job.count} accepted rows in at most {job.max_rounds} rounds",
        found=f"{_so_far(job, status, tally)}; of {planned} samples: {tally.counts}",
        next_step="read the reasons there; take a better teacher, or a higher --max-rounds (nothing is paid again)",
    )


def _so_far(job: SynthesisJob, status: Mapping[str, Any], tally: Tally) -> str:
    rows = f"{tally.counts['accepted']} of {job.count} rows"
    return f"{rows}, {status['sent']} requests, {status['usd']:.4f} dollars so far"


@dataclass(frozen=True)
class SynthesisResult:
    """What came of a task: samples by status, lines by file, what the gate found too much of, and what it took."""

    counts: dict[str, int]
    files: dict[str, int]
    failures: list[str]
    requests: int
    prompt_tokens: int
    completion_tokens: int
    usd: float
    asking_seconds: float
    """From the first request to the last answer; the rest of the stage's time is the same for any number of rows."""
