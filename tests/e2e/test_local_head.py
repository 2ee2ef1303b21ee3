"""«This machine» of cluster/README.md, block by block, in a copy of the tracked files and an empty environment."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ucotron_ray.operations.dashboards import free_port

ROOT = Path(__file__).parents[2]
SECTION = (ROOT / "cluster/README.md").read_text(encoding="utf-8").split("\n## This machine\n")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)


@pytest.fixture
def checkout() -> Iterator[Path]:
    """The tracked files alone, under a short path: Ray's sockets lie below it."""
    directory = Path(tempfile.mkdtemp(prefix="ue-", dir="/tmp"))
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        target = directory / "project" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def test_the_section_is_whole_and_in_order():
    starts = [block.split("\n")[0].split(" ")[0] for block in BLOCKS]
    assert starts == ["make", "cluster/local-head.sh", "python", "ray", "kill"]


@pytest.mark.slow
def test_from_nothing_to_a_finished_job(checkout):
    environment = {
        "HOME": str(checkout),
        # The interpreter itself: a manager's stand-in for it looks for its files in HOME.
        "PATH": f"{sys.base_prefix}/bin:{os.environ['PATH']}",
        "RAY_PORT": str(free_port()),
        "RAY_DASHBOARD_PORT": str(free_port()),
        "RAY_METRICS_PORT": str(free_port()),
        "RAY_AGENT_PORT": str(free_port()),
        "RAY_TEMP_DIR": str(checkout / "r"),
    }
    # Where this machine keeps its wheels and certificates: what `make setup` needs to install anything here.
    environment |= {name: os.environ[name] for name in os.environ if name.startswith(("PIP_", "UV_", "SSL_", "LANG"))}
    script = "set -e\n" + "".join(f"echo '## block {number}'\n{block}" for number, block in enumerate(BLOCKS))
    # The head must go also where a block fails.
    # (`kill` without a job would be the script's exit code.)
    script = f"trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\nset -m\n{script}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=checkout / "project",
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said[-4000:]
    assert '"status": "ok"' in said
    assert "succeeded" in said
    assert (checkout / "project/store/bundle").is_dir()
    assert (checkout / ".ray/auth_token").stat().st_mode & 0o077 == 0
