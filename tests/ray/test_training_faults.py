"""A training on a real Ray head: stopped, gone on with other workers, ended by a loss that is no number, scored."""

import json
import re
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.families import save_family
from tests.ray.conftest import announce_loss, lose, second_node
from tests.ray.test_chain import FLOAT32, RECIPE, WEIGHTS, finished, start, wait_for
from ucotron_ray.core.artifacts import Store
from ucotron_ray.core.files import file_hash

pytestmark = [pytest.mark.ray, pytest.mark.faults]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_model, demo_files, ray_head) -> dict[str, Path]:
    """A recipe, and a store with a dataset and an adapter that was trained without a break."""
    directory = tmp_path_factory.mktemp("faults")
    recipe, store = directory / "faults.yaml", directory / "store"
    text = RECIPE.replace("MODEL", str(tiny_model)).replace("GRAPH", str(demo_files[0]))
    recipe.write_text(text.replace("HELDOUT", str(demo_files[1])), encoding="utf-8")
    common = ["--recipe", str(recipe), "--set", f"store={store}", "--set", "tracking.mlflow_uri=none", *FLOAT32]
    finished(start(ray_head, "import-graph", *common, "--name", "rows"))
    finished(start(ray_head, "sft", *common, "--train-data", "rows", "--name", "straight"))
    return {"recipe": recipe, "store": store}


def sft(place: dict[str, Path], name: str, *settings: str) -> list[str]:
    every = (f"store={place['store']}", "tracking.mlflow_uri=none", FLOAT32[1], *settings)
    overrides = [part for text in every for part in ("--set", text)]
    return ["sft", "--recipe", str(place["recipe"]), "--train-data", "rows", "--name", name, *overrides]


def steps_of(partial: Path) -> list[int]:
    """Steps of the checkpoints that are whole."""
    return sorted(int(path.parent.name.rpartition("-")[2]) for path in partial.glob("checkpoints/*/checkpoint.json"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_of_the_step_and_exit_75(place, ray_head, number):
    store, name = Store(place["store"]), f"stopped-{number.name}"
    process = start(ray_head, *sft(place, name))
    partial = store.partial("adapter", name)
    wait_for(lambda: bool(steps_of(partial)), process)
    process.send_signal(number)
    result = finished(process, code=75)
    assert result["status"] == "stopped"
    step = int(re.findall(r"after step (\d+) of 80", result["stderr"])[0])
    assert steps_of(partial)[-1] == step
    again = finished(start(ray_head, *sft(place, name)))
    assert f"going on from checkpoint-{step}" in again["stderr"]
    straight = store.get("adapter", "straight").path / WEIGHTS
    assert file_hash(store.get("adapter", name).path / WEIGHTS) == file_hash(straight)


@pytest.mark.slow
def test_what_two_workers_began_one_ends_with_the_same_steps(place, ray_head):
    store, name = Store(place["store"]), "fewer"
    process = start(ray_head, *sft(place, name, "workers.num_workers=2", "workers.cpus_per_worker=1"))
    wait_for(lambda: bool(steps_of(store.partial("adapter", name))), process)
    process.send_signal(signal.SIGTERM)
    finished(process, code=75)
    again = finished(start(ray_head, *sft(place, name, "workers.num_workers=1", "workers.cpus_per_worker=1")))
    assert "going on from checkpoint-" in again["stderr"]
    assert "worker 0 of 1" in again["stderr"]
    one, both = store.get("adapter", "straight").manifest, store.get("adapter", name).manifest
    assert one.metrics["steps"] == both.metrics["steps"] == 80
    assert abs(one.metrics["train_loss_last"] - both.metrics["train_loss_last"]) < 0.05
    assert one.recipe == both.recipe


def test_a_loss_that_is_no_number_ends_the_run_at_once_with_exit_1(place, ray_head):
    settings = ["training.sft.slm.learning_rate=1.0e+30", "training.sft.slm.max_grad_norm=1.0e+30"]
    result = finished(start(ray_head, *sft(place, "nan", *settings)), code=1)
    assert "the training loss is not finite" in result["stderr"]
    # Not a failure of a worker: nothing is started again.
    assert len(re.findall(r"worker 0 of 1, pid", result["stderr"])) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "attempts"), [(1, 1), (2, 2)])
