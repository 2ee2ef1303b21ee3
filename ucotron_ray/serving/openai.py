"""The part of OpenAI's chat API that is spoken here: what a request may hold, and the shapes of replies and errors.

A key that would change the answer and is not supported is refused; one that only tunes sampling (temperature, top_p,
seed, penalties) is taken and has no effect, since the answer is always the most likely one.
"""

import json
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ucotron_ray.serving.exchange import Piece, Question, Refusal, Served, Turn, Usage

UNSUPPORTED = {
    "tools": "functions and tools",
    "functions": "functions and tools",
    "logprobs": "log-probabilities",
    "top_logprobs": "log-probabilities",
    "audio": "audio",
    "prediction": "predicted outputs",
}
"""Keys whose absence from the reply a client would notice."""


class TextPart(BaseModel):
    """A part of a message's content. Only text is understood."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """A message of the conversation."""

    role: Literal["system", "user", "assistant", "developer"]
    content: str | list[TextPart]

    def turn(self) -> Turn:
        """The message with its text in one piece; `developer` is what newer clients call the system's role."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return Turn("system" if self.role == "developer" else self.role, text)


class StreamOptions(BaseModel):
    """Whether a stream ends with the counts of tokens."""

    include_usage: bool = False


class ResponseFormat(BaseModel):
    """Only text: the answer to the server's prompt is a JSON array, which none of OpenAI's JSON modes means."""

    type: Literal["text"]


class ChatRequest(BaseModel):
    """The body of `POST /v1/chat/completions`. Any `model` is answered by the one that is served."""

    model_config = ConfigDict(extra="allow")

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    n: Literal[1] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    def question(self, *, limit: int) -> Question:
        """What is asked. Raises Refusal if more tokens are wanted than one answer may have."""
        asked = self.max_completion_tokens or self.max_tokens or limit
        if asked > limit:
            raise Refusal(
                400, f"max_tokens is {asked}, and one answer may have {limit}", code="too_large", param="max_tokens"
            )
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return Question(
            turns=tuple(message.turn() for message in self.messages),
            max_tokens=asked,
            stop=tuple(filter(None, stops)),
            stream=bool(self.stream),
        )


def read_request(body: bytes) -> ChatRequest:
    """The request in a body. Raises Refusal (400) that names the key that is wrong."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is no JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise Refusal(400, "the body is no JSON object", code="invalid_json")
    for key, what in UNSUPPORTED.items():
        if data.get(key):
            raise Refusal(400, f"{what} are not supported", code="unsupported_parameter", param=key)
    try:
        return ChatRequest.model_validate(data)
    except ValidationError as error:
        # Of a value that fits none of two types, the one that it came furthest with says more.
        worst = max(error.errors(), key=lambda entry: len(entry["loc"]))
        param = ".".join(str(part) for part in worst["loc"] if not isinstance(part, str) or part in _KEYS) or None
        raise Refusal(400, f"{param or 'the body'}: {worst['msg']}", code="invalid_value", param=param) from None


_KEYS = {*ChatRequest.model_fields, "role", "content", "text", "type", "include_usage"}
"""Keys of a request: pydantic puts names of its own union members between them."""


@dataclass(frozen=True)
class Reply:
    """The identity of one reply, the same in all of its chunks."""

    id: str
    created: int

    @classmethod
    def new(cls) -> "Reply":
        """An id that no other reply has."""
        return cls(f"chatcmpl-{uuid.uuid4().hex}", int(time.time()))

    def whole(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """A chat completion."""
        last = pieces[-1]
        message = {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": last.finish}
        return {**self._head("chat.completion", last.served.model), "choices": [choice], "usage": usage(last.usage)}

    def chunk(self, model: str, delta: dict[str, str], finish: str | None = None) -> bytes:
        """One event of a stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event({**self._head("chat.completion.chunk", model), "choices": [choice]})

    def closing(self, last: Piece, *, with_usage: bool) -> list[bytes]:
        """The last events of a stream: why it ended, the counts if they are wanted, and the end mark."""
        events = [self.chunk(last.served.model, {}, last.finish)]
        if with_usage:
            head = self._head("chat.completion.chunk", last.served.model)
            events.append(event({**head, "choices": [], "usage": usage(last.usage)}))
        return [*events, b"data: [DONE]\n\n"]

    def _head(self, kind: str, model: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": model, "system_fingerprint": None}


def usage(taken: Usage | None) -> dict[str, int]:
    """OpenAI's counts of tokens."""
    prompt, completion = (taken.prompt_tokens, taken.completion_tokens) if taken else (0, 0)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def event(payload: object) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"


def models(served: Served) -> dict[str, Any]:
    """The reply to `GET /v1/models`."""
    entry = {"id": served.model, "object": "model", "created": served.since, "owned_by": "ucotron-ray"}
    return {"object": "list", "data": [{**entry, "content": served.content}]}


def error_body(refusal: Refusal) -> dict[str, Any]:
    """OpenAI's error object."""
    kinds = {400: "invalid_request_error", 401: "invalid_request_error", 429: "rate_limit_error"}
    kind = kinds.get(refusal.status, "server_error" if refusal.status >= 500 else "invalid_request_error")
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}


def retry_header(refusal: Refusal) -> dict[str, str]:
    """`Retry-After` in whole seconds, where another try is worth it."""
    return {} if refusal.retry_after is None else {"Retry-After": str(max(1, math.ceil(refusal.retry_after)))}
