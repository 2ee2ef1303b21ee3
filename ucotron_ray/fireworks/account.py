"""The vendor's control plane: who asks (an account, its key by name), and one call with retries.

Paths and fields are those of the vendor's own SDK (`fireworks-ai` 1.2.30 on PyPI). A call is repeated after a 429, a
5xx or a lost connection, with full jitter and `Retry-After`; any other refusal is raised with the vendor's own words.
What creates something (`create`) is looked for first, and again before every repetition: nothing is created twice.
"""

import http.client
import json
import logging
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from ucotron_ray.core import addresses, variables
from ucotron_ray.core.errors import AuthError, ConfigError, FireworksError, InputError, NotFoundError, RateLimitError
from ucotron_ray.core.network import Network, network_of, tls_problem
from ucotron_ray.core.place import Api
from ucotron_ray.teacher.chat import retry_after
from ucotron_ray.teacher.endpoint import VENDOR_KEY

log = logging.getLogger(__name__)

ACCOUNT_VARIABLE = "FIREWORKS_ACCOUNT_ID"
PAGE_SIZE = 200
"""The most that the vendor lists at once."""

MAX_BACKOFF_SECONDS = 30.0
DETAIL_CHARACTERS = 500
REPEATED = (408, 425, 429, 500, 502, 503, 504, 529)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Streamed:
    """A body too large for memory. `start` begins it anew: a retry must never send the rest of a half-read file."""

    headers: Mapping[str, str]
    start: Callable[[], Iterable[bytes]]


Body = Mapping[str, Any] | Streamed | None
"""JSON, or a stream."""


@dataclass(frozen=True)
class Account:
    """Where and as whom. Holds the name of the key's variable, never the key."""

    base_url: str
    account_id: str
    key_variable: str | None
    key_file: str | None
    timeout: float = 120.0
    max_retries: int = 3
    retry_delay: float = 2.0
    network: Network = field(default_factory=Network)

    @property
    def parent(self) -> str:
        """The account's resource name."""
        return f"accounts/{self.account_id}"

    def full_name(self, collection: str, name: str) -> str:
        """The full resource name of an id; a full name stays as it is."""
        return name if name.startswith("accounts/") else f"{self.parent}/{collection}/{name}"


@dataclass(frozen=True)
class Answer:
    """A status and its JSON; {} where there is none."""

    status: int
    body: dict[str, Any]


def account_of(api: Api, account_id: str | None = None) -> Account:
    """The place's account. Raises ConfigError that names the variable that is missing: nothing was sent by then."""
    variable = api.key_variable if api.key_variable or api.key_file else VENDOR_KEY
    addresses.check(api.fine_tuning_base_url, allowed=api.allowed_hosts, where="api.fine_tuning_base_url")
    variables.secret(variable, api.key_file)
    chosen = account_id or variables.secret(ACCOUNT_VARIABLE, None)
    assert chosen is not None
    chosen = chosen.removeprefix("accounts/")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", chosen):
        raise ConfigError("this is no account id", where=ACCOUNT_VARIABLE, expected="letters, digits, - and _")
    base_url, network = api.fine_tuning_base_url.rstrip("/"), network_of(api)
    return Account(base_url, chosen, variable, api.key_file, api.timeout, api.max_retries, api.retry_delay, network)


