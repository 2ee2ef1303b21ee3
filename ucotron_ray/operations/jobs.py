"""A run as jobs of Ray's: its id, its attempts, how it is watched, and which exit code it has in the end.

Ray runs a job once and says 0 for a stopped one and 1 for any failure (`ray job submit`, ray 2.60). Here a run has an
id made from what is submitted, one or more attempts below it, and the driver's own exit code.
"""

import json
import logging
import shlex
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ucotron_ray.core.errors import Stopped
from ucotron_ray.core.files import canonical_hash
from ucotron_ray.operations.record import Keeper, number_of

log = logging.getLogger(__name__)

RESUMABLE_EXIT = 75
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")

POLL_SECONDS = 1.0
LOG_SECONDS = 2.0
LOG_SHARE = 10
"""A log is fetched whole each time: at most a tenth of the time goes into that."""

PATIENCE_SECONDS = 120.0
"""How long a cluster may not answer before it counts as gone."""

RETRY_SECONDS = 2.0

KILLED = {-9: "SIGKILL", 137: "SIGKILL", -15: "SIGTERM", 143: "SIGTERM"}
"""Exit codes of a driver that was ended from outside, as a shell or Python gives them."""

LOST_TYPES = {
    "JOB_SUPERVISOR_ACTOR_DIED": "the node of the driver was lost",
    "JOB_SUPERVISOR_ACTOR_START_TIMEOUT": "the driver found no place in time",
}


@dataclass(frozen=True)
class Job:
    """One job as Ray describes it."""

    id: str
    status: str
    exit_code: int | None = None
    error_type: str | None = None
    message: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes."""
        return self.status in ENDED


class Jobs(Protocol):
    """The job server of a cluster. Every call raises OSError where it cannot be reached."""

    def jobs(self) -> list[Job]:
        """All jobs that were submitted to it."""

    def info(self, name: str) -> Job:
        """One job."""

    def logs(self, name: str) -> str:
        """The driver's output so far."""


@dataclass(frozen=True)
class JobOutcome:
    """How an attempt ended: this command's exit code, whether another attempt may help, and why in one line."""

    code: int
    retry: bool
    cause: str


def run_id(verb: str, command: Sequence[str], package: str, runtime_env: Mapping[str, Any]) -> str:
    """The same submission has the same id: command, bytes of the package, runtime environment."""
    content = canonical_hash({"command": list(command), "package": package, "runtime_env": runtime_env})
    return f"ucotron-{verb}-{content[:12]}"


def entrypoint(python: str, arguments: Sequence[str]) -> str:
    """The shell command of the driver; every argument is quoted. `--json` makes its last line the result."""
    json_flag = [] if "--json" in arguments else ["--json"]
    return shlex.join([python, "-m", "ucotron_ray", *arguments, *json_flag])


def outcome(job: Job) -> JobOutcome:
    """What an ended job means for who waits for it."""
    if job.status == "SUCCEEDED":
        return JobOutcome(0, retry=False, cause="done")
    if job.status == "STOPPED":
        return JobOutcome(RESUMABLE_EXIT, retry=False, cause="stopped from outside (ray job stop)")
    if job.error_type in LOST_TYPES:
        return JobOutcome(RESUMABLE_EXIT, retry=True, cause=LOST_TYPES[str(job.error_type)])
    if job.error_type == "RUNTIME_ENV_SETUP_FAILURE":
        return JobOutcome(
            1, retry=True, cause=f"the runtime environment could not be set up: {_last_line(job.message)}"
        )
    if job.exit_code == RESUMABLE_EXIT:
        return JobOutcome(RESUMABLE_EXIT, retry=True, cause="stopped before the end, resumable")
    if job.exit_code in KILLED:
        return JobOutcome(RESUMABLE_EXIT, retry=True, cause=f"the driver was killed ({KILLED[job.exit_code]})")
    code = job.exit_code if job.exit_code is not None and 0 < job.exit_code < 126 else 1
    found = f"exit code {job.exit_code}" if job.exit_code is not None else job.error_type or "no exit code"
    return JobOutcome(code, retry=False, cause=f"the driver failed: {found}, {_last_line(job.message)}")