def test_a_mistake_that_only_a_worker_can_see_is_not_tried_again(place, ray_head, tmp_path, workers, attempts):
    """Layers of this family are not known before. Of two workers one could know alone: the next attempt of both ends."""
    model = save_family(tmp_path / "model", "phi4")
    settings = ["training.sft.slm.target_modules=[nosuch]", f"workers.num_workers={workers}"]
    settings += ["workers.cpus_per_worker=1", f"models.fine_tuning.slm.local_model={model}"]
    result = finished(start(ray_head, *sft(place, f"mistake-{workers}", *settings)), code=2)
    assert "the LoRA target modules do not exist in this model" in result["stderr"]
    assert len(re.findall(rf"worker 0 of {workers}, pid", result["stderr"])) <= attempts


def test_a_worker_that_memory_runs_out_for_is_started_again_only_so_often(place, ray_head):
    """A cluster of our own that takes its memory for full from the start: Ray ends every worker that begins."""
    short = replace(ray_head, environment={**ray_head.environment, "RAY_memory_usage_threshold": "0.01"})
    result = finished(start(short, *sft(place, "short", "workers.max_failures=2"), address=False), code=1)
    assert re.findall(r"started again, (\d) of 2: memory ran out", result["stderr"]) == ["1", "2"]
    assert "found:     memory ran out, and Ray ended the process" in result["stderr"]


def test_f1_is_measured_while_it_trains(place, ray_head):
    settings = ["training.sft.slm.eval_f1_rows=3", "training.sft.slm.epochs=2", "evaluation.max_new_tokens=8"]
    result = finished(start(ray_head, *sft(place, "scored", *settings)))
    assert 0.0 <= result["eval_f1"] <= 1.0
    adapter = Store(place["store"]).get("adapter", "scored")
    history = json.loads((adapter.path / "training.json").read_text(encoding="utf-8"))["history"]
    assert [entry["step"] for entry in history if "eval_f1" in entry] == [8, 16]
    assert {"report.html", "training.json", "plan.json"} <= {entry.path for entry in adapter.manifest.files}


@pytest.mark.slow
def test_a_node_lost_in_the_middle_and_another_added_train_the_same_steps(place, ray_head):
    """One worker a node: two processors each on nodes of two. Three nodes in all, the second one killed."""
    store, name = Store(place["store"]), "nodes"
    command = sft(place, name, "workers.num_workers=2", "workers.cpus_per_worker=2")
    with second_node(ray_head) as node:
        process = start(ray_head, *command)
        wait_for(lambda: bool(steps_of(store.partial("adapter", name))), process)
        there = {child.pid for child in psutil.Process(node.pid).children(recursive=True)}
        logs = "".join(path.read_text() for path in (place["store"] / "tracking/logs").glob(f"sft-{name}-*.log"))
        workers = {int(pid) for pid in re.findall(r"worker \d of 2, pid (\d+)", logs)}
        assert len(workers) == 2
        assert len(workers & there) == 1, "one of them on each node"
        lose(node)
        with second_node(ray_head):
            result = finished(process)
    assert "going on from checkpoint-" in result["stderr"]
    straight, both = store.get("adapter", "straight").manifest, store.get("adapter", name).manifest
    assert straight.metrics["steps"] == both.metrics["steps"] == 80
    assert abs(straight.metrics["train_loss_last"] - both.metrics["train_loss_last"]) < 0.05


@pytest.mark.slow
def test_a_node_that_is_about_to_be_taken_away_costs_no_step_since_the_notice(place, ray_head):
    """The usual checkpoints are 50 steps apart; the notice makes one of its own, and the run goes on from that."""
    store, name = Store(place["store"]), "preempted"
    settings = ["training.sft.slm.epochs=25", "training.sft.slm.save_steps=50", "training.sft.slm.eval_rows=0"]
    command = sft(place, name, "workers.num_workers=2", "workers.cpus_per_worker=2", *settings)
    partial = store.partial("adapter", name)

    def noticed() -> list[int]:
        return [step for step in steps_of(partial) if step % 50]

    with second_node(ray_head) as node:
        process = start(ray_head, *command)
        wait_for(lambda: bool(steps_of(partial)), process)
        announce_loss(ray_head, 60)
        wait_for(lambda: bool(noticed()), process)
        (step,) = noticed()
        lose(node)
        with second_node(ray_head):
            result = finished(process)
    assert "about to be taken away" in result["stderr"]
    began_again = max(int(number) for number in re.findall(r"going on from checkpoint-(\d+)", result["stderr"]))
    assert began_again >= step
    assert store.get("adapter", name).manifest.metrics["steps"] == 200
