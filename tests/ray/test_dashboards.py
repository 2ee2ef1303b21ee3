"""`dashboards` with a head of its own: three pages on loopback, and nothing left after Ctrl-C."""

import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from tests.ray.conftest import ROOT
from ucotron_ray.operations import dashboards

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_three_pages_are_shown_until_ctrl_c(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # A home of its own: the head makes a token there.
    environment |= {"HOME": str(tmp_path), "RAY_OBJECT_STORE_BYTES": "100000000", "RAY_NUM_CPUS": "1"}
    command = [sys.executable, "-m", "ucotron_ray", "dashboards", "--set", f"store={tmp_path / 'store'}"]
    with (tmp_path / "err").open("w") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
    try:
        assert process.stdout is not None
        pages = {}
        for line in process.stdout:
            found = re.match(r"(\w+) +(http://127\.0\.0\.1:\d+)$", line)
            if found is None:
                break
            pages[found[1]] = found[2]
        assert set(pages) == {"MLflow", "TensorBoard", "Ray"}, (tmp_path / "err").read_text()
        assert all(dashboards.answers(url, 10.0) for url in pages.values())
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
        _, alive = psutil.wait_procs(family, timeout=10)
        assert [entry.cmdline() for entry in alive] == []
        assert not any(dashboards.answers(url) for url in pages.values())
        token = next((tmp_path / ".ray").glob("auth_token"))
        assert token.stat().st_mode & 0o077 == 0
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(120)
