"""Asks a teacher before anything is paid: is the server there, does it take the key, has it the model?"""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from ucotron_ray.core import addresses, network
from ucotron_ray.core.errors import InputError
from ucotron_ray.teacher.endpoint import RENAMED, Endpoint

LIST_TIMEOUT_SECONDS = 30.0
PROBE_TIMEOUT_SECONDS = 120.0
"""For the first answer: a small server loads its model when it is first asked."""

SIBLING_TIMEOUT_SECONDS = 3.0
SIBLINGS = ("/v1", "/api/v1", "/openai/v1", "/inference/v1", "/v1beta/openai", "/api/openai/v1")
"""Where servers and gateways have their interface, below the address that people name."""

SHOWN_MODELS = 12
BUSY = (429, 500, 502, 503, 529)


def check(endpoint: Endpoint, *, probe_timeout: float = PROBE_TIMEOUT_SECONDS) -> str | None:
    """Ask every server of the endpoint for its model list.

    Returns a warning if one has no list. Raises InputError (exit 2) with what to do; nothing was paid by then, but for
    one token where no list has the model: lists are not always whole, or not there (`probe_timeout` seconds).
    """
    endpoints = [replace(endpoint, base_url=url, more_urls=()) for url in (endpoint.base_url, *endpoint.more_urls)]
    warnings = [_checked(one, probe_timeout) for one in endpoints]
    return "; ".join(filter(None, warnings)) or None


def _checked(endpoint: Endpoint, probe_timeout: float) -> str | None:
    url = endpoint.url_of(endpoint.base_url, "/models")
    status, answer = _get(endpoint, url)
    _refuse_key(endpoint, status)
    names = _names(answer) if status == 200 else None
    if names is not None and endpoint.model in names:
        return None
    if names is None and status in BUSY:
        return f"{endpoint.base_url} is too busy to list its models (HTTP {status})"
    listed, status = status, _probe(endpoint, probe_timeout)
    _refuse_key(endpoint, status)
    if names is None and status in (404, 405):
        raise _nobody_there(endpoint, status)
    if names is None:
        return f"{endpoint.base_url} lists no models (HTTP {listed}); '{endpoint.model}' is taken on trust"
    if status in BUSY:
        return f"{endpoint.base_url} does not list '{endpoint.model}', and is too busy to say more (HTTP {status})"
    if status == 200:
        return f"{endpoint.base_url} answers as '{endpoint.model}', though it does not list it"
    raise InputError(
        f"the server has no model '{endpoint.model}' (HTTP {status})",
        where=endpoint.base_url,
        expected="one of: " + ", ".join(names[:SHOWN_MODELS]) + (" …" if len(names) > SHOWN_MODELS else ""),
        found=endpoint.model,
        next_step="--set models.generation.model_id=NAME, with a name of the list",
    )


def _probe(endpoint: Endpoint, timeout: float) -> int:
    """The status of a request for one token, by the older name of its limit and, where that is refused, the newer."""
    tiny = {"model": endpoint.model, "messages": [{"role": "user", "content": "Hi"}]}
    status = 0
    for name in ("max_tokens", RENAMED["max_tokens"]):
        status, _ = _get(endpoint, endpoint.chat_url, {**tiny, name: 1}, timeout=timeout)
        if status not in (400, 422):
            break
    return status


def _nobody_there(endpoint: Endpoint, status: int) -> InputError:
    """What to say where neither models are listed nor chats answered; and where on the same host they are."""
    meant = next((url for url in _siblings(endpoint.base_url) if _lists_models(endpoint, url)), None)
    return InputError(
        f"there is no OpenAI-compatible server at this path (HTTP {status})",
        where="api.inference_base_url",
        expected=f"did you mean {meant} ? It lists models" if meant else "the base URL, before /chat/completions",
        found=endpoint.base_url,
        next_step=f"--set api.inference_base_url={meant}" if meant else "correct it, or the model's name",
    )


def _lists_models(endpoint: Endpoint, url: str) -> bool:
    try:
        status, answer = _get(endpoint, endpoint.url_of(url, "/models"), timeout=SIBLING_TIMEOUT_SECONDS)
    except InputError:
        return False
    return status == 200 and _names(answer) is not None


