"""One process's way to a teacher: a session, the servers in turn, the key, and what the server was found to take."""

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp

from ucotron_ray.core import addresses
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.teacher.capabilities import Capabilities
from ucotron_ray.teacher.chat import chat
from ucotron_ray.teacher.endpoint import Endpoint
from ucotron_ray.teacher.outcome import OutcomeKind, RequestOutcome

KEEPALIVE_SECONDS = 4.0
"""Shorter than any usual server's (uvicorn, and with it vLLM, SGLang and LiteLLM: 5 s): what is sent just as the server
closes an idle connection is reset, and may have been paid for."""


class Client:
    """Asks a teacher, from one event loop. `file`: where the processes of a run share what they find out."""

    def __init__(self, endpoint: Endpoint, file: Path | None = None) -> None:
        self._endpoint = endpoint
        self._headers = endpoint.headers()
        # Here, where an error can be raised to somebody.
        self._tls = endpoint.network.tls()
        self._proxies = {url: endpoint.network.proxy_for(url) for url in endpoint.chat_urls}
        self._urls = itertools.cycle(endpoint.chat_urls)
        self._capabilities = Capabilities(endpoint, file)

    @property
    def room(self) -> int:
        """Tokens that a request needs for reasoning, beside those of its answer."""
        return self._capabilities.room

    async def open(self, timeout: aiohttp.ClientTimeout) -> None:
        """Make the session."""
        hosts = (host for url in self._proxies for host in self._endpoint.network.hosts_for(url))
        connector = aiohttp.TCPConnector(
            limit=0,
            ttl_dns_cache=300,
            keepalive_timeout=KEEPALIVE_SECONDS,
            ssl=self._tls,
            resolver=addresses.resolver(tuple(hosts)),
        )
        # Proxies and netrc of the shell would take the key elsewhere, unasked.
        self._session = aiohttp.ClientSession(timeout=timeout, connector=connector, trust_env=False)

    async def ask(self, body: Mapping[str, Any], *, is_stopped: Callable[[], bool] = lambda: False) -> RequestOutcome:
        """One request, in the form that the server takes. Never raises for what the server or the network does."""
        return await self._capabilities.send(body, self._post, is_stopped=is_stopped)

    async def close(self) -> None:
        """End the session."""
        await self._session.close()

    async def _post(self, body: dict[str, Any]) -> RequestOutcome:
        headers = self._headers
        for _ in self._proxies:
            url = next(self._urls)
            outcome = await self._post_to(url, body)
            if outcome.kind is not OutcomeKind.TRANSIENT or outcome.status is not None or outcome.maybe_billed:
                break
            # Nobody there: another server of the model may be.
        if outcome.status == 401 and self._key_is_new(headers):
            outcome = await self._post_to(url, body)
        return outcome

    async def _post_to(self, url: str, body: dict[str, Any]) -> RequestOutcome:
        return await chat(self._session, url, body, self._headers, proxy=self._proxies[url])

    def _key_is_new(self, used: Mapping[str, str]) -> bool:
        """Read the key again: its file may hold a new one since the run began."""
        try:
            self._headers = self._endpoint.headers()
        except ConfigError:
            return False
        return self._headers != used
