"""How many requests may be in flight, and at what rate: the two that the limiter turns."""

from dataclasses import dataclass

CUT_PAUSE_SECONDS = 1.0

GROWTH_SHARE = 1 / 32

BACK_SHARE, BACK_ROUNDS = 0.9, 4
"""After a cut it is back at nine tenths of what it was within four rounds of answers, and slow beyond: CUBIC's shape
(RFC 9438). With a thirty-second a round, a single refusal at 8 s latency would cost throughput for three minutes."""

BURST_SECONDS = 1.0
"""How much of a rate may be saved up."""

FIRST_GROWTH, GUESS_GROWTH, GUESS_CUT = 0.05, 0.005, 0.9
"""Of a guessed rate: a second until the second refusal, a second from then on, and at a refusal."""

LEAST_GUESSED, MOST_GUESSED = 0.2, 10_000.0

ERRORS_OVER = 100
"""Results over which the share of errors is a mean (exponentially weighted: the latest weighs a hundredth)."""

MOST_ERRORS = 0.15
"""Share of resets, timeouts and 5xx above which they are taken for load. Noise of 5 % has a standard deviation of
1.5 points in this mean, so it stays below; a server that fails from the first request on is there after 17 of them."""


@dataclass
class Bucket:
    """A rate a second. May go into debt by one request; holds at most BURST_SECONDS of it."""

    rate: float | None = None
    level: float = 0.0

    def refill(self, seconds: float) -> None:
        if self.rate is not None:
            self.level = min(self.rate * BURST_SECONDS, self.level + self.rate * seconds)

    def take(self, amount: float) -> None:
        if self.rate is not None:
            self.level -= amount

    @property
    def is_open(self) -> bool:
        return self.rate is None or self.level > 0

    @property
    def wait(self) -> float:
        """Seconds until it is open again."""
        return 0.0 if self.is_open or not self.rate else -self.level / self.rate


@dataclass
class GuessedRate(Bucket):
    """Requests a second of a server that refuses (429) without telling its limit: what it took since the last refusal.

    It grows slowly until the next one, so that the limit is used and one request in a few hundred is refused. Halving
    the window instead leaves a quarter of a limit unused at 8 s latency, and at 0.5 s every twelfth request is refused.
    """

    since: float = 0.0
    taken: float = 0.0
    growth: float = FIRST_GROWTH

    def refill(self, seconds: float) -> None:
        if self.rate is not None:
            self.rate = None if self.rate > MOST_GUESSED else self.rate * (1 + self.growth * seconds)
        super().refill(seconds)

    def take(self, amount: float) -> None:
        self.taken += amount
        super().take(amount)

    def refused(self, now: float) -> None:
        """One of those that were taken was refused."""
        self.taken -= 1
        seconds = now - self.since
        if seconds < CUT_PAUSE_SECONDS:
            return
        measured = max(self.taken / seconds, LEAST_GUESSED)
        if self.rate is None:
            self.rate = measured
        else:
            # What was taken is less than the limit where something else held requests back.
            self.rate, self.growth = max(self.rate * GUESS_CUT, min(measured, self.rate)), GUESS_GROWTH
            self.rate = max(self.rate, LEAST_GUESSED)
        self.since, self.taken, self.level = now, 0.0, -self.rate * BURST_SECONDS


@dataclass
class Window:
    """How many requests may be in flight: grows per answer, is cut at most once a pause."""

    size: float
    largest: int
    slow_start: bool = True
    cut_at: float = float("-inf")
    errors: float = 0.0
    """Share of errors among the latest results of requests that were permitted since the last cut."""

    back_to: float = 0.0
    back_step: float = 0.0
    """What it had nearly reached before the last cut, and how much of the way there is one round of answers."""

    def grow(self) -> None:
        per_round = max(1.0, self.size * GROWTH_SHARE)
        if self.size < self.back_to:
            per_round = max(per_round, self.back_step)
        per_answer = 1.0 if self.slow_start else per_round / self.size
        self.size = min(float(self.largest), self.size + per_answer)

    def cut(self, now: float, factor: float) -> None:
        if now - self.cut_at >= CUT_PAUSE_SECONDS:
            self.back_to = self.size * BACK_SHARE
            self.size = max(1.0, self.size * factor)
            self.back_step = (self.back_to - self.size) / BACK_ROUNDS
            self.cut_at, self.errors = now, 0.0
        self.slow_start = False

    def seems_overloaded(self, *, permitted_at: float, failed: bool) -> bool:
        """Take in a result; whether there are so many errors now that load must be their reason.

        What was permitted before the last cut says nothing of the window after it: the requests in flight at a cut
        would cut it again and again until they are all back.
        """
        if permitted_at < self.cut_at:
            return False
        self.errors += (failed - self.errors) / ERRORS_OVER
        return self.errors > MOST_ERRORS


def per_second(per_minute: float | None) -> float | None:
    """A rate a minute as one a second; None stays no limit."""
    return None if per_minute is None else per_minute / 60
