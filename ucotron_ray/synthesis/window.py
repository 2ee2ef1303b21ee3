"""How many requests may be in flight, and at what rate: the two that the limiter turns."""

from dataclasses import dataclass

CUT_PAUSE_SECONDS = 1.0

GROWTH_SHARE = 1 / 32

BURST_SECONDS = 1.0
"""How much of a rate may be saved up."""


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
class Window:
    """How many requests may be in flight: grows per answer, is cut at most once a pause."""

    size: float
    largest: int
    slow_start: bool = True
    cut_at: float = float("-inf")

    def grow(self) -> None:
        per_answer = 1.0 if self.slow_start else max(1.0, self.size * GROWTH_SHARE) / self.size
        self.size = min(float(self.largest), self.size + per_answer)

    def cut(self, now: float, factor: float) -> None:
        if now - self.cut_at >= CUT_PAUSE_SECONDS:
            self.size = max(1.0, self.size * factor)
            self.cut_at = now
        self.slow_start = False


def per_second(per_minute: float | None) -> float | None:
    """A rate a minute as one a second; None stays no limit."""
    return None if per_minute is None else per_minute / 60
