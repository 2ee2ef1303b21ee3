"""One request to an OpenAI-compatible server → one classified outcome. No retries here: the caller's limiter sees all.

Outcomes are judged by HTTP status: bodies of a 429 have been seen to say `invalid_request_error`
(github.com/BerriAI/litellm/issues/9779). The words count only where one status means two things, and in a 200.
"""

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any

import aiohttp

from ucotron_ray.teacher.outcome import Limits, OutcomeKind, RequestOutcome, Usage

MAX_RETRY_AFTER_SECONDS = 60.0
DETAIL_CHARACTERS = 300

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb for servers that report no usage."""

_KINDS = {
    400: OutcomeKind.POISON,
    401: OutcomeKind.AUTH,
    402: OutcomeKind.BILLING,
    405: OutcomeKind.MISDIRECTED,
    408: OutcomeKind.TRANSIENT,
    409: OutcomeKind.TRANSIENT,
    412: OutcomeKind.BILLING,
    413: OutcomeKind.POISON,
    422: OutcomeKind.POISON,
    425: OutcomeKind.TRANSIENT,
    429: OutcomeKind.RATE_LIMITED,
    503: OutcomeKind.OVERLOADED,
    529: OutcomeKind.OVERLOADED,
}

GATEWAY_ERRORS = (502, 504, 524)
"""A proxy gave up on the server behind it, which may have answered and billed."""

_NO_CREDIT = re.compile(
    r"insufficient[\s_-]*(?:credit|quota|balance|fund)|exceeded your current quota|out of credits?\b"
    r"|(?:credit|balance)s? (?:is|are)? ?(?:too low|exhausted|used up)",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(
    r"model_not_found|\bmodels?\b.{0,200}\b(?:not found|not exist|unknown|not available)|unknown model",
    re.IGNORECASE | re.DOTALL,
)


def read_completion(message: object, body: Mapping[str, Any]) -> RequestOutcome:
    """The outcome in a chat completion that came by another way than `chat` (a batch's results)."""
    return _answer(message, body, None, 0.0)


async def chat(
    session: aiohttp.ClientSession, url: str, body: Mapping[str, Any], headers: Mapping[str, str]
) -> RequestOutcome:
    """Post one chat request. Never raises for what the server or the network does.

    The session brings the timeouts. The key is in `headers` and goes nowhere else: redirects are not followed, and of
    aiohttp's errors only the kind is kept, since their repr prints request headers.
    """
    began = time.monotonic()
    # Encoded here: aiohttp would do it with its own defaults, and non-ASCII text would be twice as long.
    data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    try:
        async with session.post(url, data=data, headers=headers, allow_redirects=False) as response:
            if not 200 <= response.status < 300:
                raw = await _head_of(response)
                seconds = time.monotonic() - began
                return _failure(response.status, _without_key(raw, headers), response.headers, seconds, body)
            raw_body = await response.read()
            streamed = response.content_type == "text/event-stream"
            limits = read_limits(response.headers)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        # A request that timed out or was cut off may have been answered, and billed, behind our back; one that found
        # no connection was not.
        unsent = isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError))
        seconds = time.monotonic() - began
        return RequestOutcome(OutcomeKind.TRANSIENT, maybe_billed=not unsent, seconds=seconds, detail=_name(error))
    seconds = time.monotonic() - began
    try:
        message = _join_stream(raw_body.decode("utf-8")) if streamed else json.loads(raw_body)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        detail = f"a body that is no chat completion ({type(error).__name__})"
        return RequestOutcome(
            OutcomeKind.TRANSIENT, maybe_billed=True, status=200, limits=limits, seconds=seconds, detail=detail
        )
    return _answer(message, body, limits, seconds)


def client_timeout(*, connect: float, read: float, total: float) -> aiohttp.ClientTimeout:
    """Every wait has an end: for a connection, between two bytes, and in all. Seconds."""
    return aiohttp.ClientTimeout(total=total, connect=connect, sock_connect=connect, sock_read=read)


def read_limits(headers: Mapping[str, str]) -> Limits | None:
    """Limits from `X-Ratelimit-Limit-*` headers; token limits are sent per second (docs, serverless/rate-limits)."""
    limits = Limits(
        requests=_number(headers, "X-Ratelimit-Limit-Requests"),
        prompt_tokens=_per_minute(headers, "X-Ratelimit-Limit-Tokens-Prompt"),
        uncached_prompt_tokens=_per_minute(headers, "X-Ratelimit-Limit-Tokens-Cache-Adjusted-Prompt"),
        generated_tokens=_per_minute(headers, "X-Ratelimit-Limit-Tokens-Generated"),
    )
    return None if limits == Limits() else limits


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: a number or an HTTP date, at most a minute; None if absent or unreadable."""
    text = headers.get("Retry-After")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        parsed = email.utils.parsedate_tz(text)
        if parsed is None:
            return None
        seconds = email.utils.mktime_tz(parsed) - time.time()
    return min(MAX_RETRY_AFTER_SECONDS, max(0.0, seconds)) if math.isfinite(seconds) else MAX_RETRY_AFTER_SECONDS


def estimate_tokens(text: str) -> int:
    """About how many tokens a text has."""
    return len(text) // CHARACTERS_PER_TOKEN + 1


def most_prompt_tokens(body: Mapping[str, Any]) -> int:
    """How many tokens the messages can have at most: no tokenizer makes more than one of a byte."""
    return sum(len(message["content"].encode("utf-8", "replace")) + 16 for message in body["messages"])


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """About how many tokens the messages of a request have, with a few for the turns' markers."""
    return sum(estimate_tokens(message["content"]) + 4 for message in body["messages"])