def _siblings(base_url: str) -> Iterator[str]:
    """Paths of the same host that may have been meant: below the one given, then above it."""
    parts = urlsplit(base_url)
    for ending in SIBLINGS:
        if not parts.path.endswith(ending):
            yield base_url + ending
    above = parts.path.rpartition("/")[0] if parts.path else None
    while above is not None:
        yield urlunsplit(parts._replace(path=above))
        above = above.rpartition("/")[0] if above else None


def _refuse_key(endpoint: Endpoint, status: int) -> None:
    source = endpoint.key_source
    if status == 407:
        raise _proxy_refuses(endpoint)
    if status in (401, 403):
        raise InputError(
            f"the server refuses the key (HTTP {status})" if source else f"the server wants a key (HTTP {status})",
            where=endpoint.base_url,
            expected=f"a valid key in {source}" if source else "api.key_variable or api.key_file",
            next_step="check the key, its account and its rights",
        )
    if status == 402:
        raise InputError(
            "the account's budget is spent or its billing is stopped (HTTP 402)",
            where=endpoint.base_url,
            next_step="look at the account's billing page",
        )


def _proxy_refuses(endpoint: Endpoint) -> InputError:
    return InputError(
        "the proxy wants a user and a password (HTTP 407)",
        where=endpoint.network.proxy or "HTTPS_PROXY",
        next_step="--set api.proxy=http://USER@HOST:PORT --set api.proxy_password_variable=VARIABLE",
    )


def _names(answer: object) -> list[str] | None:
    """The names in a list of models; some servers send the list itself."""
    entries = answer.get("data", answer.get("models")) if isinstance(answer, dict) else answer
    if not isinstance(entries, list):
        return None
    return sorted(str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry)


def _get(
    endpoint: Endpoint,
    url: str,
    body: Mapping[str, Any] | None = None,
    *,
    timeout: float = LIST_TIMEOUT_SECONDS,
) -> tuple[int, object]:
    """Status and parsed body. Raises InputError if the server cannot be reached."""
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data=data, headers=endpoint.headers())
    try:
        with addresses.opener(endpoint.network, url).open(request, timeout=timeout) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        if 300 <= error.code < 400:
            raise _sent_elsewhere(url, error) from None
        return error.code, None
    except ValueError:
        return 200, None
    except (OSError, http.client.HTTPException) as error:
        raise _unreached(endpoint, url, error) from None


def _sent_elsewhere(url: str, error: urllib.error.HTTPError) -> InputError:
    return InputError(
        f"the server sends us elsewhere (HTTP {error.code}), and keys are not taken there",
        where=url,
        found=(error.headers.get("Location") or "nowhere").partition("?")[0],
        next_step="name the address to which it leads: --set api.inference_base_url=URL",
    )


def _unreached(endpoint: Endpoint, url: str, error: OSError | http.client.HTTPException) -> InputError:
    certificates = network.tls_problem(error)
    if certificates is not None:
        found, helps = certificates
        return InputError("no safe connection to the teacher's server", where=url, found=found, next_step=helps)
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
    if "Tunnel connection failed: 407" in str(reason):
        return _proxy_refuses(endpoint)
    proxy, unused = endpoint.network.proxy, network.unused_proxy(endpoint.network)
    next_step = "start it, correct api.inference_base_url, or start a simulator: ucotron-ray simulate-fireworks"
    if unused is not None:
        next_step = f"{unused} is set, and not used: --set api.use_environment_proxy=true; or {next_step}"
    if isinstance(error, ConnectionResetError) and url.startswith("https:"):
        # Of TLS 1.3: what a server thinks of our certificate it says after the handshake, or not at all.
        next_step = "if it asks for a client certificate: --set api.client_certificate=FILE; else " + next_step
    return InputError(
        "the teacher's server cannot be reached" + (f" through the proxy {proxy}" if proxy else ""),
        where=url,
        found=str(reason),
        next_step=next_step,
    )
