"""Runs `worker.Worker` in Ray Data actors, with the governor as one actor for the cluster.

Rows in are numbers of samples, rows out are a status each; texts go to the journal and to outcome files, never through
the object store. Small blocks: Ray passes a block on when its last sample is done.
"""

import contextlib
import logging
import math
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.util.metrics import Gauge

from ucotron_ray.core import run_log, session
from ucotron_ray.core.errors import UcotronRayError
from ucotron_ray.synthesis import outcomes, watch
from ucotron_ray.synthesis.background import run_in_background
from ucotron_ray.synthesis.between_rounds import publish_dataset, set_aside, tally_samples, write_rows
from ucotron_ray.synthesis.governor import Governor
from ucotron_ray.synthesis.job import SynthesisJob
from ucotron_ray.synthesis.judging import read_by_judge
from ucotron_ray.synthesis.ledger import Budget, Finished, Need, Permit, Settings
from ucotron_ray.synthesis.outcomes import OUTCOMES, append_outcomes, line_of
from ucotron_ray.synthesis.rounds import Crew, Filled, SynthesisResult, raise_stopped, run_rounds, say, too_few
from ucotron_ray.synthesis.shared_store import check_token, leave_token
from ucotron_ray.synthesis.worker import Worker

log = logging.getLogger(__name__)

NAMESPACE = "ucotron_ray"
SAMPLES_PER_BLOCK = 128
SAMPLES_PER_PLACE = 8
"""Samples that are worked on for each place in the window. Blocks wait for their slowest sample, and that one pauses
after errors: with three, 5 % of errors at 0.5 s latency left half of the window empty."""

FEWEST_BLOCKS = 8
ACTOR_CPUS = 0.25
ORPHAN_SECONDS = 60.0


class GovernorActor:
    """The limiter as an actor. It ends itself when no run has been heard of for a minute."""

    def __init__(self, settings: Settings) -> None:
        self._governor = Governor(settings, time.monotonic)
        self._heard = time.monotonic()
        self._gauges = {
            name: Gauge(f"ucotron_synthesis_{name}", description=text, tag_keys=("run",))
            for name, text in watch.GAUGES.items()
        }
        threading.Thread(target=self._end_when_forgotten, daemon=True).start()

    def join(self, run: str, budget: Budget, settings: Settings) -> None:
        self._heard = time.monotonic()
        self._governor.join(run, budget, settings)

    def leave(self, run: str) -> int:
        return self._governor.leave(run)

    def end(self, run: str, reason: str) -> None:
        self._governor.runs[run].end(reason)

    def exchange(self, run: str, name: str, finished: list[Finished], queue: list[Need], trouble: str | None) -> Permit:
        return self._governor.exchange(run, name, finished, queue, trouble)

    def status(self, run: str) -> dict[str, Any]:
        """What the driver shows; asking is also its sign of life."""
        self._heard = time.monotonic()
        self._governor.driver_is_alive(run)
        status = watch.status_of(self._governor, run)
        for name, gauge in self._gauges.items():
            gauge.set(float(status[name]), tags={"run": run})
        return status

    def _end_when_forgotten(self) -> None:
        pause = threading.Event()
        while time.monotonic() - self._heard < ORPHAN_SECONDS:
            pause.wait(5)
        os._exit(0)


class Synthesizer:
    """One sending process: many samples at once, in as many calls at once as Ray makes."""

    def __init__(self, job: SynthesisJob, governor: Any, first: int, again: tuple[int, ...]) -> None:
        run_log.set_up_worker(job.log_file)
        run = job.invocation

        async def exchange(name: str, finished: list[Finished], needs: list[Need], trouble: str | None) -> Permit:
            permit: Permit = await governor.exchange.remote(run, name, finished, needs, trouble)
            return permit

        self._first, self._again = first, again
        # An error here would be raised as the death of an actor, and Ray would try again without end.
        self._broken: Exception | None = None
        try:
            check_token(Path(job.directory) / OUTCOMES, job.invocation)
            self._task = job.make_task()
            answers, marks = Path(job.journal), Path(job.directory) / OUTCOMES
            self._worker = Worker(self._task, job.endpoint, job.price, job.sending, answers, marks, exchange, again)
        except Exception as error:  # noqa: BLE001 - raised where Ray does not try again
            self._broken = error
        self._file = Path(job.directory) / OUTCOMES / f"{uuid.uuid4().hex}.jsonl"
        self._file_lock = threading.Lock()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._broken:
            raise self._broken
        numbers = [self._number(int(index)) for index in batch["id"]]
        results = self._worker.run(numbers)
        with self._file_lock:
            append_outcomes(self._file, [line_of(result, self._split(result.number)) for result in results])
        return {"number": numbers, "status": [str(result.done.status) for result in results]}

    def _number(self, index: int) -> int:
        return self._again[index] if index < len(self._again) else self._first + index - len(self._again)

    def _split(self, number: int) -> str:
        return str(self._task.sample(number)["split"])


