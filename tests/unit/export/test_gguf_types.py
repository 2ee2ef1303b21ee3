"""Types of GGUF tensors, and their rounding read back by the `gguf` package."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from ucotron_ray.export import gguf_types


def test_q4_k_m_is_llama_cpps_mix():
    def found(name: str, width: int = 256, *, tied: bool = True) -> Type:
        return gguf_types.of(name, (64, width), "q4_k_m", layers=24, tied=tied)

    assert found("token_embd.weight") == Type.Q6_K
    assert found("token_embd.weight", tied=False) == Type.Q4_K
    assert found("output.weight", tied=False) == Type.Q6_K
    assert found("blk.4.attn_q.weight") == Type.Q4_K
    more = [layer for layer in range(24) if found(f"blk.{layer}.ffn_down.weight") == Type.Q6_K]
    assert more == [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]
    assert more == [layer for layer in range(24) if found(f"blk.{layer}.attn_v.weight") == Type.Q6_K]


def test_rows_that_are_no_whole_super_blocks_take_more_bits():
    assert gguf_types.of("blk.4.attn_q.weight", (64, 576), "q4_k_m", layers=30, tied=True) == Type.Q5_0
    assert gguf_types.of("token_embd.weight", (64, 576), "q4_k_m", layers=30, tied=True) == Type.Q8_0
    assert gguf_types.of("blk.4.attn_q.weight", (64, 48), "q4_k_m", layers=30, tied=True) == Type.F16
    assert gguf_types.of("output_norm.weight", (576,), "q4_k_m", layers=30, tied=True) == Type.F32
    assert gguf_types.of("blk.4.attn_q.weight", (64, 48), "q8_0", layers=30, tied=True) == Type.F16


@pytest.mark.parametrize(("kind", "error"), [(Type.Q4_K, 0.1), (Type.Q5_0, 0.05), (Type.Q6_K, 0.03), (Type.Q8_0, 0.01)])
def test_bytes_read_back_are_near(kind, error):
    tensor = np.random.default_rng(1).standard_normal((8, 512)).astype(np.float32)
    made = gguf_types.rounded(tensor, kind, None)
    assert made.shape == gguf_types.stored(tensor.shape, kind)[0]
    back = gguf.quants.dequantize(made, kind)
    assert np.abs(back - tensor).mean() < error


def test_what_matters_is_rounded_better():
    rng = np.random.default_rng(2)
    tensor = rng.standard_normal((64, 256)).astype(np.float32)
    importance = np.ones(256, dtype=np.float32)
    importance[::8] = 1000
    plain = gguf.quants.dequantize(gguf_types.rounded(tensor, Type.Q4_K, None), Type.Q4_K)
    weighted = gguf.quants.dequantize(gguf_types.rounded(tensor, Type.Q4_K, importance), Type.Q4_K)
    assert np.square(weighted - tensor)[:, ::8].mean() < 0.8 * np.square(plain - tensor)[:, ::8].mean()
