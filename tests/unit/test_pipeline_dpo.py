"""When the chain aligns with preferences and when it goes on without; what it refuses before it begins."""

import json
from types import SimpleNamespace

import pytest

from tests.unit import test_cli
from tests.unit.test_cli import _no_ray  # noqa: F401 - the fixture is used by being there
from tests.unit.test_dpo import ROWS
from ucotron_ray import config, jsonl, pipeline
from ucotron_ray.artifacts import Request, Result, Store
from ucotron_ray.errors import ArtifactError
from ucotron_ray.run import Run
from ucotron_ray.stages import synthesis


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


def test_a_teacher_without_a_key_is_refused_before_anything_is_made(tmp_path, capsys, tiny_model, data):
    (data / "train_dpo.jsonl").unlink()
    arguments = ["pipeline", "--data-dir", str(data), "--model-name", str(tiny_model), "--name", "p"]
    arguments += ["--set", "tracking.mlflow_uri=none", "--set", "generation.preferences_in_pipeline=20"]
    code, _, err = test_cli.call(tmp_path, capsys, *arguments)
    assert code == 2
    assert "FIREWORKS_API_KEY" in err
    assert Store(tmp_path / "store").names("dataset") == []


def test_an_adapter_is_not_scored_on_another_base_than_its_own(tmp_path, capsys, tiny_model, data):
    fields = {"base": {"reference": str(tiny_model), "identity": "directory:other"}}
    with Store(tmp_path / "store").building(Request("adapter", "p", fields)) as build:
        build.publish(Result({}, {}, []))
    arguments = ["pipeline", "--skip-train", "--data-dir", str(data), "--model-name", str(tiny_model), "--name", "p"]
    code, _, err = test_cli.call(tmp_path, capsys, *arguments, "--set", "tracking.mlflow_uri=none")
    assert code == 2
    assert "not the one that the adapter was trained on" in err


def test_rows_that_the_gate_rejected_are_no_input_of_a_chain(tmp_path, monkeypatch):
    run = Run(config.load(overrides=[("store", str(tmp_path))]), verb="pipeline", name="p")

    def rejected(run: Run, want: synthesis.Wanted) -> None:
        with run.store.building(Request("dataset", want.name, {})) as build:
            if build.artifact is None:
                build.publish(Result({}, {}, ["wrong_span 7%"], state="rejected"))

    monkeypatch.setattr(synthesis, "synthesize", rejected)
    want = synthesis.Wanted("preference", "p-preference", 3, None)
    with pytest.raises(ArtifactError, match="rejected"):
        synthesis.accepted(run, want)
    run.accept_rejected = True
    assert synthesis.accepted(run, want).manifest.state == "rejected"


def test_a_hub_model_is_noted_before_the_teacher_connects_anything(tmp_path):
    wanted = [("store", str(tmp_path)), ("models.fine_tuning.slm.local_model", "Qwen/Qwen2.5-0.5B-Instruct")]
    run = Run(config.load(overrides=wanted), verb="pipeline", name="p")
    pipeline.check(run, pipeline.Options())
    assert run.hub_needed
