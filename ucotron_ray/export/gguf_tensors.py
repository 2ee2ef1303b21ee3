"""A model's tensors as they lie in a GGUF file, and back: names, and what llama.cpp's layout changes in the values."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from safetensors import safe_open

from ucotron_ray.core.errors import InputError
from ucotron_ray.export.gguf_families import Config, Family
from ucotron_ray.export.layout import Array


@dataclass(frozen=True)
class Place:
    """A tensor of the model: its file, its name there and in GGUF, and its shape there and in GGUF."""

    file: Path
    own_name: str
    name: str
    own_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Without the axis of length one that a convolution of one channel has."""
        return tuple(size for size in self.own_shape if size != 1) if len(self.own_shape) > 2 else self.own_shape


def places(model: Path, family: Family, config: Config) -> Iterator[Place]:
    """Each tensor of a model directory. Raises InputError for one that the family does not have in llama.cpp."""
    names = gguf.get_tensor_name_map(family.architecture, config["num_hidden_layers"])
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(str(file), framework="numpy") as tensors:
            for own_name in sorted(tensors.keys()):
                # A tied head is the embedding table; llama.cpp takes that where there is no head.
                if own_name == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                name = _name(own_name, names)
                if name is None:
                    raise InputError("GGUF has no name for a tensor of this model", where=str(file), found=own_name)
                yield Place(file, own_name, name, tuple(tensors.get_slice(own_name).get_shape()))


def _name(own_name: str, names: gguf.TensorNameMap) -> str | None:
    if own_name.endswith(".dt_bias"):
        # A parameter by itself in transformers, and the bias of a layer in GGUF.
        own_name = own_name.removesuffix(".dt_bias") + ".dt_proj.bias"
    if own_name.endswith(".layer_scalar"):
        own_name += ".weight"
    found: str | None = names.get_name(own_name, try_suffixes=(".weight", ".bias"))
    return found


def read(place: Place, family: Family, config: Config) -> Array:
    """A tensor as it lies in GGUF, in float32."""
    with safe_open(str(place.file), framework="numpy") as tensors:
        tensor: Array = np.asarray(tensors.get_tensor(place.own_name), dtype=np.float32).reshape(place.shape)
    if family.norm_offset and _is_offset_norm(place.own_name):
        tensor = tensor + np.float32(family.norm_offset)
    if place.own_name.endswith(".A_log"):
        tensor = -np.exp(tensor)
    return np.ascontiguousarray(_moved(tensor, place, family, config, back=False))


def restored(tensor: Array, place: Place, family: Family, config: Config) -> Array:
    """The model's own tensor of one that was read from a GGUF file: the way back of `read`."""
    tensor = _moved(tensor.reshape(place.shape), place, family, config, back=True)
    if family.norm_offset and _is_offset_norm(place.own_name):
        tensor = tensor - np.float32(family.norm_offset)
    if place.own_name.endswith(".A_log"):
        tensor = np.log(-tensor)
    return np.ascontiguousarray(tensor.reshape(place.own_shape))


def _is_offset_norm(own_name: str) -> bool:
    # The norm of Qwen3.5's recurrent layers is as it is.
    return own_name.endswith("norm.weight") and not own_name.endswith("linear_attn.norm.weight")


def _moved(tensor: Array, place: Place, family: Family, config: Config, *, back: bool) -> Array:
    """With rows or columns where llama.cpp, or with `back` where transformers, looks for them."""
    layer = place.own_name.rpartition(".")[0].rpartition(".")[2]
    if ".linear_attn." in place.own_name:
        return _value_heads(tensor, place.own_name, config, back=back)
    if not family.interleaved or layer not in ("q_proj", "k_proj"):
        return tensor
    heads = config["num_attention_heads"]
    if layer == "k_proj":
        heads = config.get("num_key_value_heads") or heads
    # The rotation of the Llama family turns neighbours, where transformers turns a head's halves.
    half = tensor.shape[0] // heads // 2
    parts = (heads, half, 2) if back else (heads, 2, half)
    return tensor.reshape(*parts, *tensor.shape[1:]).swapaxes(1, 2).reshape(tensor.shape)


def _value_heads(tensor: Array, own_name: str, config: Config, *, back: bool) -> Array:
    """Qwen3.5's recurrent layers: the values' heads lie by the key that they share, in GGUF key after key.

    As llama.cpp's converter does it; transformers undoes it in `integrations/gguf/gguf_conversion_mapping.py`.
    """
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    grid = (values // keys, keys) if back else (keys, values // keys)

    def moved(rows: Array) -> Array:
        return rows.reshape(*grid, -1).swapaxes(0, 1).reshape(rows.shape)

    if own_name.endswith((".in_proj_qkv.weight", ".conv1d.weight")):
        before = 2 * keys * config["linear_key_head_dim"]
        return np.concatenate([tensor[:before], moved(tensor[before:])])
    if own_name.endswith(".out_proj.weight"):
        return moved(np.ascontiguousarray(tensor.T)).T
    return tensor if own_name.endswith(".norm.weight") else moved(tensor)
