"""One request to an OpenAI-compatible server → one classified outcome. No retries here: the caller's limiter sees all.

What a failure means stands in `failures.py`, what an answer holds in `completion.py`.
"""

import email.utils
import json
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import aiohttp

from ucotron_ray.core.network import tls_problem
from ucotron_ray.teacher.completion import DETAIL_CHARACTERS, join_stream, read_completion
from ucotron_ray.teacher.failures import GATEWAY_ERRORS, kind_of
from ucotron_ray.teacher.outcome import FINAL, Limits, OutcomeKind, RequestOutcome

MAX_RETRY_AFTER_SECONDS = 60.0
SHORTEST_KEY = 6
"""Shorter values of headers would take words out of what a server says."""


async def chat(
    session: aiohttp.ClientSession,
    url: str,
    body: Mapping[str, Any],
    headers: Mapping[str, str],
    *,
    proxy: str | None = None,
) -> RequestOutcome:
    """Post one chat request. Never raises for what the server or the network does.

    The session brings the timeouts. The key is in `headers` and goes nowhere else: redirects are not followed, and of
    aiohttp's errors only the kind is kept, since their repr prints request headers.
    """
    began = time.monotonic()
    # Encoded here: aiohttp would do it with its own defaults, and non-ASCII text would be twice as long.
    data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
    try:
        async with session.post(url, data=data, headers=headers, allow_redirects=False, proxy=proxy) as response:
            if not 200 <= response.status < 300:
                raw = _without_keys(await _head_of(response), headers)
                outcome = _failure(response.status, raw, str(body.get("model")))
            else:
                raw_body = await response.read()
                streamed = response.content_type == "text/event-stream"
                outcome = _read(raw_body, body, streamed=streamed)
                outcome = replace(outcome, detail=_without_keys(outcome.detail, headers))
            limits, wait = read_limits(response.headers), retry_after(response.headers)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return replace(_unreached(error), seconds=time.monotonic() - began)
    wait = None if outcome.kind in FINAL else wait
    return replace(outcome, limits=limits, retry_after=wait, seconds=time.monotonic() - began)


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
        # By the server's own clock, where it says what that shows.
        now = email.utils.parsedate_tz(headers.get("Date", ""))
        seconds = email.utils.mktime_tz(parsed) - (email.utils.mktime_tz(now) if now else time.time())
    return min(MAX_RETRY_AFTER_SECONDS, max(0.0, seconds)) if math.isfinite(seconds) else MAX_RETRY_AFTER_SECONDS


def _failure(status: int, raw: str, model: str) -> RequestOutcome:
    detail = f"HTTP {status}: {raw}"[:DETAIL_CHARACTERS]
    is_billed = status in GATEWAY_ERRORS
    return RequestOutcome(kind_of(status, raw, model), status=status, maybe_billed=is_billed, detail=detail)


def _read(raw: bytes, body: Mapping[str, Any], *, streamed: bool) -> RequestOutcome:
    """The outcome in the body of a 200."""
    try:
        # An error may come as JSON under the type of the stream that was to follow.
        is_stream = streamed and not raw.lstrip().startswith(b"{")
        message = join_stream(raw.decode("utf-8-sig")) if is_stream else json.loads(raw)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        detail = f"a body that is no chat completion ({type(error).__name__})"
        return RequestOutcome(OutcomeKind.TRANSIENT, maybe_billed=True, status=200, detail=detail)
    return read_completion(message, body)


def _unreached(error: aiohttp.ClientError | TimeoutError | OSError) -> RequestOutcome:
    """What came of a request that got no answer."""
    certificates = tls_problem(error)
    if certificates is not None:
        # It will not pass by itself, and was not billed: nothing was sent.
        return RequestOutcome(OutcomeKind.MISDIRECTED, detail="; ".join(certificates)[:DETAIL_CHARACTERS])
    if isinstance(error, aiohttp.ClientHttpProxyError):
        said = f"the proxy answers HTTP {error.status}"
        # A busy proxy may let the next one through; one that wants a password, or forbids the host, will not.
        kinds = {407: OutcomeKind.AUTH, 403: OutcomeKind.MISDIRECTED, 405: OutcomeKind.MISDIRECTED}
        return RequestOutcome(kinds.get(error.status, OutcomeKind.TRANSIENT), status=error.status, detail=said)
    # A request that timed out or was cut off may have been answered, and billed, behind our back; one that found no
    # connection was not.
    unsent = isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError))
    return RequestOutcome(OutcomeKind.TRANSIENT, maybe_billed=not unsent, detail=_name(error))


async def _head_of(response: aiohttp.ClientResponse) -> str:
    raw = await response.content.read(DETAIL_CHARACTERS * 4)
    return " ".join(raw.decode("utf-8", errors="replace").split())


def _without_keys(text: str, headers: Mapping[str, str]) -> str:
    """Some gateways repeat the key in their error."""
    for name, value in headers.items():
        key = value.removeprefix("Bearer ")
        if name != "Content-Type" and len(key) >= SHORTEST_KEY:
            text = text.replace(key, "***")
    return text


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
