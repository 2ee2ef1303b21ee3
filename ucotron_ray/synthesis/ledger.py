"""What workers and the limiter tell each other, what a run may cost, and what it has used."""

from dataclasses import dataclass, field, fields
from typing import Any

from ucotron_ray.synthesis.causes import Causes
from ucotron_ray.teacher.outcome import Limits, OutcomeKind
from ucotron_ray.teacher.prices import Price


@dataclass(frozen=True)
class Need:
    """What the next request in a queue will take. `step` groups requests whose answers are about as long."""

    step: str
    prompt_tokens: int
    most_prompt_tokens: int
    max_tokens: int
    rid: str = ""
    """The request's id, under which the journal keeps its answer."""
    is_new: bool = True
    """Whether nobody refused it, and no round asked it in vain, before."""


@dataclass(frozen=True)
class Reserved:
    """What was set aside for one request: dollars in the worst case, tokens as they usually are; and when."""

    usd: float
    prompt_tokens: float
    generated_tokens: float
    at: float = 0.0


@dataclass(frozen=True)
class Finished:
    """What came of one request."""

    need: Need
    reserved: Reserved
    kind: OutcomeKind | None
    """None: it was not sent after all."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    usd: float
    attempt: int
    retry_after: float | None = None
    limits: Limits | None = None
    detail: str = ""
    unreadable: bool = False
    """It was answered (HTTP 200) with what is no chat completion."""


@dataclass(frozen=True)
class Permit:
    """Permission for the first `len(reserved)` needs, to be sent as long as fewer than `at_once` are in flight.

    `stop` says why no further request may be sent, ever.
    """

    reserved: tuple[Reserved, ...]
    wait_seconds: float
    at_once: int = 0
    stop: str | None = None


@dataclass(frozen=True)
class Settings:
    """What the account allows; None = no limit of our own."""

    first_in_flight: int
    max_in_flight: int
    requests_per_minute: float | None
    prompt_tokens_per_minute: float | None
    generated_tokens_per_minute: float | None
    give_up_after: float


@dataclass(frozen=True)
class Budget:
    """What one run may cost. Earlier invocations paid `spent_before`, and perhaps `unsettled_before` on top."""

    price: Price | None
    max_usd: float | None
    spent_before: float = 0.0
    unsettled_before: float = 0.0


@dataclass
class Totals:
    """What happened so far. Counts are of requests."""

    sent: int = 0
    answered: int = 0
    rate_limited: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0


@dataclass
class Ledger:
    """One run: its budget, what it has used, whether its driver lives, and why it may send no more."""

    budget: Budget
    driver_heard: float
    settings: Settings
    totals: Totals = field(default_factory=Totals)
    causes: Causes = field(default_factory=Causes)
    lost_workers: int = 0
    lost_usd: float = 0.0
    """What silent workers had in flight, at its worst: it may have been answered, so it counts as paid."""
    stop: str | None = None
    stop_kind: OutcomeKind | None = None

    @property
    def usd(self) -> float:
        """Dollars spent, by this invocation and by those before it."""
        return self.budget.spent_before + self.budget.unsettled_before + self.totals.usd + self.lost_usd

    def end(self, reason: str) -> None:
        """Let nothing be sent any more."""
        self.stop = self.stop or reason


@dataclass
class Sender:
    """A process that sends, for one run."""

    run: Ledger
    heard: float
    in_flight: int = 0
    open: dict[str, float] = field(default_factory=dict)
    """Dollars that each of its requests in flight can cost at most, by the request's id."""
    is_lost: bool = False

    @property
    def reserved_usd(self) -> float:
        """Dollars that all of them can cost at most."""
        return sum(self.open.values())

    def begin(self, need: Need, reserved: Reserved) -> None:
        """It has a permit for one more."""
        self.in_flight += 1
        self.open[need.rid] = self.open.get(need.rid, 0.0) + reserved.usd

    def end(self, result: Finished) -> None:
        """It handed one in."""
        self.in_flight -= 1
        rid = result.need.rid
        left = self.open.get(rid, 0.0) - result.reserved.usd
        # Two samples may ask the same; what is left of one is not a rest of rounding.
        if left > 1e-9:
            self.open[rid] = left
        else:
            self.open.pop(rid, None)


def stricter(one: Settings, other: Settings) -> Settings:
    """The smaller of each limit; None is no limit."""
    smaller: dict[str, Any] = {}
    for name in (entry.name for entry in fields(Settings)):
        given = [value for value in (getattr(one, name), getattr(other, name)) if value is not None]
        smaller[name] = min(given, default=None)
    return Settings(**smaller)
