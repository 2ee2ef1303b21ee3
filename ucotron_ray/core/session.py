"""The connection to Ray: started or joined, checked for what was asked, and left clean."""

import logging
import math
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import grpc
import ray
from ray._private import services
from ray._private.grpc_utils import init_grpc_channel
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.autoscaler.sdk import request_resources
from ray.autoscaler.v2.sdk import get_cluster_resource_state

from ucotron_ray.core import cluster, demand, failures, placement, worker_environment
from ucotron_ray.core.errors import ConfigError, StageFailed, Stopped, UcotronRayError
from ucotron_ray.core.place import Place, Workers

log = logging.getLogger(__name__)

GROWTH_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class WorkerResources:
    """What one worker holds."""

    cpus: float
    gpus: float

    @property
    def threads(self) -> int:
        """Threads for one worker's arithmetic."""
        return max(1, math.floor(self.cpus))

    def as_ray(self) -> dict[str, float]:
        """In Ray's terms."""
        return {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}


@contextmanager
def connected(place: Place, *, hub: bool) -> Iterator[None]:
    """A cluster for the time of the block: the one of RAY_ADDRESS or of the place, else a local one of our own.

    Workers may reach for a model hub only with `hub`.
    """
    address = cluster.address_of(place)
    if address:
        cluster.check_answers(address)
        _check_head(address)
    environment = {**worker_environment.VARIABLES, **worker_environment.forwarded(place)}
    if not hub:
        environment["HF_HUB_OFFLINE"] = "1"
    os.environ.update(environment)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Two processes of Ray's own would otherwise set up metrics exporters on every interface.
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
    # Ray gives its workers a niceness of 15: beside anything else on this machine they would get a thirtieth of it.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Work that was killed because memory ran out is else started again without end, in silence.
    os.environ.setdefault("RAY_task_oom_retries", "2")
    # Ray's own lines would bury ours; they stay in Ray's log directory.
    common = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address:
        # A job's own variables may be among ours; without this Ray takes a name that stands in both for a mistake.
        os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
        _join(address, runtime_env={"env_vars": environment}, **common)
    else:
        _note_others()
        # Nobody takes this machine away: one actor less.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Workers of our own cluster inherit the environment; a runtime_env would keep Ray from starting them ahead.
        ray.init(
            address="local",
            num_cpus=place.ray.num_cpus,
            include_dashboard=place.ray.dashboard,
            object_store_memory=place.ray.object_store_mb * 1024**2,
            _temp_dir=place.ray.temp_dir,
            **common,
        )
    # Ray's own handler ends the process with exit 1; ours lets the stages leave things in order.
    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        with demand.watched(lambda: _demand(is_own=not address)):
            yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        ray.shutdown()


def _join(address: str, **options: Any) -> None:
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = failures.first_line(error)
        raise cluster.refused(cluster.NOBODY, address, said=said, next_step=cluster.STEP) from error


def _check_head(address: str) -> None:
    """Raise ConfigError where somebody answers who is no Ray head, or one that wants another token.

    Ray's own client asks such a head again and again, and says at the end that it is not there.
    """
    if address == "local" or "://" in address:
        # Ray Client's server is another one.
        return
    try:
        # For 127.0.0.1 Ray asks this machine's address in its network.
        asked = services.canonicalize_bootstrap_address_or_die(address)
        for found in dict.fromkeys([asked if address == "auto" else address, asked]):
            # With TLS and the token as Ray's own calls have them.
            with init_grpc_channel(found) as channel:
                channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetClusterId")(b"", timeout=cluster.ANSWER_SECONDS)
    except ConnectionError as error:
        said = failures.first_line(error)
        raise cluster.refused(cluster.NOBODY, address, said=said, next_step=cluster.STEP) from error
    except ray.exceptions.AuthenticationError as error:
        raise _wants_token(address, failures.first_line(error)) from error
    except grpc.RpcError as error:
        said = f"{error.code().name}, {error.details()}"
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            raise _wants_token(address, said) from error
        raise cluster.refused("what answers is no Ray head", address, said=said, next_step=cluster.STEP) from error


def _wants_token(address: str, said: str) -> ConfigError:
    return cluster.refused(
        "the cluster asks for a token that it was not given",
        address,
        said=said,
        next_step="copy its token to ~/.ray/auth_token, mode 0600, or name the file in RAY_AUTH_TOKEN_PATH, and export "
        "RAY_AUTH_MODE=token (cluster/README.md)",
    )