def latest(run: str, jobs: Iterable[Job]) -> Job | None:
    """The last attempt of a run on this cluster."""
    mine = [job for job in jobs if job.id.rpartition("-")[0] == run and number_of(job.id)]
    return max(mine, key=lambda job: number_of(job.id), default=None)


def next_attempt(run: str, found: Job | None, keeper: Keeper) -> str:
    """The id of the next attempt: never one that Ray or our record knows, since Ray refuses an id twice."""
    known = [number_of(entry.id) for entry in keeper.record.attempts]
    return f"{run}-{max([*known, number_of(found.id) if found else 0]) + 1}"


def begin(server: Jobs, run: str, keeper: Keeper, send: Callable[[str], None], *, again: bool) -> str:
    """The attempt to watch: one that runs already, one that succeeded unless `again`, else a new one by `send`."""
    found = latest(run, server.jobs())
    if found is not None and (not found.has_ended or (found.status == "SUCCEEDED" and not again)):
        log.info("submit: %s is %s already: attached (--again starts it anew)", found.id, found.status.lower())
        keeper.note(found.id, "attached", status=found.status)
        return found.id
    name = next_attempt(run, found, keeper)
    keeper.note(name, "submitted")
    send(name)
    log.info("submit: %s", name)
    return name


def finish(
    server: Jobs,
    name: str,
    keeper: Keeper,
    send: Callable[[str], None],
    *,
    retries: int,
    pause: Callable[[float], None] = time.sleep,
) -> tuple[str, JobOutcome]:
    """Watch an attempt to its end, and as many more as `retries` allow; the last one's id and outcome."""
    for left in range(retries, -1, -1):
        job = follow(server, name, keeper, pause)
        ended = outcome(job)
        keeper.note(
            name, "ended", status=job.status, driver_exit_code=job.exit_code, code=ended.code, cause=ended.cause,
            ended_at=time.time(),
        )  # fmt: skip
        log.info("submit: %s ended as %s: %s", name, job.status.lower(), ended.cause)
        if not ended.retry or not left:
            break
        pause(RETRY_SECONDS)
        name = next_attempt(name.rpartition("-")[0], job, keeper)
        keeper.note(name, "submitted")
        send(name)
        log.info("submit: %s, %d more if it has to be", name, left - 1)
    return name, ended


def follow(server: Jobs, name: str, keeper: Keeper, pause: Callable[[float], None]) -> Job:
    """Watch one attempt until it has ended, its log copied as it grows. The log's stream is never the sign of the end.

    Raises Stopped if the cluster is not heard of for PATIENCE_SECONDS.
    """
    status, log_due = "", 0.0
    heard = time.monotonic()
    while True:
        try:
            job = server.info(name)
            heard = time.monotonic()
        except OSError as error:
            # Not the number of tries: one that runs into a timeout takes far longer than one that is refused.
            if time.monotonic() - heard > PATIENCE_SECONDS:
                keeper.note(name, "lost", status="LOST", cause="the cluster does not answer any more")
                raise Stopped(
                    "the cluster does not answer any more",
                    where=name,
                    found=str(error),
                    next_step="run the same command again: it re-attaches, or goes on in a new cluster from the store",
                ) from error
            pause(POLL_SECONDS)
            continue
        if job.status != status:
            status = job.status
            keeper.note(name, "status", status=status)
        if job.has_ended or time.monotonic() >= log_due:
            began = time.monotonic()
            copy_log(server, name, keeper)
            log_due = time.monotonic() + max(LOG_SECONDS, LOG_SHARE * (time.monotonic() - began))
        if job.has_ended:
            return job
        pause(POLL_SECONDS)


def copy_log(server: Jobs, name: str, keeper: Keeper) -> None:
    """Take in what the driver wrote since; a log that cannot be had (its node died) leaves ours as it is."""
    try:
        text = server.logs(name)
    except OSError as error:
        log.debug("no log of %s: %s", name, error)
        return
    for line in keeper.copy_log(name, text).splitlines():
        log.info("%s", line)


def result_of(text: str) -> dict[str, Any] | None:
    """The driver's result: the last line of its output that is one, as `--json` prints it."""
    for line in reversed(text.splitlines()):
        if line.startswith('{"status"'):
            try:
                found = json.loads(line)
            except ValueError:
                return None
            return found if isinstance(found, dict) else None
    return None


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"
