"""The layer is the existing trainer's; only its plain tensors are read from .pt; ONNX computes what PyTorch computes."""

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from ucotron_ray.core.errors import InputError, StageFailed
from ucotron_ray.projection import model
from ucotron_ray.projection import onnx as projection_onnx


@pytest.fixture
def layer() -> torch.nn.Sequential:
    torch.manual_seed(3)
    return model.build(1024, 0.1).eval()


@pytest.fixture
def x() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(33, 512, generator=torch.Generator().manual_seed(1)), dim=-1)


def test_the_stack_is_the_existing_trainers(layer):
    assert sum(parameter.numel() for parameter in layer.parameters()) == 1_250_176
    assert {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()} == model.shapes(1024)
    kinds = [type(part).__name__ for part in layer]
    block = ["Linear", "LayerNorm", "GELU", "Dropout"]
    assert kinds == [*block, *block, "Linear", "Tanh"]


def test_folded_layer_computes_on_plain_vectors_what_the_other_computes_on_whitened_ones(layer, x):
    mean, whitening = x.mean(0), torch.randn(512, 512, generator=torch.Generator().manual_seed(2))
    expected = layer((x - mean) @ whitening)
    folded = model.build(1024, 0.0).eval()
    folded.load_state_dict(model.fold(layer.state_dict(), mean, whitening))
    assert torch.allclose(folded(x), expected, atol=2e-5)
    assert not torch.allclose(layer(x), expected, atol=1e-2)


def test_a_saved_layer_comes_back_with_its_configuration_alone_in_one_file(layer, x, tmp_path):
    model.save(tmp_path, layer.state_dict(), model.LayerConfig(1024, 0.1, encoders={"clip": "c", "text": "t"}))
    (tmp_path / "moved.safetensors").write_bytes((tmp_path / model.WEIGHTS).read_bytes())
    for path in (tmp_path, tmp_path / "moved.safetensors"):
        loaded, config = model.load(path)
        assert torch.equal(loaded(x), layer(x))
        assert (config.hidden_dim, config.encoders) == (1024, {"clip": "c", "text": "t"})


def test_a_state_dict_of_the_existing_trainer_loads_with_any_hidden_size(x, tmp_path):
    old = model.build(300, 0.1).eval()
    torch.save(old.state_dict(), tmp_path / "projection_layer.pt")
    loaded, config = model.load(tmp_path / "projection_layer.pt")
    assert torch.equal(loaded(x), old(x))
    assert (config.hidden_dim, config.split) == (300, None)


class Harmful:
    def __reduce__(self):
        return os.mkdir, (os.environ["HARM"],)


@pytest.mark.parametrize("content", ["code", "module", "shape", "missing", "text"])
def test_another_pt_file_is_refused_and_runs_nothing(layer, tmp_path, monkeypatch, content):
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    path, state = tmp_path / "x.pt", dict(layer.state_dict())
    if content == "text":
        path.write_text("no checkpoint")
    else:
        state["5.weight"] = torch.zeros(7) if content == "shape" else state["5.weight"]
        del state["8.bias" if content == "missing" else "0.bias"]
        torch.save({"code": Harmful(), "module": layer}.get(content, state), path)
    with pytest.raises(InputError) as caught:
        model.load(path)
    assert "no projection layer" in str(caught.value)
    assert not (tmp_path / "harm").exists()
    if content == "shape":
        assert "0.bias" in str(caught.value) or "5.weight: (7,) instead of (512,)" in str(caught.value)


@pytest.mark.parametrize("opset", [17, 20])
def test_the_graph_is_what_the_server_loads_and_agrees(layer, tmp_path, opset):
    path = projection_onnx.export(layer, tmp_path, opset=opset)
    assert [entry.name for entry in tmp_path.iterdir()] == ["projection_layer.onnx"]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (entry,), (answer,) = session.get_inputs(), session.get_outputs()
    assert (entry.name, entry.type, entry.shape) == ("input", "tensor(float)", ["batch", 512])
    assert (answer.name, answer.type, answer.shape) == ("output", "tensor(float)", ["batch", 384])
    figures = projection_onnx.compare(layer, path)
    assert set(figures) == {"max_difference", *(f"max_difference_{size}" for size in (1, 4, 16, 257))}
    assert figures["max_difference"] < 1e-5
    config = model.LayerConfig(1024, encoders={"clip": "STAND-IN for CLIP: m", "text": "t"})
    assert projection_onnx.write_contracts(tmp_path, "p", config, figures, {}) == []
    assert "STAND-IN" in (tmp_path / projection_onnx.CARD).read_text()
    assert json.loads((tmp_path / projection_onnx.PARITY).read_text())["missed"] == []


def test_a_changed_weight_and_a_nan_fail_the_gate(layer, tmp_path):
    path = projection_onnx.export(layer, tmp_path, opset=17)
    with torch.no_grad():
        layer[4].weight[0] += 0.01
    assert projection_onnx.missed(projection_onnx.compare(layer, path))
    assert projection_onnx.missed({"max_difference": float("nan")})


def test_another_graph_is_refused(layer, tmp_path):
    path = projection_onnx.export(layer, tmp_path, opset=17)
    proto = onnx.load(str(path))
    onnx.save(proto, str(path), save_as_external_data=True, location="weights.data", size_threshold=0)
    with pytest.raises(StageFailed, match="not what the server loads"):
        projection_onnx.check(path)


@pytest.mark.slow
def test_the_graph_agrees_under_the_runtime_of_the_server(layer, x, tmp_path):
    """pip install --no-deps --target DIR onnxruntime==1.23.2; SERVER_ONNXRUNTIME=DIR"""
    directory = os.environ.get("SERVER_ONNXRUNTIME")
    if not directory:
        pytest.skip("SERVER_ONNXRUNTIME does not name a directory with onnxruntime 1.23.2")
    projection_onnx.export(layer, tmp_path, opset=17)
    np.save(tmp_path / "x.npy", x.numpy())
    script = (
        "import numpy as np, onnxruntime as ort, sys\n"
        "assert ort.__version__ == '1.23.2', ort.__version__\n"
        "session = ort.InferenceSession('projection_layer.onnx', providers=['CPUExecutionProvider'])\n"
        "x = np.load('x.npy')\n"
        "np.savez('y.npz', all=session.run(None, {'input': x})[0], one=session.run(None, {'input': x[:1]})[0])\n"
    )
    environment = {**os.environ, "PYTHONPATH": directory}
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, check=True, timeout=120)
    answers = np.load(tmp_path / "y.npz")
    reference = layer(x).detach().numpy()
    assert np.abs(answers["all"] - reference).max() < 1e-4
    assert np.abs(answers["one"] - reference[:1]).max() < 1e-4
