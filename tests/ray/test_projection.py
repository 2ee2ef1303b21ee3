"""From descriptions to the ONNX file on a real Ray head, with tiny encoders: run, run again, miss the target, kill."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tests.ray.test_chain import finished, start, wait_for
from tests.tiny_encoders import WORDS, save_clip, save_sentences
from ucotron_ray.core.artifacts import Store
from ucotron_ray.projection import model, pairs

pytestmark = pytest.mark.ray

NUM_ROWS = 2500


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("projection")
    random = np.random.default_rng(0)
    lines = sorted({" ".join(random.choice(WORDS, 6)) for _ in range(NUM_ROWS + 200)})[:NUM_ROWS]
    (directory / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
    save_clip(directory / "clip")
    save_sentences(directory / "text")
    return {name: directory / name for name in ("clip", "text", "texts.txt", "store")}


def arguments(place, *more: str, **settings) -> list[str]:
    values = {
        "store": place["store"],
        "tracking.mlflow_uri": "none",
        "workers.dtype": "float32",
        "projection.clip": place["clip"],
        "projection.text": place["text"],
        "projection.hidden_dim": 32,
        "projection.epochs": 2,
        "projection.target": 1.9,
        **settings,
    }
    return ["projection", *more, *(part for key, value in values.items() for part in ("--set", f"{key}={value}"))]


def test_descriptions_become_a_file_that_the_server_loads(place, ray_head, tmp_path):
    given = ("--input", str(place["texts.txt"]))
    result = finished(start(ray_head, *arguments(place, *given, "--output", str(tmp_path / "layer.onnx"))))
    assert (result["target_met"], result["parity"]) == (True, True)
    store = Store(place["store"])
    layer, bundle = store.get("projection", "projection"), store.get("bundle", "projection")
    assert {entry.path for entry in layer.manifest.files} == {"model.safetensors", "config.json", "training.json"}
    assert sum(layer.manifest.counts.values()) == NUM_ROWS
    assert [entry.content for entry in bundle.manifest.inputs] == [layer.manifest.content]
    (embeddings,) = (name for name in store.names("dataset") if name.startswith("embeddings-"))
    data = store.get("dataset", embeddings)
    assert {entry.path for entry in data.manifest.files} == {
        "encoders.json",
        *(f"shard-0000{number}.parquet" for number in range(3)),
    }
    loaded = pairs.load(data.path)
    assert loaded.clip.shape == (NUM_ROWS, 512)
    session = onnxruntime.InferenceSession(str(tmp_path / "layer.onnx"), providers=["CPUExecutionProvider"])
    reference = model.load(layer.path)[0](torch.from_numpy(loaded.clip[:5])).detach().numpy()
    assert np.abs(session.run(None, {"input": loaded.clip[:5]})[0] - reference).max() < 1e-4
    scores = json.loads((store.get("scores", "projection").path / "scores.json").read_text(encoding="utf-8"))
    assert scores["rows"] == {name: layer.manifest.counts[name] for name in ("train", "val", "test")}
    assert scores["val"]["projection"]["cosine_loss"] == pytest.approx(
        layer.manifest.metrics["best_val_loss"], abs=1e-4
    )
    assert scores["val"]["linear"]["recall_at_10"] > scores["val"]["chance"]["recall_at_10"]

    again = finished(start(ray_head, *arguments(place, *given)))
    assert [line.split(":")[0] for line in again["stderr"].splitlines() if ": reuse" in line] == [
        "import-descriptions",
        "encode",
        "train",
        "evaluate",
        "export",
    ]
    strict = ("evaluate", "--checkpoint", "projection", "--name", "strict")
    result = finished(start(ray_head, *arguments(place, *strict, **{"projection.target": 1e-6})), code=1)
    assert "misses its target" in result["stderr"]
    assert (result["status"], result["target_met"]) == ("failed", False)
    assert result["test"]["projection"]["cosine_loss"] > 1e-6


@pytest.mark.slow
def test_a_layer_that_misses_its_target_is_not_bundled(place, ray_head):
    given = ("--input", str(place["texts.txt"]), "--name", "missed")
    result = finished(start(ray_head, *arguments(place, *given, **{"projection.target": 1e-6})), code=1)
    assert result["val"]["projection"]["cosine_loss"] > 1e-6
    assert Store(place["store"]).find("projection", "missed") is not None
    assert Store(place["store"]).find("bundle", "missed") is None


@pytest.mark.faults
def test_kill_9_while_encoding_loses_no_finished_shard(place, ray_head, tmp_path):
    given = ("encode", "--input", str(place["texts.txt"]))
    settings = {"workers.max_tokens_per_microbatch": 32, "workers.num_workers": 2}
    straight = finished(start(ray_head, *arguments(place, *given, **settings, store=tmp_path / "straight")))
    process = start(ray_head, *arguments(place, *given, **settings, store=tmp_path / "killed"))
    found: list[Path] = []

    def some_are_there() -> bool:
        found[:] = sorted((tmp_path / "killed" / "dataset").glob("embeddings-*.partial/shard-*.parquet"))
        return bool(found)

    wait_for(some_are_there, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    written = {path.name: path.stat().st_mtime_ns for path in found}
    assert 1 <= len(written) < 3
    result = finished(start(ray_head, *arguments(place, *given, **settings, store=tmp_path / "killed")))
    directory = Path(result["artifact"])
    assert all((directory / name).stat().st_mtime_ns == at for name, at in written.items())
    ours, theirs = (Store(tmp_path / name).get("dataset", directory.name) for name in ("killed", "straight"))
    assert ours.manifest.content == theirs.manifest.content
    assert result["rows"] == straight["rows"] == NUM_ROWS


@pytest.mark.slow
def test_an_encoder_that_does_not_fit_ends_with_its_own_words(place, ray_head, tmp_path):
    small = save_clip(tmp_path / "small", projection_dim=256)
    given = arguments(place, "encode", "--input", str(place["texts.txt"]), **{"projection.clip": small})
    result = finished(start(ray_head, *given), code=2)
    assert "another size than the server's" in result["stderr"]
    assert "Traceback" not in result["stderr"]


@pytest.mark.slow
def test_two_workers_train_the_same_layer_as_one(place, ray_head):
    given = ("train", "--input", str(place["texts.txt"]))
    plain = {"projection.dropout": 0, "projection.noise": 0, "workers.cpus_per_worker": 1}
    losses = [
        finished(
            start(ray_head, *arguments(place, *given, "--name", f"w{count}", **plain, **{"workers.num_workers": count}))
        )["best_val_loss"]
        for count in (1, 2)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
