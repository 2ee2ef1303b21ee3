"""Waiting for a remote job: one line that lives, every state handled, an end to every wait that should have one.

Completed is success. Failed, cancelled, expired and early-stopped raise RemoteJobFailed (exit 1). A deadline that
passes, a paused job and a state that nobody knows for an hour raise Stopped (exit 75): the job lives on, and the same
command goes on waiting. Ctrl-C leaves the job alone, too.
"""

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from ucotron_ray.core.errors import FireworksError, RemoteJobFailed, Stopped
from ucotron_ray.fireworks import tuning_jobs as jobs
from ucotron_ray.fireworks.account import REPEATED, Account
from ucotron_ray.fireworks.tuning_jobs import JobStatus

log = logging.getLogger(__name__)

UNKNOWN_STATE_SECONDS = 3600.0
OUTAGE_SECONDS = 900.0
"""So long the vendor may be silent while a job is waited for."""

PENDING_SECONDS = 300.0
"""After so long in the queue, and then every so often, it is said why that may be."""

BAR_CELLS = 24
LINE_SECONDS = 60.0
"""Between two lines in a log where nothing changes; a terminal's line is rewritten at every poll."""

WHY_PENDING = {
    "sft": "jobs wait for the vendor's capacity, minutes as a rule; an account's quota of jobs at once holds them too",
    "dpo": "jobs wait for the vendor's capacity, minutes as a rule; an account's quota of jobs at once holds them too",
    "batch": "a model without batch support stays queued without an error (docs, guides/batch-inference)",
}


@dataclass(frozen=True)
class Patience:
    """How to wait. Seconds; `timeout` 0 = no limit; `pending_timeout` None = as long as all else."""

    interval: float = 30.0
    timeout: float = 0.0
    pending_timeout: float | None = None
    verbose: bool = True


def wait(
    account: Account,
    job: JobStatus,
    patience: Patience,
    *,
    callback: Callable[[JobStatus], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> JobStatus:
    """The job once it is completed. Raises RemoteJobFailed or Stopped as the module says."""
    line = _Line(patience.verbose, clock)
    began = entered = heard = clock()
    is_first = True
    try:
        while True:
            try:
                status = jobs.get_job(account, job.name, job.kind)
            except FireworksError as error:
                _raise_if_cut_off(error, job, clock() - heard, is_first=is_first)
                sleep(patience.interval)
                continue
            heard, is_first = clock(), False
            if status.state != job.state:
                entered = clock()
            job = status
            if callback:
                callback(job)
            line.show(job, clock() - began)
            if job.state == jobs.COMPLETED:
                return job
            _raise_if_over(job)
            _raise_if_late(job, patience, clock() - began, clock() - entered)
            line.explain_pending(job, clock() - entered)
            sleep(patience.interval)
    except KeyboardInterrupt:
        raise Stopped(
            "stopped waiting; the job runs on at the vendor",
            where=job.name,
            found=job.shown_state,
            next_step=_go_on(job),
        ) from None
    finally:
        line.close()


def duration(seconds: float) -> str:
    """`Xh Ym Zs`, `Ym Zs` or `Zs`."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}h {minutes}m {rest}s"
    return f"{minutes}m {rest}s" if minutes else f"{rest}s"


def progress_line(job: JobStatus, elapsed: float) -> str:
    """State, bar, time so far and about how much is left."""
    if job.percent is None or job.is_over:
        return f"{job.job_id}  {job.shown_state}  {duration(elapsed)}"
    share = min(100.0, max(0.0, job.percent)) / 100
    filled = int(share * BAR_CELLS)
    bar = "#" * filled + "." * (BAR_CELLS - filled)
    left = f", about {duration(elapsed * (1 - share) / share)} left" if share > 0 else ""
    return f"{job.job_id}  {job.shown_state}  [{bar}] {share:.0%}  {duration(elapsed)}{left}"


def _raise_if_over(job: JobStatus) -> None:
    if job.state in jobs.ENDED_BADLY:
        raise RemoteJobFailed(
            f"the job ended as {job.shown_state}",
            where=job.name,
            found=job.message or "the vendor gives no reason",
            next_step=f"ucotron-ray fireworks resume {job.job_id}, or another job: --again N (pipeline: --replace)",
        )
    if job.state == jobs.PAUSED:
        raise Stopped(
            "the job is paused",
            where=job.name,
            found=job.message or "an account that is suspended, or somebody paused it",
            next_step=f"ucotron-ray fireworks resume {job.job_id}; then {_go_on(job)}",
        )


def _raise_if_cut_off(error: FireworksError, job: JobStatus, silent: float, *, is_first: bool) -> None:
    """An outage is waited out for a while. A refusal at the first look is raised as it is, a later one is a stop."""
    can_pass = error.status_code is None or error.status_code in REPEATED
    if can_pass and silent < OUTAGE_SECONDS:
        log.warning("%s: %s; waiting on", job.job_id, error.found)
        return
    if is_first and not can_pass:
        raise error
    raise Stopped(
        f"{error.problem}; the job runs on", where=job.name, found=error.found, next_step=_go_on(job)
    ) from error


def _raise_if_late(job: JobStatus, patience: Patience, waited: float, in_state: float) -> None:
    is_unknown = job.state not in jobs.ACTIVE
    limit = patience.pending_timeout
    if patience.timeout and waited >= patience.timeout:
        problem = f"the deadline passed after {duration(waited)}"
    elif job.state == jobs.PENDING and limit is not None and in_state >= limit:
        problem = f"the job has been queued for {duration(in_state)}: {WHY_PENDING[job.kind]}"
    elif is_unknown and in_state >= UNKNOWN_STATE_SECONDS:
        problem = f"the job has been in a state that this version does not know for {duration(in_state)}"
    else:
        return
    raise Stopped(problem, where=job.name, found=job.state, next_step=_go_on(job))


def _go_on(job: JobStatus) -> str:
    wait = "" if job.kind == "batch" else f", or: ucotron-ray fireworks wait {job.job_id}"
    return f"run the same command again{wait}; to end the job: ucotron-ray fireworks cancel {job.job_id}"


class _Line:
    """The live line: rewritten on a terminal, logged elsewhere."""

    def __init__(self, verbose: bool, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._verbose = verbose
        self._live = sys.stderr.isatty()
        self._state: str | None = None
        self._said = self._explained = float("-inf")

    def show(self, job: JobStatus, elapsed: float) -> None:
        if not self._verbose:
            return
        text = progress_line(job, elapsed)
        if self._live:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()
        elif job.state != self._state or self._clock() - self._said >= LINE_SECONDS:
            log.info("%s", text)
            self._said = self._clock()
        if job.state != self._state and not job.is_over and job.state not in (*jobs.ACTIVE, jobs.PAUSED):
            log.warning("%s: a state that this version does not know: %s; waiting on", job.job_id, job.state)
        self._state = job.state

    def explain_pending(self, job: JobStatus, seconds: float) -> None:
        if job.state != jobs.PENDING or seconds < PENDING_SECONDS:
            return
        if self._clock() - self._explained >= PENDING_SECONDS:
            self._explained = self._clock()
            log.warning("%s: queued for %s: %s", job.job_id, duration(seconds), WHY_PENDING[job.kind])

    def close(self) -> None:
        if self._live and self._verbose:
            sys.stderr.write("\n")
