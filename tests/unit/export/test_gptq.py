"""Four bits: what a layer gives for its own inputs changes less than by rounding to the nearest."""

import numpy as np
import pytest
import torch

from tests.tiny_models import save_tiny
from ucotron_ray.export import gptq, quantize
from ucotron_ray.models import base as base_models

BLOCK = 16


def _inputs(count: int, width: int, seed: int) -> torch.Tensor:
    """Activations as layers have them: correlated, some inputs far larger than others."""
    torch.manual_seed(seed)
    return torch.randn(count, width // 4) @ torch.randn(width // 4, width) * torch.logspace(-1, 1, width)


def _values(rounded: gptq.Rounded) -> np.ndarray:
    codes = rounded.codes_NGb.astype(np.float32) - rounded.zeros_NG[..., None].astype(np.float32)
    return (codes * rounded.scales_NG[..., None]).reshape(len(codes), -1)


def _nearest(weight: np.ndarray) -> np.ndarray:
    codes, scales, zeros = quantize.quantize_int4(weight.reshape(len(weight), -1, BLOCK))
    unpacked = np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(weight), -1, BLOCK).astype(np.float32)
    points = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(len(weight), -1)[:, : scales.shape[1]]
    return ((unpacked - points[..., None]) * scales[..., None]).reshape(weight.shape)


@pytest.mark.parametrize("seed", range(3))
def test_the_outputs_error_is_far_below_that_of_rounding_to_the_nearest(seed):
    inputs = _inputs(400, 64, seed)
    weight = torch.randn(48, 64) * 0.05
    rounded, values = gptq.quantize(weight, inputs.T @ inputs, block=BLOCK)
    assert np.allclose(_values(rounded), values.numpy(), atol=1e-6)
    assert rounded.codes_NGb.max() <= gptq.LEVELS
    fresh = _inputs(400, 64, seed)
    error = (fresh @ (values - weight).T).square().mean()
    nearest = (fresh @ (torch.from_numpy(_nearest(weight.numpy())) - weight).T).square().mean()
    assert error < 0.7 * nearest


def test_what_four_bits_can_say_is_left_as_it_is():
    codes = torch.randint(0, 16, (8, 32)).float()
    codes[:, ::BLOCK], codes[:, 1::BLOCK] = 0, 15
    weight = (codes - 7) * 0.01
    inputs = _inputs(100, 32, 1)
    _, values = gptq.quantize(weight, inputs.T @ inputs, block=BLOCK)
    assert torch.allclose(values, weight, atol=1e-6)


def test_inputs_that_are_never_there_do_not_break_it():
    inputs = _inputs(100, 32, 1)
    inputs[:, 5] = 0
    rounded, values = gptq.quantize(torch.randn(4, 32), inputs.T @ inputs, block=BLOCK)
    assert torch.isfinite(values).all()
    _, values = gptq.quantize(torch.randn(4, 32), torch.zeros(32, 32), block=BLOCK)
    assert torch.isfinite(values).all()
    assert np.isfinite(rounded.scales_NG).all()


def test_a_model_is_rounded_but_for_its_head_and_importance_is_the_mean_square(tmp_path):
    base = base_models.located(str(save_tiny(tmp_path, "qwen2")))
    model = base_models.load_model(base, "float32").eval()
    rows = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 14]]
    seen = []
    layer = model.model.layers[0].mlp.gate_proj
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().reshape(-1, 48)))
    for ids in rows:
        model(input_ids=torch.tensor([ids]))
    hook.remove()
    only = gptq.calibrate(model, rows, block=BLOCK, four_bits=False)
    assert only.rounded == {}
    found = only.importance["model.layers.0.mlp.gate_proj.weight"]
    assert np.allclose(found, torch.cat(seen).square().mean(0).numpy(), rtol=1e-4)
    assert np.array_equal(found, only.importance["model.layers.0.mlp.up_proj.weight"])

    before = {name: weight.clone() for name, weight in model.named_parameters()}
    made = gptq.calibrate(model, rows, block=BLOCK, four_bits=True)
    in_eight = ("v_proj.weight", "down_proj.weight")
    assert set(made.rounded) == {name for name in before if "_proj.weight" in name and not name.endswith(in_eight)}
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]) == (name not in made.rounded)
        if name in made.rounded:
            assert np.allclose(_values(made.rounded[name]), weight.detach().numpy(), atol=1e-6)


def test_little_memory_means_more_passes_over_the_rows(tmp_path):
    base = base_models.located(str(save_tiny(tmp_path, "llama")))
    rows, passes = [[5, 6, 7, 8, 9, 10]], []
    for memory in (1e9, 3 * 4 * 48**2):
        model = base_models.load_model(base, "float32").eval()
        model.register_forward_pre_hook(lambda *_, memory=memory: passes.append(memory))
        made = gptq.calibrate(model, rows, block=BLOCK, four_bits=True, memory=memory)
        assert len(made.rounded) == 10
        assert len(made.importance) == 14
    assert passes.count(1e9) == 1
    assert passes.count(3 * 4 * 48**2) > 3
