"""A teacher behind a forward proxy, with a certificate of a private authority, that asks who we are."""

import asyncio
import datetime
import socket
import ssl
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.teacher import serving
from ucotron_ray.core import config, worker_environment
from ucotron_ray.core.errors import ConfigError, InputError
from ucotron_ray.fireworks import account
from ucotron_ray.teacher import client as clients
from ucotron_ray.teacher.chat import client_timeout
from ucotron_ray.teacher.check import check
from ucotron_ray.teacher.endpoint import Endpoint, endpoint_of
from ucotron_ray.teacher.outcome import OutcomeKind, RequestOutcome

HOST = "teacher.example"
"""No resolver knows it: only the proxy does."""

BODY = {"model": "m", "messages": [{"role": "user", "content": "Write."}], "max_tokens": 8}
PASSWORD = "p@ss/canary-4711"


@dataclass(frozen=True)
class Certificates:
    """Files in PEM: the authority's certificate, and certificate with key of a server and of a client."""

    ca: Path
    server: Path
    client: Path


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> Certificates:
    directory = tmp_path_factory.mktemp("certificates")
    authority = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a private authority")])
    now = datetime.datetime.now(datetime.UTC)

    def made(name: str, *, is_ca: bool = False) -> Path:
        key = authority if is_ca else ec.generate_private_key(ec.SECP256R1())
        subject = issuer if is_ca else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(authority, hashes.SHA256())
        )
        file = directory / f"{name}.pem"
        encoded = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + (b"" if is_ca else encoded))
        return file

    return Certificates(made("authority", is_ca=True), made(HOST), made("worker"))


@contextmanager
def teacher(certificates: Certificates | None, *, asks_who: bool = False) -> Iterator[tuple[int, list[str]]]:
    """A teacher's port, and the paths that it was asked for."""
    seen: list[str] = []

    async def models(request: web.Request) -> web.Response:
        seen.append(request.path)
        return web.json_response({"data": [{"id": "m"}]})

    async def chat(request: web.Request) -> web.Response:
        seen.append(request.path)
        message = {"message": {"content": "ok"}, "finish_reason": "stop"}
        return web.json_response({"choices": [message], "usage": {"prompt_tokens": 1, "completion_tokens": 1}})

    application = web.Application()
    application.router.add_get("/v1/models", models)
    application.router.add_post("/v1/chat/completions", chat)
    tls = None
    if certificates:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates.ca))
        tls.load_cert_chain(certificates.server)
        tls.verify_mode = ssl.CERT_REQUIRED if asks_who else ssl.CERT_NONE
    with serving(application, tls) as url:
        yield int(url.rpartition(":")[2]), seen


@dataclass
class Proxy:
    """A forward proxy: what it was asked to do, and by whom."""

    url: str = ""
    asked: list[str] = field(default_factory=list)
    users: list[str] = field(default_factory=list)


@contextmanager
def proxying(user: str | None = None) -> Iterator[Proxy]:
    """Every host is this machine to it. `user`: "name:password" that it insists on."""
    proxy = Proxy()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.split(" ", 2)
        proxy.asked.append(f"{method} {target}")
        given = [line.split()[-1] for line in head.splitlines() if line.lower().startswith("proxy-authorization:")]
        proxy.users += [b64decode(text).decode() for text in given]
        if user is not None and user not in proxy.users:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        address = target.removeprefix("http://").partition("/")[0]
        there, back = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            back.write(head.replace(f"http://{address}", "", 1).encode())
        await asyncio.gather(relay(reader, back), relay(there, writer), return_exceptions=True)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    listening = asyncio.run_coroutine_threadsafe(asyncio.start_server(serve, "127.0.0.1", 0), loop).result()
    proxy.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"

    async def stop() -> None:
        listening.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def endpoint(url: str, **settings: object) -> Endpoint:
    given = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    overrides = [("api.inference_base_url", url), ("api.dialect", "openai")]
    return endpoint_of(config.load(overrides=[*overrides, *((f"api.{k}", v) for k, v in given.items())]).place.api, "m")


def asked(where: Endpoint) -> RequestOutcome:
    async def run() -> RequestOutcome:
        client = clients.Client(where)
        await client.open(client_timeout(connect=5, read=5, total=5))
        try:
            return await client.ask(BODY)
        finally:
            await client.close()

    return asyncio.run(run())


def test_a_teacher_behind_a_proxy_with_a_private_authority(certificates, monkeypatch):
    monkeypatch.setenv("PROXY_PASSWORD", PASSWORD)
    with teacher(certificates) as (port, seen), proxying(f"me:{PASSWORD}") as proxy:
        through = proxy.url.replace("//", "//me@")
        password = {"proxy": through, "proxy_password_variable": "PROXY_PASSWORD"}
        there = endpoint(f"https://{HOST}:{port}/v1", **password, ca_file=certificates.ca)
        assert check(there) is None
        assert asked(there).text == "ok"
        assert proxy.asked == [f"CONNECT {HOST}:{port}"] * 2
        assert seen == ["/v1/models", "/v1/chat/completions"]
    assert "canary" not in repr(there)


def test_a_proxy_that_wants_a_password_is_no_server_that_failed(certificates):
    with teacher(certificates) as (port, seen), proxying("me:secret") as proxy:
        there = endpoint(f"https://{HOST}:{port}/v1", proxy=proxy.url, ca_file=certificates.ca)
        with pytest.raises(InputError, match="407") as caught:
            check(there)
        assert "api.proxy_password_variable" in str(caught.value)
        outcome = asked(there)
        assert (outcome.kind, outcome.maybe_billed) == (OutcomeKind.AUTH, False)
        assert seen == []


