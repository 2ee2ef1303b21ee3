"""The other generators on a real Ray head: exact classes, reports, one ledger for all of them, the same bytes after a kill."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.ray.test_chain import finished, start, wait_for
from tests.ray.test_synthesis import answered, simulator
from ucotron_ray.core.artifacts import Store
from ucotron_ray.simulators.fireworks_settings import TEACHER

pytestmark = pytest.mark.ray

SCALE = 0.004


def arguments(store: Path, *more: str, url: str | None = None) -> list[str]:
    settings = {"store": store, "tracking.mlflow_uri": "none", "api.max_in_flight": 16}
    if url is not None:
        settings |= {"models.generation.model_id": TEACHER, "api.inference_base_url": f"{url}/inference/v1"}
    return ["synthesize", *more, *(part for key, value in settings.items() for part in ("--set", f"{key}={value}"))]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files(store: Path) -> dict[str, bytes]:
    """Every file of every dataset but its manifest."""
    return {
        f"{path.parent.name}/{path.name}": path.read_bytes()
        for path in (store / "dataset").rglob("*")
        if path.is_file() and path.name != "manifest.json" and not path.name.endswith(".lock")
    }


def test_classes_are_exact_and_the_dataset_has_its_table_its_report_and_its_card(ray_head, tmp_path):
    with simulator(tmp_path / "ledger.jsonl", "--garbage", "0.1") as url:
        more = ("contradiction", "--count", "40")
        result = finished(start(ray_head, *arguments(tmp_path / "store", *more, url=url)))
    made = Store(tmp_path / "store").get("dataset", "contradiction")
    published = rows(made.path / "contradiction.jsonl")
    labels = [row["label"] for row in published]
    assert {label: labels.count(label) for label in sorted(set(labels))} == {
        "agrees": 6,
        "ambiguous": 8,
        "contradicts": 12,
        "supersedes": 14,
    }
    assert pq.read_table(made.path / "contradiction.parquet").to_pylist() == published
    report = json.loads((made.path / "report.json").read_text(encoding="utf-8"))
    assert (report["rows"], report["state"]) == (40, "ok")
    assert report["samples"] == sum(
        result[key] for key in ("accepted", "rejected", "duplicate", "quarantined", "pending")
    )
    assert "<svg" in (made.path / "report.html").read_text(encoding="utf-8")
    card = (made.path / "DATASET_CARD.md").read_text(encoding="utf-8")
    for word in (TEACHER, "cost in dollars", "prompts' version", "license", "Limits"):
        assert word in card


def test_path_rewards_need_no_teacher_and_every_length_is_as_frequent(ray_head, tmp_path):
    store = tmp_path / "store"
    finished(start(ray_head, *arguments(store, "path_reward", "--count", "60")))
    published = rows(Store(store).get("dataset", "path_reward").path / "path_reward.jsonl")
    assert sorted(np.bincount([row["hop_count"] for row in published]).tolist()) == [0, 15, 15, 15, 15]
    ends = [frozenset((row["source_id"], row["target_id"])) for row in published]
    assert len(set(ends)) == 60
    again = finished(start(ray_head, *arguments(store, "path_reward", "--count", "60")))
    assert "reuse" in again["stderr"]


@pytest.mark.slow
def test_all_generators_share_one_budget_and_one_resume(ray_head, tmp_path):
    store, ledger = tmp_path / "store", tmp_path / "ledger.jsonl"
    scale = ("all", "--scale", str(SCALE))
    with simulator(ledger) as url:
        stopped = finished(start(ray_head, *arguments(store, *scale, "--max-usd", "0.02", url=url)), code=75)
        assert "budget" in stopped["stderr"]
        result = finished(start(ray_head, *arguments(store, *scale, "--max-usd", "5", url=url)))
        again = finished(start(ray_head, *arguments(store, *scale, "--max-usd", "5", url=url)))
        assert max(answered(ledger).values()) == 1, "nothing was paid twice"
    counts = {task: figures["accepted"] for task, figures in result["tasks"].items()}
    assert counts == {
        "relation_extraction": 40,
        "preference": 20,
        "contradiction": 12,
        "entity_resolution": 8,
        "projection": 200,
        "path_reward": 2,
    }
    assert all(figures["status"] == "ok" for figures in result["tasks"].values())
    assert again["tasks"]["projection"]["artifact"] == result["tasks"]["projection"]["artifact"]
    assert again["stderr"].count("reuse dataset") == 6
    # Of the generators that are done each has its share in the budget: nothing is left of it for one that is not.
    spent = sum(
        figures["cost_usd"] for task, figures in result["tasks"].items() if task not in ("projection", "path_reward")
    )
    for kind in ("dataset", "journal"):
        shutil.rmtree(store / kind / "projection")
    before = sum(answered(ledger).values())
    with simulator(ledger) as url:
        stopped = finished(start(ray_head, *arguments(store, *scale, "--max-usd", str(spent), url=url)), code=75)
    assert "budget" in stopped["stderr"]
    assert sum(answered(ledger).values()) == before


def test_a_single_row_is_topped_up_where_the_first_sample_is_of_another_class(ray_head, tmp_path):
    with simulator(tmp_path / "ledger.jsonl") as url:
        result = finished(start(ray_head, *arguments(tmp_path / "store", "entity_resolution", "--count", "1", url=url)))
    assert result["accepted"] == 1


@pytest.mark.faults
def test_kill_9_at_a_random_moment_and_the_same_command_again_ends_with_the_same_bytes(ray_head, tmp_path):
    scale = ("all", "--scale", str(SCALE))
    with simulator(tmp_path / "straight.jsonl", "--latency", "0.05") as url:
        finished(start(ray_head, *arguments(tmp_path / "straight", *scale, url=url)))
    total = sum(answered(tmp_path / "straight.jsonl").values())
    moment = random.Random(4).randrange(total // 5, total)
    store, ledger = tmp_path / "store", tmp_path / "ledger.jsonl"
    with simulator(ledger, "--latency", "0.05") as url:
        process = start(ray_head, *arguments(store, *scale, url=url))
        wait_for(lambda: sum(answered(ledger).values()) >= moment, process)
        process.kill()
        process.communicate()
        finished(start(ray_head, *arguments(store, *scale, url=url)))
    assert files(store) == files(tmp_path / "straight")


@pytest.mark.slow
def test_a_teacher_that_is_wrong_too_often_gives_a_rejected_dataset_that_no_stage_takes(ray_head, tmp_path):
    store = tmp_path / "store"
    with simulator(tmp_path / "ledger.jsonl", "--garbage", "0", "--plant", "same_fact=0.2") as url:
        result = finished(start(ray_head, *arguments(store, "contradiction", "--count", "60", url=url)), code=1)
    assert result["status"] == "rejected"
    lines = rows(tmp_path / "ledger.jsonl")
    planted = sum(line["event"] == "planted" for line in lines)
    report = json.loads((Path(result["artifact"]) / "report.json").read_text(encoding="utf-8"))
    assert report["caught"]["same_fact"]["rows"] == planted > 5
    assert report["defects"]["same_fact"]["rows"] == 0
    refused = finished(
        start(ray_head, "sft", "--train-data", "contradiction", "--set", f"store={store}", "--name", "x"), code=1
    )
    assert "rejected" in refused["stderr"]
