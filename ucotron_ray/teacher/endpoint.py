"""Where the teacher is reached: its address, its keys by name, what its requests may have. What it says: `check.py`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from ucotron_ray.core import addresses, variables
from ucotron_ray.core.addresses import LOOPBACK
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.network import Network, network_of
from ucotron_ray.core.place import SECRET_NAME, Api

VENDOR_HOST = "fireworks.ai"
VENDOR_KEY = "FIREWORKS_API_KEY"

OPTIONAL_KEYS = ("context_length_exceeded_behavior", "response_format", "seed", "top_p", "max_tokens", "temperature")
"""Keys that not every server takes, in the order in which they are left out where one refuses a request (400, 422)."""

RENAMED = {"max_tokens": "max_completion_tokens"}
"""What is sent in the place of a refused key: the newer name, which reasoning models insist on."""

REFUSED_BY: dict[str, tuple[str, ...]] = {
    "fireworks": (),
    "openai": ("context_length_exceeded_behavior",),
    "openai-reasoning": ("context_length_exceeded_behavior", "top_p", "max_tokens", "temperature"),
    "plain": ("context_length_exceeded_behavior", "response_format", "seed", "top_p"),
}
"""What `api.dialect` says about them; with `auto` it is found out."""

WHOLE_ENDPOINTS = ("/chat/completions", "/completions", "/responses")


@dataclass(frozen=True)
class Endpoint:
    """An OpenAI-compatible server. Travels to workers: it holds the names of keys' variables, never a key."""

    base_url: str
    model: str
    key_variable: str | None
    key_file: str | None
    refused_keys: tuple[str, ...] | None
    """Keys that the server does not take; None = found out."""

    network: Network = field(default_factory=Network)
    more_urls: tuple[str, ...] = ()
    """Further servers of the same model. All stand under one limit, and which of them answered is nobody's business."""
    query: tuple[tuple[str, str], ...] = ()
    further_headers: Mapping[str, str] = field(default_factory=dict, hash=False)
    header_variables: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Name of a header → name of the variable with its value."""
    extra_body: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Further keys of every request; a part of what was asked."""
    hidden_tokens: int | None = None
    """Room for reasoning beside an answer's own tokens; None = found out."""

    @property
    def chat_url(self) -> str:
        """Where chat requests go."""
        return self.url_of(self.base_url, "/chat/completions")

    @property
    def chat_urls(self) -> tuple[str, ...]:
        """The same for every server of the model."""
        return tuple(self.url_of(url, "/chat/completions") for url in (self.base_url, *self.more_urls))

    def url_of(self, base_url: str, path: str) -> str:
        """An address below a base URL, with the query that all have."""
        return f"{base_url}{path}" + (f"?{urlencode(self.query)}" if self.query else "")

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine."""
        return all(urlsplit(url).hostname in LOOPBACK for url in (self.base_url, *self.more_urls))

    @property
    def key_source(self) -> str | None:
        """Which file or variable holds the key; None if none is sent."""
        return self.key_file or self.key_variable or next(iter(self.header_variables.values()), None)

    def headers(self) -> dict[str, str]:
        """Headers with the key, read where they are needed. Raises ConfigError that names the variable or file."""
        headers = {"Content-Type": "application/json", **self.further_headers}
        for name, variable in self.header_variables.items():
            headers[name] = variables.secret(variable, None) or ""
        key = variables.secret(self.key_variable, self.key_file)
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        return headers


def endpoint_of(api: Api, model: str) -> Endpoint:
    """The place's teacher. Raises ConfigError where a key is missing or would travel unprotected."""
    where = "api.inference_base_urls" if api.inference_base_urls else "api.inference_base_url"
    split = [_split(url, api, where) for url in api.inference_base_urls or [api.inference_base_url]]
    hosts = [urlsplit(url).hostname or "" for url, _ in split]
    (base_url, query), *more = split
    if any(other != query for _, other in more):
        raise ConfigError(
            "the servers of one model are asked with different queries",
            where=where,
            expected="the same query for all of them",
            next_step="leave it out of the addresses: --set api.query={NAME: VALUE}",
        )
    is_vendor = all(host == VENDOR_HOST or host.endswith("." + VENDOR_HOST) for host in hosts)
    header_variables = {name: value.variable for name, value in api.headers.items() if not isinstance(value, str)}
    variable = api.key_variable
    if variable is None and api.key_file is None and not header_variables:
        is_here = all(host in LOOPBACK for host in hosts)
        variable = VENDOR_KEY if is_vendor or (is_here and variables.is_set(VENDOR_KEY)) else None
    endpoint = Endpoint(
        base_url,
        model,
        variable,
        api.key_file,
        REFUSED_BY.get("fireworks" if is_vendor and api.dialect == "auto" else api.dialect),
        network=network_of(api),
        more_urls=tuple(url for url, _ in more),
        query=tuple({**dict(query), **api.query}.items()),
        further_headers={name: value for name, value in api.headers.items() if isinstance(value, str)},
        header_variables=header_variables,
        extra_body=extra_body(api),
        hidden_tokens=api.hidden_tokens,
    )
    endpoint.headers()
    return endpoint


def extra_body(api: Api) -> dict[str, Any]:
    """What the place adds to every request. It changes the answers, so it counts where something is known again."""
    effort = {"reasoning_effort": api.reasoning_effort} if api.reasoning_effort is not None else {}
    return {**api.extra_body, **effort}


def without_refused(body: Mapping[str, Any], refused: Collection[str]) -> dict[str, Any]:
    """The body for a server that does not take these keys: without them, or under their newer names."""
    kept = {RENAMED.get(key, key) if key in refused else key: value for key, value in body.items()}
    return {key: value for key, value in kept.items() if key not in refused}


def _split(url: str, api: Api, where: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """A base URL as people have it: without its query, which goes behind every path, and without a slash at its end."""
    addresses.check(url, allowed=api.allowed_hosts, where=where)
    parts = urlsplit(url)
    query = tuple(parse_qsl(parts.query, keep_blank_values=True))
    secret = next((name for name, _ in query if SECRET_NAME.search(name)), None)
    if secret is not None:
        raise ConfigError(
            "a secret does not belong into an address",
            where=where,
            expected="no secret behind the ?: addresses are printed and kept",
            found=f"{secret}=***",
            next_step=f"export it, and --set 'api.headers={{NAME: {{variable: VARIABLE}}}}' in the place of {secret}",
        )
    path = parts.path.rstrip("/")
    whole = next((ending for ending in WHOLE_ENDPOINTS if path.endswith(ending)), None)
    if whole is not None:
        meant = urlunsplit(parts._replace(path=path.removesuffix(whole), fragment=""))
        raise ConfigError(
            "this address is that of one kind of request, not the server's",
            where=where,
            expected=f"the base URL, before {whole}",
            found=url,
            next_step=f"did you mean {meant} ? --set {where}={meant if where.endswith('url') else [meant]}",
        )
    return urlunsplit(parts._replace(path=path, query="", fragment="")).rstrip("/"), query
