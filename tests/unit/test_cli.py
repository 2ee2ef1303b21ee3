"""Mistakes end before anything is started, in one block, with the right exit code; --help is light."""

import json
import os
import signal
import subprocess
import sys

import pytest

from ucotron_ray import cli
from ucotron_ray.core import flags, run
from ucotron_ray.core.errors import (
    ConfigError,
    CorruptArtifact,
    GateFailed,
    MissingPackage,
    RecipeChanged,
    Stopped,
    UcotronRayError,
)

HEAVY = ("torch", "transformers", "ray", "mlflow", "pandas", "peft", "trl", "datasets", "numpy")


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch):
    """In these tests nothing may get as far as connecting to Ray."""

    def connect(self):
        raise AssertionError("Ray would have been started")

    monkeypatch.setattr(run.Run, "connect", connect)


def call(tmp_path, capsys, *arguments: str) -> tuple[int, dict, str]:
    code = cli.main([*arguments, "--set", f"store={tmp_path / 'store'}", "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), err


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom ucotron_ray import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pipeline", "--set", "training.sft.slm.epoch=1"], "did you mean `training.sft.slm.epochs`?"),
        (["pipeline", "--epochs", "0"], "training.sft.slm.epochs"),
        (["pipeline", "--recipe", "/nowhere/recipe.yaml"], "does not exist"),
        (["pipeline", "--model-name", "/nowhere/model"], "there is no model at"),
        (["pipeline", "--set", "tier=huge"], "'slm', 'small' or 'medium'"),
        (["pipeline", "--skip-generate", "--data-dir", "/nowhere"], "train_sft.jsonl"),
        (["sft", "--train-data", "/nowhere/rows.jsonl"], "No such file"),
        (["evaluate", f"org/model@{'a' * 40}", "--data", "/nowhere/rows.jsonl"], "no such held-out file"),
        (["export"], "one model is needed"),
        (["show", "nothing"], "no artifact 'nothing'"),
        (["import-graph", "/nowhere/graph.jsonld"], "cannot be read"),
        (["pipeline", "--set", "tracking.mlflow_uri=file:///tmp/x"], "no longer keeps runs"),
    ],
)
def test_a_users_mistake_is_one_block_and_exit_2(tmp_path, capsys, tiny_model, demo_files, arguments, said):
    if arguments[0] == "pipeline":
        arguments = [*arguments, "--set", f"graph.source={demo_files[0]}"]
        if "--model-name" not in arguments:
            arguments += ["--model-name", str(tiny_model)]
    code, result, err = call(tmp_path, capsys, *arguments)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert err.count("error:") == 1
    assert (result["status"], result["exit_code"]) == ("failed", 2)


def test_the_guides_flags_are_the_settings_of_the_chosen_tier(tmp_path):
    given = ["--tier", "medium", "--model-name", "m", "--epochs", "5", "--batch-size", "4"]
    given += ["--learning-rate", "3e-4", "--max-seq-length", "512"]
    recipe = flags.config_of(cli.parse(["sft", *given])).recipe
    sft = recipe.training.sft.medium
    assert (sft.epochs, sft.global_batch, sft.learning_rate, sft.max_context_length) == (5, 4, 3e-4, 512)
    assert recipe.models.fine_tuning.medium.local_model == "m"
    # The tier's other numbers stay.
    assert sft.lora_rank == 16
    assert recipe.training.sft.slm.epochs == 3


def test_a_graph_without_relations_and_bad_jsonl_name_the_place(tmp_path, capsys, tiny_model):
    graph = tmp_path / "graph.jsonld"
    graph.write_text('{"nodes": [], "edges": []}', encoding="utf-8")
    code, _, err = call(tmp_path, capsys, "import-graph", str(graph))
    assert (code, "gives no training row" in err) == (2, True)
    (tmp_path / "train_sft.jsonl").write_text('{"messages": []}\n', encoding="utf-8")
    arguments = ["pipeline", "--skip-generate", "--data-dir", str(tmp_path), "--model-name", str(tiny_model)]
    code, _, err = call(tmp_path, capsys, *arguments)
    assert code == 2
    assert "train_sft.jsonl, line 1" in err


