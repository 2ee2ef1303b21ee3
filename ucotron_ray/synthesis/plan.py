"""What is asked of the teacher: samples, their requests, and the ids under which answers are kept.

A task is two functions. `sample(number)` draws the facts of one sample from a random generator of its own, so that
sample 7 is the same in a run of ten and in a run of ten thousand. `converse(facts)` is a generator: it yields what to
ask, is sent the answer, and returns how the sample ends. Nothing else decides anything: a run that goes on after a
kill starts the same generators again, feeds them the journaled answers, and asks only what the journal does not hold.
"""

import hashlib
import json
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ucotron_ray.data.schema import Schema
from ucotron_ray.synthesis.rows import RowKind
from ucotron_ray.teacher.outcome import OutcomeKind

Facts = Mapping[str, Any]
Status = Literal["accepted", "rejected", "duplicate", "quarantined", "pending"]
STATUSES: tuple[Status, ...] = ("accepted", "rejected", "duplicate", "quarantined", "pending")

ID_BYTES = 16
SEED_BITS = 31


@dataclass(frozen=True)
class Answer:
    """What the teacher said to one request: its text, or why there is none."""

    kind: OutcomeKind
    text: str = ""


@dataclass(frozen=True)
class Ask:
    """One request to send next."""

    step: str
    messages: tuple[tuple[str, str], ...]
    """Role and content of each turn; what never changes comes first, since servers cache prompts by their prefix."""
    temperature: float
    max_tokens: int
    top_p: float | None = None
    json_mode: bool = False


@dataclass(frozen=True)
class Done:
    """How a sample ends. `row` only if accepted; `reason` only if not.

    `notes`: how the answer was got, and what was wrong in it, in the words of `rows.DEFECTS`.
    """

    status: Status
    row: dict[str, Any] | None = None
    reason: str | None = None
    notes: tuple[str, ...] = field(default=())


Conversation = Generator[Ask, Answer, Done]


class Ended(Exception):
    """Raised inside a conversation that cannot go on."""

    def __init__(self, done: Done) -> None:
        super().__init__(done)
        self.done = done


@dataclass(frozen=True)
class Task:
    """A generator: how its samples are drawn and how they go on. `version` changes with its prompts."""

    name: str
    version: int
    sample: Callable[[int], Facts]
    converse: Callable[[Facts], "Conversation"]
    rows: RowKind
    stand_in: Callable[[Facts, Ask], str] | None = None
    """A short answer to a request with which the conversation goes on to its next step, for estimates. None = the
    prompt's own text, or an extraction without entities, does."""
    schema: Schema | None = None
    """What its rows are written in, where the recipe brings a schema and the generator reads it."""


def request_id(
    task: Task,
    model: str,
    facts: Facts,
    ask: Ask,
    answers: Sequence[Answer],
    extra_body: Mapping[str, Any] | None = None,
) -> str:
    """The content address of a request: 32 hexadecimal digits of blake2b over everything that changes its answer.

    The answers that it builds on count by their digests. Host, key, concurrency, room for reasoning and date do not.
    """
    parts: dict[str, Any] = {
        "task": task.name,
        "version": task.version,
        "model": model,
        "facts": facts,
        "step": ask.step,
        "messages": ask.messages,
        "sampling": [ask.temperature, ask.max_tokens, ask.top_p, ask.json_mode],
        "builds_on": [_digest(f"{answer.kind}\0{answer.text}") for answer in answers],
    }
    if extra_body:
        parts["extra_body"] = extra_body
    return _digest(json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def request_body(
    model: str, ask: Ask, rid: str, extra_body: Mapping[str, Any] | None = None, *, room: int = 0
) -> dict[str, Any]:
    """The JSON body in the vendor's terms, with `room` tokens more. The same request always carries the same seed."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": role, "content": content} for role, content in ask.messages],
        "temperature": ask.temperature,
        "max_tokens": ask.max_tokens + room,
        "seed": int(rid, 16) & ((1 << SEED_BITS) - 1),
        # The vendor's default lowers max_tokens in silence.
        "context_length_exceeded_behavior": "error",
    }
    if ask.top_p is not None:
        body["top_p"] = ask.top_p
    if ask.json_mode:
        body["response_format"] = {"type": "json_object"}
    return body | dict(extra_body or {})


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=ID_BYTES).hexdigest()


@dataclass(frozen=True)
class SampleResult:
    """How a sample ended. `requests` and `usd` count what was sent for it now, not what the journal held."""

    number: int
    done: Done
    requests: int
    usd: float = 0.0
    elsewhere: tuple[str, ...] = ()
    """Other servers of the same model id that gave answers which the journal held."""
