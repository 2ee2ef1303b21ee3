"""A merged model as one GGUF file, with the tokenizer as it was trained: what llama.cpp, and so the server, loads.

The server's directory must hold one `*.gguf` (it takes the first in the order of the listing), so every file gets a
directory of its own. The server puts BOS in front of every prompt (`AddBos::Always`), which llama.cpp does if the file
says `add_bos_token`; training did it where the tokenizer has a BOS, so the file says just that.

Which families there are and what they have of their own: `gguf_families`. How their weights lie: `gguf_tensors`. Words:
`gguf_vocabulary`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

from ucotron_ray.export import gguf_families, gguf_tensors, gguf_types, gguf_vocabulary
from ucotron_ray.export.gguf_families import Config, Family
from ucotron_ray.export.layout import Array
from ucotron_ray.models import templates

GgufKind = Literal["f16", "q8_0", "q4_k_m"]
DIRECTORY = "gguf"

_FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}

Importance = Mapping[str, Array]
"""Mean square of each input of a weight, by the weight's name (`gptq.Calibrated`)."""


def path_of(bundle: Path, name: str, kind: str) -> Path:
    """Where a bundle has its GGUF file of a kind."""
    return bundle / DIRECTORY / kind / f"{name}-{kind}.gguf"


def check(model: Path) -> None:
    """Raise InputError for a model or a tokenizer that this writer has no GGUF for."""
    check_architecture(model)
    gguf_vocabulary.check(_read(model / "tokenizer.json"))


def check_architecture(model: Path) -> None:
    """The same by the model's layers alone, which a base shows before anything is trained on it."""
    gguf_families.warn_of_window(*gguf_families.of(model))


def write(model: Path, target: Path, *, kind: GgufKind, name: str, importance: Importance | None = None) -> None:
    """Write `target` from a directory as transformers saves it. Tensors are read, rounded and written one by one."""
    family, config = gguf_families.of(model)
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(target), gguf.MODEL_ARCH_NAMES[family.architecture])
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    family.describe(writer, config)
    tokenizer, settings = _read(model / "tokenizer.json"), _read(model / "tokenizer_config.json")
    gguf_vocabulary.add(writer, tokenizer, settings, config)
    writer.add_chat_template(_template(model))
    _write_tensors(writer, model, family, config, kind, importance or {})
    writer.close()


def _write_tensors(
    writer: gguf.GGUFWriter, model: Path, family: Family, config: Config, kind: GgufKind, importance: Importance
) -> None:
    places, factors = list(gguf_tensors.places(model, family, config)), gguf_families.factors(config)
    layers, tied = config["num_hidden_layers"], all(place.name != "output.weight" for place in places)
    types = {place.name: gguf_types.of(place.name, place.shape, kind, layers=layers, tied=tied) for place in places}
    for name, values in factors.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for place in places:
        shape, dtype = gguf_types.stored(place.shape, types[place.name])
        size = int(np.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(place.name, shape, dtype, size, raw_dtype=types[place.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for values in factors.values():
        writer.write_tensor_data(values)
    for place in places:
        tensor = gguf_tensors.read(place, family, config)
        writer.write_tensor_data(gguf_types.rounded(tensor, types[place.name], importance.get(place.own_name)))


def _add_shape(writer: gguf.GGUFWriter, config: Config) -> None:
    heads, width = config["num_attention_heads"], gguf_families.head_dim(config)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(_one_or_each(gguf_families.feed_forward(config)))
    writer.add_head_count(heads)
    writer.add_head_count_kv(_one_or_each([n or heads for n in gguf_families.by_layer(config, "num_key_value_heads")]))
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(gguf_families.rotated(config))
    writer.add_rope_freq_base(float(gguf_families.ropes(config)["full_attention"]["rope_theta"]))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(config["vocab_size"])


def _one_or_each(by_layer: list[int]) -> int | list[int]:
    """What all layers have, or the list of it."""
    return by_layer[0] if len(set(by_layer)) == 1 else by_layer


def _template(model: Path) -> str:
    file = model / "chat_template.jinja"
    settings = _read(model / "tokenizer_config.json")
    return file.read_text(encoding="utf-8") if file.is_file() else templates.default_of(settings["chat_template"])


def _read(path: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return contents
