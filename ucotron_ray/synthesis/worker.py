"""Runs many samples at once in one process: a private event loop, one HTTP session, one journal segment.

No Ray here: the limiter is a coroutine function that is handed in. A sample never raises for what a server or a model
does; a stop of the whole run leaves it `pending`.
"""

import asyncio
import contextlib
import logging
import platform
import random
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ucotron_ray.core.errors import Stopped
from ucotron_ray.synthesis.job import Sending
from ucotron_ray.synthesis.journal import Reader, Record, Writer, server_of
from ucotron_ray.synthesis.ledger import Finished, Need, Reserved
from ucotron_ray.synthesis.permits import Exchange, Permits
from ucotron_ray.synthesis.plan import Answer, Ask, Done, Ended, SampleResult, Task, request_body, request_id
from ucotron_ray.synthesis.poison import DEATHS, Mark
from ucotron_ray.teacher.chat import client_timeout
from ucotron_ray.teacher.client import Client
from ucotron_ray.teacher.endpoint import Endpoint
from ucotron_ray.teacher.lengths import most_prompt_tokens
from ucotron_ray.teacher.lengths import prompt_tokens as count_prompt_tokens
from ucotron_ray.teacher.outcome import FATAL, FINAL, OutcomeKind, RequestOutcome
from ucotron_ray.teacher.prices import Price

log = logging.getLogger(__name__)

MAX_BACKOFF_SECONDS = 60.0

SERVER = "server.json"
"""What the processes of a run have found out about the server, beside their marks."""

