"""Which cluster a job goes to, and that Ray's client is told to send its token where the cluster wants one."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ucotron_ray.core.errors import ConfigError
from ucotron_ray.operations import address


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    for name in ("RAY_AUTH_MODE", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@contextmanager
def head(status: int, body: str, version: str = "") -> Iterator[str]:
    """A server whose page of authentication is this one, and whose page of versions is that, if any."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            assert "Authorization" not in self.headers
            is_mode = self.path == "/api/authentication_mode"
            self.send_response(status if is_mode else 200 if version and self.path == "/api/version" else 418)
            self.end_headers()
            self.wfile.write((body if is_mode else version).encode())

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, "http://127.0.0.1:8265"),
        ("10.0.0.1:8265", "http://10.0.0.1:8265"),
        ("https://ray.example/x/", "https://ray.example/x"),
    ],
)
def test_the_address_is_read(given, found):
    assert address.of_cluster(given) == found


def test_what_is_given_wins_over_the_variable(monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert address.of_cluster(None) == "http://127.0.0.1:1"
    assert address.of_cluster("http://127.0.0.1:2") == "http://127.0.0.1:2"


@pytest.mark.parametrize("given", ["ray://host:10001", "file:///etc/passwd", "http://me:canary@host:8265", "http://"])
def test_what_is_no_dashboard_is_refused_and_no_password_is_said(given):
    with pytest.raises(ConfigError) as caught:
        address.of_cluster(given)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "mode"),
    [
        (200, json.dumps({"authentication_mode": "token"}), "token"),
        (200, json.dumps({"authentication_mode": "disabled"}), None),
        (401, "", "token"),
    ],
)
def test_the_mode_is_asked_for_without_a_token_and_told_to_rays_client(status, body, mode):
    with head(status, body) as url:
        address.authenticate_as_asked(url)
    assert os.environ.get("RAY_AUTH_MODE") == mode
    assert os.environ["RAY_API_SERVER_ADDRESS"] == url


def test_a_head_of_before_tokens_is_known_by_its_version():
    with head(404, "", json.dumps({"version": "4", "ray_version": "2.40.0"})) as url:
        assert address.authenticate_as_asked(url) == "disabled"
    assert "RAY_AUTH_MODE" not in os.environ


@pytest.mark.parametrize(
    ("status", "body", "version"),
    [
        (404, "<html>not found</html>", ""),
        (404, "", json.dumps({"version": "1.0"})),
        (404, "", "[]"),
        (200, "<html>MLflow</html>", ""),
        (200, "[]", ""),
        (200, json.dumps({"status": "ok"}), ""),
        (500, "", ""),
        (302, "", ""),
    ],
)
def test_another_server_is_a_mistake_and_no_traceback(status, body, version):
    with head(status, body, version) as url, pytest.raises(ConfigError, match="no Ray dashboard") as refused:
        address.authenticate_as_asked(url)
    assert refused.value.exit_code == 2
    assert str(refused.value.where) == url


def test_a_server_that_speaks_something_else_is_a_mistake_too():
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: server.accept()[0].sendall(b"SSH-2.0-x\r\n\r\n"), daemon=True)
        thread.start()
        with pytest.raises(ConfigError, match="no Ray dashboard answers"):
            address.authenticate_as_asked(f"http://127.0.0.1:{server.getsockname()[1]}")
        thread.join(5)


@pytest.mark.parametrize(
    ("joined", "found"),
    [
        ("10.0.0.1:6379", "http://10.0.0.1:8265"),
        ("ray://head.example:10001", "http://head.example:8265"),
        ("http://head.example:8266", "http://head.example:8266"),
        ("[fd00::1]:6379", "http://[fd00::1]:8265"),
        ("auto", "http://127.0.0.1:8265"),
    ],
)
def test_a_job_goes_to_the_cluster_that_the_shell_joins(joined, found, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", joined)
    assert address.of_cluster(None) == found
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    assert address.of_cluster(None) == "http://127.0.0.1:1"


def test_nobody_there_is_a_mistake_with_a_next_step():
    with pytest.raises(ConfigError, match="no Ray dashboard answers"):
        address.authenticate_as_asked("http://127.0.0.1:9")
