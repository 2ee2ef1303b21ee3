"""One limiter for the whole cluster: how many requests may be in flight, how fast, and how many dollars they may cost.

Workers ask in bulk (`exchange`): they hand in what came of earlier requests and the needs of the next ones in their
queue, and get permits for the first few of these. Plain Python with the clock as an argument; `on_ray.py` makes an
actor of it. The window follows TCP: it grows by one per answer until the server first says no (slow start), then by a
thirty-second of itself per round of answers; it is halved on 429, 503 and 529, at most once a second. Resets, timeouts
and other errors happen without load, too: they halve it only where they are more than a share (`window.MOST_ERRORS`).

Permits are given ahead of the window, too: a worker sends what it may in the moment in which one of its requests comes
back, and never waits for the limiter while it has some (512 in flight at 1 s latency: 414 answers/s without).
"""

from collections.abc import Callable
from functools import reduce

from ucotron_ray.synthesis.ledger import Budget, Finished, Ledger, Need, Permit, Reserved, Sender, Settings, stricter
from ucotron_ray.teacher.outcome import FATAL, FINAL, UNANSWERABLE, Limits, OutcomeKind
from ucotron_ray.teacher.window import BURST_SECONDS, CUT_PAUSE_SECONDS, Bucket, GuessedRate, Window, per_second

CUT, HARD_CUT = 0.5, 0.25
HARD_CUT_ATTEMPT = 3

AHEAD_SHARE = 1 / 4
"""Of the window, that is permitted beyond it, to be sent when something comes back."""

AHEAD_SECONDS = 0.5
"""Of a rate of requests, that is permitted beyond the window: more would be sent as a burst that the server refuses."""

RATE_SHARE = 0.97
"""Of a limit that the server tells us: its clock and ours are not one."""

LEASE_SECONDS = 10.0
"""After so long without a word a worker counts as dead, and what it had in flight as lost, and paid."""

DRIVER_SECONDS = 8.0
"""After so long without a word of the driver nothing is sent any more."""

MOST_LOST_WORKERS = 50
"""Of one run, that died with requests in flight."""

STALL_SECONDS = 5.0
"""If nobody was heard for so long (drivers speak every second), it was the limiter that stood still."""

IDLE_WAIT_SECONDS = 0.05
_USAGE_WEIGHT = 0.02