def _note_others() -> None:
    """Say that a cluster runs on this machine and is not joined: who ran `ray start` may think that it is."""
    others = sorted(services.find_gcs_addresses())
    if others:
        log.info("cluster: starting one of our own beside %s; RAY_ADDRESS=%s would join it", others[0], others[0])


def _demand(*, is_own: bool) -> demand.Demand:
    """What waits for room now; of a cluster of our own only what can never have any, for the rest is our own queue."""
    state = get_cluster_resource_state(GcsClient(address=ray.get_runtime_context().gcs_address))
    gangs = [request for gang in state.pending_gang_resource_requests for request in gang.requests]
    counted = [(entry.request, entry.count) for entry in state.pending_resource_requests] + [(one, 1) for one in gangs]
    waiting, nodes = Counter[tuple[tuple[str, float], ...]](), _nodes()
    for request, count in counted:
        one = dict(request.resources_bundle)
        if one and not (is_own and placement.room(nodes, one)):
            waiting[tuple(sorted(one.items()))] += count
    return demand.Demand(waiting, nodes)


def worker_resources(workers: Workers) -> WorkerResources:
    """CPUs and GPUs of one worker, from the place or from what the cluster has."""
    nodes = _nodes()
    gpus = workers.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if placement.total(nodes, "GPU") >= workers.num_workers else 0.0
    cpus = workers.cpus_per_worker
    if cpus is None:
        cpus = placement.largest_share(nodes, workers.num_workers, gpus)
    return WorkerResources(cpus, gpus)


def needs_group(place: Place) -> bool:
    """Whether training needs a group of Ray Train: for several workers, and on a cluster that others run.

    There Ray Train's view in the dashboard and the notice that a node goes are worth its five processes. Beside one
    worker on this machine they would cost it 4 % of every step and 16 s a run (`training_ray.json`).
    """
    return place.workers.num_workers > 1 or cluster.address_of(place) is not None


def check_resources(workers: Workers) -> None:
    """Refuse what could only wait for ever: Ray retries an unplaceable worker group without end.

    Raises ResourceError if the cluster has too little in all, or no way to spread its nodes' share over the workers.
    """
    placement.check(_nodes(), worker_resources(workers).as_ray(), workers.num_workers)


def wait_for_nodes(workers: Workers, seconds: float) -> None:
    """Ask a cluster that grows for nodes that hold the workers, and wait until they are there, at most so long.

    Ray's autoscaler counts what waits for resources; a run that refuses what is not there would never make it grow.
    The place says what a worker holds: with null it would be derived from the nodes that there are.
    """
    one = worker_resources(workers).as_ray()
    deadline = time.monotonic() + seconds
    if room_for(workers) >= workers.num_workers:
        return
    log.info("cluster: waiting up to %.0f s for nodes with room for %d x %s", seconds, workers.num_workers, one)
    request_resources(bundles=[one] * workers.num_workers)
    try:
        while room_for(workers) < workers.num_workers and time.monotonic() < deadline:
            time.sleep(GROWTH_POLL_SECONDS)
    finally:
        # A request holds until the next one: nodes would stay for ever.
        request_resources(bundles=[])


def room_for(workers: Workers) -> int:
    """How many such workers the living nodes hold together."""
    return placement.room(_nodes(), worker_resources(workers).as_ray())


def groups_on_gpus(workers: Workers) -> int:
    """How many such groups of workers the cluster's GPUs hold; 1 for workers without any."""
    gpus = worker_resources(workers).gpus * workers.num_workers
    return max(1, math.floor(placement.total(_nodes(), "GPU") / gpus)) if gpus else 1


def worker_memory(workers: Workers) -> float | None:
    """Bytes that one worker can have, on the smallest of the nodes that take one; None where Ray does not know."""
    known = placement.memories(_nodes(), worker_resources(workers).as_ray())
    return min(known) / math.ceil(workers.num_workers / len(known)) if known else None


def task_memory(workers: Workers) -> float | None:
    """Bytes of the largest node with a worker's processors: a task that says what it needs is started there."""
    return max(placement.memories(_nodes(), {"CPU": worker_resources(workers).cpus}), default=None)


