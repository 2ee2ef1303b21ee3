"""Where requests may go, and what happens to names that lead elsewhere."""

import asyncio
import http.server
import socket
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import pytest

from ucotron_ray.core import addresses
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.network import Network
from ucotron_ray.fireworks import account
from ucotron_ray.teacher import chat, endpoint
from ucotron_ray.teacher.outcome import RequestOutcome


@pytest.mark.parametrize(
    "url",
    [
        "https://api.fireworks.ai/inference/v1",
        "https://8.8.8.8/v1",
        "http://127.0.0.1:8000/v1",
        "http://localhost:8000/v1",
        "http://[::1]:8000/v1",
        "http://teacher:8000/v1",
        "http://TEACHER.:8000/v1",
        "https://10.0.0.7/v1",
    ],
)
def test_addresses_that_are_asked(url):
    addresses.check(url, allowed=["teacher", "10.0.0.7"], where="here")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://api.example.org/v1", "not encrypted"),
        ("http://8.8.8.8/v1", "not encrypted"),
        ("https://10.0.0.8/v1", "private network"),
        ("https://192.168.1.1/v1", "private network"),
        ("https://[fd12::1]/v1", "private network"),
        ("https://169.254.169.254/latest", "metadata"),
        ("https://[fd00:ec2::254]/", "metadata"),
        ("https://[::ffff:169.254.169.254]/", "metadata"),
        ("https://[64:ff9b::a9fe:a9fe]/", "metadata"),
        ("https://[2002:a9fe:a9fe::1]/", "metadata"),
        ("https://metadata.google.internal/computeMetadata", "metadata"),
        ("https://Metadata.Google.Internal./", "metadata"),
        ("https://169.254.1.2/", "link-local"),
        ("https://[fe80::1]/", "link-local"),
        ("http://0.0.0.0:8000/v1", "unspecified"),
        ("http://[::]:8000/v1", "unspecified"),
        ("http://127.1/v1", "written as"),
        ("http://2130706433/v1", "written as"),
        ("http://0177.0.0.1/v1", "written as"),
        ("http://0x7f.0.0.1/v1", "written as"),
        ("https://2852039166/", "written as"),
        ("https://127.0.0.1@example.org/v1", "password"),
        ("https://user:secret@example.org/v1", "password"),
        ("https://example.org\\@127.0.0.1/", "backslash"),
        ("https://ex\u00e4mple.org/", "characters"),
        ("https://example.org:99999/", "no URL"),
        ("ftp://example.org/", "no http"),
        ("file:///etc/passwd", "no http"),
        ("https:///v1", "no http"),
    ],
)
def test_addresses_that_are_refused(url, why):
    with pytest.raises(ConfigError, match=why) as caught:
        addresses.check(url, allowed=[], where="api.inference_base_url")
    assert caught.value.exit_code == 2
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://169.254.169.254/", "https://metadata.google.internal/", "http://0.0.0.0/"])
def test_no_setting_opens_the_metadata_address(url):
    host = url.split("/")[2]
    with pytest.raises(ConfigError):
        addresses.check(url, allowed=[host], where="here")


@pytest.mark.parametrize(
    ("address", "host", "allowed", "refused"),
    [
        ("127.0.0.1", "localhost", [], False),
        ("127.0.0.1", "api.example.org", [], True),
        ("10.1.2.3", "api.example.org", [], True),
        ("10.1.2.3", "api.example.org", ["api.example.org"], False),
        ("169.254.169.254", "api.example.org", ["api.example.org"], True),
        ("fe80::1%eth0", "api.example.org", ["api.example.org"], True),
        ("::ffff:10.1.2.3", "api.example.org", [], True),
        ("93.184.215.14", "api.example.org", [], False),
    ],
)
def test_what_a_name_resolves_to(address, host, allowed, refused):
    assert (addresses.refusal(address, host, allowed) is not None) == refused


