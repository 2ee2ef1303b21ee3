"""Where the teacher is reached: its address, its key by name, which keys its requests may have, and what it lists."""

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ucotron_ray.core import addresses, variables
from ucotron_ray.core.addresses import LOOPBACK
from ucotron_ray.core.errors import InputError
from ucotron_ray.core.place import Api

VENDOR_HOST = "fireworks.ai"
VENDOR_KEY = "FIREWORKS_API_KEY"
LIST_TIMEOUT_SECONDS = 30.0
PROBE_TIMEOUT_SECONDS = 120.0
"""For the first answer: a small server loads its model when it is first asked."""

SHOWN_MODELS = 12

OPTIONAL_KEYS = ("context_length_exceeded_behavior", "response_format", "seed", "top_p")
"""Keys that not every server takes, in the order in which they are left out where one refuses a request (400, 422)."""

REFUSED_BY = {"fireworks": (), "openai": OPTIONAL_KEYS[:1], "plain": OPTIONAL_KEYS}
"""What `api.dialect` says about them; with `auto` it is found out."""


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server. Travels to workers: it holds the name of the key's variable, never the key."""

    base_url: str
    model: str
    key_variable: str | None
    key_file: str | None
    refused_keys: tuple[str, ...] | None
    """Keys that the server does not take; None = found out."""

    allowed_hosts: tuple[str, ...] = ()
    """Hosts that may be asked by http or in a private network, beside this machine."""

    @property
    def chat_url(self) -> str:
        """Where chat requests go."""
        return f"{self.base_url}/chat/completions"

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return urlsplit(self.base_url).hostname in LOOPBACK

    def headers(self) -> dict[str, str]:
        """Headers with the key, read where they are needed. Raises ConfigError that names the variable or file."""
        headers = {"Content-Type": "application/json"}
        key = variables.secret(self.key_variable, self.key_file)
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        return headers


def endpoint_of(api: Api, model: str) -> Endpoint:
    """The place's teacher. Raises ConfigError where a key is missing or would travel unprotected."""
    address = urlsplit(api.inference_base_url)
    host = address.hostname or ""
    is_vendor = host == VENDOR_HOST or host.endswith("." + VENDOR_HOST)
    variable = api.key_variable
    if variable is None and api.key_file is None and (is_vendor or (host in LOOPBACK and variables.is_set(VENDOR_KEY))):
        variable = VENDOR_KEY
    addresses.check(api.inference_base_url, allowed=api.allowed_hosts, where="api.inference_base_url")
    variables.secret(variable, api.key_file)
    refused = REFUSED_BY.get("fireworks" if is_vendor and api.dialect == "auto" else api.dialect)
    base_url, allowed = api.inference_base_url.rstrip("/"), tuple(api.allowed_hosts)
    return Endpoint(base_url, model, variable, api.key_file, refused, allowed)


def check(endpoint: Endpoint, *, probe_timeout: float = PROBE_TIMEOUT_SECONDS) -> str | None:
    """Ask for the model list: is the server there, does it take the key, has it the model?

    Returns a warning if the server has no list. Raises InputError (exit 2) with what to do; nothing was paid by then,
    but for one token where the list lacks the model: lists are not always whole (`probe_timeout` seconds).
    """
    status, answer = _get(endpoint, f"{endpoint.base_url}/models")
    _refuse_key(endpoint, status)
    names = _names(answer) if status == 200 else None
    if names is None:
        return f"{endpoint.base_url} lists no models (HTTP {status}); '{endpoint.model}' is taken on trust"
    if endpoint.model in names:
        return None
    tiny = {"model": endpoint.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    status, _ = _get(endpoint, endpoint.chat_url, tiny, timeout=probe_timeout)
    _refuse_key(endpoint, status)
    if status in (429, 500, 502, 503, 529):
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


def _refuse_key(endpoint: Endpoint, status: int) -> None:
    if status in (401, 403):
        source = endpoint.key_file or endpoint.key_variable
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


def _names(answer: object) -> list[str] | None:
    entries = answer.get("data") if isinstance(answer, dict) else None
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
        with addresses.opener(endpoint.allowed_hosts).open(request, timeout=timeout) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, None
    except ValueError:
        return 200, None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
        raise InputError(
            "the teacher's server cannot be reached",
            where=url,
            found=str(reason),
            next_step="start it, correct api.inference_base_url, or start a simulator: ucotron-ray simulate-fireworks",
        ) from None