def synthesize_on_ray(job: SynthesisJob) -> SynthesisResult:
    """One task, under a governor of its own or one that another job holds. See `fill`."""
    with governed(job) as governor:
        return fill(job, governor)


def fill(job: SynthesisJob, governor: Any) -> SynthesisResult:
    """Fill the task up to its count, in rounds; write the files of the dataset. Resumes from the journal.

    Several tasks one after the other may share a governor, and with it one budget and one ledger.
    Raises Stopped where the same command can go on, StageFailed where too few samples are accepted.
    """
    directory = Path(job.directory)
    _clear(directory, job.invocation)
    before = _ask(governor, "status", job)
    try:
        filled, published, status, asking_seconds = _filled(job, governor, before)
    except BaseException:
        with contextlib.suppress(ray.exceptions.RayError, UcotronRayError):
            # What is still in flight may be paid: the next invocation must know.
            _status(governor, job, before)
        raise
    shutil.rmtree(directory / OUTCOMES)
    (directory / outcomes.UNSETTLED).unlink(missing_ok=True)
    return SynthesisResult(
        filled.tally.counts,
        published.lines,
        published.failures,
        status["sent"],
        status["prompt_tokens"],
        status["completion_tokens"],
        status["usd"],
        filled.aside,
        asking_seconds,
    )


def _clear(directory: Path, token: str) -> None:
    """An empty directory for outcomes, which every sender must see."""
    shutil.rmtree(directory / OUTCOMES, ignore_errors=True)
    (directory / OUTCOMES).mkdir(parents=True)
    leave_token(directory / OUTCOMES, token)


def _filled(job: SynthesisJob, governor: Any, before: dict[str, Any]) -> tuple[Filled, Any, dict[str, Any], float]:
    """Rounds, then the dataset. The governor hears of the driver all the while: it ends itself when it is forgotten."""
    progress = watch.Progress(job.count)
    with (
        run_log.following(job.log_file),
        watch.watching(
            progress, lambda: watch.of_task(job, _status(governor, job, before), before), Path(job.metrics_file)
        ),
    ):
        filled = run_rounds(job, _crew(job, governor, progress), progress)
        ended = time.monotonic()
        say(job, filled)
        if filled.tally.missing > 0:
            so_far = _ask(governor, "status", job)
            raise_stopped(job, so_far, filled.tally)
            _in_task(publish_dataset, job, filled.planned, filled.aside)
            raise too_few(job, so_far, filled.tally, filled.planned)
        marks = _marks(job, governor, filled.planned)
        published = _in_task(publish_dataset, job, filled.planned, filled.aside, marks)
        status = watch.of_task(job, _ask(governor, "status", job), before)
        return filled, published, status, ended - (progress.asked_at or ended)


def _in_background(work: Callable[[], None], governor: Any, job: SynthesisJob) -> None:
    """A round in a thread; what it raises of Ray's is said in our words."""
    try:
        run_in_background(
            work,
            stop=lambda: _ask(governor, "end", job, "stopped by Ctrl-C or SIGTERM"),
            in_flight=lambda: int(_ask(governor, "status", job)["in_flight"]),
        )
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _cause(error) from error


def _crew(job: SynthesisJob, governor: Any, progress: watch.Progress) -> Crew:
    """The cluster as those who do the work of a round."""

    def ask(first: int, again: tuple[int, ...], planned: int) -> None:
        _in_background(partial(_one_round, job, governor, first, again, planned, progress), governor, job)

    return Crew(
        ask=ask,
        tally=lambda planned: _in_task(tally_samples, job, planned),
        answered=lambda: int(_ask(governor, "status", job)["answered"]),
        set_aside=lambda numbers: set_aside(job, numbers),
        is_stopped=lambda: _ask(governor, "status", job)["stop"] is not None,
    )


