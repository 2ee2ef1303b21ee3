"""A merged model as one GGUF file, with the tokenizer as it was trained: what llama.cpp, and so the server, loads.

The server's directory must hold one `*.gguf` (it takes the first in the order of the listing), so every file gets a
directory of its own. The server puts BOS in front of every prompt (`AddBos::Always`), which llama.cpp does if the file
says `add_bos_token`; training did it where the tokenizer has a BOS, so the file says just that.

Names, keys and types are those of the `gguf` package; rotary keys of the Llama family lie interleaved in GGUF.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from ucotron_ray.core.errors import InputError
from ucotron_ray.export import gguf_types
from ucotron_ray.export.layout import Array
from ucotron_ray.models import splitting, templates

GgufKind = Literal["f16", "q8_0", "q4_k_m"]
DIRECTORY = "gguf"

_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_FILE_TYPES = {
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_k_m": gguf.LlamaFileType.MOSTLY_Q4_K_M,
}

Importance = Mapping[str, Array]
"""Mean square of each input of a weight, by the weight's name (`gptq.Calibrated`)."""


@dataclass(frozen=True)
class Place:
    """A tensor of the model: its file, its name there and in GGUF, and its shape."""

    file: Path
    own_name: str
    name: str
    shape: tuple[int, ...]


def path_of(bundle: Path, name: str, kind: str) -> Path:
    """Where a bundle has its GGUF file of a kind."""
    return bundle / DIRECTORY / kind / f"{name}-{kind}.gguf"


def check(model: Path) -> None:
    """Raise InputError for a model or a tokenizer that this writer has no GGUF for."""
    check_architecture(model)
    pre_tokenizer(_read(model / "tokenizer.json"))


def check_architecture(model: Path) -> None:
    """The same by the model's layers alone, which a base shows before anything is trained on it."""
    config = _read(model / "config.json")
    scaling = _rope(config)["rope_type"]
    if config["model_type"] not in _ARCHITECTURES or scaling not in _ROPES:
        raise InputError(
            "no GGUF can be written for this model",
            where=str(model),
            expected=", ".join(_ARCHITECTURES) + "; positions as they are or scaled as Llama 3 does",
            found=f"{config['model_type']}, rope type '{scaling}'",
            next_step="export without GGUF: --set export.gguf=[]",
        )