def call(
    account: Account, method: str, path: str, body: Body = None, *, query: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One call that may be repeated; its JSON. `path` is below the API's version: `accounts/…`.

    Raises AuthError, NotFoundError, RateLimitError or FireworksError with the vendor's message.
    """
    url = _url(account, path, query)
    return repeated(account, lambda: _send(account, method, url, body), f"{method} {path}").body


def once(account: Account, method: str, path: str, body: Body = None) -> dict[str, Any]:
    """The same, not repeated: for what is part of a larger attempt. Retries would multiply."""
    return _send(account, method, _url(account, path, None), body).body


def create(
    account: Account, path: str, body: Mapping[str, Any], *, query: Mapping[str, Any], existing: str
) -> tuple[dict[str, Any], bool]:
    """Create what `existing` names, once: it is looked for first, and again before every repetition.

    Returns it, and whether it is new. A request that timed out may have created it behind our back, and the vendor
    answers 409 for an id that it knows: both end in the resource that is there.
    """
    url = _url(account, path, query)

    def attempt() -> tuple[dict[str, Any], bool]:
        found = _found(account, existing)
        if found is not None:
            return found, False
        try:
            return _send(account, "POST", url, body).body, True
        except FireworksError as error:
            if error.status_code == 409:
                found = _found(account, existing)
                if found is not None:
                    return found, False
                error.next_step = "the id was used by something that was deleted: choose another one"
            raise

    return repeated(account, attempt, f"POST {path}")


def find(account: Account, name: str) -> dict[str, Any] | None:
    """The resource of that name, or None."""
    return repeated(account, lambda: _found(account, name), f"GET {name}")


def _found(account: Account, name: str) -> dict[str, Any] | None:
    try:
        return _send(account, "GET", _url(account, name, None), None).body
    except NotFoundError:
        return None


def pages(account: Account, path: str, key: str, *, query: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Every entry of a list, page by page."""
    token: str | None = None
    while True:
        asked = {"pageSize": PAGE_SIZE, **(query or {}), **({"pageToken": token} if token else {})}
        answer = call(account, "GET", path, query=asked)
        yield from answer.get(key) or []
        token = answer.get("nextPageToken")
        if not token:
            return


def repeated(account: Account, attempt: Callable[[], Result], what: str) -> Result:
    """What `attempt` returns, tried again after what can pass. Raises the last error, which says how often."""
    for number in range(account.max_retries + 1):
        try:
            return attempt()
        except FireworksError as error:
            if error.status_code not in (None, *REPEATED) or number == account.max_retries:
                if number:
                    error.found = f"{error.found} ({number} retries)"
                raise
            longest = min(MAX_BACKOFF_SECONDS, account.retry_delay * 2**number)
            pause = error.retry_after if error.retry_after is not None else random.uniform(0, longest)
            log.info("fireworks: %s: %s; again in %.1f s", what, error.found, pause)
            time.sleep(pause)
    raise AssertionError("the loop returns or raises")


def put_signed(account: Account, url: str, body: Streamed) -> None:
    """PUT a file to a signed URL. The URL is the permission: no key goes there. Raises FireworksError."""
    _check_signed(account, url)
    request = urllib.request.Request(url, data=body.start(), headers=dict(body.headers), method="PUT")
    _open(account, request, shown=_without_query(url))


def get_signed(account: Account, url: str) -> bytes:
    """The bytes behind a signed URL. Raises FireworksError."""
    _check_signed(account, url)
    return _open(account, urllib.request.Request(url), shown=_without_query(url))[1]


def _check_signed(account: Account, url: str) -> None:
    """The vendor chose this address: it may lead to this machine only if the vendor's simulator runs on it."""
    is_here = urlsplit(account.base_url).hostname in addresses.LOOPBACK
    addresses.check(
        _without_query(url),
        allowed=account.network.allowed_hosts,
        where="a signed address of the vendor's",
        loopback=is_here,
    )


def _url(account: Account, path: str, query: Mapping[str, Any] | None) -> str:
    address = f"{account.base_url}/{quote(path, safe='/:')}"
    return f"{address}?{urlencode(query)}" if query else address


def _send(account: Account, method: str, url: str, body: Body) -> Answer:
    key = variables.secret(account.key_variable, account.key_file) or ""
    headers = {"Authorization": f"Bearer {key}", "Accept": "application/json"}
    data: bytes | Iterable[bytes] | None = None
    if isinstance(body, Streamed):
        headers |= body.headers
        data = body.start()
    elif body is not None:
        headers["Content-Type"] = "application/json"
        data = json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers=headers, method=method)
    status, raw = _open(account, request, shown=_without_query(url), key=key)
    try:
        parsed = json.loads(raw) if raw.strip() else {}
    except ValueError as error:
        raise _lost("the answer is no JSON", _without_query(url)) from error
    return Answer(status, parsed if isinstance(parsed, dict) else {})


def _open(account: Account, request: urllib.request.Request, *, shown: str, key: str = "") -> tuple[int, bytes]:
    try:
        with addresses.opener(account.network, request.full_url).open(request, timeout=account.timeout) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        raw = error.read(DETAIL_CHARACTERS * 8)
        raise _refused(error.code, raw, error.headers, shown, key) from None
    except (OSError, http.client.HTTPException) as error:
        certificates = tls_problem(error)
        if certificates is not None:
            found, helps = certificates
            raise InputError("no safe connection to the vendor", where=shown, found=found, next_step=helps) from None
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise _lost(str(reason), shown) from None


def _lost(reason: str, shown: str) -> FireworksError:
    return FireworksError(
        "the vendor did not answer",
        where=shown,
        found=reason,
        next_step="run the same command again; `ucotron-ray simulate-fireworks` serves a simulator",
    )


def _refused(status: int, raw: bytes, headers: Any, shown: str, key: str) -> FireworksError:
    message = _message(raw)
    message = message.replace(key, "***") if key else message
    found = f"HTTP {status}: {message}"
    error: FireworksError
    if status in (401, 403):
        error = AuthError(
            "the vendor refuses the key",
            where=shown,
            found=found,
            next_step=f"check the key ({VENDOR_KEY}), the account ({ACCOUNT_VARIABLE}) and the key's rights",
        )
    elif status in (402, 412):
        error = AuthError(
            "the account's budget is spent or its billing is stopped",
            where=shown,
            found=found,
            next_step="look at the account's billing page",
        )
    elif status == 404:
        error = NotFoundError("the vendor does not have this", where=shown, found=found, next_step="check the name")
    elif status == 429:
        error = RateLimitError(
            "too many requests, or a quota of the account is used up",
            where=shown,
            found=found,
            next_step="wait, or raise the account's quota; then run the same command again",
        )
    else:
        error = FireworksError("the vendor refuses the request", where=shown, found=found)
    error.status_code = status
    error.retry_after = retry_after(headers)
    return error


def _message(raw: bytes) -> str:
    """The vendor's words: {"error": {"message"}} or {"code", "message"}, else the beginning of whatever came."""
    text = raw.decode("utf-8", "replace")
    try:
        body = json.loads(text)
        inner = body.get("error", body)
        message = inner.get("message") if isinstance(inner, dict) else inner
    except (ValueError, AttributeError):
        message = None
    return " ".join(str(message or text).split())[:DETAIL_CHARACTERS]


def _without_query(url: str) -> str:
    """A signed URL is a permission: its signature is not shown."""
    return url.partition("?")[0]