def _failure(
    status: int, raw: str, headers: Mapping[str, str], seconds: float, body: Mapping[str, Any]
) -> RequestOutcome:
    return RequestOutcome(
        _kind_of(status, raw, str(body.get("model"))),
        status=status,
        limits=read_limits(headers),
        retry_after=retry_after(headers),
        maybe_billed=status in GATEWAY_ERRORS,
        seconds=seconds,
        detail=f"HTTP {status}: {raw}"[:DETAIL_CHARACTERS],
    )


def _kind_of(status: int, words: str, model: str) -> OutcomeKind:
    """What a status means; the words only tell whose fault a 4xx is, where servers use one status for two things."""
    if status < 500 and _NO_CREDIT.search(words):
        # OpenAI's `insufficient_quota` comes as a 429, which would be waited for.
        return OutcomeKind.BILLING
    if status == 404 and (_NO_MODEL.search(words) or model in words):
        return OutcomeKind.MODEL_MISSING
    if status in _KINDS:
        return _KINDS[status]
    if status >= 500:
        return OutcomeKind.TRANSIENT
    return OutcomeKind.REJECTED if status >= 400 else OutcomeKind.MISDIRECTED


def _answer(message: object, body: Mapping[str, Any], limits: Limits | None, seconds: float) -> RequestOutcome:
    try:
        choice = message["choices"][0]  # type: ignore[index]  # checked by the except
        text = choice["message"].get("content") or ""
        finish = choice.get("finish_reason")
        refusal = choice["message"].get("refusal")
        # Half of a surrogate pair is no text, and could not be written down.
        text = text.encode("utf-8", "replace").decode("utf-8")
    except (KeyError, IndexError, TypeError, AttributeError):
        detail = "a body without choices[0].message"
        return RequestOutcome(
            OutcomeKind.TRANSIENT, maybe_billed=True, status=200, limits=limits, seconds=seconds, detail=detail
        )
    kind = OutcomeKind.ANSWER
    if finish == "length":
        kind = OutcomeKind.TRUNCATED
    elif refusal or finish == "content_filter" or not text.strip():
        kind = OutcomeKind.REFUSED
    return RequestOutcome(
        kind,
        text=text,
        finish=finish,
        usage=_usage(message, body, text),
        limits=limits,
        status=200,
        seconds=seconds,
        detail="" if kind is OutcomeKind.ANSWER else str(refusal or finish or "an empty answer")[:DETAIL_CHARACTERS],
    )


def _usage(message: Any, body: Mapping[str, Any], text: str) -> Usage:
    usage = message.get("usage") or {}
    try:
        details = usage.get("prompt_tokens_details") or {}
        return Usage(
            int(usage["prompt_tokens"]), int(details.get("cached_tokens") or 0), int(usage["completion_tokens"])
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return Usage(prompt_tokens(body), 0, estimate_tokens(text), estimated=True)


def _join_stream(stream: str) -> dict[str, Any]:
    """The chat completion that a server-sent event stream adds up to; some servers stream whatever is asked."""
    parts: list[str] = []
    finish: str | None = None
    usage: Any = None
    # Not splitlines: it also splits at characters that may stand inside of a JSON string.
    for line in stream.split("\n"):
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data == "[DONE]":
            continue
        event = json.loads(data)
        usage = event.get("usage") or usage
        for choice in event.get("choices") or []:
            parts.append((choice.get("delta") or {}).get("content") or "")
            finish = choice.get("finish_reason") or finish
    if finish is None:
        raise ValueError("the stream ended before the answer did")
    return {"choices": [{"message": {"content": "".join(parts)}, "finish_reason": finish}], "usage": usage}


async def _head_of(response: aiohttp.ClientResponse) -> str:
    raw = await response.content.read(DETAIL_CHARACTERS * 4)
    return " ".join(raw.decode("utf-8", errors="replace").split())


def _without_key(text: str, headers: Mapping[str, str]) -> str:
    """Some gateways repeat the key in their error."""
    key = headers.get("Authorization", "").removeprefix("Bearer ")
    return text.replace(key, "***") if key else text


def _name(error: BaseException) -> str:
    """The kind of an error and, for a socket's, its reason; never its repr."""
    if isinstance(error, TimeoutError):
        return "timeout"
    reason = error.strerror if isinstance(error, OSError) else None
    return type(error).__name__ + (f": {reason}" if reason else "")


def _number(headers: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(headers.get(name, ""))
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _per_minute(headers: Mapping[str, str], name: str) -> float | None:
    value = _number(headers, name)
    return None if value is None else value * 60