def test_validation_rows_that_train_too_are_refused(tmp_path, capsys, caplog, tiny_model):
    row = '{"text": "Ann met Bo.", "entities": [], "expected_relations": []}\n'
    for name in ("train_sft.jsonl", "val_sft.jsonl"):
        (tmp_path / name).write_text(row, encoding="utf-8")
    arguments = [
        "sft",
        "--train-data",
        str(tmp_path / "train_sft.jsonl"),
        "--val-data",
        str(tmp_path / "val_sft.jsonl"),
    ]
    code, _, err = call(tmp_path, capsys, *arguments, "--model-name", str(tiny_model))
    assert (code, "training rows too" in err) == (2, True)
    assert "--drop-overlap" in err
    caplog.set_level("INFO")
    # The dataset is made without them: there is no validation row left.
    code, _, err = call(tmp_path, capsys, *arguments, "--drop-overlap", "--dry-run", "--model-name", str(tiny_model))
    assert (code, "1 row(s) of val stand in another split too and are dropped" in caplog.text) == (0, True)


def test_the_layout_of_a_file_is_told_and_can_be_named(tmp_path, capsys, caplog, tiny_model):
    row = '{"tokens": ["Ann", "met", "Bo"], "entities": [[0, 1, "PER"], [2, 3, "PER"]], "relations": [[0, "met", 1]]}\n'
    path = tmp_path / "rows.jsonl"
    path.write_text(row, encoding="utf-8")
    caplog.set_level("INFO")
    for verb in (
        ["validate", str(path)],
        ["sft", "--train-data", str(path), "--dry-run", "--model-name", str(tiny_model)],
    ):
        code, _, err = call(tmp_path, capsys, *verb)
        assert (code, "read 1 of layout spert" in err + caplog.text) == (0, True)
        code, _, err = call(tmp_path, capsys, *verb, "--format", "triplets")
        assert (code, "line 1" in err and "layout triplets" in err) == (2, True)


def test_a_missing_package_comes_with_its_install_line(tmp_path, capsys, monkeypatch, tiny_model):
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name in ("trl", "peft") else find_spec(name, *rest)
    )
    code, _, err = call(tmp_path, capsys, "pipeline", "--model-name", str(tiny_model))
    assert code == 2
    assert "Missing Python dependencies for training: trl, peft" in err
    assert "pip install -c constraints.txt trl peft" in err


def test_dry_run_prints_the_plan_and_makes_nothing(tmp_path, capsys, tiny_model, demo_files):
    arguments = ["pipeline", "--dry-run", "--model-name", str(tiny_model), "--name", "d"]
    arguments += ["--set", f"graph.source={demo_files[0]}", "--set", f"evaluation.data={demo_files[1]}"]
    code, result, _ = call(tmp_path, capsys, *arguments)
    assert code == 0
    assert [(step["stage"], step["action"]) for step in result["plan"]] == [
        ("import-graph", "run"),
        ("import-held-out", "run"),
        ("sft", "run"),
        ("evaluate", "run"),
        ("evaluate-base", "run"),
        ("export", "run"),
    ]
    assert not list((tmp_path / "store").glob("*/*/manifest.json"))
    call(tmp_path, capsys, "import-graph", str(demo_files[0]), "--name", "d")
    code, result, _ = call(tmp_path, capsys, *arguments)
    assert [step["action"] for step in result["plan"]] == ["reuse", "run", "run", "run", "run", "run"]
    code, result, _ = call(tmp_path, capsys, *arguments, "--set", "graph.max_samples=7")
    assert (code, result["status"], result["plan"][0]["action"]) == (3, "conflict", "conflict")


