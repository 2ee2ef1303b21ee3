"""Where requests may go. A base URL comes from a file that somebody else may have written, and keys travel with it.

https by default; http and private addresses only for this machine or for a host of `api.allowed_hosts`. Link-local and
metadata addresses never: clouds give out credentials there. What a name resolves to is checked at the very
connection that is used, so that a name cannot mean one address in a check and another one afterwards.
"""

import functools
import http.client
import ipaddress
import re
import socket
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.network import Network

LOOPBACK = ("127.0.0.1", "localhost", "::1")

METADATA_NAMES = (
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
    "metadata.azure.internal",
    "metadata.tencentyun.com",
)
METADATA_ADDRESSES = ("169.254.169.254", "fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
"""AWS, GCP and Azure; AWS by IPv6; Alibaba; Oracle; Azure's host agent."""


NAT64 = b"\x00\x64\xff\x9b\x00\x00\x00\x00\x00\x00\x00\x00"
"""The prefix 64:ff9b::/96: the last four bytes are an IPv4 address (RFC 6052)."""


class AddressRefused(OSError):
    """A name that resolved to an address that may not be asked."""


def check(url: str, *, allowed: Sequence[str], where: str, loopback: bool = True) -> None:
    """Refuse a URL that may not be asked, by its text alone. Raises ConfigError; nothing was sent by then.

    `allowed` = the hosts of `api.allowed_hosts`; `loopback` False for URLs that a server gave us.
    """
    problem = _problem(url, allowed, loopback=loopback)
    if problem is not None:
        raise ConfigError(
            f"this address is not asked: {problem}",
            where=where,
            expected="https://HOST/..., or http:// to this machine or to a host of api.allowed_hosts",
            found=_without_userinfo(url),
            next_step="correct it; a server in your own network is named with --set api.allowed_hosts=[HOST]",
        )


def refusal(address: str, host: str, allowed: Sequence[str]) -> str | None:
    """Why an IP address to which `host` resolved may not be asked; None if it may."""
    # Scope ids (fe80::1%eth0) say by which card, not whom.
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(found.packed[-4:]) if found.packed.startswith(NAT64) else None
        found = found.ipv4_mapped or found.sixtofour or translated or found
    if str(found) in METADATA_ADDRESSES:
        return "it is a cloud's metadata address"
    if found.is_link_local or found.is_multicast or found.is_unspecified:
        return "it is link-local, multicast or unspecified"
    name = _plain(host)
    if name in map(_plain, allowed) or (found.is_loopback and name in LOOPBACK):
        return None
    return None if found.is_global else "it is in a private network"


def opener(network: Network, url: str) -> urllib.request.OpenerDirector:
    """For urllib and one URL: no redirects, the place's proxy, certificates checked, only addresses that may be."""
    proxy, allowed = network.proxy_for(url), network.hosts_for(url)

    class Http(urllib.request.HTTPHandler):
        def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            return self.do_open(functools.partial(_Checked, allowed=allowed), req)

    class Https(urllib.request.HTTPSHandler):
        def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
            maker = functools.partial(_CheckedTls, allowed=allowed, context=network.tls())
            return self.do_open(maker, req)

    proxies = {"http": proxy, "https": proxy} if proxy else {}
    return urllib.request.build_opener(_NoRedirect, urllib.request.ProxyHandler(proxies), Http, Https)


def resolver(allowed: Sequence[str]) -> AbstractResolver:
    """For aiohttp: refuses names that resolve to addresses that may not be asked. Needs a running event loop."""
    return _Guarded(allowed)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the configured host and to no other."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class _Checked(http.client.HTTPConnection):
    """A connection that looks at its peer; over TLS too, by inheritance below."""

    def __init__(self, host: str, *, allowed: Sequence[str], **arguments: Any) -> None:
        super().__init__(host, **arguments)
        self._allowed = allowed

    def connect(self) -> None:
        super().connect()
        _check_peer(self.sock, self.host, self._allowed)


class _CheckedTls(_Checked, http.client.HTTPSConnection):
    """The same over TLS: `_Checked` comes first, so that it looks once the connection stands."""


def _check_peer(sock: socket.socket, host: str, allowed: Sequence[str]) -> None:
    """Look at whom we are connected to, before anything is said. Raises AddressRefused."""
    reason = refusal(sock.getpeername()[0], host, allowed)
    if reason is not None:
        sock.close()
        raise AddressRefused(f"{host} is not asked: {reason}")


class _Guarded(AbstractResolver):
    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = tuple(allowed)
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for entry in found:
            reason = refusal(entry["host"], host, self._allowed)
            if reason is not None:
                raise AddressRefused(f"{host} is not asked: {reason}")
        return found

    async def close(self) -> None:
        await self._inner.close()


def _problem(url: str, allowed: Sequence[str], *, loopback: bool) -> str | None:
    try:
        parts = urlsplit(url)
        host = _plain(parts.hostname or "")
        _ = parts.port
    except ValueError:
        return "it is no URL"
    if parts.scheme not in ("http", "https") or not host:
        return "it is no http or https address of a host"
    if "@" in parts.netloc or "\\" in url or not url.isascii() or re.search(r"[\s\x00-\x1f]", url):
        return "it holds a name, a password, a backslash or characters that no address has"
    if host in METADATA_NAMES:
        return "it is a cloud's metadata address"
    is_named = host in map(_plain, allowed) or (host in LOOPBACK and loopback)
    if _is_number(host):
        try:
            reason = refusal(host, host, allowed)
        except ValueError:
            return "an IP address is written as 192.0.2.1 or [2001:db8::1]"
        if reason is not None:
            return reason
    if host in LOOPBACK and not is_named:
        return "a server may not send us to this machine"
    return None if parts.scheme == "https" or is_named else "http is not encrypted"


def _is_number(host: str) -> bool:
    """Whether resolvers take it for an IP address: also 2130706433, 0x7f.1 and 127.1, which hide what they mean."""
    return ":" in host or re.fullmatch(r"(0x[0-9a-f]*|\d+)(\.(0x[0-9a-f]*|\d+))*", host) is not None


def _plain(host: str) -> str:
    return host.lower().rstrip(".").strip("[]")


def _without_userinfo(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//***@", url)
