"""When the chain aligns with preferences, and when it goes on without."""

import json
from types import SimpleNamespace

import pytest

from tests.unit import test_cli
from tests.unit.test_cli import _no_ray  # noqa: F401 - the fixture is used by being there
from tests.unit.test_dpo import ROWS
from ucotron_ray import config, jsonl, pipeline


@pytest.fixture
def data(tmp_path, demo_files):
    directory = tmp_path / "data"
    directory.mkdir()
    rows = demo_files[1].read_text(encoding="utf-8").splitlines(keepends=True)
    (directory / "train_sft.jsonl").write_text("".join(rows[:8]), encoding="utf-8")
    jsonl.write_rows(directory / "train_dpo.jsonl", ROWS)
    return directory


def planned(tmp_path, capsys, model, data, *arguments: str) -> dict[str, str]:
    every = ["pipeline", "--dry-run", "--data-dir", str(data), "--model-name", str(model), "--name", "p", *arguments]
    held_out = tmp_path / "held_out.jsonl"
    held_out.write_text((data / "train_sft.jsonl").read_text(encoding="utf-8"), encoding="utf-8")
    every += ["--set", f"evaluation.data={held_out}", "--set", "tracking.mlflow_uri=none"]
    code, result, err = test_cli.call(tmp_path, capsys, *every)
    assert code == 0, err
    return {step["stage"]: step["artifact"] for step in result["plan"]}


def test_pairs_beside_the_training_rows_are_aligned_with_unless_told_not_to(tmp_path, capsys, tiny_model, data):
    assert planned(tmp_path, capsys, tiny_model, data)["dpo"] == "adapter/p-dpo"
    assert "dpo" not in planned(tmp_path, capsys, tiny_model, data, "--skip-dpo")
    (data / "train_dpo.jsonl").rename(tmp_path / "elsewhere.jsonl")
    assert "dpo" not in planned(tmp_path, capsys, tiny_model, data)
    named = ("--set", f"training.preference_data={tmp_path / 'elsewhere.jsonl'}")
    assert "dpo" in planned(tmp_path, capsys, tiny_model, data, *named)
    asked = ("--set", "generation.preferences_in_pipeline=20")
    assert "dpo" in planned(tmp_path, capsys, tiny_model, data, *asked)


def test_pairs_that_cannot_be_read_end_the_chain_before_it_begins(tmp_path, capsys, tiny_model, data):
    (data / "train_dpo.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "c"}) + "\n", encoding="utf-8")
    arguments = ["pipeline", "--data-dir", str(data), "--model-name", str(tiny_model)]
    code, _, err = test_cli.call(tmp_path, capsys, *arguments, "--set", "tracking.mlflow_uri=none")
    assert code == 2
    assert "train_dpo.jsonl, line 1" in err


@pytest.mark.parametrize(("after", "kept"), [(0.81, True), (0.80, True), (0.796, True), (0.79, False)])
def test_dpo_is_kept_if_it_costs_no_more_f1_than_allowed(after, kept):
    run = SimpleNamespace(config=config.load())
    assert pipeline.keeps_dpo(run, {"overall": {"f1": 0.80}}, {"overall": {"f1": after}}) is kept
