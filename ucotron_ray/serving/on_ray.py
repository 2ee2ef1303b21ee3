"""Ray Serve: one front that speaks HTTP, and replicas that hold the model.

    client ─► Serve's proxy ─► Endpoint (1, no CPU of its own) ─► Replica × num_replicas (batcher and model)

The front is one actor, so that the bound of its queue is one bound. It turns the loss of a replica into an answer that
a client may try again; Serve's own proxy would say 500 (`get_http_response_status`, ray 2.60).
"""

import asyncio
import logging
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException

from ucotron_ray.core import run_log, session
from ucotron_ray.core.errors import ResourceError, StageFailed
from ucotron_ray.core.place import Serving, Workers
from ucotron_ray.serving.app import Front, Limits
from ucotron_ray.serving.exchange import Piece, Question, Refusal, Served

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle
    from starlette.applications import Starlette

log = logging.getLogger(__name__)

APPLICATION = "ucotron"
DESCRIBE_SECONDS = 2.0
FRESH_SECONDS = 10.0
"""So long after an answer nobody has to ask whether a replica lives."""
HEALTH_SECONDS = 2.0
"""Between Serve's looks whether a replica lives; the default of 10 s is how long a lost one would be missed."""
LOST_RETRY_SECONDS = 1.0
SERVER_SECONDS, PROXY_SECONDS = 30.0, 2.0
"""When the Ucotron server gives up, and how long after our deadline Serve's proxy does (408)."""
IDLE_SECONDS = 90
"""A client's connection may be idle so long; longer than the gaps in an ingestion, so that no request meets a close."""
FRONT_REQUESTS = 10_000
"""Serve's own limit for the front is never the one that counts."""


@dataclass(frozen=True)
class ServeJob:
    """What the actors need. Plain data, no secret."""

    target_file: str
    settings: dict[str, Any]
    key_digest: str | None
    cpus: float
    gpus: float
    num_threads: int
    log_file: str


def resources_of(serving: Serving, place: Workers, *, gpu: bool) -> session.WorkerResources:
    """What one replica holds. Raises ResourceError if the cluster cannot hold all of them."""
    gpus = serving.gpus_per_replica if gpu else 0.0
    asked = {"num_workers": serving.num_replicas, "cpus_per_worker": serving.cpus_per_replica, "gpus_per_worker": gpus}
    workers = place.model_copy(update=asked)
    try:
        session.check_resources(workers)
    except ResourceError as error:
        raise ResourceError(
            "the cluster is too small for the replicas",
            where="serving.num_replicas, serving.cpus_per_replica, serving.gpus_per_replica",
            expected=error.expected,
            found=error.found,
            next_step="lower these settings, or join a larger cluster; cpus_per_replica may be a fraction",
        ) from error
    return session.worker_resources(workers)


def serve_on_ray(job: ServeJob, *, ready: Callable[[], None], look: Callable[[], None]) -> dict[str, int]:
    """Serve until SIGTERM or Ctrl-C, then answer what is inside; return how many requests were left at the end.

    `ready` is called once requests are answered, `look` every `serving.watch` seconds.
    """
    settings = Serving.model_validate(job.settings)
    with run_log.following(job.log_file):
        try:
            endpoint = _start(job, settings)
            with _asked_to_stop() as stop:
                ready()
                while not stop.wait(settings.watch):
                    look()
                log.info("serve: stopping; requests inside get up to %g s; once more to stop at once", settings.drain)
                return {"unanswered": _drain(endpoint, settings.drain)}
        finally:
            with suppress(ray.exceptions.RayError):
                serve.shutdown()


def refuse_a_second_one() -> None:
    """Leave a service alone that runs already. Raises ResourceError. To be asked before anything of ours is written."""
    running = serve.status()
    if running.proxies or running.applications:
        raise ResourceError(
            "Ray Serve runs on this cluster already, with an address of its own",
            where="ray.address",
            found=", ".join(running.applications) or "no application",
            next_step="stop it (`serve shutdown`), or serve on another cluster",
        )


def _start(job: ServeJob, settings: Serving) -> "DeploymentHandle":
    # Its own lines about what it starts would bury ours.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    options = {
        "host": settings.host,
        "port": settings.port,
        "keep_alive_timeout_s": IDLE_SECONDS,
        # Ours comes first; this one holds while the front itself is being started anew.
        "request_timeout_s": min(settings.deadline + PROXY_SECONDS, SERVER_SECONDS - 0.5),
    }
    serve.start(proxy_location="HeadOnly", http_options=options, logging_config=_quiet())
    replicas = serve.deployment(
        name="model",
        num_replicas=settings.num_replicas,
        # One batch runs, one waits in front of it: more would only be lost with the replica.
        max_ongoing_requests=2 * settings.max_batch,
        ray_actor_options={"num_cpus": job.cpus, "num_gpus": job.gpus},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_timeout_s=settings.drain,
        graceful_shutdown_wait_loop_s=0.1,
        max_constructor_retry_count=2,
        logging_config=_quiet(),
    )(Replica)
    front = serve.deployment(
        name="front",
        max_ongoing_requests=FRONT_REQUESTS,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=HEALTH_SECONDS,
        graceful_shutdown_wait_loop_s=0.1,
        max_constructor_retry_count=2,
        logging_config=_quiet(),
    )(serve.ingress()(Endpoint))
    try:
        return serve.run(front.bind(replicas.bind(asdict(job)), asdict(job)), name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise StageFailed(
            "the service did not start",
            where=job.log_file,
            found=next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else repr(error)),
            next_step="correct the cause and run the same command again",
        ) from error


