"""Sweeps on real Ray: early stops give everything back, kills lose nothing, several workers train what one does."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml

from tests.ray.conftest import ROOT, Head, lose, second_node
from tests.ray.test_chain import finished, start, wait_for
from ucotron_ray.core import tracking
from ucotron_ray.core.artifacts import Store
from ucotron_ray.core.files import file_hash

pytestmark = pytest.mark.ray

RECIPE = """
models: {fine_tuning: {slm: {local_model: MODEL}}}
training: {sft: {slm: {epochs: 3, batch_size: 4, max_rows: 32, eval_rows: 4}}}
graph: {source: GRAPH, min_relations: 0}
tuning:
  search: grid
  seed: 9                       # of those that leave four values in their order
  space: {sft: {learning_rate: [1.0e-2, 1.0e-3, 1.0e-7, 1.0e-8], lora_rank: [4]}}
  f1_rows: 4
  max_new_tokens: 4
evaluation: {data: HELDOUT, max_rows: 4, raw_rows: 2, max_new_tokens: 4, resamples: 50}
export: {parity_rows: 2, parity_new_tokens: 4}
"""
STEPS = 24
TWO_AT_ONCE = ("trials.slm.cpus_per_worker=1",)

ALONE = """
import json, os, subprocess, sys
import ray
context = ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=150_000_000,
                   _temp_dir=sys.argv[1], log_to_driver=False)
environment = {**os.environ, "RAY_ADDRESS": context.address_info["gcs_address"]}
done = subprocess.run([sys.executable, "-m", "ucotron_ray", *sys.argv[2:], "--json"], env=environment,
                      stdout=subprocess.PIPE, text=True)
