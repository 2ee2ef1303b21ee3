"""Mistakes of the verb `projection` end before anything is started; its flags are settings."""

import json

import pytest
import torch

from tests.unit.test_cli import call
from ucotron_ray import cli
from ucotron_ray.core import config, flags, run
from ucotron_ray.core.errors import InputError
from ucotron_ray.projection import embeddings, model
from ucotron_ray.projection import stage as projection


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch):
    def connect(self):
        raise AssertionError("Ray would have been started")

    monkeypatch.setattr(run.Run, "connect", connect)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--output", "models/projection_layer.pt"], "--output models/projection_layer.safetensors"),
        (["export", "--output", "models/projection_layer.pt"], "--output models/projection_layer.onnx"),
        (["train", "--checkpoint", "x"], "--checkpoint is for evaluate and export"),
        (["--input", "/nowhere/texts.jsonl"], "there is no such file or dataset"),
        (["encode"], "ucotron-ray synthesize projection"),
        (["evaluate"], "the store has no projection 'projection'"),
        (["export", "--checkpoint", "/nowhere/layer.pt"], "no projection layer"),
        (["--set", "projection.clip=stand-in:/nowhere/model", "--input", "TEXTS"], "there is no model at"),
        (["--set", "projection.epochs=0"], "projection.epochs"),
        (["--input", "BAD"], "line 2"),
        (["--input", "EMPTY"], "there are no descriptions"),
    ],
)
def test_a_users_mistake_is_one_block_and_exit_2(tmp_path, capsys, arguments, said):
    files = {"TEXTS": "A red boat under the bridge.\n", "BAD": "A red boat under the bridge.\nshort\n", "EMPTY": ""}
    for name, text in files.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    given = [str(tmp_path / f"{part}.txt") if part in files else part for part in arguments]
    code, result, err = call(tmp_path, capsys, "projection", *given)
    assert code == 2
    assert said in err
    assert err.count("error:") == 1
    assert result["exit_code"] == 2
    assert not list((tmp_path / "store").glob("projection/*"))


def test_the_guides_flags_are_settings_of_the_projection():
    given = [
        "--epochs",
        "3",
        "--batch-size",
        "64",
        "--learning-rate",
        "1e-3",
        "--dropout",
        "0.2",
        "--hidden-dim",
        "256",
    ]
    given += ["--val-split", "0.2", "--patience", "5", "--seed", "7", "--opset", "18"]
    recipe = flags.config_of(cli.parse(["projection", "train", *given])).recipe
    made = recipe.projection
    assert (made.epochs, made.batch_size, made.learning_rate, made.dropout) == (3, 64, 1e-3, 0.2)
    assert (made.hidden_dim, made.val_split, made.patience, made.seed, made.opset) == (256, 0.2, 5, 7, 18)
    # The relation model's training has flags of the same name, and keeps its numbers.
    assert recipe.training == config.load().recipe.training


def test_the_same_descriptions_are_one_dataset_whatever_the_name(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"description": "A red boat under the bridge."}) + "\n", encoding="utf-8")
    names = set()
    for name in ("one", "two"):
        settings = config.load(overrides=[("store", str(tmp_path / "store")), ("tracking.mlflow_uri", "none")])
        with run.Run(settings, verb="projection", name=name) as invocation:
            names.add(embeddings._import_descriptions(invocation, path).path)
    assert len(names) == 1


def test_a_stand_in_is_shown_no_images(tmp_path, capsys, tiny_model):
    (tmp_path / "1.png").touch()
    row = {"file_name": "1.png", "text": "A red boat under the bridge."}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row), encoding="utf-8")
    settings = ["--set", f"projection.clip=stand-in:{tiny_model}", "--set", f"projection.text={tiny_model}"]
    code, _, err = call(tmp_path, capsys, "projection", "encode", "--input", str(tmp_path), *settings)
    assert (code, "sees no images" in err) == (2, True)


def test_an_old_checkpoint_is_taken_by_path_and_counts_by_its_bytes(tmp_path):
    torch.save(model.build(128, 0.1).state_dict(), tmp_path / "old.pt")
    settings = config.load(overrides=[("store", str(tmp_path / "store")), ("tracking.mlflow_uri", "none")])
    with run.Run(settings, verb="projection", name="p") as invocation:
        path, layer = projection.checkpoint_of(invocation, str(tmp_path / "old.pt"))
        assert layer is None
        assert set(projection._identity(path, layer)) == {"checkpoint"}
        (tmp_path / "a.jsonl").write_text("{}", encoding="utf-8")
        with pytest.raises(InputError, match="no projection layer"):
            projection.checkpoint_of(invocation, str(tmp_path / "a.jsonl"))


def test_other_images_under_the_same_names_are_other_data(tmp_path):
    image, file = tmp_path / "1.png", tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"description": "a red boat under a bridge", "image": "1.png"}), encoding="utf-8")
    started = run.Run(config.load(overrides=[("store", str(tmp_path / "store"))]), verb="projection", name="p")
    names = set()
    for content in (b"one", b"two", b"one"):
        image.write_bytes(content)
        names.add(embeddings._import_descriptions(started, file).manifest.name)
    assert len(names) == 2