HTTP_OK = 200


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
        again: Collection[int] = (),
    ) -> None:
        """`again`: samples that an earlier round of this invocation asked for in vain."""
        self._task = task
        self._endpoint = endpoint
        self._price = price
        self._sending = sending
        self._again = frozenset(again)
        self._servers = [server_of(url) for url in (endpoint.base_url, *endpoint.more_urls)]
        self._client = Client(endpoint, marks / SERVER)
        self._reader = Reader(journal)
        self._reader.refresh()
        self._journal = journal
        self._mark = Mark(marks)
        self._killers: set[int] = set()
        self._writer: Writer | None = None
        self._permits = Permits(exchange)
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        threading.Thread(target=self._serve, name="synthesis", daemon=True).start()
        self._ready.wait()

    def run(self, numbers: Sequence[int]) -> list[SampleResult]:
        """Run samples to their ends; in the order given. Raises Stopped where the limiter cannot be reached any more.

        Without it every sample would end as pending at once, and this process would take the work of all others.
        """
        results = asyncio.run_coroutine_threadsafe(self._all(numbers), self._loop).result()
        if self._permits.is_lost:
            raise Stopped(
                "stopped: the limiter cannot be reached from one of the nodes",
                where=platform.node(),
                next_step="run the same command again: what was answered is kept and not paid again",
            )
        return results

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
        self._permits.start()

    async def _close(self) -> None:
        await self._permits.close()
        await self._client.close()
        self._mark.close()
        if self._writer:
            self._writer.close()

    async def _all(self, numbers: Sequence[int]) -> list[SampleResult]:
        # What a dead process had journaled for these samples must be found before anything is sent for them.
        self._reader.refresh()
        self._killers |= self._mark.killers()
        return list(await asyncio.gather(*(self._sample(number) for number in numbers)))

    async def _sample(self, number: int) -> SampleResult:
        spent = _Spent()
        done = await self._end_of(number, spent)
        return SampleResult(number, done, spent.requests, spent.usd, tuple(spent.elsewhere))

    async def _end_of(self, number: int, spent: "_Spent") -> Done:
        if number in self._killers:
            return Done("quarantined", reason=f"{DEATHS} processes ended over it")
        facts = self._mark.at(number, partial(self._task.sample, number))
        conversation = self._task.converse(facts)
        answers: list[Answer] = []
        try:
            ask = self._mark.at(number, partial(next, conversation))
            while True:
                rid = request_id(self._task, self._endpoint.model, facts, ask, answers, self._endpoint.extra_body)
                answer = self._journaled(rid, spent) or await self._send(
                    rid, ask, spent, begun=bool(answers), is_new=number not in self._again
                )
                if isinstance(answer, Done):
                    return answer
                answers.append(answer)
                ask = self._mark.at(number, partial(conversation.send, answer))
        except StopIteration as end:
            done: Done = end.value
            return done
        except Ended as end:
            return end.done
        except Exception as error:
            # One sample must not take the others down with it. The answers so far are in the journal.
            log.exception("synthesize: sample %d", number)
            return Done("quarantined", reason=f"a mistake in the task: {type(error).__name__}")
        finally:
            conversation.close()

    def _journaled(self, rid: str, spent: "_Spent") -> Answer | None:
        known = self._reader.get(rid)
        if known is None:
            return None
        if known.server not in (None, *self._servers):
            spent.elsewhere.append(str(known.server))
        return Answer(OutcomeKind(known.kind), known.text)

    async def _send(self, rid: str, ask: Ask, spent: "_Spent", *, begun: bool, is_new: bool) -> Answer | Done:
        """A new answer; `pending` if there is none for now."""
        step = f"{self._task.name}.{ask.step}"
        is_new = is_new and not self._reader.was_refused(rid)
        failures = attempts = 0
        while True:
            room = self._client.room
            body = request_body(self._endpoint.model, ask, rid, self._endpoint.extra_body, room=room)
            need = Need(step, count_prompt_tokens(body), most_prompt_tokens(body), ask.max_tokens + room, rid, is_new)
            reserved = await self._permits.permit_for(need, begun=begun or attempts > 0)
            if reserved is None:
                return Done("pending", reason=self._permits.stop)
            if room < self._client.room:
                # While it waited, an answer showed that the model thinks first: this one would be paid and cut off.
                self._permits.hand_in(Finished(need, reserved, None, 0, 0, 0, 0.0, 0))
                continue
            attempts += 1
            spent.requests += 1
            try:
                outcome = await self._client.ask(body, is_stopped=lambda: bool(self._permits.stop))
            except Exception as error:
                # The place in the window goes back whatever it was: where places leak, everything stands still.
                unclear = RequestOutcome(OutcomeKind.TRANSIENT, maybe_billed=True, detail=type(error).__name__)
                self._hand_in(need, reserved, unclear, reserved.usd, attempts)
                raise
            is_answer = outcome.kind in (*FINAL, OutcomeKind.POISON)
            spoiled = not is_answer and outcome.kind not in (OutcomeKind.RATE_LIMITED, OutcomeKind.REJECTED)
            failures += spoiled
            usd = self._cost(outcome, reserved)
            spent.usd += usd
            if is_answer or outcome.kind is OutcomeKind.REJECTED or usd:
                self._keep(rid, ask, outcome, usd, attempts)
            self._hand_in(need, reserved, outcome, usd, max(failures, 1))
            if is_answer:
                return Answer(outcome.kind, _said(outcome))
            if outcome.kind in FATAL or outcome.kind is OutcomeKind.REJECTED:
                return Done("pending", reason=outcome.detail)
            if spoiled:
                if failures > self._sending.max_retries:
                    return Done("pending", reason=f"no answer in {failures} attempts: {outcome.detail}")
                await self._pause(failures)

    def _cost(self, outcome: RequestOutcome, reserved: Reserved) -> float:
        if outcome.kind in FINAL:
            usage = outcome.usage
            return self._price.cost(usage.prompt, usage.cached, usage.completion) if self._price else 0.0
        return reserved.usd if outcome.maybe_billed and outcome.kind not in FATAL else 0.0

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
            server=self._servers[0],
            at=time.time(),
        )
        try:
            if self._writer is None:
                self._writer = Writer(self._journal)
            self._writer.append(record)
        except OSError as error:
            # An answer that cannot be kept would be paid again.
            self._permits.end_all(f"the journal cannot be written: {error.strerror}")

    def _hand_in(self, need: Need, reserved: Reserved, outcome: RequestOutcome, usd: float, attempt: int) -> None:
        usage = outcome.usage
        self._permits.hand_in(
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
                unreadable=outcome.kind is OutcomeKind.TRANSIENT and outcome.status == HTTP_OK,
            )
        )

    async def _pause(self, failures: int) -> None:
        """Full jitter, doubling; cut short when the run stops."""
        longest = min(MAX_BACKOFF_SECONDS, self._sending.retry_delay * 2 ** (failures - 1))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(random.uniform(0, longest)):
                await self._permits.stopped.wait()


@dataclass
class _Spent:
    """What one sample took: requests sent now, dollars, and the servers that gave its journaled answers."""

    requests: int = 0
    usd: float = 0.0
    elsewhere: list[str] = field(default_factory=list)


def _said(outcome: RequestOutcome) -> str:
    """What the journal keeps of it: the model's text, or the server's words on why there is none."""
    if outcome.kind is OutcomeKind.TRUNCATED:
        # All of it may have gone into reasoning.
        return outcome.text or outcome.detail
    return outcome.text if outcome.kind in FINAL else outcome.detail
