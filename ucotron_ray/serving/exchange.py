"""What the front and the replicas say to each other. Plain data: Ray carries it, tests make it by hand."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Question:
    """A request that passed the front: what to answer, how long at most, and whether the text is wanted in pieces."""

    turns: tuple[Turn, ...]
    max_tokens: int
    stop: tuple[str, ...] = ()
    stream: bool = False


@dataclass(frozen=True)
class Usage:
    """What an answer took."""

    prompt_tokens: int
    completion_tokens: int
    queued_seconds: float
    """From its arrival at the replica to the first pass of the model over its prompt."""
    batch_rows: float
    """Mean number of rows that were decoded together with it, itself included."""
    constrained: bool
    """Whether a grammar held the names to those of the prompt."""
    running_seconds: float = 0.0
    """From the first pass of the model over its prompt to the end of the answer."""


@dataclass(frozen=True)
class Served:
    """What is served: the model's public name, the content hash of its artifact, and since when (Unix seconds)."""

    model: str
    content: str
    since: int


@dataclass(frozen=True)
class Piece:
    """A part of an answer. The last one has `finish` and `usage`, and there is exactly one part unless it streams."""

    text: str
    served: Served
    """What answers: during a swap it is not the same for all requests."""
    finish: str | None = None
    """`stop` or `length`, as OpenAI calls them."""
    usage: Usage | None = None


class Refusal(Exception):
    """A request that gets no answer: the HTTP status and the fields of OpenAI's error object. Picklable."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(status, message, code, param, retry_after)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after = retry_after
        """Seconds after which it is worth another try; None = the request itself has to change."""

    def __reduce__(self) -> tuple[object, ...]:
        return _refusal, self.args


def internal_error() -> Refusal:
    """What is said of an error of ours. No other try would go better; what it was is in the log only."""
    return Refusal(500, "an error inside the service; its log says more", code="internal_error")


def _refusal(status: int, message: str, code: str, param: str | None, retry_after: float | None) -> Refusal:
    return Refusal(status, message, code=code, param=param, retry_after=retry_after)


class Answering(Protocol):
    """Who answers: one engine in this process, or replicas behind a handle."""

    def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        """The parts of the answer. Raises Refusal where there is none."""
        ...

    async def served(self) -> Served:
        """What is served now. Raises Refusal if nobody is there."""
        ...
