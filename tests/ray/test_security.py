"""What a real head lets in."""

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_dashboard_is_on_loopback_and_wants_the_token(ray_head):
    port = urlsplit(ray_head.dashboard).port
    listening = [c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port]
    assert listening == ["127.0.0.1"]
    token = Path(ray_head.environment["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="utf-8")
    jobs = f"{ray_head.dashboard}/api/jobs/"
    assert status(jobs) == 401
    assert status(jobs, Authorization="Bearer wrong") == 403
    assert status(jobs, Authorization=f"Bearer {token}") == 200


@pytest.mark.parametrize(("mode", "code"), [("disabled", 1), ("token", 0)])
def test_a_client_that_does_not_say_token_is_refused_and_no_log_holds_the_token(ray_head, mode, code):
    command = [str(Path(sys.executable).with_name("ray")), "job", "list", "--address", ray_head.dashboard]
    environment = {**ray_head.environment, "RAY_AUTH_MODE": mode}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == code, result.stderr
    token = Path(ray_head.environment["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="utf-8")
    assert token not in result.stdout + result.stderr
    for path in Path(ray_head.environment["RAY_TEMP_DIR"]).rglob("*"):
        if path.is_file() and path.name != "token":
            assert token.encode() not in path.read_bytes(), path