def test_another_recipe_under_the_same_name_is_exit_3_and_names_the_fields(tmp_path, capsys, demo_files):
    assert call(tmp_path, capsys, "import-graph", str(demo_files[0]), "--name", "d")[0] == 0
    code, result, err = call(tmp_path, capsys, "import-graph", str(demo_files[0]), "--name", "d", "--max-samples", "7")
    assert (code, result["exit_code"]) == (3, 3)
    assert "graph.max_samples: 10000 → 7" in err


def test_import_graph_writes_the_guides_chat_rows_too(tmp_path, capsys, demo_files):
    output = tmp_path / "out" / "train_sft.jsonl"
    code, result, _ = call(tmp_path, capsys, "import-graph", str(demo_files[0]), "--output", str(output))
    assert code == 0
    lines = output.read_text(encoding="utf-8").splitlines()
    assert len(lines) == result["train"]
    assert [message["role"] for message in json.loads(lines[0])["messages"]] == ["system", "user", "assistant"]


def test_show_prints_the_manifest_and_where_it_comes_from(tmp_path, capsys, demo_files):
    call(tmp_path, capsys, "import-graph", str(demo_files[0]), "--name", "d")
    code = cli.main(["show", "d", "--set", f"store={tmp_path / 'store'}"])
    out = capsys.readouterr().out
    assert code == 0
    assert "dataset/d  ok" in out
    assert str(demo_files[0]) in out


def test_doctor_says_of_each_variable_whether_it_is_set_and_never_its_value(tmp_path, capsys, monkeypatch, tiny_model):
    monkeypatch.setenv("FIREWORKS_API_KEY", "fw-canary-123")
    cli.main(["doctor", "--set", f"store={tmp_path}"])
    out = capsys.readouterr().out
    for name in (
        "FIREWORKS_API_KEY",
        "FIREWORKS_ACCOUNT_ID",
        "WANDB_API_KEY",
        "UCOTRON_SERVER_URL",
        "UCOTRON_API_KEY",
        "UCOTRON_NAMESPACE",
    ):
        assert name in out
    assert "fw-canary-123" not in out
    assert "http://localhost:8420" in out


@pytest.mark.parametrize(
    ("kind", "code"),
    [(ConfigError, 2), (MissingPackage, 2), (RecipeChanged, 3), (CorruptArtifact, 1), (GateFailed, 1), (Stopped, 75)],
)
def test_errors_keep_their_words_and_codes_across_processes(kind, code):
    import pickle

    error = kind("a problem", where="here", found="this", next_step="do that")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, UcotronRayError)
    assert (str(copy), copy.exit_code) == (str(error), code)
    assert "next step: do that" in str(copy)


def test_sigterm_before_the_end_is_exit_75(tmp_path, demo_files):
    script = (
        "import os, signal, sys\nfrom ucotron_ray import cli\nfrom ucotron_ray.graph import stage\n"
        "stage.import_graph = lambda *a, **k: os.kill(os.getpid(), signal.SIGTERM) or signal.pause()\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", script, "import-graph", str(demo_files[0]), "--set", f"store={tmp_path}", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ})
    assert result.returncode == 75
    assert json.loads(result.stdout.splitlines()[-1])["status"] == "stopped"
    assert signal.Signals.SIGTERM.name in result.stderr


ROW = {"text": "Ann met Bo.", "entities": [{"text": "Ann"}, {"text": "Bo"}], "expected_relations": []}


