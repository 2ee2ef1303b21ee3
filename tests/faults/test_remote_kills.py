"""The whole remote chain killed with SIGKILL again and again: every job and dataset is made once, and it ends."""

import json
import random
import subprocess
import sys

import pytest

from tests.unit.fireworks.test_pipeline import rows  # noqa: F401  # a fixture
from tests.vendor import environment, vending
from ucotron_ray.fireworks import account as control

MOST_STARTS = 60


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_nothing_is_created_twice(tmp_path, rows, monkeypatch, seed):  # noqa: F811
    rng = random.Random(seed)
    with vending(monkeypatch, job_polls=20, faults={"lost": 0.05, "503": 0.05}, seed=seed) as vendor:
        arguments = ["pipeline", "--remote", "--name", "mine", "--data-dir", str(rows)]
        arguments += [*vendor.settings(tmp_path / "store"), "--set", "polling.interval=0.05", "--json"]
        kills = 0
        for _ in range(MOST_STARTS):
            process = subprocess.Popen(
                [sys.executable, "-m", "ucotron_ray", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env=environment(vendor),
            )  # fmt: skip
            try:
                out, _ = process.communicate(timeout=rng.uniform(0.4, 2.5))
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
        assert process.returncode == 0
        assert kills > 0
        assert json.loads(out.splitlines()[-1])["tuned_f1"] is not None
        made = vendor.control()["created"]
        assert (made["supervisedFineTuningJobs"], made["dpoJobs"], made["datasets"]) == (1, 1, 3)
        alive = [e["state"] for e in control.pages(vendor.account, "accounts/acme/deployments", "deployments")]
        assert set(alive) == {"DELETED"}