groups = [entry["state"] for entry in ray.util.placement_group_table().values()]
print(json.dumps({"code": done.returncode, "result": json.loads(done.stdout.splitlines()[-1]), "groups": groups,
                  "free": ray.available_resources().get("CPU"), "named": ray.util.list_named_actors(all_namespaces=True)}))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model, demo_files, ray_head) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("sweeps")
    text = RECIPE.replace("MODEL", str(tiny_model)).replace("GRAPH", str(demo_files[0]))
    recipe, store = directory / "rows.yaml", directory / "store"
    recipe.write_text(text.replace("HELDOUT", str(demo_files[1])), encoding="utf-8")
    made = subprocess.run(
        [sys.executable, "-m", "ucotron_ray", "import-graph", *common(recipe, store), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert made.returncode == 0, made.stderr[-2000:]
    return {"recipe": recipe, "store": store}


def common(recipe: Path, store: Path, *settings: str) -> list[str]:
    every = (f"store={store}", "tracking.mlflow_uri=none", *settings)
    return ["--recipe", str(recipe), *(part for text in every for part in ("--set", text))]


def tune(place: dict[str, Path], name: str, *settings: str) -> list[str]:
    rows = ["--train-data", "rows", "--name", name]
    return ["tune", "sft", *common(place["recipe"], place["store"], *settings), *rows]


def record(path: Path) -> dict:
    """The sweep's record; empty before it is begun."""
    try:
        return json.loads((path / "sweep.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"trials": [], "scores": []}


def states(path: Path) -> dict[str, str]:
    return {trial["id"]: trial["state"] for trial in record(path)["trials"]}


def listed(head: Head, what: str) -> list[dict]:
    token = Path(head.environment["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="utf-8")
    request = urllib.request.Request(f"{head.dashboard}/api/v0/{what}", headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())["data"]["result"]["result"]


def alive(head: Head) -> set[str]:
    """Ids of the cluster's actors and placement groups that are not gone."""
    groups = {entry["placement_group_id"] for entry in listed(head, "placement_groups") if entry["state"] != "REMOVED"}
    return groups | {entry["actor_id"] for entry in listed(head, "actors") if entry["state"] != "DEAD"}


def trial_processes(store: Path) -> list[str]:
    """Processes of trials: Ray names them after their function, and they run in a trial's directory."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if command.startswith(("ray::ImplicitFunc", "ray::_Peer", "ray::trial")):
            found.append(command)
    return found


def test_early_stops_with_the_dashboard_on_leave_no_group_actor_or_process(place, ray_head):
    # Other tests on this head leave Ray's own detached actors.
    before = alive(ray_head)
    result = finished(start(ray_head, *tune(place, "on", *TWO_AT_ONCE)))
    made = Store(place["store"]).get("sweep", "on")
    assert set(states(made.path).values()) <= {"finished", "stopped"}
    assert result["states"]["stopped"] >= 2
    assert result["steps_saved"] > 0.3
    assert result["winners"]["slm"]["params"]["learning_rate"] == 1e-2
    assert alive(ray_head) <= before
    assert trial_processes(place["store"]) == []
    fixed = [trial["fixed_seconds"] for trial in record(made.path)["trials"]]
    assert all(0 < seconds < 120 for seconds in fixed)


@pytest.mark.slow
def test_early_stops_with_the_dashboard_off_finish_and_leave_nothing(place):
    with tempfile.TemporaryDirectory(prefix="ur3-", dir="/tmp") as directory:
        done = subprocess.run(
            [sys.executable, "-c", ALONE, directory, *tune(place, "off", *TWO_AT_ONCE)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["code"] == 0, done.stderr[-3000:]
    assert found["result"]["states"]["stopped"] >= 2
    assert set(found["groups"]) == {"REMOVED"}
    assert (found["free"], found["named"]) == (2.0, [])
    assert trial_processes(place["store"]) == []


@pytest.mark.slow
def test_two_workers_a_trial_train_what_one_does_and_a_stopped_one_gives_both_back(place, ray_head):
    rates = "tuning.space.sft.learning_rate=[1.0e-2, 1.0e-8]"
    two = finished(start(ray_head, *tune(place, "two", rates, "trials.slm.num_workers=2", *TWO_AT_ONCE)))
    one = finished(start(ray_head, *tune(place, "one", rates, *TWO_AT_ONCE, "trials.slm.at_once=1")))
    assert two["states"] == one["states"]
    assert two["states"]["stopped"] == 1
    store = Store(place["store"])
    losses = [
        {(score["trial"], score["step"]): score["loss"] for score in record(store.get("sweep", name).path)["scores"]}
        for name in ("two", "one")
    ]
    assert losses[0].keys() == losses[1].keys()
    assert max(abs(losses[0][key] - losses[1][key]) for key in losses[0]) < 0.02
    assert {trial["resources"]["CPU"] for trial in record(store.get("sweep", "two").path)["trials"]} == {2.0}
    assert trial_processes(place["store"]) == []
    assert not [group for group in listed(ray_head, "placement_groups") if group["state"] != "REMOVED"]


def mlflow_runs(store: Path, name: str) -> dict[str, list[str]]:
    """Names of the runs of a sweep in the store's own database, with their ids."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{store}/tracking/mlflow.db")
    found: dict[str, list[str]] = {}
    for run in client.search_runs([entry.experiment_id for entry in client.search_experiments()]):
        if run.data.tags[tracking.KEY_TAG].startswith(f"tune-{name}-"):
            found.setdefault(run.info.run_name, []).append(run.info.run_id)
    return found


@pytest.mark.faults
def test_after_kill_9_of_the_driver_the_same_command_repeats_no_finished_trial_and_no_run(place, ray_head):
    settings = ("tuning.scheduler=none", "trials.slm.cpus_per_worker=1", "trials.slm.at_once=1")
    arguments = [
        part if part != "tracking.mlflow_uri=none" else "tracking.mlflow_uri=null"
        for part in tune(place, "k", *settings)
    ]
    partial = Store(place["store"]).partial("sweep", "k")
    process = start(ray_head, *arguments)
    wait_for(lambda: "finished" in states(partial).values() and len(record(partial)["scores"]) > 12, process)
    process.kill()
    process.communicate()
    before = {trial["id"]: trial for trial in record(partial)["trials"] if trial["state"] == "finished"}
    scored = {score["trial"] for score in record(partial)["scores"]}
    assert 0 < len(before) < 4
    outcomes = {name: (partial / "trials" / name / "outcome.json").stat().st_mtime_ns for name in before}
    result = finished(start(ray_head, *arguments))
    made = Store(place["store"]).get("sweep", "k").path
    after = {trial["id"]: trial for trial in record(made)["trials"]}
    assert {name: after[name] for name in before} == before
    assert {name: (made / "trials" / name / "outcome.json").stat().st_mtime_ns for name in before} == outcomes
    assert set(states(made).values()) == {"finished"}
    assert result["steps_run"] == 4 * STEPS
    if scored - set(before):
        assert "going on from checkpoint-" in result["stderr"]
    runs = mlflow_runs(place["store"], "k")
    names = [f"slm-{number:03d}" for number in range(4)]
    assert all(len(runs[name]) == 1 for name in names), runs
    assert len(runs["tune"]) == 1


@pytest.mark.faults
def test_a_trial_whose_process_is_killed_goes_on_and_sigterm_ends_with_75(place, ray_head):
    settings = (
        "tuning.scheduler=none",
        "tuning.space.sft.learning_rate=[1.0e-2, 1.0e-3]",
        *TWO_AT_ONCE,
        "trials.slm.at_once=1",
    )
    straight = finished(start(ray_head, *tune(place, "s", *settings)))
    store, process = Store(place["store"]), start(ray_head, *tune(place, "v", *settings))
    partial = store.partial("sweep", "v")
    wait_for(lambda: len(record(partial)["scores"]) >= 3, process)
    logs = "".join(path.read_text() for path in (place["store"] / "tracking/logs").glob("tune-v-*.log"))
    os.kill(int(re.findall(r"trial slm-000, worker 0 of 1, pid (\d+)", logs)[-1]), signal.SIGKILL)
    wait_for(lambda: "finished" in states(partial).values(), process)
    process.send_signal(signal.SIGTERM)
    assert finished(process, code=75)["status"] == "stopped"
    again = finished(start(ray_head, *tune(place, "v", *settings)))
    assert again["winners"]["slm"]["params"] == straight["winners"]["slm"]["params"]
    weights = "winners/slm/adapter/adapter_model.safetensors"
    assert file_hash(store.get("sweep", "v").path / weights) == file_hash(store.get("sweep", "s").path / weights)


@pytest.mark.slow
def test_the_chain_with_tune_trains_with_what_the_sweep_chose(place, ray_head):
    arguments = [*common(place["recipe"], place["store"], *TWO_AT_ONCE), "--name", "chain", "--tune", "--skip-export"]
    planned = finished(start(ray_head, "pipeline", *arguments, "--dry-run"))
    assert [step["stage"] for step in planned["plan"]][:4] == ["import-graph", "import-held-out", "tune", "sft"]
    finished(start(ray_head, "pipeline", *arguments))
    store = Store(place["store"])
    best = yaml.safe_load((store.get("sweep", "chain").path / "best.yaml").read_text(encoding="utf-8"))
    used = store.get("adapter", "chain").manifest.recipe_fields["sft"]
    assert {name: used[name] for name in ("learning_rate", "lora_rank")} == best["training"]["sft"]["slm"]
    # What was promoted trains as it is, beside the chain too.
    own = [
        "sft",
        *common(place["recipe"], place["store"]),
        "--overlay",
        str(store.path("sweep", "chain") / "best.yaml"),
    ]
    trained = finished(start(ray_head, *own, "--train-data", "chain", "--name", "promoted"))
    assert trained["steps"] == STEPS
    weights = "adapter/adapter_model.safetensors"
    assert file_hash(Path(trained["artifact"]) / weights) == file_hash(store.path("adapter", "chain") / weights)
    again = finished(start(ray_head, "pipeline", *arguments))
    assert "tune: reuse sweep 'chain'" in again["stderr"]
    assert "sft: reuse adapter 'chain'" in again["stderr"]


@pytest.mark.faults
def test_a_node_lost_in_the_middle_of_a_sweep_and_another_added_end_with_every_trial(place, ray_head):
    """One trial a node: two processors each on nodes of two. Three nodes in all, the second one killed."""
    settings = ("tuning.scheduler=none", "trials.slm.cpus_per_worker=2", "trials.slm.at_once=2")
    store, name = Store(place["store"]), "nodes"
    partial = store.partial("sweep", name)
    with second_node(ray_head) as node:
        process = start(ray_head, *tune(place, name, *settings))
        wait_for(lambda: len({score["trial"] for score in record(partial)["scores"]}) >= 2, process)
        there = {child.pid for child in psutil.Process(node.pid).children(recursive=True)}
        logs = "".join(path.read_text() for path in (place["store"] / "tracking/logs").glob(f"tune-{name}-*.log"))
        trials = {int(pid) for pid in re.findall(r"trial slm-00[01], worker 0 of 1, pid (\d+)", logs)}
        assert len(trials) == 2
        assert len(trials & there) == 1, "one of them on each node"
        lose(node)
        with second_node(ray_head):
            result = finished(process)
    made = store.get("sweep", name).path
    assert set(states(made).values()) == {"finished"}
    steps = [score["step"] for score in record(made)["scores"] if score["trial"] == "slm-001"]
    assert max(steps) == STEPS
    assert len(steps) == len(set(steps)), "no step is counted twice"
    assert result["winners"]["slm"]["params"]["learning_rate"] == 1e-2
    assert trial_processes(place["store"]) == []