def _nodes() -> list[placement.Resources]:
    """What each living node has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def in_worker(function: Callable[[Any], Any], argument: Any, resources: WorkerResources, **options: Any) -> Any:
    """`in_workers` for one argument."""
    (result,) = in_workers(function, [argument], resources, **options)
    return result


def in_workers(
    function: Callable[[Any], Any],
    arguments: Sequence[Any],
    resources: WorkerResources,
    *,
    max_failures: int,
    memory: float | None = None,
    repeat_errors: bool = False,
) -> list[Any]:
    """What the function returns for each argument, in processes with these resources.

    Where a process was lost, also because memory ran out, its work is started again, so many times for each argument;
    with `repeat_errors` (of training, which goes on from a checkpoint) also where the function raised an error that
    may pass (`failures.py`). Raises a RayError after the last failure, and any other error at once. Ray's own
    `max_retries` does not count what memory ran out
    for. `memory` is what it needs in bytes: it then starts where a node has that much left.
    """
    # max_calls: the process ends with its work, and its memory goes back.
    task = ray.remote(max_calls=1, max_retries=0)(function).options(
        num_cpus=resources.cpus, num_gpus=resources.gpus, **({"memory": int(memory)} if memory else {})
    )
    running = {task.remote(argument): number for number, argument in enumerate(arguments)}
    results, failed = dict.fromkeys(running.values()), Counter[int]()
    while running:
        (done,), _ = ray.wait(list(running), num_returns=1)
        number = running.pop(done)
        try:
            results[number] = ray.get(done)
        except ray.exceptions.RayError as error:
            failed[number] += 1
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else None
            stays = cause is not None and not (repeat_errors and failures.may_pass(cause))
            if failed[number] > max_failures or stays or _own_error(error) is not None:
                raise
            log.warning("a worker failed: started again, %d of %d: %s", failed[number], max_failures, _said(error))
            running[task.remote(arguments[number])] = number
    return list(results.values())


def cause_of(
    error: BaseException, problem: str, *, next_step: str, where: str | None = None, lost_is_stop: bool = False
) -> UcotronRayError:
    """What to raise for an error of Ray's: our own error inside its wrapping, else StageFailed with its last line.

    Where Ray has no room left it is Stopped: with some room the same command goes on. With `lost_is_stop` a lost actor,
    node or object is Stopped, too.
    """
    failures = list((getattr(error, "worker_failures", None) or {0: error}).values())
    for outer in failures:
        own = _own_error(outer)
        if own is not None:
            return own
    if isinstance(error, _NO_ROOM):
        return Stopped(
            "stopped: Ray's object store is full, and so is the disk that it spills to",
            found=type(error).__name__,
            next_step="free space where the nodes spill (RAY_SPILL_DIR of cluster/local-head.sh), then run the same "
            "command again",
        )
    found = _said(failures[0])
    if lost_is_stop and isinstance(error, _LOST):
        return Stopped("stopped: a part of the cluster was lost", found=found, next_step="run the same command again")
    log.debug("%s", problem, exc_info=error)
    return StageFailed(problem, where=where, found=found, next_step=next_step)


def _said(error: BaseException) -> str:
    """What Ray says of a failure, in a line."""
    # Of a worker in a group of Ray Train.
    error = getattr(error, "health_check_failure", error)
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        used = re.search(r"was (\S+) used / (\S+) limit", str(error))
        return "memory ran out, and Ray ended the process" + (f": {used[1]} of {used[2]} were used" if used else "")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


_NO_ROOM = (ray.exceptions.OutOfDiskError, ray.exceptions.ObjectStoreFullError)

_LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.RaySystemError,
)


def _own_error(error: BaseException) -> UcotronRayError | None:
    cause: BaseException | None = error
    while cause is not None:
        inner = getattr(cause, "cause", None) or cause.__cause__
        # Ray's own error of two classes says its block behind a remote traceback: the one inside of it does not.
        if isinstance(cause, UcotronRayError) and not isinstance(inner, UcotronRayError):
            return cause
        cause = inner
    return None


def _stop(signum: int, frame: FrameType | None) -> None:
    # `ray.get` lets only KeyboardInterrupt and SystemExit through (`check_signals` in _raylet.pyx, ray 2.60).
    raise KeyboardInterrupt
