"""Runs many samples at once in one process: a private event loop, one HTTP session, one journal segment.

No Ray here: the limiter is a coroutine function that is handed in. A sample never raises for what a server or a model
does; a stop of the whole run leaves it `pending`.
"""

import asyncio
import contextlib
import logging
import random
import threading
import uuid
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

from ucotron_ray.synthesis.job import Sending
from ucotron_ray.synthesis.journal import Reader, Record, Writer
from ucotron_ray.synthesis.ledger import Finished, Need, Permit, Reserved
from ucotron_ray.synthesis.plan import Answer, Ask, Done, Ended, Facts, SampleResult, Task, request_body, request_id
from ucotron_ray.synthesis.poison import DEATHS, Mark
from ucotron_ray.synthesis.request_queue import RequestQueue, Waiting
from ucotron_ray.teacher.chat import client_timeout
from ucotron_ray.teacher.client import Client
from ucotron_ray.teacher.endpoint import Endpoint
from ucotron_ray.teacher.lengths import most_prompt_tokens
from ucotron_ray.teacher.lengths import prompt_tokens as count_prompt_tokens
from ucotron_ray.teacher.outcome import FATAL, FINAL, OutcomeKind, RequestOutcome
from ucotron_ray.teacher.prices import Price

log = logging.getLogger(__name__)

Exchange = Callable[[str, list[Finished], list[Need], str | None], Awaitable[Permit]]
"""Worker's name, results, needs, and trouble that must stop the whole run → permit."""

EXCHANGE_SECONDS = 0.02
"""Time between two calls of the limiter: 50 calls/s, each for as many requests as there are."""

HEARTBEAT_SECONDS = 2.0
GOVERNOR_SECONDS = 10.0
"""A limiter that does not answer for so long is lost: nothing is sent without it."""

FEWEST_OFFERED = 64
"""Needs that are offered at once, if there are so many, and two more for every result: what a window can take that
doubles. All of the queue in every call would be most of what the calls cost."""

MAX_BACKOFF_SECONDS = 60.0

SERVER = "server.json"
"""What the processes of a run have found out about the server, beside their marks."""


