"""The real sender, limiter and journal against a server that is made of sleeps, on an event loop whose clock jumps.

Minutes of sending take seconds, and the same seed gives the same minutes.
"""

import asyncio
import hashlib
import random
import selectors
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from ucotron_ray.simulators.fireworks_limits import Limiter
from ucotron_ray.simulators.fireworks_settings import Settings as Server
from ucotron_ray.synthesis.governor import Governor
from ucotron_ray.synthesis.job import Sending
from ucotron_ray.synthesis.ledger import Budget, Settings
from ucotron_ray.synthesis.plan import Ask, Conversation, Done, Facts, Task
from ucotron_ray.synthesis.rows import RowKind
from ucotron_ray.synthesis.worker import Worker
from ucotron_ray.teacher.chat import read_limits
from ucotron_ray.teacher.endpoint import Endpoint
from ucotron_ray.teacher.outcome import OutcomeKind, RequestOutcome, Usage

BLOCK, LANES_OVER = 128, 8
"""As `synthesis/on_ray.py` hands samples out."""

REFUSAL_SECONDS = 0.05


class JumpingLoop(asyncio.SelectorEventLoop):
    """Its clock stands still until `runs`, and from then on jumps to the next timer whenever nothing else is to do."""

    def __init__(self) -> None:
        self.now = 0.0
        self.runs = False
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list:
        if not self._loop.runs or timeout is None:
            return super().select(None if timeout is None or timeout > 0 else 0)
        ready = super().select(0)
        if not ready:
            self._loop.now += timeout
        return ready


@dataclass
class SleepingServer:
    """Answers after `latency` seconds; of all requests a share of `noise` ends in a reset or a 500, whatever the load.

    `capacity`: more than so many at once, and what is too much is reset.
    """

    loop: JumpingLoop
    latency: float
    noise: float = 0.0
    limits: Server | None = None
    tells_limits: bool = True
    capacity: int | None = None
    in_flight: int = 0
    at: dict[str, list[float]] = field(default_factory=dict)
    """When what was said, by its name."""
    _seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.limiter = Limiter(self.limits, self.loop.time) if self.limits else None

    async def answer(self, body: dict, **_: object) -> RequestOutcome:
        """In place of `Client.ask`."""
        digest = hashlib.blake2b(str(body["messages"]).encode(), digest_size=8).hexdigest()
        self._seen[digest] += 1
        rng = random.Random(f"{digest}/{self._seen[digest]}")
        if self.limiter is not None and not self.limiter.admits():
            await asyncio.sleep(REFUSAL_SECONDS)
            return self._say("429", OutcomeKind.RATE_LIMITED)
        self.in_flight += 1
        is_over = self.capacity is not None and self.in_flight > self.capacity
        try:
            if rng.random() < self.noise or is_over:
                # A 500 comes with the answer's time, a reset at any moment before.
                if not is_over and rng.random() < 0.5:
                    await asyncio.sleep(self.latency)
                    return self._say("500", OutcomeKind.TRANSIENT)
                await asyncio.sleep(rng.uniform(0, self.latency))
                return self._say("reset", OutcomeKind.TRANSIENT, maybe_billed=True)
            await asyncio.sleep(self.latency * rng.uniform(0.9, 1.1))
            return self._say("200", OutcomeKind.ANSWER, text="yes", usage=Usage(50, 0, 50))
        finally:
            self.in_flight -= 1

    def _say(self, name: str, kind: OutcomeKind, **more) -> RequestOutcome:
        self.at.setdefault(name, []).append(self.loop.time())
        limits = read_limits(self.limiter.headers()) if self.limiter and self.tells_limits else None
        return RequestOutcome(kind, detail=name, limits=limits, **more)

    def count(self, name: str, begin: float, end: float) -> int:
        return sum(begin <= at < end for at in self.at.get(name, []))


def short_task() -> Task:
    """One request a sample."""

    def sample(number: int) -> Facts:
        return {"number": number, "split": "train"}

    def converse(facts: Facts) -> Conversation:
        yield Ask("ask", (("user", f"Sample {facts['number']}."),), 0.0, 64)
        return Done("accepted", row={"number": facts["number"]})

    return Task("short", 1, sample, converse, RowKind("short", dict, identity=str, labels=lambda row: ()))


@contextmanager
def sending(directory: Path, cap: int, **server) -> Iterator[tuple[Worker, Governor, SleepingServer]]:
    """A worker with its limiter on a jumping loop."""
    loop = JumpingLoop()
    sleeping = SleepingServer(loop, **server)
    limits = Settings(8, cap, None, None, None, 300.0)
    governor = Governor(limits, loop.time)
    governor.join("run", Budget(None, None), limits)

    async def exchange(name, finished, needs, trouble):
        governor.driver_is_alive("run")
        return governor.exchange("run", name, finished, needs, trouble)

    endpoint = Endpoint("http://127.0.0.1:9/v1", "m", None, None, ())
    how = Sending("run", 10.0, 120.0, 900.0, 3, 2.0)
    with mock.patch("asyncio.new_event_loop", return_value=loop):
        worker = Worker(short_task(), endpoint, None, how, directory, directory / "marks", exchange)
    worker._client.ask = sleeping.answer
    try:
        yield worker, governor, sleeping
    finally:
        worker.close()


def send_for(worker: Worker, server: SleepingServer, seconds: float, cap: int) -> None:
    """Send for so many seconds of the loop's clock: blocks in as many lanes as Ray would run at once."""

    async def lane(number: int, step: int) -> None:
        while server.loop.time() < seconds:
            await worker._all(range(number * BLOCK, (number + 1) * BLOCK))
            number += step

    async def all_lanes() -> None:
        server.loop.runs = True
        random.seed(0)
        lanes = max(4, -(-LANES_OVER * cap // BLOCK))
        await asyncio.gather(*(lane(number, lanes) for number in range(lanes)))

    asyncio.run_coroutine_threadsafe(all_lanes(), worker._loop).result()
