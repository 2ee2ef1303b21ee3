"""ONNX computes what PyTorch computes, for tied and untied heads and another head_dim; and the gate notices if not."""

import json

import numpy as np
import pytest

from tests.tiny_models import save_tiny
from ucotron_ray import config
from ucotron_ray.artifacts import canonical_hash
from ucotron_ray.export import bundle, onnx, parity
from ucotron_ray.graph import demo_world
from ucotron_ray.models import base as base_models
from ucotron_ray.models.runner import OnnxRunner
from ucotron_ray.training.data import prompt_ids, server_row

# Tracing warns about every branch of the model's code that it fixes.
pytestmark = pytest.mark.filterwarnings("ignore::Warning")

ROWS = list(demo_world.rows(demo_world.graph_world(1), 3, seed=1))
SETTINGS = config.load().recipe.export.model_copy(update={"parity_new_tokens": 6})


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_export_is_equal_to_pytorch_and_a_changed_weight_fails_the_gate(tmp_path, family):
    base = base_models.resolve(str(save_tiny(tmp_path / "base", family)))
    onnx.merge(base, None, tmp_path / "merged")
    onnx.export(tmp_path / "merged", tmp_path / "onnx", opset=18)
    tokenizer = base_models.load_tokenizer(base_models.resolve(str(tmp_path / "merged")))
    prompts = [
        prompt_ids(server_row(row, layout), tokenizer)
        for row, layout in zip(ROWS, ("chat", "raw", "chat"), strict=True)
    ]
    graph = tmp_path / "onnx" / onnx.GRAPH
    figures = parity.compare(tmp_path / "merged", graph, prompts, SETTINGS, eos=tokenizer.eos_token_id)
    assert parity.failures(figures, SETTINGS) == []
    assert figures["max_logit_difference"] < 1e-4
    assert figures["greedy_match"] == 1.0
    assert (graph.parent / "model.onnx_data").is_file()

    contract = onnx.io_contract(graph, tmp_path / "onnx" / "config.json")
    assert [entry["name"] for entry in contract["inputs"]][:3] == ["input_ids", "attention_mask", "position_ids"]
    assert contract["opset"]["ai.onnx"] <= 21
    assert contract["ir_version"] <= 10

    other = tmp_path / "other"
    onnx.merge(base, None, other)
    _shift_one_tensor(other / "model.safetensors")
    changed = parity.compare(other, graph, prompts, SETTINGS, eos=tokenizer.eos_token_id)
    assert any("max_logit_difference" in line for line in parity.failures(changed, SETTINGS))


def test_nan_fails_the_gate():
    figures = {"max_logit_difference": float("nan"), "cache_difference": 0.0, "greedy_match": float("nan")}
    assert len(parity.failures(figures, SETTINGS)) == 2


def test_runner_feeds_steps_so_that_they_equal_one_pass(tmp_path):
    base = save_tiny(tmp_path / "base", "qwen3")
    onnx.export(base, tmp_path / "onnx", opset=18)
    runner = OnnxRunner(tmp_path / "onnx" / onnx.GRAPH)
    ids = list(range(5, 45))
    for num_prefill in (1, 20, 39):
        assert np.abs(runner.logits(ids) - runner.stepwise_logits(ids, num_prefill=num_prefill)).max() < 1e-4


def test_prompt_contract_is_hashed_and_names_the_servers_strings(tiny_model):
    tokenizer = base_models.load_tokenizer(base_models.resolve(str(tiny_model)))
    contract = bundle.prompt_contract(tokenizer)
    digest = contract.pop("sha256")
    assert digest == canonical_hash(contract)
    assert contract["chat"]["rendered"].endswith("<|im_start|>assistant\n")
    assert json.dumps(contract)


def test_server_lines_have_the_servers_real_key_names():
    import tomllib

    assert set(tomllib.loads(bundle.server_lines("demo"))["models"]) == {
        "fine_tuned_re_model",
        "fine_tuned_re_endpoint",
        "fine_tuned_re_api_key_env",
    }


def _shift_one_tensor(path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "down_proj" in name)
    tensors[name] = tensors[name] + 0.05
    save_file(tensors, path, metadata={"format": "pt"})
