"""What can become of one request to a teacher."""

from dataclasses import dataclass, field
from enum import StrEnum


class OutcomeKind(StrEnum):
    """What became of a request."""

    ANSWER = "answer"
    TRUNCATED = "truncated"  # finish_reason=length: paid, and not whole
    REFUSED = "refused"  # an empty answer, a refusal, a content filter
    RATE_LIMITED = "rate_limited"  # 429
    OVERLOADED = "overloaded"  # 503, 529
    TRANSIENT = "transient"  # other 5xx, 408, a reset, a timeout, a body that is no chat completion
    POISON = "poison"  # 400, 413, 422: this request will never be answered
    REJECTED = "rejected"  # 403, 404, 424, 451 and unlisted 4xx: of this prompt; of all prompts, of the run
    AUTH = "auth"  # 401
    BILLING = "billing"  # 402, 412, and whatever says that credits or quota are used up; nothing was billed
    MODEL_MISSING = "model_missing"  # 404 that names the model
    MISDIRECTED = "misdirected"  # 3xx, 405: this is not the server's address


FINAL = (OutcomeKind.ANSWER, OutcomeKind.TRUNCATED, OutcomeKind.REFUSED)
"""Paid answers of the model."""

UNANSWERABLE = (OutcomeKind.POISON, OutcomeKind.REJECTED)
"""The server will not answer this prompt. Others may fare better: gateways answer 403 to a flagged input and 424 where
the provider behind them failed. None of them is fatal by itself; a run in which all prompts get one has to stop."""

FATAL = (OutcomeKind.AUTH, OutcomeKind.BILLING, OutcomeKind.MODEL_MISSING, OutcomeKind.MISDIRECTED)
"""No other request will fare better."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one answer. `estimated` where the server did not say."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0
    hidden: int = 0
    """Of the completion: thought, and not said."""
    estimated: bool = False


@dataclass(frozen=True)
class Limits:
    """What the server's headers say about its limits, per minute; None where they say nothing."""

    requests: float | None = None
    prompt_tokens: float | None = None
    uncached_prompt_tokens: float | None = None
    generated_tokens: float | None = None


@dataclass(frozen=True)
class RequestOutcome:
    """What came of one request. `detail` is safe to print: it never holds a header."""

    kind: OutcomeKind
    text: str = ""
    finish: str | None = None
    usage: Usage = field(default_factory=Usage)
    limits: Limits | None = None
    status: int | None = None
    retry_after: float | None = None
    maybe_billed: bool = False
    """It failed, and may have been paid for: a timeout, a reset, a gateway's 502, 504 or 524."""
    seconds: float = 0.0
    detail: str = ""
