"""Which step's adapter is kept, and when a training stops waiting for a better one."""

import json
import shutil
from pathlib import Path

import pytest

from tests.training_jobs import changed, workers
from ucotron_ray.core import config
from ucotron_ray.core.files import file_hash
from ucotron_ray.data import jsonl
from ucotron_ray.simulators import demo_world
from ucotron_ray.training import best, sft
from ucotron_ray.training.job import BEST_STEPS, SftJob

WEIGHTS = "adapter_model.safetensors"
ROWS = [row for row in demo_world.rows(demo_world.graph_world(1), 40, seed=1) if row.expected_relations][:16]
WRONG = [row.model_copy(update={"expected_relations": []}) for row in ROWS]
"""Answers that training unlearns: the validation loss is lowest before much of it is done."""

SETTINGS = config.load().recipe.sft.model_copy(
    update={
        "epochs": 3,
        "learning_rate": 1e-1,
        "warmup_ratio": 0.0,
        "batch_size": 4,
        "save_steps": 4,
        "eval_steps": 2,
        "eval_rows": 4,
        "lora_rank": 4,
    }
)


def train(directory: Path, model: Path, *, val: list | None = WRONG, **settings: object) -> dict:
    directory.mkdir(parents=True, exist_ok=True)
    jsonl.write_rows(directory.parent / "train.jsonl", ROWS)
    jsonl.write_rows(directory.parent / "val.jsonl", val or [])
    job = SftJob(
        base=str(model),
        train_file=str(directory.parent / "train.jsonl"),
        val_file=str(directory.parent / "val.jsonl") if val else None,
        directory=str(directory),
        settings=SETTINGS.model_copy(update=settings).model_dump(),
        workers=workers(),
        num_threads=1,
    )
    sft.train(changed(job), lambda _: None)
    return json.loads((directory / "training.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory, tiny_model) -> tuple[Path, dict]:
    directory = tmp_path_factory.mktemp("best") / "run"
    return directory, train(directory, tiny_model)


def test_adapter_is_that_of_the_lowest_validation_loss_and_says_so(straight):
    directory, record = straight
    scored = record["adapter"]["scores"]
    lowest = min(scored, key=lambda score: score["loss"])
    assert [score["step"] for score in scored] == [2, 4, 6, 8, 10, 12]
    assert record["adapter"]["step"] == lowest["step"] < record["adapter"]["of"] == 12
    assert record["metrics"]["kept_step"] == lowest["step"]
    assert record["metrics"]["eval_loss"] == pytest.approx(lowest["loss"])
    kept = directory / BEST_STEPS / f"step-{lowest['step']}" / WEIGHTS
    last = directory / "checkpoints" / "checkpoint-12" / WEIGHTS
    assert file_hash(directory / "adapter" / WEIGHTS) == file_hash(kept) != file_hash(last)
    assert f"step {lowest['step']} of 12" in (directory / "report.html").read_text(encoding="utf-8")


def test_last_step_is_kept_where_it_is_asked_for_and_where_no_rows_are(straight, tmp_path, tiny_model):
    last = straight[0] / "checkpoints" / "checkpoint-12" / WEIGHTS
    for name, val, keep in (("last", WRONG, "last"), ("none", None, "best")):
        record = train(tmp_path / name / "run", tiny_model, val=val, keep=keep)
        assert record["adapter"]["step"] == record["adapter"]["of"] == 12
        assert file_hash(tmp_path / name / "run" / "adapter" / WEIGHTS) == file_hash(last)


@pytest.mark.parametrize("newest", [4, 8])
def test_resumed_run_keeps_what_the_straight_one_keeps(straight, tmp_path, tiny_model, newest):
    """Killed with a later adapter written than its checkpoint knows of, or with only what the checkpoint knows."""
    directory = tmp_path / "run"
    shutil.copytree(straight[0], directory)
    for path in (directory / "checkpoints").glob("checkpoint-*"):
        if int(path.name.rpartition("-")[2]) > newest:
            shutil.rmtree(path)
    if not (directory / "checkpoints" / f"checkpoint-{newest}").is_dir():
        shutil.rmtree(directory / "checkpoints")
    record = train(directory, tiny_model)
    assert record["adapter"] == straight[1]["adapter"]
    assert file_hash(directory / "adapter" / WEIGHTS) == file_hash(straight[0] / "adapter" / WEIGHTS)


def test_patience_stops_at_the_same_step_straight_and_resumed(straight, tmp_path, tiny_model):
    top = straight[1]["adapter"]["step"]
    record = train(tmp_path / "run", tiny_model, patience=2)
    assert record["metrics"]["steps"] == top + 4 < 12
    assert file_hash(tmp_path / "run" / "adapter" / WEIGHTS) == file_hash(straight[0] / "adapter" / WEIGHTS)
    again = train(tmp_path / "run", tiny_model, patience=2)
    assert again["metrics"]["steps"] == record["metrics"]["steps"]
    assert again["adapter"] == record["adapter"]


def test_f1_goes_before_the_loss_and_the_first_of_equal_ones_is_kept():
    history = [
        {"loss": 1.0, "step": 1},
        {"eval_loss": 0.5, "step": 2},
        {"eval_f1": 0.4, "step": 2},
        {"eval_loss": 0.3, "step": 4},
        {"eval_f1": 0.4, "step": 4},
        {"eval_loss": 0.2, "step": 6},
        {"eval_f1": 0.3, "step": 6},
        {"eval_loss": 0.3, "step": 8},
        {"eval_f1": 0.4, "step": 8},
    ]
    found = best.scores(history)
    assert [score.step for score in found] == [2, 4, 6, 8]
    assert best.best(found) == found[1]
    assert best.without_gain(found) == 2
    assert best.best([]) is None
    assert best.best([best.Score(1, float("nan")), best.Score(2, 9.0)]) == best.Score(2, 9.0)
