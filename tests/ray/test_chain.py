"""The whole chain on a real Ray head with a tiny random model: run, run again, kill, submit as a job."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ray.conftest import ROOT, Head
from ucotron_ray.core import spool as spools
from ucotron_ray.core.artifacts import Store
from ucotron_ray.core.files import file_hash

pytestmark = pytest.mark.ray

RECIPE = """
models: {fine_tuning: {slm: {local_model: MODEL}}}
training: {sft: {slm: {epochs: 4, learning_rate: 3.0e-3, batch_size: 4, max_rows: 32, eval_rows: 4, save_steps: 5}}}
graph: {source: GRAPH, min_relations: 0}
evaluation: {data: HELDOUT, max_rows: 6, raw_rows: 3, end_to_end_rows: 2, max_new_tokens: 16, resamples: 50}
export:
  # A model of a few thousand weights is no smaller in int8, and its tokenizer is of no family that llama.cpp knows.
  {parity_rows: 2, parity_new_tokens: 8, task_rows: 2, task_new_tokens: 8, min_int8_agreement: 0.5, max_int8_size: 1.0,
   gguf: []}
"""
WEIGHTS = "adapter/adapter_model.safetensors"
TIMEOUT = 400
FLOAT32 = ("--set", "workers.dtype=float32")
"""Measured, the type could be another one in each of two runs on a busy machine, and so could the bytes."""


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model, demo_files, ray_head) -> dict[str, Path]:
    """A directory with the recipe and, made by one straight run of the whole chain as a submitted job, the store."""
    directory = tmp_path_factory.mktemp("chain")
    text = (
        RECIPE.replace("MODEL", str(tiny_model))
        .replace("GRAPH", str(demo_files[0]))
        .replace("HELDOUT", str(demo_files[1]))
    )
    recipe = directory / "chain.yaml"
    recipe.write_text(text, encoding="utf-8")
    store = directory / "store"
    arguments = ["--recipe", str(recipe), "--set", f"store={store}", *FLOAT32, "--json"]
    code, output = submit(ray_head, sys.executable, "jobs/pipeline.py", *arguments)
    assert code == 0, output[-3000:]
    (line,) = [line for line in output.splitlines() if line.startswith('{"status"')]
    (directory / "result.json").write_text(line, encoding="utf-8")
    return {"recipe": recipe, "store": store, "result": directory / "result.json"}


def start(head: Head, *arguments: str, address: bool = True) -> subprocess.Popen:
    environment = {**head.environment, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    if address:
        environment["RAY_ADDRESS"] = head.address
    command = [sys.executable, "-m", "ucotron_ray", *arguments, "--json"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen, code: int = 0) -> dict:
    out, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == code, err[-3000:]
    return {**json.loads(out.splitlines()[-1]), "stderr": err}


def wait_for(condition, process: subprocess.Popen | None) -> None:
    """Poll for a state of files that another process writes (one that has to live, if it is given): nothing else tells."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert process is None or process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def submit(head: Head, *command: str) -> tuple[int, str]:
    environment = {**head.environment, "RAY_API_SERVER_ADDRESS": head.dashboard}
    ray = str(Path(sys.executable).parent / "ray")
    full = [
        ray,
        "job",
        "submit",
        "--working-dir",
        str(ROOT),
        "--runtime-env",
        str(ROOT / "cluster/runtime_env.yaml"),
        "--",
        *command,
    ]
    result = subprocess.run(full, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    return result.returncode, result.stdout + result.stderr


def test_chain_leaves_every_artifact_with_its_lineage_and_its_figures(place):
    result = json.loads(place["result"].read_text(encoding="utf-8"))
    store = Store(place["store"])
    assert result["status"] == "ok"
    assert result["adapter"] == str(store.get("adapter", "chain").path)
    assert result["parity"] is True
    assert set(result) >= {"base_f1", "tuned_f1", "tuned_f1_unseen", "valid_answers", "bundle", "mlflow_run", "seconds"}
    adapter = store.get("adapter", "chain")
    dataset = store.get("dataset", "chain")
    assert adapter.manifest.inputs[0].content == dataset.manifest.content
    assert adapter.manifest.metrics["train_loss_last"] < adapter.manifest.metrics["train_loss_first"]
    settings = json.loads((adapter.path / "adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert str(place["store"]) not in settings["base_model_name_or_path"]
    scores = json.loads((store.get("scores", "chain").path / "scores.json").read_text(encoding="utf-8"))
    assert set(scores["groups"]) == {"seen", "unseen"}
    assert scores["guide"]["rows"] == 5
    assert scores["raw"]["rows"] == 3
    assert scores["end_to_end"]["rows"] == 2
    predictions = (store.get("scores", "chain").path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(predictions) == 6 + 5 + 3 + 2
    bundle = store.get("bundle", "chain")
    assert {
        "model.onnx",
        "model_int8.onnx",
        "model_int8.onnx_data",
        "model_int4.onnx",
        "decoding.json",
        "relations.json",
        "io_contract.json",
        "prompt_contract.json",
        "tokenizer.json",
        "MODEL_CARD.md",
        "ucotron.toml",
    } <= {entry.path for entry in bundle.manifest.files}
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(store.get("model", "chain").path, local_files_only=True)


def test_chain_is_in_mlflow_as_one_parent_with_a_child_a_stage(place):
    from mlflow import MlflowClient

    result = json.loads(place["result"].read_text(encoding="utf-8"))
    client = MlflowClient(tracking_uri=f"sqlite:///{place['store']}/tracking/mlflow.db")
    parent = client.get_run(result["mlflow_run"])
    runs = client.search_runs([parent.info.experiment_id])
    children = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert set(children) >= {"import-graph", "sft", "evaluate", "evaluate-base", "export"}
    assert {run.info.status for run in [parent, *children.values()]} == {"FINISHED"}
    assert len(client.get_metric_history(children["sft"].info.run_id, "loss")) > 10
    assert children["export"].data.metrics["max_logit_difference"] < 1e-3
    assert {entry.path for entry in client.list_artifacts(children["export"].info.run_id)} >= {"MODEL_CARD.md"}
    evaluated = client.get_run(children["evaluate"].info.run_id)
    assert evaluated.inputs.model_inputs[0].model_id == children["sft"].outputs.model_outputs[0].model_id
    assert not spools.has_pending(spools.spool_directory(place["store"]))


def test_second_run_reuses_every_stage_and_needs_no_ray(place, ray_head):
    first = json.loads(place["result"].read_text(encoding="utf-8"))
    environment = Head("127.0.0.1:1", "", {**ray_head.environment})
    process = start(environment, "pipeline", "--recipe", str(place["recipe"]), "--set", f"store={place['store']}")
    second = finished(process)
    assert second["stderr"].count(": reuse ") == 6
    for key in ("base_f1", "tuned_f1", "bundle", "mlflow_run"):
        assert second[key] == first[key]


def test_compare_takes_the_scores_of_the_chain_and_asks_the_bundle(place, ray_head, tiny_model):
    store = Store(place["store"])
    before = set(store.names("scores"))
    where = ["--recipe", str(place["recipe"]), "--set", f"store={place['store']}"]
    models = [str(tiny_model), "chain", "bundle/chain", "co-occurrence"]
    result = finished(start(ray_head, "compare", *models, *where))
    assert list(result["models"]) == ["qwen2", "chain", "bundle/chain", "co-occurrence"]
    # Base and adapter were scored by the chain already; new are the bundle, the guesses, and the comparison.
    assert len(set(store.names("scores")) - before) == 3
    assert result["models"]["bundle/chain"]["rows"] == 6
    page = Path(result["report"]).read_text(encoding="utf-8")
    assert "Alice works at Google" in page
    # A model that has learned nothing is not promoted, whatever else it is.
    refused = finished(start(ray_head, "promote", "chain", *where), code=1)
    assert refused["refused"]
    assert "champion" not in refused["stderr"].split("champion stays")[0]


def test_another_learning_rate_stops_with_the_field_named(place, ray_head):
    arguments = [
        "pipeline",
        "--recipe",
        str(place["recipe"]),
        "--set",
        f"store={place['store']}",
        "--learning-rate",
        "0.1",
    ]
    result = finished(start(ray_head, *arguments), code=3)
    assert "sft.learning_rate: 0.003 → 0.1" in result["stderr"]


def test_after_kill_9_of_the_driver_and_then_of_the_worker_the_run_ends_with_the_same_bytes(place, ray_head):
    """The straight run was a submitted job: this one is a driver of its own, with the same bytes."""
    store, name = Store(place["store"]), "killed"
    arguments = ["sft", "--recipe", str(place["recipe"]), "--train-data", "chain", "--name", name]
    arguments += ["--set", f"store={place['store']}", *FLOAT32]

    def checkpoints() -> set[Path]:
        return set(store.partial("adapter", name).glob("checkpoints/*/checkpoint.json"))

    def workers() -> list[str]:
        logs = sorted((place["store"] / "tracking/logs").glob(f"sft-{name}-*.log"), key=os.path.getmtime)
        return re.findall(r"worker 0 of 1, pid (\d+)", "".join(path.read_text() for path in logs))

    process = start(ray_head, *arguments)
    wait_for(checkpoints, process)
    process.kill()
    process.communicate()
    assert store.find("adapter", name) is None
    killed = workers()
    process = start(ray_head, *arguments)
    wait_for(lambda: len(workers()) > len(killed), process)
    there = checkpoints()
    wait_for(lambda: checkpoints() - there, process)
    os.kill(int(workers()[-1]), signal.SIGKILL)
    result = finished(process)
    # Both went on: the second driver, and Ray's second worker of it.
    assert result["stderr"].count("going on from checkpoint-") == 2
    straight = store.get("adapter", "chain").path / WEIGHTS
    assert file_hash(store.get("adapter", name).path / WEIGHTS) == file_hash(straight)


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_one_worker_of_a_cluster_of_our_own_trains_the_same_bytes_whatever_ends_it(place, ray_head, number):
    """No group of Ray Train there: a task, which is started again, and which stops with a checkpoint."""
    store, name = Store(place["store"]), f"alone-{number.name}"
    arguments = ["sft", "--recipe", str(place["recipe"]), "--train-data", "chain", "--name", name]
    arguments += ["--set", f"store={place['store']}", "--set", "ray.num_cpus=2", *FLOAT32]
    process = start(ray_head, *arguments, address=False)
    wait_for(lambda: list(store.partial("adapter", name).glob("checkpoints/*/checkpoint.json")), process)
    if number == signal.SIGKILL:
        logs = "".join(path.read_text() for path in (place["store"] / "tracking/logs").glob(f"sft-{name}-*.log"))
        os.kill(int(re.findall(r"worker 0 of 1, pid (\d+)", logs)[-1]), number)
        result = finished(process)
        assert "a worker failed: started again, 1 of 3" in result["stderr"]
    else:
        process.send_signal(number)
        assert finished(process, code=75)["status"] == "stopped"
        result = finished(start(ray_head, *arguments, address=False))
    assert "going on from checkpoint-" in result["stderr"]
    straight = store.get("adapter", "chain").path / WEIGHTS
    assert file_hash(store.get("adapter", name).path / WEIGHTS) == file_hash(straight)


@pytest.mark.slow
def test_two_workers_train_the_same_steps_and_sigterm_is_resumable(place, ray_head):
    store = Store(place["store"])
    arguments = ["sft", "--recipe", str(place["recipe"]), "--train-data", "chain", "--name", "two"]
    arguments += [
        "--set",
        f"store={place['store']}",
        "--set",
        "workers.num_workers=2",
        "--set",
        "workers.cpus_per_worker=1",
        *FLOAT32,
    ]
    process = start(ray_head, *arguments)
    wait_for(lambda: list(store.partial("adapter", "two").glob("checkpoints/*/checkpoint.json")), process)
    process.send_signal(signal.SIGTERM)
    assert finished(process, code=75)["status"] == "stopped"
    finished(start(ray_head, *arguments))
    one, two = store.get("adapter", "chain").manifest, store.get("adapter", "two").manifest
    assert one.metrics["steps"] == two.metrics["steps"]
    assert abs(one.metrics["train_loss_last"] - two.metrics["train_loss_last"]) < 0.05


def test_more_than_the_cluster_has_is_refused_instead_of_waited_for(place, ray_head):
    arguments = ["sft", "--recipe", str(place["recipe"]), "--train-data", "chain", "--name", "huge"]
    arguments += ["--set", f"store={place['store']}", "--set", "workers.gpus_per_worker=1"]
    result = finished(start(ray_head, *arguments), code=2)
    assert "too few GPUs" in result["stderr"]


def test_a_submitted_job_with_a_relative_store_is_refused(place, ray_head):
    code, output = submit(ray_head, sys.executable, "jobs/import_graph.py", "--recipe", str(place["recipe"]))
    assert code == 1
    assert "the store must be an absolute path" in output


def test_a_plain_model_directory_is_exported_and_copied_out(place, ray_head, tiny_model, tmp_path):
    arguments = ["export", "--model-dir", str(tiny_model), "--output-dir", str(tmp_path / "out"), "--name", "plain"]
    arguments += [
        "--set",
        f"store={place['store']}",
        "--set",
        "export.parity_rows=2",
        "--set",
        "export.parity_new_tokens=4",
        "--set",
        "export.task_rows=2",
        "--set",
        "export.task_new_tokens=4",
        "--set",
        "export.variants=[]",
        "--set",
        "export.gguf=[]",
    ]
    result = finished(start(ray_head, *arguments))
    assert result["parity"] is True
    assert {"model.onnx", "model.onnx_data", "manifest.json", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


@pytest.mark.slow
def test_dpo_starts_from_the_merged_adapter_keeps_its_reference_and_can_be_scored(place, ray_head):
    pairs = place["recipe"].with_name("pairs.jsonl")
    rows = (Store(place["store"]).get("dataset", "chain").path / "train.jsonl").read_text(encoding="utf-8").splitlines()
    from ucotron_ray.data import wire
    from ucotron_ray.data.records import RawRow

    parsed = [row for row in (RawRow.model_validate_json(line) for line in rows) if row.expected_relations][:12]
    pairs.write_text(
        "".join(
            json.dumps(
                {
                    "prompt": wire.user_prompt(row.text, row.entities),
                    "chosen": wire.format_answer(row.expected_relations),
                    "rejected": "[]",
                }
            )
            + "\n"
            for row in parsed
        ),
        encoding="utf-8",
    )
    settings = [
        "--set",
        f"store={place['store']}",
        "--set",
        "training.dpo.slm.batch_size=4",
        "--recipe",
        str(place["recipe"]),
    ]
    arguments = ["dpo", "--data", str(pairs), "--from", "chain", *settings]
    result = finished(start(ray_head, *arguments))
    store = Store(place["store"])
    adapter = store.get("adapter", "chain-dpo")
    assert abs(result["train_loss_first"] - 0.6931) < 1e-3
    assert {entry.role for entry in adapter.manifest.inputs} == {"data", "base"}
    assert len([name for name in store.names("cache") if name.startswith("reference-")]) == 1
    # Another recipe of the same pairs finds the reference.
    again = finished(start(ray_head, *arguments, "--name", "other", "--learning-rate", "1e-5"))
    assert "reference: reuse" in again["stderr"]
    scores = finished(start(ray_head, "evaluate", "chain-dpo", "--no-base", *settings))
    assert scores["rows"] == 6
