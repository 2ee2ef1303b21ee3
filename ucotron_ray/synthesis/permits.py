"""A sending process's side of the limiter: requests wait here for permits, and results are handed in.

Everything happens on one event loop; the limiter is a coroutine function that is handed in.
"""

import asyncio
import contextlib
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable

from ucotron_ray.synthesis.ledger import Finished, Need, Permit, Reserved
from ucotron_ray.synthesis.request_queue import RequestQueue, Waiting
from ucotron_ray.teacher.outcome import FINAL, OutcomeKind

log = logging.getLogger(__name__)

Exchange = Callable[[str, list[Finished], list[Need], str | None], Awaitable[Permit]]
"""Worker's name, results, needs, and trouble that must stop the whole run → permit."""

EXCHANGE_SECONDS = 0.02
"""Time between two calls of the limiter: 50 calls/s, each for as many requests as there are."""

HEARTBEAT_SECONDS = 2.0
STALL_SECONDS = 10.0
"""A limiter that does not answer for so long stands still: it is waited for, and nothing new is permitted."""

LOST_SECONDS = 120.0
"""One that does not answer for so long is lost."""

FEWEST_OFFERED = 64
"""Needs that are offered at once, if there are so many, and two more for every result: what a window can take that
doubles. All of the queue in every call would be most of what the calls cost."""


class Permits:
    """What a process may send, and why it may send no more (`stop`)."""

    def __init__(self, exchange: Exchange) -> None:
        self.stop: str | None = None
        self.is_lost = False
        """The limiter cannot be reached any more: others may go on, this process cannot."""
        self._exchange = exchange
        self._name = uuid.uuid4().hex
        self._trouble: str | None = None
        self._queue = RequestQueue()
        self._permitted: deque[tuple[Waiting, Reserved]] = deque()
        self._in_flight = self._at_once = 0
        self._finished: list[Finished] = []

    def start(self) -> None:
        """Begin, on the running loop."""
        self._news = asyncio.Event()
        self.stopped = asyncio.Event()
        self._exchanging = asyncio.create_task(self._exchange_loop())

    async def close(self) -> None:
        """Hand in what is left."""
        self._exchanging.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._exchanging
        if self._finished and not self.is_lost:
            await self._exchange(self._name, self._finished, [], self._trouble)

    async def permit_for(self, need: Need, *, begun: bool) -> Reserved | None:
        """Wait for a permit to send; None if the run stops."""
        if self.stop:
            return None
        future: asyncio.Future[Reserved | None] = asyncio.get_running_loop().create_future()
        self._queue.add((need, future), begun=begun)
        self._news.set()
        return await future

    def hand_in(self, result: Finished) -> None:
        """What came of a request that was permitted."""
        self._in_flight -= 1
        if result.kind not in (*FINAL, OutcomeKind.TRANSIENT):
            # The place that it leaves is filled once the limiter knows: it may cut the window, or stop the run.
            self._at_once = min(self._at_once, self._in_flight)
        self._let_go()
        self._finished.append(result)
        self._news.set()

    def end_all(self, trouble: str) -> None:
        """Let nothing be sent any more, here and anywhere."""
        self._trouble = trouble
        self._halt(trouble)

    # ---- inside ------------------------------------------------------------------------------------------------------

    async def _exchange_loop(self) -> None:
        while True:
            finished, self._finished = self._finished, []
            most = FEWEST_OFFERED + 2 * len(finished)
            offered = self._queue.offer(most)
            self._news.clear()
            try:
                permit = await self._answer(finished, [need for _, (need, _) in offered])
            except Exception as error:  # noqa: BLE001 - whatever it is, without the limiter nothing may be sent
                log.warning("synthesize: the limiter was lost (%s); nothing more is sent", type(error).__name__)
                self._queue.put_back(offered)
                self.is_lost = True
                self._halt("the limiter was lost")
                return
            self._permitted.extend(
                (waiting, reserved) for (_, waiting), reserved in zip(offered, permit.reserved, strict=False)
            )
            self._queue.put_back(offered[len(permit.reserved) :])
            self._at_once = permit.at_once
            if permit.stop or self.stop:
                # What is still in flight is waited for and handed in.
                self._halt(permit.stop or self.stop)
            self._let_go()
            await asyncio.sleep(EXCHANGE_SECONDS)
            idle = permit.wait_seconds if self._queue or self._permitted else HEARTBEAT_SECONDS
            if not self._finished and idle > EXCHANGE_SECONDS:
                await self._wait_for_news(min(idle, HEARTBEAT_SECONDS))

    async def _answer(self, finished: list[Finished], needs: list[Need]) -> Permit:
        """The limiter's answer, however long it stands still; asked once, since it counts what it is told.

        Raises TimeoutError after LOST_SECONDS.
        """
        call = asyncio.ensure_future(self._exchange(self._name, finished, needs, self._trouble))
        try:
            waited = 0.0
            # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes as the call returns
            # (github.com/python/cpython/issues/81839), and `close` would wait for ever.
            while not (await asyncio.wait({call}, timeout=STALL_SECONDS))[0]:
                waited += STALL_SECONDS
                if waited >= LOST_SECONDS:
                    raise TimeoutError
                log.warning("synthesize: the limiter has not answered for %g s; waiting for it", waited)
            return call.result()
        finally:
            call.cancel()

    def _let_go(self) -> None:
        """Send what is permitted, as far as there is room."""
        while self._permitted and self._in_flight < self._at_once:
            (_, future), reserved = self._permitted.popleft()
            self._in_flight += 1
            future.set_result(reserved)

    async def _wait_for_news(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()

    def _halt(self, reason: str | None) -> None:
        self.stop = self.stop or reason
        self.stopped.set()
        for (need, future), reserved in self._permitted:
            self._finished.append(Finished(need, reserved, None, 0, 0, 0, 0.0, 0))
            future.set_result(None)
        self._permitted.clear()
        for _, future in self._queue.drain():
            future.set_result(None)
