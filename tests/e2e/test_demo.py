"""The demo's recipe from nothing: it learns what the README says. Fifteen minutes on two cores."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_demo_reaches_its_scores_and_a_second_run_reuses_everything(tmp_path):
    data = tmp_path / "data"
    subprocess.run([sys.executable, "-m", "ucotron_ray.simulators.demo_world", str(data)], check=True, cwd=ROOT)
    command = [sys.executable, "-m", "ucotron_ray", "simulate-fireworks", "--"]
    command += [sys.executable, "-m", "ucotron_ray", "pipeline", "--recipe", "jobs/recipes/demo.yaml", "--json"]
    command += ["--set", "api.inference_base_url={url}/inference/v1"]
    command += ["--set", f"store={tmp_path / 'store'}", "--set", f"graph.source={data / 'graph_export.jsonld'}"]
    command += ["--set", f"evaluation.data={data / 'relations_test.jsonl'}"]
    first, second = (
        json.loads(
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        )
        for _ in range(2)
    )
    assert first["tuned_f1"] >= 0.80
    assert first["tuned_f1"] >= first["base_f1"] + 0.5
    assert first["tuned_f1_unseen"] >= 0.50
    assert first["parity"] is True
    assert second["seconds"] < 40
    assert {**first, "seconds": 0} == {**second, "seconds": 0}