def _drain(endpoint: "DeploymentHandle", seconds: float) -> int:
    try:
        left: int = endpoint.drain.remote(seconds).result(timeout_s=seconds + DESCRIBE_SECONDS)
    except (ray.exceptions.RayError, RayServeException, TimeoutError) as error:
        log.warning("serve: the front could not be asked to finish: %s", error)
        return 0
    return left


def _quiet() -> dict[str, object]:
    """Serve writes a line a request otherwise; ours are the metrics."""
    return {"enable_access_log": False, "log_level": "WARNING"}


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """SIGTERM and Ctrl-C set the event; a second one ends at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(signum: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Replica:
    """A model in an actor of its own."""

    def __init__(self, job: dict[str, Any]) -> None:
        from ucotron_ray.serving import backends, target  # noqa: PLC0415 - the model's libraries, in the actor only
        from ucotron_ray.serving.engine import Engine  # noqa: PLC0415
        from ucotron_ray.serving.switch import Switch  # noqa: PLC0415

        mine = ServeJob(**job)
        run_log.set_up_worker(mine.log_file)
        settings = Serving.model_validate(mine.settings)

        def load(wanted: target.Target) -> Engine:
            target.check(wanted)
            loaded = backends.load(wanted, num_threads=mine.num_threads)
            return Engine(wanted, loaded, max_batch=settings.max_batch, max_prompt_tokens=settings.max_prompt_tokens)

        self._switch = Switch(Path(mine.target_file), load, seconds=settings.watch)

    async def answer(self, question: Question) -> AsyncGenerator[Any, None]:
        """The parts of the answer; a refusal travels as its arguments, since Ray wraps what is raised."""
        try:
            async for piece in self._switch.answer(question):
                yield piece
        except Refusal as refusal:
            yield refusal.args

    async def served(self) -> Served:
        """What this replica serves."""
        return await self._switch.served()

    def check_health(self) -> None:
        """Raises once the model fails at every batch: Serve then starts another replica."""
        if not self._switch.healthy:
            raise StageFailed("the model fails at every batch")


class Endpoint:
    """The front in an actor of its own."""

    def __init__(self, replicas: "DeploymentHandle", job: dict[str, Any]) -> None:
        mine = ServeJob(**job)
        run_log.set_up_worker(mine.log_file)
        settings = Serving.model_validate(mine.settings)
        limits = Limits(
            slots=settings.num_replicas * settings.max_batch,
            queue=settings.max_queue,
            deadline=settings.deadline,
            max_body_bytes=settings.max_body_kb * 1024,
            max_tokens=settings.max_tokens,
            key_digest=mine.key_digest,
        )
        self._front = Front(_Replicas(replicas), limits)

    def __serve_build_asgi_app__(self) -> "Starlette":
        return self._front.app()

    async def drain(self, seconds: float) -> int:
        """Take nobody in any more; return how many are left inside after the time."""
        return await self._front.drain(seconds)


class _Replicas:
    """The replicas behind their handle, as the front asks them."""

    def __init__(self, handle: "DeploymentHandle") -> None:
        self._answers = handle.options(stream=True, method_name="answer")
        self._served = handle.options(method_name="served")
        self._seen: tuple[float, Served] | None = None
        """When a replica last answered, and as what."""

    async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        response, complete = self._answers.remote(question), False
        try:
            async for part in response:
                if isinstance(part, tuple):
                    status, message, code, param, retry_after = part
                    raise Refusal(status, message, code=code, param=param, retry_after=retry_after)
                self._seen = (time.monotonic(), part.served)
                yield part
            complete = True
        except (ray.exceptions.RayError, RayServeException) as error:
            log.warning("serve: a replica was lost with a request in it: %s", type(error).__name__)
            self._seen = None
            message = "the replica that had this request was lost; the others go on"
            raise Refusal(503, message, code="replica_lost", retry_after=LOST_RETRY_SECONDS) from error
        finally:
            if not complete:
                # Its row leaves the batch.
                response.cancel()

    async def served(self) -> Served:
        # A busy service has answered just now, and a question about it would wait behind all that wait.
        if self._seen is not None and time.monotonic() - self._seen[0] < FRESH_SECONDS:
            return self._seen[1]
        try:
            async with asyncio.timeout(DESCRIBE_SECONDS):
                found: Served = await self._served.remote()
        except (ray.exceptions.RayError, RayServeException, TimeoutError) as error:
            retry = HEALTH_SECONDS + LOST_RETRY_SECONDS
            raise Refusal(503, "no replica answers", code="no_replica", retry_after=retry) from error
        return found
