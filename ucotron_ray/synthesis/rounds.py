"""How many samples are planned until enough are accepted, and what is said where they are not. No Ray in here."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.core.errors import InputError, StageFailed, Stopped
from ucotron_ray.synthesis import outcomes
from ucotron_ray.synthesis.job import SynthesisJob
from ucotron_ray.synthesis.outcomes import REJECTED, SetAside
from ucotron_ray.synthesis.watch import Progress

log = logging.getLogger(__name__)

MOST_SILENT = 4
"""Rounds in a row, after the first one, in which samples stay without an answer and nobody gets one."""

FURTHER = 32
"""How many times further on the next control is, where nobody was answered: the journal may know the nearer ones."""

SURPLUS = 1.1
LOWEST_RATE = 0.05
"""No more than twenty samples are planned for a row."""


@dataclass(frozen=True)
class Tally:
    """Where the samples are: by status, those without a final answer, how many accepted ones are missing, and why."""

    counts: dict[str, int]
    unfinished: tuple[int, ...]
    missing: int
    reason: str | None = None
    """Why most of the others are not in the dataset."""


@dataclass(frozen=True)
class Crew:
    """Who does the work of a round."""

    ask: Callable[[int, tuple[int, ...], int], None]
    """Ask for the samples from `first` to `planned`, and for some `again`."""
    tally: Callable[[int], Tally]
    """Where the planned samples are."""
    answered: Callable[[], int]
    """How many answers the server gave so far."""
    set_aside: Callable[[tuple[int, ...]], SetAside]
    """Quarantine samples whose prompts never got an answer."""
    is_stopped: Callable[[], bool]


@dataclass(frozen=True)
class Filled:
    """Where the samples are after the last round, how many were planned, and what was set aside."""

    tally: Tally
    planned: int
    aside: SetAside


def most_samples(count: int, max_rounds: int) -> int:
    """How many samples are planned for so many rows at most."""
    return count if max_rounds == 1 else math.ceil(count / LOWEST_RATE)


def run_rounds(job: SynthesisJob, crew: Crew, progress: Progress) -> Filled:
    """Ask for samples until enough are accepted.

    A prompt that got no answer in `job.max_failures` rounds in which others got one is set aside, and further samples
    take its place. Where only such prompts are left to ask, the next sample of the plan is asked with them: it shows
    whether the server answers at all.
    """
    planned, first = job.count, 0
    again: tuple[int, ...] = ()
    rounds = silent = control = 0
    failures: Counter[int] = Counter()
    aside = SetAside()
    while True:
        progress.round += 1
        before = crew.answered()
        crew.ask(planned + control if again else first, again, planned + control + 1 if again else planned)
        tally = crew.tally(planned)
        others_were_answered = crew.answered() > before
        if others_were_answered:
            failures.update(tally.unfinished)
        if again:
            control = control + 1 if others_were_answered else max(FURTHER, control * FURTHER)
        hopeless = tuple(number for number in tally.unfinished if failures[number] >= job.max_failures)
        if hopeless and not crew.is_stopped():
            aside += crew.set_aside(hopeless)
            tally = crew.tally(planned)
        again, accepted = tally.unfinished, tally.counts["accepted"]
        progress.accepted = accepted
        silent = silent + 1 if again and not others_were_answered else 0
        rounds += not again
        # Of a few samples all may be of a class that is not wanted, or bad by chance: that says nothing of the others.
        is_hopeless = not accepted and planned * LOWEST_RATE >= 1
        is_over = silent > MOST_SILENT if again else rounds >= job.max_rounds or is_hopeless
        if tally.missing <= 0 or crew.is_stopped() or is_over:
            return Filled(tally, planned, aside)
        if again:
            continue
        # Only once all samples have ended: else the plan would depend on how the run was disturbed.
        rate = max(LOWEST_RATE, accepted / planned)
        first, control = planned, 0
        planned = min(planned + math.ceil(tally.missing / rate * SURPLUS), most_samples(max(job.count, 1), 2))
        if planned == first:
            return Filled(tally, planned, aside)


def say(job: SynthesisJob, filled: Filled) -> None:
    """What somebody who looks at the dataset should know of how it came about."""
    if filled.aside.prompts:
        log.warning(
            "synthesize: %d prompts got no answer in %d rounds and were replaced; their %d requests cost %.6f dollars "
            "at most; see %s",
            *(filled.aside.prompts, job.max_failures, filled.aside.requests, filled.aside.usd, REJECTED),
        )
    for server, count in outcomes.elsewhere(Path(job.directory)).most_common():
        log.warning(
            "synthesize: %d answers are of the journal, and %s gave them: another server of the same model id",
            *(count, server),
        )


def raise_stopped(job: SynthesisJob, status: Mapping[str, Any], tally: Tally) -> None:
    """Raise InputError for a teacher that refused from the start, Stopped for a run that the same command goes on with.

    Both say why most requests failed.
    """
    stop, kind = status["stop"], status["stop_kind"]
    if stop and not status["answered"] and kind is not None:
        raise InputError(
            "the teacher refused the first requests",
            where=job.endpoint.chat_url,
            found=stop,
            next_step="correct the model, the key or the address, or what is sent with each request; nothing was "
            "answered so far",
        )
    # Not those that are pending because their class is full.
    unanswered = len(tally.unfinished)
    if stop or unanswered:
        cause = status["cause"] or (tally.reason if unanswered else None)
        raise Stopped(
            f"stopped: {stop}" if stop else f"stopped: {unanswered} samples have no answer yet",
            where=job.endpoint.base_url,
            found=_so_far(job, status, tally) + (f"; most failures: {cause}" if cause else ""),
            next_step="run the same command again: what was answered is kept and not paid again"
            + ("; with a higher --max-usd" if stop and stop.startswith("budget") else ""),
        )


def too_few(job: SynthesisJob, status: Mapping[str, Any], tally: Tally, planned: int) -> StageFailed:
    """What to raise where all samples have ended and too few of them are accepted."""
    most = f"; most often: {tally.reason}" if tally.reason else ""
    return StageFailed(
        "stopped: accept rate too low",
        where=str(Path(job.directory) / REJECTED),
        expected=f"{job.count} accepted rows in at most {job.max_rounds} rounds",
        found=f"{_so_far(job, status, tally)}; of {planned} samples: {tally.counts}{most}",
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
    set_aside: SetAside
    asking_seconds: float
    """From the first request to the last answer; the rest of the stage's time is the same for any number of rows."""