def test_validate_ends_with_0_for_good_rows_1_for_bad_ones_and_2_for_none(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    code, result, err = call(tmp_path, capsys, "validate", str(path), "--report", str(tmp_path / "report"))
    assert (code, result["status"], result["kind"], result["would_train"]) == (0, "ok", "relations", 1)
    assert "1 would train with sft" in err
    numbers = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert {key: result[key] for key in numbers} == numbers
    assert "<svg" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    path.write_text(json.dumps(ROW) + "\n{\x1b[2J\n", encoding="utf-8")
    code, result, err = call(tmp_path, capsys, "validate", str(path))
    assert (code, result["status"]) == (1, "rejected")
    assert "line 2: schema" in err
    assert "\x1b" not in err
    for missing in (tmp_path / "gone.jsonl", tmp_path):
        assert call(tmp_path, capsys, "validate", str(missing))[0] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("all", "--count", "5"), "takes its counts from the recipe"),
        (("all", "--scale", "0"), "--scale is a share"),
        (("entity_resolution", "--input", "x"), "takes no input"),
        (("preference",), "needs relation rows"),
        (("path_reward", "--input", "gone.jsonld"), "cannot be read"),
        (("path_reward", "--count", "0"), "nothing to make"),
        (("projection", "--set", "generation.gate.caught.typo=0.1"), "nothing that the gate looks for"),
    ],
)
def test_mistakes_about_generators_end_before_anything_is_asked(tmp_path, capsys, arguments, said):
    code, _, err = call(tmp_path, capsys, "synthesize", *arguments)
    assert code == 2, err
    assert said in err
    assert not (tmp_path / "store").exists() or not list((tmp_path / "store").rglob("*.partial"))


def test_a_dry_run_of_all_generators_sums_what_they_would_cost_and_asks_nobody(tmp_path, capsys):
    model = ("--set", "models.generation.model_id=accounts/simulator/models/teacher")
    code, result, _ = call(tmp_path, capsys, "synthesize", "all", "--dry-run", *model)
    assert code == 0
    assert set(result["tasks"]) == {
        "relation_extraction", "contradiction", "entity_resolution", "projection", "path_reward"
    }  # fmt: skip
    assert result["rows"] == 10_000 + 3000 + 2000 + 50_000 + 500
    assert result["requests"] == sum(task["requests"] for task in result["tasks"].values()) > 75_000
    assert result["usd_at_most"] > 0
    assert result["tasks"]["projection"]["action"] == "run"
    # A teacher whose price nobody knows does not cost nothing.
    assert call(tmp_path, capsys, "synthesize", "all", "--dry-run")[1]["usd_at_most"] is None


def test_an_export_is_planned_without_loading_anything(tmp_path, capsys):
    code, result, _ = call(tmp_path, capsys, "export", "Qwen/Qwen2.5-7B-Instruct", "--dry-run")
    assert code == 0
    assert result["plan"]["memory"] > 100e9
    assert result["plan"]["files"]["onnx int8"] < 0.35 * result["plan"]["files"]["onnx fp32"]
    assert result["prompt"].startswith("not compared")
    code, _, err = call(tmp_path, capsys, "export", "someone/unknown-model", "--dry-run")
    assert code == 2
    assert "sizes of this model are not known" in err


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["export", "m", "--data", "rows.jsonl"], "recipe.export.data", "rows.jsonl"),
        (["evaluate", "m", "--data", "rows.jsonl", "--no-base"], "recipe.evaluation.base", False),
        (["import-graph", "--all-namespaces", "--seed", "7"], "recipe.graph.all_namespaces", True),
        (["tune", "sft", "--tiers", "slm,small"], "recipe.tuning.tiers", ["slm", "small"]),
        (["dpo", "--data", "d", "--from", "a", "--epochs", "4"], "recipe.dpo.epochs", 4),
        (["serve", "m", "--replicas", "2"], "place.serving.num_replicas", 2),
        (["fireworks", "sft", "--dataset", "d", "--model-size", "medium"], "recipe.tier", "medium"),
        (["fireworks", "dpo", "--dataset", "d", "--base-model", "b", "--beta", "0.3"], "recipe.dpo.beta", 0.3),
        (["fireworks", "sft", "--dataset", "d", "--wandb-project", "p"], "place.tracking.enabled", True),
        (["promote", "b", "--registry", "http://x"], "place.tracking.registry_uri", "http://x"),
    ],
)
def test_a_flag_that_is_a_setting_sets_it(words, key, value):
    found = flags.config_of(cli.parse(words))
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value