def test_plain_http_goes_through_the_proxy_too():
    with teacher(None) as (port, seen), proxying() as proxy:
        there = endpoint(f"http://{HOST}:{port}/v1", proxy=proxy.url, allowed_hosts=[HOST])
        assert check(there) is None
        assert asked(there).text == "ok"
        assert proxy.asked[0] == f"GET http://{HOST}:{port}/v1/models"
        assert len(seen) == 2


def test_the_proxy_of_the_shell_is_asked_if_that_is_said(certificates, monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with teacher(certificates) as (port, _), proxying() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        url = f"https://{HOST}:{port}/v1"
        with pytest.raises(InputError, match="cannot be reached") as caught:
            check(endpoint(url, ca_file=certificates.ca))
        assert "HTTPS_PROXY is set, and not used: --set api.use_environment_proxy=true" in str(caught.value)
        assert proxy.asked == []
        there = endpoint(url, ca_file=certificates.ca, use_environment_proxy=True)
        assert check(there) is None
        assert asked(there).text == "ok"
        monkeypatch.setenv("NO_PROXY", HOST)
        assert there.network.proxy_for(url) is None
        assert there.network.proxy_for("https://another.example/v1") == proxy.url


def test_workers_get_what_the_shell_says_of_certificates_and_proxies(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/ca.pem")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://me:canary-4711@proxy:3128")
    place = config.load().place
    assert worker_environment.forwarded(place)["SSL_CERT_FILE"] == "/etc/ca.pem"
    assert "HTTPS_PROXY" not in worker_environment.forwarded(place)
    used = worker_environment.forwarded(config.load(overrides=[("api.use_environment_proxy", True)]).place)
    assert used["HTTPS_PROXY"] == "http://proxy:3128"
    assert "canary-4711" not in "".join(used.values())


@pytest.mark.parametrize(
    ("host", "said"), [(HOST, "--set api.ca_file=CA.pem"), ("another.example", "the certificate is of another host")]
)
def test_a_certificate_that_is_not_trusted_is_said_once_and_not_tried_again(certificates, host, said):
    with teacher(certificates) as (port, seen), proxying() as proxy:
        trusted = {} if host == HOST else {"ca_file": certificates.ca}
        there = endpoint(f"https://{host}:{port}/v1", proxy=proxy.url, **trusted)
        with pytest.raises(InputError, match="no safe connection") as caught:
            check(there)
        assert said in str(caught.value)
        assert caught.value.exit_code == 2
        outcome = asked(there)
        assert (outcome.kind, outcome.maybe_billed) == (OutcomeKind.MISDIRECTED, False), "a kind that ends the run"
        assert said in outcome.detail
        assert (len(proxy.asked), seen) == (2, [])


def test_the_authority_of_ssl_cert_file_is_trusted(certificates, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
    with teacher(certificates) as (port, _), proxying() as proxy:
        there = endpoint(f"https://{HOST}:{port}/v1", proxy=proxy.url)
        assert check(there) is None
        assert asked(there).text == "ok"


def test_a_server_that_asks_who_we_are_is_told(certificates):
    with teacher(certificates, asks_who=True) as (port, seen), proxying() as proxy:
        settings = {"proxy": proxy.url, "ca_file": certificates.ca}
        unknown = endpoint(f"https://{HOST}:{port}/v1", **settings)
        with pytest.raises(InputError, match=r"api\.client_certificate"):
            check(unknown)
        assert asked(unknown).kind in (OutcomeKind.MISDIRECTED, OutcomeKind.TRANSIENT)
        assert seen == []
        known = endpoint(f"https://{HOST}:{port}/v1", **settings, client_certificate=certificates.client)
        assert check(known) is None
        assert asked(known).text == "ok"


def test_a_server_that_speaks_no_tls_is_said():
    with teacher(None) as (port, _):
        there = endpoint(f"https://127.0.0.1:{port}/v1")
        with pytest.raises(InputError, match="no safe connection") as caught:
            check(there)
        assert "http://" in str(caught.value)
        assert asked(there).kind is OutcomeKind.MISDIRECTED


@pytest.mark.parametrize("setting", ["ca_file", "client_certificate"])
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_files_that_cannot_be_used_are_named_before_anything_is_sent(tmp_path, setting, content):
    file = tmp_path / "some.pem"
    if content:
        file.write_text(content)
    with pytest.raises(ConfigError, match=f"api.{setting}") as caught:
        endpoint("https://teacher.example/v1", **{setting: file})
    assert str(file) in str(caught.value)


def test_a_proxy_that_is_not_there_is_named():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{probe.getsockname()[1]}"
    there = endpoint("https://teacher.example/v1", proxy=proxy)
    with pytest.raises(InputError, match=f"through the proxy {proxy}"):
        check(there)
    outcome = asked(there)
    assert (outcome.kind, outcome.maybe_billed) == (OutcomeKind.TRANSIENT, False)


def test_the_vendors_control_plane_takes_the_same_way(certificates, monkeypatch):
    monkeypatch.setenv("FIREWORKS_API_KEY", "k")
    with teacher(certificates) as (port, seen), proxying() as proxy:
        settings = {"fine_tuning_base_url": f"https://{HOST}:{port}/v1", "proxy": proxy.url}
        settings |= {"ca_file": str(certificates.ca), "max_retries": 0}
        overrides = [(f"api.{key}", value) for key, value in settings.items()]
        who = account.account_of(config.load(overrides=overrides).place.api, "acme")
        assert account.call(who, "GET", "models") == {"data": [{"id": "m"}]}
        assert seen == ["/v1/models"]


def test_connections_are_given_up_before_the_usual_server_closes_them():
    assert uvicorn.Config("none").timeout_keep_alive > clients.KEEPALIVE_SECONDS
