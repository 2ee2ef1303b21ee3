"""Batch lane, online synthesis and remote training on a real Ray head: one journal, nothing paid twice."""

import json
import os
import subprocess
import sys

import pytest

from tests.ray.conftest import ROOT
from tests.vendor import KEY, vending
from ucotron_ray import cli
from ucotron_ray.synthesis import journal

pytestmark = [pytest.mark.ray, pytest.mark.slow]

COUNT = 24


def test_batches_synthesis_and_remote_training_share_one_store(ray_head, tmp_path, monkeypatch, demo_files, capsys):
    graph, held_out = demo_files
    with vending(monkeypatch) as vendor:
        # The head's workers were started without the variable.
        key = tmp_path / "key"
        key.touch(mode=0o600)
        key.write_text(KEY, encoding="utf-8")
        where = vendor.settings(tmp_path / "store")
        settings = {
            "api.key_file": key,
            "generation.in_pipeline": COUNT,
            "generation.preferences_in_pipeline": COUNT,
            "graph.source": graph,
            "graph.min_relations": 0,
            "evaluation.data": held_out,
            "generation.tasks.preference.margin": 0.05,
        }
        where += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        task = ["relation_extraction", "--count", str(COUNT), "--name", "mine-teacher"]
        assert cli.main(["fireworks", "batch", *task, *where, "--json"]) == 0
        batch = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert batch["open"] == 0
        environment = {**os.environ, **ray_head.environment, "RAY_ADDRESS": ray_head.address, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-m", "ucotron_ray", "pipeline", "--remote", "--name", "mine", *where, "--json"],
            capture_output=True, text=True, env=environment, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout.splitlines()[-1])
        assert result["tuned_f1"] >= result["base_f1"]
        made = vendor.control()["created"]
        assert (made["supervisedFineTuningJobs"], made["dpoJobs"], made["batchInferenceJobs"]) == (1, 1, 2)
    records = list(journal.records(tmp_path / "store" / "journal" / "relation_extraction"))
    assert len(records) == len({record.rid for record in records})
    # The first round was answered by the batches: online asked for rows beyond it only.
    assert len(records) - batch["requests"] < batch["requests"] / 2
    manifest = json.loads((tmp_path / "store" / "dataset" / "mine-teacher" / "manifest.json").read_text())
    assert manifest["counts"]["accepted"] == COUNT