class Governor:
    """The state of the limiter: one window and one set of rates for all runs, a ledger for each."""

    def __init__(self, settings: Settings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.clock = clock
        self.runs: dict[str, Ledger] = {}
        self._window = Window(float(settings.first_in_flight), settings.max_in_flight)
        self._requests, self._prompt, self._uncached, self._generated = (Bucket() for _ in range(4))
        self._guessed = GuessedRate(since=clock())
        self._is_told = False
        self._buckets = (self._requests, self._prompt, self._uncached, self._generated, self._guessed)
        self._adopt(settings)
        for bucket in self._buckets:
            bucket.refill(BURST_SECONDS)
        self._workers: dict[str, Sender] = {}
        self._usual: dict[str, float] = {}
        self._refilled = self._paused_until = self._called = clock()
        self._failing_since: float | None = None

    @property
    def window(self) -> float:
        """How many requests may be in flight now."""
        return self._window.size

    @property
    def in_flight(self) -> int:
        """How many requests the workers hold permits for, as far as they told: in flight, or about to be."""
        return sum(worker.in_flight for worker in self._workers.values() if not worker.is_lost)

    def in_flight_of(self, run: str) -> int:
        """How many of them belong to a run."""
        ledger = self.runs.get(run)
        return sum(w.in_flight for w in self._workers.values() if w.run is ledger and not w.is_lost)

    def reserved_of(self, run: str) -> float:
        """Dollars that its requests in flight can cost at most."""
        ledger = self.runs.get(run)
        return sum(w.reserved_usd for w in self._workers.values() if w.run is ledger and not w.is_lost)

    def open_of(self, run: str) -> dict[str, float]:
        """The same by request, those of lost workers included: perhaps paid, and perhaps in no journal."""
        ledger = self.runs.get(run)
        found: dict[str, float] = {}
        for worker in self._workers.values():
            if worker.run is ledger:
                for rid, usd in worker.open.items():
                    found[rid] = found.get(rid, 0.0) + usd
        return found

    def join(self, run: str, budget: Budget, settings: Settings) -> None:
        """A run begins, or goes on. Of runs that see different limits, the stricter ones hold for all that live."""
        self.runs[run] = Ledger(budget, self.clock(), settings)
        self._adopt(reduce(stricter, (ledger.settings for ledger in self._living())))

    def leave(self, run: str) -> int:
        """A run is over, and so are its limits; returns how many others live."""
        ledger = self.runs.pop(run, None)
        self._workers = {name: worker for name, worker in self._workers.items() if worker.run is not ledger}
        others = self._living()
        if others:
            self._adopt(reduce(stricter, (other.settings for other in others)))
        return len(others)

    def _living(self) -> list[Ledger]:
        """The runs whose drivers gave a sign of life: one that was killed leaves its ledger here."""
        now = self.clock()
        return [ledger for ledger in self.runs.values() if now - ledger.driver_heard <= DRIVER_SECONDS]

    def driver_is_alive(self, run: str) -> None:
        """The driver's sign of life."""
        now = self.clock()
        self._forgive_a_stall(now)
        self.runs[run].driver_heard = now

    def exchange(
        self, run: str, name: str, finished: list[Finished], queue: list[Need], trouble: str | None = None
    ) -> Permit:
        """Take in a worker's results, permit its next requests. `trouble` stops the whole run."""
        now = self.clock()
        self._forgive_a_stall(now)
        self._refill(now)
        ledger = self.runs.get(run)
        if ledger is None:
            return Permit((), IDLE_WAIT_SECONDS, stop="the run is over")
        worker = self._workers.setdefault(name, Sender(ledger, now))
        worker.heard = now
        if worker.is_lost:
            # It was only slow.
            worker.is_lost = False
            ledger.lost_usd -= worker.reserved_usd
            ledger.lost_workers -= 1
        busy = self.in_flight * 2 >= self._window.size
        for result in finished:
            worker.end(result)
            self._settle(ledger, result, now, busy=busy)
        if trouble:
            ledger.end(trouble)
        self._bury(now)
        self._look_for_an_end(ledger, now)
        permitted: list[Reserved] = []
        wait = IDLE_WAIT_SECONDS
        for need in queue:
            wait = self._wait_for(now)
            if ledger.stop or wait > 0:
                break
            reserved = self._reserve(ledger, need, now)
            if self._over_budget(ledger, reserved.usd):
                # What is in flight may turn out cheaper than feared, and make room.
                wait = IDLE_WAIT_SECONDS
                if self.in_flight_of(run) == 0:
                    ledger.end(f"budget: {ledger.usd:.4f} of {ledger.budget.max_usd:g} dollars are spent")
                break
            permitted.append(reserved)
            worker.begin(need, reserved)
            ledger.totals.sent += 1
            self._take(reserved)
        return Permit(tuple(permitted), max(wait, 0.0), self._at_once(worker, now), ledger.stop)

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _adopt(self, settings: Settings) -> None:
        self.settings = settings
        self._window.largest = settings.max_in_flight
        self._window.size = min(self._window.size, float(settings.max_in_flight))
        self._requests.rate = per_second(settings.requests_per_minute)
        self._prompt.rate = per_second(settings.prompt_tokens_per_minute)
        self._generated.rate = per_second(settings.generated_tokens_per_minute)

    def _refill(self, now: float) -> None:
        # A clock that jumps must not become a burst, nor a pause without end.
        seconds = min(max(0.0, now - self._refilled), BURST_SECONDS)
        self._refilled = now
        for bucket in self._buckets:
            bucket.refill(seconds)

    def _at_once(self, worker: Sender, now: float) -> int:
        """How much of the window is a worker's: its share of what all workers hold; nothing in a pause."""
        if now < self._paused_until:
            return 0
        window, held = int(self._window.size), self.in_flight
        return worker.in_flight if held <= window else max(1, round(window * worker.in_flight / held))

    def _wait_for(self, now: float) -> float:
        ahead = self._window.size * AHEAD_SHARE
        for rate in (self._requests.rate, self._guessed.rate):
            ahead = ahead if rate is None else min(ahead, rate * AHEAD_SECONDS)
        if self.in_flight >= int(self._window.size + ahead):
            return IDLE_WAIT_SECONDS
        waits = [bucket.wait for bucket in self._buckets if not bucket.is_open]
        waits.append(self._paused_until - now)
        return min(max(waits), 1.0)

    def _reserve(self, ledger: Ledger, need: Need, now: float) -> Reserved:
        price = ledger.budget.price
        usd = price.cost(need.most_prompt_tokens, 0, need.max_tokens) if price else 0.0
        return Reserved(usd, float(need.prompt_tokens), self._usual.get(need.step, need.max_tokens / 2), now)

    def _take(self, reserved: Reserved) -> None:
        self._requests.take(1)
        self._guessed.take(1)
        self._prompt.take(reserved.prompt_tokens)
        self._uncached.take(reserved.prompt_tokens)
        self._generated.take(reserved.generated_tokens)

    def _over_budget(self, ledger: Ledger, usd: float) -> bool:
        if ledger.budget.max_usd is None:
            return False
        reserved = sum(w.reserved_usd for w in self._workers.values() if w.run is ledger and not w.is_lost)
        return ledger.usd + reserved + usd > ledger.budget.max_usd

    def _settle(self, ledger: Ledger, result: Finished, now: float, *, busy: bool) -> None:
        totals = ledger.totals
        if result.kind is None:
            totals.sent -= 1
        totals.usd += result.usd
        totals.prompt_tokens += result.prompt_tokens
        totals.cached_tokens += result.cached_tokens
        totals.completion_tokens += result.completion_tokens
        if result.limits:
            self._learn_limits(result.limits)
        # The buckets held what was expected; now what it was is known. A request that failed took nothing.
        self._prompt.take(result.prompt_tokens - result.reserved.prompt_tokens)
        self._uncached.take(result.prompt_tokens - result.cached_tokens - result.reserved.prompt_tokens)
        self._generated.take(result.completion_tokens - result.reserved.generated_tokens)
        if result.kind is None:
            self._requests.take(-1)
            self._guessed.take(-1)
        elif result.kind in FINAL:
            totals.answered += 1
            ledger.causes.answered()
            self._answered(result, busy=busy)
        elif result.kind in FATAL:
            ledger.stop_kind = ledger.stop_kind or result.kind
            ledger.end(f"{result.kind}: {result.detail}")
        else:
            totals.rate_limited += result.kind is OutcomeKind.RATE_LIMITED
            totals.failed += result.kind is not OutcomeKind.RATE_LIMITED
            ledger.causes.failed(result.detail)
            if result.kind in UNANSWERABLE or result.unreadable:
                self._refused(ledger, result)
            if result.kind not in UNANSWERABLE:
                self._failed(result, now)

    def _answered(self, result: Finished, *, busy: bool) -> None:
        self._failing_since = None
        self._window.seems_overloaded(permitted_at=result.reserved.at, failed=False)
        if busy:
            # A window that is hardly used says nothing about the server.
            self._window.grow()
        if result.completion_tokens:
            step, tokens = result.need.step, float(result.completion_tokens)
            usual = self._usual.get(step)
            self._usual[step] = tokens if usual is None else usual + _USAGE_WEIGHT * (tokens - usual)

    def _refused(self, ledger: Ledger, result: Finished) -> None:
        """The server is there, and does not take this prompt; or says what is no answer. All of them: stop the run."""
        if result.kind in UNANSWERABLE:
            self._failing_since = None
        ledger.causes.refused(is_new=result.need.is_new)
        reason = ledger.causes.reason_to_stop(ledger.totals.answered)
        if reason and not ledger.stop:
            ledger.stop_kind = result.kind
            ledger.end(reason)

    def _failed(self, result: Finished, now: float) -> None:
        if self._failing_since is None:
            self._failing_since = now
        says_no = result.kind in (OutcomeKind.RATE_LIMITED, OutcomeKind.OVERLOADED)
        is_cut = says_no or self._window.seems_overloaded(permitted_at=result.reserved.at, failed=True)
        if result.kind is OutcomeKind.RATE_LIMITED and not self._is_told:
            # Once a rate is guessed, it is what is too high, and not the window.
            is_cut = self._guessed.rate is None
            self._guessed.refused(now)
        if is_cut:
            self._window.cut(now, HARD_CUT if result.attempt >= HARD_CUT_ATTEMPT else CUT)
        if says_no:
            pause = result.retry_after if result.retry_after is not None else CUT_PAUSE_SECONDS
            self._paused_until = max(self._paused_until, now + pause)

    def _learn_limits(self, limits: Limits) -> None:
        own = self.settings
        told = (
            (self._requests, limits.requests, own.requests_per_minute),
            (self._prompt, limits.prompt_tokens, own.prompt_tokens_per_minute),
            (self._uncached, limits.uncached_prompt_tokens, None),
            (self._generated, limits.generated_tokens, own.generated_tokens_per_minute),
        )
        for bucket, server, ours in told:
            if server is not None:
                self._is_told, self._guessed.rate = True, None
                bucket.rate = per_second(server * RATE_SHARE if ours is None else min(server * RATE_SHARE, ours))

    def _forgive_a_stall(self, now: float) -> None:
        """Nobody is dead who could not be heard."""
        gap, self._called = now - self._called, now
        if gap > STALL_SECONDS:
            for worker in self._workers.values():
                worker.heard += gap
            for ledger in self.runs.values():
                ledger.driver_heard += gap

    def _bury(self, now: float) -> None:
        """Workers that fell silent: what they had in flight may have been answered, so it counts as paid."""
        for worker in self._workers.values():
            if worker.in_flight and not worker.is_lost and now - worker.heard > LEASE_SECONDS:
                worker.is_lost = True
                worker.run.lost_usd += worker.reserved_usd
                worker.run.lost_workers += 1
                if worker.run.lost_workers > MOST_LOST_WORKERS:
                    worker.run.end("its workers died again and again")

    def _look_for_an_end(self, ledger: Ledger, now: float) -> None:
        if now - ledger.driver_heard > DRIVER_SECONDS:
            ledger.end("the driver fell silent")
        if self._failing_since is not None and now - self._failing_since > self.settings.give_up_after:
            ledger.end(f"the server gave no answer for {self.settings.give_up_after:g} s")