def _in_task(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of `between_rounds` returns, run in a process of its own."""
    return _get(ray.remote(work).options(num_cpus=1, max_retries=2).remote(*arguments))


def _one_round(
    job: SynthesisJob, governor: Any, first: int, again: tuple[int, ...], planned: int, progress: watch.Progress
) -> None:
    # Ray restarts actors that die and repeats their blocks: what was answered is in the journal, and the governor stops
    # a run whose workers keep dying. What they raise is said by us, where Ray Data would print it with two tracebacks.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = False
    context.enable_progress_bars = False
    # A long pause that the server asks for is no hang; the governor gives up by itself (`api.give_up_after`).
    context.execution_no_progress_timeout_s = -1
    num_samples = planned - first + len(again)
    size = max(1, min(SAMPLES_PER_BLOCK, num_samples // FEWEST_BLOCKS))
    calls = max(4, math.ceil(SAMPLES_PER_PLACE * job.limits.max_in_flight / job.num_actors / size))
    numbers = ray.data.range(num_samples, override_num_blocks=math.ceil(num_samples / size))
    statuses = numbers.map_batches(
        Synthesizer,
        fn_constructor_args=(job, governor, first, again),
        batch_size=None,
        num_cpus=ACTOR_CPUS,
        compute=ActorPoolStrategy(
            size=job.num_actors,
            max_concurrent_calls_per_actor=calls,
            max_tasks_in_flight_per_actor=calls + 2,
            enable_true_multi_threading=True,
        ),
    )
    for batch in statuses.iter_batches(batch_size=None, prefetch_batches=0):
        progress.count(batch["status"])


def _marks(job: SynthesisJob, governor: Any, planned: int) -> dict[str, Any] | None:
    """What a judge says of a sample of the rows, if one is configured. Raises Stopped where its answers are missing."""
    if job.judge is None:
        return None
    judge = job.judge
    _clear(Path(judge.directory), judge.invocation)
    _in_task(write_rows, job, planned)

    def ask(first: int, again: tuple[int, ...]) -> None:
        work = partial(_one_round, judge, governor, first, again, judge.count, watch.Progress(judge.count))
        _in_background(work, governor, judge)

    return read_by_judge(judge, ask, lambda: _ask(governor, "status", job))


@contextmanager
def governed(job: SynthesisJob) -> Iterator[Any]:
    """The cluster's governor for this server and model: the one that another job started, or a new one."""
    governor = _joined(job)
    try:
        yield governor
    finally:
        try:
            if ray.get(governor.leave.remote(job.invocation), timeout=5) == 0:
                ray.kill(governor)
        except (ray.exceptions.RayError, UcotronRayError):
            log.warning("synthesize: the limiter is gone")


def _joined(job: SynthesisJob) -> Any:
    """The limiter, with this run on its list. The last run that left may have ended it meanwhile: once more then."""
    for is_last in (False, True):
        governor = (
            ray.remote(GovernorActor)
            .options(
                name=f"governor {job.endpoint.base_url} {job.endpoint.model}",
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                max_restarts=0,
            )
            .remote(job.limits)
        )
        try:
            ray.get(governor.join.remote(job.invocation, job.budget, job.limits))
            return governor
        except ray.exceptions.RayError as error:
            if is_last or not isinstance(error, ray.exceptions.RayActorError):
                raise _cause(error) from error
    raise AssertionError("the last try returns or raises")


def _status(governor: Any, job: SynthesisJob, before: dict[str, Any]) -> dict[str, Any]:
    """The governor's status. What may be paid without being in the journal is noted for the next invocation."""
    status: dict[str, Any] = _ask(governor, "status", job)
    # Other tasks on this ledger have notes of their own.
    own = {rid: usd for rid, usd in status["open"].items() if rid not in before["open"]}
    outcomes.keep_unsettled(Path(job.directory), job.unsettled, own)
    return status


def _ask(governor: Any, method: str, job: SynthesisJob, *args: Any) -> Any:
    return _get(getattr(governor, method).remote(job.invocation, *args))


def _get(future: Any) -> Any:
    try:
        return ray.get(future)
    except (ray.exceptions.RayTaskError, ray.exceptions.RayError) as error:
        raise _cause(error) from error


def _cause(error: BaseException) -> UcotronRayError:
    next_step = "answers that were paid are kept"
    return session.cause_of(error, "synthesis failed on the workers", next_step=next_step, lost_is_stop=True)
