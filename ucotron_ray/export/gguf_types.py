"""Which type each tensor of a GGUF file has, and its rounding: f16, q8_0, and q4_k_m as llama.cpp mixes it.

The mix is that of `llama_tensor_get_type` in llama.cpp's `llama-quant.cpp` for `LLAMA_FTYPE_MOSTLY_Q4_K_M`: six bits
for the head and for values and down projections of the first and last eighth of the layers and every third between
them, four for the rest. Rows that are no multiple of 256 take a type with blocks of 32 instead, with more bits.

The `gguf` package rounds the older types; ggml itself (`libggml-python`) those with super-blocks.
"""

import ctypes
import re
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from numpy.typing import NDArray

_FALLBACKS = {Type.Q4_K: Type.Q5_0, Type.Q6_K: Type.Q8_0}
_BY_GGML = (Type.Q4_K, Type.Q6_K, Type.Q5_0)


def of(name: str, shape: tuple[int, ...], kind: str, *, layers: int, tied: bool) -> Type:
    """The type of a tensor. Vectors stay as they are; a matrix whose rows are no whole blocks is half precision.

    So do the few weights of a convolution over time, which llama.cpp computes in float32 only.
    """
    if len(shape) == 1 or name.endswith(".ssm_conv1d.weight"):
        return Type.F32
    wanted = {"f16": Type.F16, "q8_0": Type.Q8_0}.get(kind) or _mixed(name, layers, tied)
    if shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0]:
        wanted = _FALLBACKS.get(wanted, wanted)
    return wanted if shape[-1] % gguf.GGML_QUANT_SIZES[wanted][0] == 0 else Type.F16


def _mixed(name: str, layers: int, tied: bool) -> Type:
    """Of q4_k_m."""
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return Type.Q6_K
    found = re.fullmatch(r"blk\.(\d+)\.(attn_v|ffn_down)\.weight", name)
    return Type.Q6_K if found is not None and _has_more_bits(int(found[1]), layers) else Type.Q4_K


def _has_more_bits(layer: int, layers: int) -> bool:
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def stored(shape: tuple[int, ...], rounded: Type) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of the bytes that `rounded` makes."""
    if rounded in (Type.F32, Type.F16):
        return shape, np.dtype(np.float32 if rounded == Type.F32 else np.float16)
    return gguf.quants.quant_shape_to_byte_shape(shape, rounded), np.dtype(np.uint8)


def rounded(tensor: NDArray[np.float32], kind: Type, importance_K: NDArray[np.float32] | None) -> NDArray[Any]:
    """A tensor in a type. `importance_K` says for which inputs the error counts how much."""
    if kind not in _BY_GGML:
        plain: NDArray[Any] = gguf.quants.quantize(tensor, kind)
        return plain
    tensor = np.ascontiguousarray(tensor, dtype=np.float32)
    made = np.empty(stored(tensor.shape, kind)[0], dtype=np.uint8)
    weights = np.ascontiguousarray(importance_K, dtype=np.float32) if importance_K is not None else None
    written = _ggml().ggml_quantize_chunk(
        int(kind),
        tensor.ctypes.data_as(ctypes.c_void_p),
        made.ctypes.data_as(ctypes.c_void_p),
        0,
        tensor.size // tensor.shape[-1],
        tensor.shape[-1],
        weights.ctypes.data_as(ctypes.c_void_p) if weights is not None else None,
    )
    assert written == made.nbytes, (kind, written, made.nbytes)
    return made


@cache
def _ggml() -> ctypes.CDLL:
    import libggml  # noqa: PLC0415 - loads a shared library

    library = ctypes.CDLL(str(Path(libggml.__file__).parent / "lib64" / "libggml-base.so"))
    function = library.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    whole, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, pointer, whole, whole, whole, pointer]
    return library