class Worker:
    """Answers samples. `run` may be called from several threads at once; everything else happens on the loop."""

    def __init__(
        self,
        task: Task,
        endpoint: Endpoint,
        price: Price | None,
        sending: Sending,
        journal: Path,
        marks: Path,
        exchange: Exchange,
    ) -> None:
        self._task = task
        self._endpoint = endpoint
        self._price = price
        self._sending = sending
        self._exchange = exchange
        self._client = Client(endpoint, marks / SERVER)
        self._name = uuid.uuid4().hex
        self._reader = Reader(journal)
        self._reader.refresh()
        self._journal = journal
        self._mark = Mark(marks)
        self._killers: set[int] = set()
        self._writer: Writer | None = None
        self._stop: str | None = None
        self._trouble: str | None = None
        self._queue = RequestQueue()
        self._permitted: deque[tuple[Waiting, Reserved]] = deque()
        self._in_flight = self._at_once = 0
        self._finished: list[Finished] = []
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        threading.Thread(target=self._serve, name="synthesis", daemon=True).start()
        self._ready.wait()

    def run(self, numbers: Sequence[int]) -> list[SampleResult]:
        """Run samples to their ends; in the order given."""
        # What a dead process had journaled for these samples must be found before anything is sent for them.
        return asyncio.run_coroutine_threadsafe(self._all(numbers), self._loop).result()

    def close(self) -> None:
        """Hand in what is left, make the journal durable, end the loop."""
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    # ---- the loop's thread -------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._open())
        self._ready.set()
        self._loop.run_forever()

    async def _open(self) -> None:
        sending = self._sending
        timeout = client_timeout(
            connect=sending.connect_timeout, read=sending.read_timeout, total=sending.total_timeout
        )
        await self._client.open(timeout)
        self._news = asyncio.Event()
        self._stopped = asyncio.Event()
        self._exchanging = asyncio.create_task(self._exchange_loop())

    async def _close(self) -> None:
        self._exchanging.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._exchanging
        if self._finished:
            await self._exchange(self._name, self._finished, [], self._trouble)
        await self._client.close()
        self._mark.close()
        if self._writer:
            self._writer.close()

    async def _all(self, numbers: Sequence[int]) -> list[SampleResult]:
        self._reader.refresh()
        self._killers |= self._mark.killers()
        return list(await asyncio.gather(*(self._sample(number) for number in numbers)))

    async def _sample(self, number: int) -> SampleResult:
        if number in self._killers:
            return SampleResult(number, Done("quarantined", reason=f"{DEATHS} processes ended over it"), 0)
        facts = self._mark.at(number, partial(self._task.sample, number))
        conversation = self._task.converse(facts)
        answers: list[Answer] = []
        sent: Counter[str] = Counter()
        try:
            ask = self._mark.at(number, partial(next, conversation))
            while True:
                answer = await self._answer(facts, ask, answers, sent)
                if isinstance(answer, Done):
                    return SampleResult(number, answer, sent["requests"])
                answers.append(answer)
                ask = self._mark.at(number, partial(conversation.send, answer))
        except StopIteration as end:
            return SampleResult(number, end.value, sent["requests"])
        except Ended as end:
            return SampleResult(number, end.done, sent["requests"])
        except Exception as error:
            # One sample must not take the others down with it. The answers so far are in the journal.
            log.exception("synthesize: sample %d", number)
            done = Done("quarantined", reason=f"a mistake in the task: {type(error).__name__}")
            return SampleResult(number, done, sent["requests"])
        finally:
            conversation.close()

    async def _answer(self, facts: Facts, ask: Ask, answers: Sequence[Answer], sent: Counter[str]) -> Answer | Done:
        """The journaled answer, or a new one; `pending` if there is none for now."""
        rid = request_id(self._task, self._endpoint.model, facts, ask, answers, self._endpoint.extra_body)
        known = self._reader.get(rid)
        if known is not None:
            return Answer(OutcomeKind(known.kind), known.text)
        return await self._send(rid, ask, sent, begun=bool(answers))

    async def _send(self, rid: str, ask: Ask, sent: Counter[str], *, begun: bool) -> Answer | Done:
        failures = attempts = 0
        while True:
            room = self._client.room
            body = request_body(self._endpoint.model, ask, rid, self._endpoint.extra_body, room=room)
            step = f"{self._task.name}.{ask.step}"
            need = Need(step, count_prompt_tokens(body), most_prompt_tokens(body), ask.max_tokens + room)
            reserved = await self._permit_for(need, begun=begun or attempts > 0)
            if reserved is None:
                return Done("pending", reason=self._stop)
            if room < self._client.room:
                # While it waited, an answer showed that the model thinks first: this one would be paid and cut off.
                self._in_flight -= 1
                self._finished.append(Finished(need, reserved, None, 0, 0, 0, 0.0, 0))
                continue
            attempts += 1
            sent["requests"] += 1
            try:
                outcome = await self._client.ask(body, is_stopped=lambda: bool(self._stop))
            except Exception as error:
                # The place in the window goes back whatever it was: where places leak, everything stands still.
                unclear = RequestOutcome(OutcomeKind.TRANSIENT, maybe_billed=True, detail=type(error).__name__)
                self._hand_in(need, reserved, unclear, reserved.usd, attempts)
                raise
            spoiled = outcome.kind not in (*FINAL, OutcomeKind.POISON, OutcomeKind.RATE_LIMITED)
            failures += spoiled
            usd = self._cost(outcome, reserved)
            if outcome.kind in (*FINAL, OutcomeKind.POISON) or usd:
                self._keep(rid, ask, outcome, usd, attempts)
            self._hand_in(need, reserved, outcome, usd, max(failures, 1))
            if outcome.kind in (*FINAL, OutcomeKind.POISON):
                return Answer(outcome.kind, _said(outcome))
            if outcome.kind in FATAL:
                return Done("pending", reason=outcome.detail)
            if spoiled:
                if failures > self._sending.max_retries:
                    return Done("pending", reason=f"no answer in {failures} attempts: {outcome.detail}")
                await self._pause(failures)

    def _cost(self, outcome: RequestOutcome, reserved: Reserved) -> float:
        if outcome.kind in FINAL:
            usage = outcome.usage
            return self._price.cost(usage.prompt, usage.cached, usage.completion) if self._price else 0.0
        return reserved.usd if outcome.maybe_billed else 0.0

    def _keep(self, rid: str, ask: Ask, outcome: RequestOutcome, usd: float, attempts: int) -> None:
        """Into the journal, before anybody looks at it."""
        record = Record(
            rid=rid,
            kind=str(outcome.kind),
            text=_said(outcome),
            finish=outcome.finish,
            run=self._sending.run,
            step=ask.step,
            model=self._endpoint.model,
            prompt_tokens=outcome.usage.prompt,
            cached_tokens=outcome.usage.cached,
            completion_tokens=outcome.usage.completion,
            estimated=outcome.usage.estimated,
            cost_usd=usd,
            attempts=attempts,
        )
        try:
            if self._writer is None:
                self._writer = Writer(self._journal)
            self._writer.append(record)
        except OSError as error:
            # An answer that cannot be kept would be paid again: send nothing more, here and anywhere.
            self._trouble = f"the journal cannot be written: {error.strerror}"
            self._halt(self._trouble)

    def _hand_in(self, need: Need, reserved: Reserved, outcome: RequestOutcome, usd: float, attempt: int) -> None:
        self._in_flight -= 1
        if outcome.kind not in FINAL:
            # The place that it leaves is filled once the limiter knows: it may cut the window, or stop the run.
            self._at_once = min(self._at_once, self._in_flight)
        self._let_go()
        usage = outcome.usage
        self._finished.append(
            Finished(
                need=need,
                reserved=reserved,
                kind=outcome.kind,
                prompt_tokens=usage.prompt,
                cached_tokens=usage.cached,
                completion_tokens=usage.completion,
                usd=usd,
                attempt=attempt,
                retry_after=outcome.retry_after,
                limits=outcome.limits,
                detail=outcome.detail,
            )
        )
        self._news.set()

    async def _pause(self, failures: int) -> None:
        """Full jitter, doubling; cut short when the run stops."""
        longest = min(MAX_BACKOFF_SECONDS, self._sending.retry_delay * 2 ** (failures - 1))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(0, longest)):
                await self._stopped.wait()

    async def _permit_for(self, need: Need, *, begun: bool) -> Reserved | None:
        """Wait for a permit to send; None if the run stops."""
        if self._stop:
            return None
        future: asyncio.Future[Reserved | None] = self._loop.create_future()
        self._queue.add((need, future), begun=begun)
        self._news.set()
        return await future

    async def _exchange_loop(self) -> None:
        while True:
            finished, self._finished = self._finished, []
            most = FEWEST_OFFERED + 2 * len(finished)
            offered = self._queue.offer(most)
            self._news.clear()
            try:
                needs = [need for _, (need, _) in offered]
                call = self._exchange(self._name, finished, needs, self._trouble)
                # Not `wait_for`: before Python 3.12 it swallows a cancellation that comes as the call returns
                # (github.com/python/cpython/issues/81839), and `_close` would wait for ever.
                async with asyncio.timeout(GOVERNOR_SECONDS):
                    permit = await call
            except Exception as error:  # noqa: BLE001 - whatever it is, without the limiter nothing may be sent
                log.warning("synthesize: the limiter was lost (%s); nothing more is sent", type(error).__name__)
                self._queue.put_back(offered)
                self._halt("the limiter was lost")
                return
            self._permitted.extend(
                (waiting, reserved) for (_, waiting), reserved in zip(offered, permit.reserved, strict=False)
            )
            self._queue.put_back(offered[len(permit.reserved) :])
            self._at_once = permit.at_once
            if permit.stop or self._stop:
                # What is still in flight is waited for and handed in.
                self._halt(permit.stop or self._stop)
            self._let_go()
            await asyncio.sleep(EXCHANGE_SECONDS)
            idle = permit.wait_seconds if self._queue or self._permitted else HEARTBEAT_SECONDS
            if not self._finished and idle > EXCHANGE_SECONDS:
                await self._wait_for_news(min(idle, HEARTBEAT_SECONDS))

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
        self._stop = self._stop or reason
        self._stopped.set()
        for (need, future), reserved in self._permitted:
            self._finished.append(Finished(need, reserved, None, 0, 0, 0, 0.0, 0))
            future.set_result(None)
        self._permitted.clear()
        for _, future in self._queue.drain():
            future.set_result(None)


def _said(outcome: RequestOutcome) -> str:
    """What the journal keeps of it: the model's text, or the server's words on why there is none."""
    if outcome.kind is OutcomeKind.TRUNCATED:
        # All of it may have gone into reasoning.
        return outcome.text or outcome.detail
    return outcome.text if outcome.kind in FINAL else outcome.detail