class Recorder(http.server.BaseHTTPRequestHandler):
    """Writes down what reaches it; redirects to the address of the server's `target`, if there is one."""

    def do_GET(self) -> None:
        self.server.seen.append(dict(self.headers))  # type: ignore[attr-defined]
        target = self.server.target  # type: ignore[attr-defined]
        self.send_response(302 if target else 200)
        if target:
            self.send_header("Location", target)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def recording(target: str | None = None, context: ssl.SSLContext | None = None) -> Iterator[http.server.HTTPServer]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Recorder)
    server.seen, server.target = [], target  # type: ignore[attr-defined]
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def resolving_to_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name leads to this machine, as a rebinding name server would make one."""
    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: real("127.0.0.1", *rest, **more))


def asked_by_urllib(url: str, allowed: list[str]) -> str:
    try:
        with addresses.opener(Network(tuple(allowed)), url).open(urllib.request.Request(url), timeout=5) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except urllib.error.URLError as error:
        return str(error.reason)


def asked_by_aiohttp(url: str, allowed: list[str]) -> str:
    async def ask() -> RequestOutcome:
        connector = aiohttp.TCPConnector(resolver=addresses.resolver(allowed))
        async with aiohttp.ClientSession(connector=connector) as session:
            return await chat.chat(session, url, {"messages": []}, {"Authorization": "Bearer fw-canary"})

    outcome = asyncio.run(ask())
    return str(outcome.status or outcome.detail)


@pytest.mark.parametrize("asked", [asked_by_urllib, asked_by_aiohttp])
def test_a_name_that_is_rebound_to_this_machine_gets_no_request(monkeypatch, asked):
    with recording() as server:
        resolving_to_loopback(monkeypatch)
        url = f"http://teacher.example:{server.server_port}/v1"
        said = asked(url, [])
        assert server.seen == []
        assert "200" not in said
        assert asked(url, ["teacher.example"]) == "200"
        assert len(server.seen) == 1


@pytest.mark.parametrize("asked", [asked_by_urllib, asked_by_aiohttp])
def test_no_redirect_is_followed(asked):
    with recording() as second, recording(f"http://127.0.0.1:{second.server_port}/") as first:
        assert asked(f"http://127.0.0.1:{first.server_port}/v1", []) == "302"
        assert len(first.seen) == 1
        assert second.seen == []


@pytest.mark.parametrize("asked", [asked_by_urllib, asked_by_aiohttp])
def test_a_certificate_that_nobody_vouches_for_gets_no_request(tmp_path, asked):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost "
        f"-keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with recording(context=context) as server:
        said = asked(f"https://localhost:{server.server_port}/v1", [])
        assert "ertificate" in said
        assert server.seen == []


def test_a_signed_address_of_a_server_elsewhere_may_not_lead_to_this_machine():
    far = account.Account("https://api.fireworks.ai/v1", "acme", "FIREWORKS_API_KEY", None)
    near = account.Account("http://127.0.0.1:1/v1", "acme", "FIREWORKS_API_KEY", None)
    with recording() as server:
        url = f"http://127.0.0.1:{server.server_port}/bucket?signature=s"
        with pytest.raises(ConfigError, match="this machine") as caught:
            account.get_signed(far, url)
        assert "signature" not in str(caught.value)
        assert server.seen == []
        assert account.get_signed(near, url) == b"{}"
        assert "Authorization" not in server.seen[0]


def test_endpoint_and_account_take_the_hosts_of_the_place():
    from ucotron_ray.core import config
    from ucotron_ray.core.place import Api

    def api(**settings: object) -> Api:
        return config.load(overrides=[(f"api.{name}", value) for name, value in settings.items()]).place.api

    with pytest.raises(ConfigError, match="http is not encrypted"):
        endpoint.endpoint_of(api(inference_base_url="http://gpu-box:8000/v1"), "m")
    made = endpoint.endpoint_of(api(inference_base_url="http://gpu-box:8000/v1", allowed_hosts=["gpu-box"]), "m")
    assert made.network.allowed_hosts == ("gpu-box",)


@pytest.mark.parametrize(
    "arguments",
    [["import-graph", "http://ucotron.example:8420"], ["synthesize", "path_reward", "--input", "http://10.0.0.8:8420"]],
    ids=["import", "path rewards"],
)
def test_a_graph_server_is_not_asked_in_clear_text_either(tmp_path, capsys, arguments):
    from ucotron_ray import cli

    assert cli.main([*arguments, "--set", f"store={tmp_path / 'store'}"]) == 2
    assert "this address is not asked" in capsys.readouterr().err