def write(model: Path, target: Path, *, kind: GgufKind, name: str, importance: Importance | None = None) -> None:
    """Write `target` from a directory as transformers saves it. Tensors are read, rounded and written one by one."""
    config, tokenizer = _read(model / "config.json"), _read(model / "tokenizer.json")
    architecture = _ARCHITECTURES[config["model_type"]]
    target.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(target), gguf.MODEL_ARCH_NAMES[architecture])
    writer.add_name(name)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    _add_tokenizer(writer, tokenizer, _read(model / "tokenizer_config.json"), config, _template(model))
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    places = list(_places(model, config, names))
    factors_D = _rope_factors(config)
    if factors_D is not None:
        writer.add_tensor_info(_ROPE_FACTORS, factors_D.shape, factors_D.dtype, factors_D.nbytes)
    layers, tied = config["num_hidden_layers"], all(place.name != "output.weight" for place in places)
    types = {place.name: gguf_types.of(place.name, place.shape, kind, layers=layers, tied=tied) for place in places}
    for place in places:
        shape, dtype = gguf_types.stored(place.shape, types[place.name])
        size = int(np.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(place.name, shape, dtype, size, raw_dtype=types[place.name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors_D is not None:
        writer.write_tensor_data(factors_D)
    for place in places:
        tensor = _tensor(place, config)
        writer.write_tensor_data(gguf_types.rounded(tensor, types[place.name], (importance or {}).get(place.own_name)))
    writer.close()


def pre_tokenizer(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer splits a text before its merges. Raises InputError for an unknown way."""
    found = tokenizer.get("pre_tokenizer") or {}
    name = splitting.name_of(found) if tokenizer["model"]["type"] == "BPE" else None
    if name is None:
        raise InputError(
            "no GGUF can be written with this tokenizer: llama.cpp would split texts in another way than training did",
            expected="byte-level BPE that splits as one of " + ", ".join(splitting.NAMES),
            found=f"{tokenizer['model']['type']}, {json.dumps(found)[:200]}",
            next_step="export without GGUF: --set export.gguf=[]",
        )
    return name


def _add_shape(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(_rope(config)["rope_theta"]))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(
    writer: gguf.GGUFWriter,
    tokenizer: Mapping[str, Any],
    settings: Mapping[str, Any],
    config: Mapping[str, Any],
    template: str,
) -> None:
    words: dict[str, int] = tokenizer["model"]["vocab"]
    added = {entry["id"]: entry for entry in tokenizer["added_tokens"]}
    by_id = {number: word for word, number in words.items()} | {n: entry["content"] for n, entry in added.items()}
    tokens, types = [], []
    for number in range(config["vocab_size"]):
        tokens.append(by_id.get(number, f"[PAD{number}]"))
        types.append(_token_type(number, by_id, added))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
    ids = {word: number for number, word in by_id.items()}
    special = {name: ids[_content(settings[f"{name}_token"])] for name in _SPECIAL if settings.get(f"{name}_token")}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    for name, number in special.items():
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token("bos" in special)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(template)


_SPECIAL = ("bos", "eos", "unk", "pad")


def _token_type(number: int, by_id: Mapping[int, str], added: Mapping[int, Mapping[str, Any]]) -> int:
    if number not in by_id:
        return int(gguf.TokenType.UNUSED)
    if number not in added:
        return int(gguf.TokenType.NORMAL)
    return int(gguf.TokenType.CONTROL if added[number]["special"] else gguf.TokenType.USER_DEFINED)


def _places(model: Path, config: Mapping[str, Any], names: gguf.TensorNameMap) -> Iterator[Place]:
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(str(file), framework="numpy") as tensors:
            for own_name in sorted(tensors.keys()):
                name = names.get_name(own_name, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise InputError("GGUF has no name for a tensor of this model", where=str(file), found=own_name)
                # A tied head is the embedding table; llama.cpp takes that where there is no head.
                if own_name != "lm_head.weight" or not config.get("tie_word_embeddings"):
                    yield Place(file, own_name, name, tuple(tensors.get_slice(own_name).get_shape()))


def _tensor(place: Place, config: Mapping[str, Any]) -> Array:
    with safe_open(str(place.file), framework="numpy") as tensors:
        tensor: Array = np.asarray(tensors.get_tensor(place.own_name), dtype=np.float32)
    is_llama = _ARCHITECTURES[config["model_type"]] == gguf.MODEL_ARCH.LLAMA
    return np.ascontiguousarray(_interleaved(place.own_name, tensor, config) if is_llama else tensor)


def _interleaved(name: str, tensor: Array, config: Mapping[str, Any]) -> Array:
    """Rows of queries and keys as llama.cpp's rotation wants them: the halves of each head side by side."""
    heads = config["num_attention_heads"]
    if ".k_proj." in name:
        heads = config.get("num_key_value_heads") or heads
    elif ".q_proj." not in name:
        return tensor
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


_ROPES = ("default", "llama3")
_ROPE_FACTORS = "rope_freqs.weight"


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """How positions turn, as transformers 5 writes it (`rope_parameters`) or as 4 did."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = found.get("rope_type") or found.get("type") or "default"
    return {"rope_theta": config.get("rope_theta"), **found, "rope_type": kind}


def _rope_factors(config: Mapping[str, Any]) -> NDArray[np.float32] | None:
    """What llama.cpp divides each frequency by, [half a head]; None where positions turn as they are."""
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    from transformers import AutoConfig  # noqa: PLC0415 - 2 s
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: PLC0415

    settings = AutoConfig.for_model(**config)
    scaled_D, _ = ROPE_INIT_FUNCTIONS["llama3"](settings, "cpu")
    half = len(scaled_D)
    plain_D = float(rope["rope_theta"]) ** -(np.arange(half) / half)
    factors_D: NDArray[np.float32] = (plain_D / scaled_D.numpy()).astype(np.float32)
    return factors_D


def _template(model: Path) -> str:
    file = model / "chat_template.jinja"
    settings = _read(model / "tokenizer_config.json")
    return file.read_text(encoding="utf-8") if file.is_file() else templates.default_of(settings["chat_template"])


def _content(token: object) -> str:
    return str(token["content"]) if isinstance(token, dict) else str(token)


def _read(path: Path) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return contents
