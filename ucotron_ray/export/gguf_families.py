"""What llama.cpp has to be told of each family of models: its name there, its metadata, and how its positions turn.

Names and keys are those of the `gguf` package. What llama.cpp makes of them, and what it cannot do with a family:
`conversion/` and `src/models/` of https://github.com/ggml-org/llama.cpp. That it answers as PyTorch does, of each
family: `tests/e2e/test_families.py`.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from ucotron_ray.core.errors import InputError

log = logging.getLogger(__name__)

Config = Mapping[str, Any]
"""A text model's settings as transformers 5 has them: with the class's defaults, and `rope_parameters` made of whatever
a file of transformers 4 or 5 says."""

Tensors = dict[str, NDArray[np.float32]]


def _nothing(_: gguf.GGUFWriter, __: Config) -> None:
    """Nothing beyond what every family has."""


def _anything(_: Config) -> str | None:
    """No model of the family is refused."""
    return None


@dataclass(frozen=True)
class Family:
    """A family as llama.cpp knows it."""

    architecture: gguf.MODEL_ARCH
    ropes: tuple[str, ...] = ("default",)
    """The kinds of positions that llama.cpp turns as transformers does."""
    interleaved: bool = False
    """Whether the two halves of a head of queries and keys lie side by side (`LLAMA_ROPE_TYPE_NORM`)."""
    norm_offset: float = 0.0
    """What transformers adds to the weights of a norm, and llama.cpp does not."""
    windows: bool = False
    """Whether llama.cpp lets a layer look no farther than the model's window."""
    describe: Callable[[gguf.GGUFWriter, Config], None] = _nothing
    """Writes what only this family has."""
    unable: Callable[[Config], str | None] = _anything
    """What of a model llama.cpp would compute in another way, in words; None where it would not."""


def of(model: Path) -> tuple[Family, Config]:
    """Family and settings of a model directory. Raises InputError for one that llama.cpp would not answer as."""
    settings = settings_of(model)
    family = FAMILIES.get(settings["model_type"])
    turning = sorted({str(rope["rope_type"]) for rope in ropes(settings).values()})
    if family is None or set(turning) - set(family.ropes):
        allowed = family.ropes if family is not None else ("default",)
        raise InputError(
            "no GGUF can be written for this model",
            where=str(model),
            expected=f"{', '.join(FAMILIES)}; of {settings['model_type']} rope type {', '.join(allowed)}",
            found=f"{settings['model_type']}, rope type {', '.join(turning)}",
            next_step=WITHOUT,
        )
    if (found := family.unable(settings)) is not None:
        raise InputError(
            "no GGUF can be written for this model: llama.cpp would compute it in another way",
            where=str(model),
            expected=f"a model of the family {settings['model_type']} with the layers of the published ones",
            found=found,
            next_step=WITHOUT,
        )
    return family, settings


def warn_of_window(family: Family, config: Config) -> None:
    """Say where llama.cpp would look farther back than the model does, whatever its file says."""
    window = config.get("sliding_window")
    if not family.windows and _looks_through(config) and window < config["max_position_embeddings"]:
        log.warning("export: llama.cpp has no window for this family: beyond %d tokens it answers otherwise", window)


WITHOUT = "export without GGUF: --set export.gguf=[]"


def settings_of(model: Path) -> Config:
    """The settings of a model directory's text part."""
    from transformers import AutoConfig  # noqa: PLC0415 - 2 s

    whole = AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False)
    settings: Config = whole.get_text_config().to_dict()
    return settings


def ropes(config: Config) -> dict[str, Mapping[str, Any]]:
    """How positions turn, by the kind of layer; `full_attention` is there always."""
    found: Mapping[str, Any] = config["rope_parameters"]
    return dict(found) if "full_attention" in found else {"full_attention": found}


def by_layer(config: Config, name: str) -> list[Any]:
    """A setting of each layer: Gemma 4 has other ones where a layer attends to all."""
    own = {int(layer): settings for layer, settings in (config.get("per_layer_config") or {}).items()}
    return [own.get(layer, {}).get(name, config.get(name)) for layer in range(config["num_hidden_layers"])]


def head_dim(config: Config) -> int:
    """Width of a head, of a layer that attends to all."""
    widths, kinds = by_layer(config, "head_dim"), config.get("layer_types") or ()
    width = widths[kinds.index("full_attention")] if "full_attention" in kinds else widths[0]
    return int(width or config["hidden_size"] // config["num_attention_heads"])


def feed_forward(config: Config) -> list[int]:
    """Width of each layer's feed-forward part: of Gemma 4 twice as wide where a layer has no keys of its own."""
    layers, width = config["num_hidden_layers"], int(config["intermediate_size"])
    wide = layers - (config.get("num_kv_shared_layers") or 0) if config.get("use_double_wide_mlp") else layers
    return [width if layer < wide else 2 * width for layer in range(layers)]


def rotated(config: Config) -> int:
    """How many values of a head turn; of a proportional rotation all of them, most by nothing (`factors`)."""
    rope = ropes(config)["full_attention"]
    share = 1.0 if rope["rope_type"] == "proportional" else rope.get("partial_rotary_factor", 1.0)
    return int(head_dim(config) * share)


def factors(config: Config) -> Tensors:
    """What llama.cpp divides each frequency by, [half of what turns], by the name of the tensor."""
    rope = ropes(config)["full_attention"]
    if rope["rope_type"] == "longrope":
        by_length = {f"rope_factors_{kind}.weight": rope[f"{kind}_factor"] for kind in ("long", "short")}
        return {name: np.asarray(values, dtype=np.float32) for name, values in by_length.items()}
    if rope["rope_type"] == "proportional":
        # llama.cpp has no rotation that leaves out the slow half; divided by so much, a frequency turns by nothing.
        half = head_dim(config) // 2
        turning = int(half * rope["partial_rotary_factor"])
        return {"rope_freqs.weight": np.asarray([1.0] * turning + [1e30] * (half - turning), dtype=np.float32)}
    if rope["rope_type"] != "llama3":
        return {}
    scaled_D, _ = _by_transformers(config)
    half = len(scaled_D)
    plain_D = float(rope["rope_theta"]) ** -(np.arange(half) / half)
    return {"rope_freqs.weight": (plain_D / scaled_D).astype(np.float32)}


def _by_transformers(config: Config) -> tuple[NDArray[np.float32], float]:
    """Frequencies [half of what turns] and the factor of what has been turned."""
    from transformers import AutoConfig  # noqa: PLC0415 - 2 s
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: PLC0415

    kind = ropes(config)["full_attention"]["rope_type"]
    scaled_D, factor = ROPE_INIT_FUNCTIONS[kind](AutoConfig.for_model(**config), "cpu")
    return scaled_D.numpy(), float(factor)


def _looks_through(config: Config) -> bool:
    """Whether layers look through a window: Qwen2 names one and has it only where it says so."""
    kinds = config.get("layer_types")
    return bool(config.get("sliding_window")) and (not kinds or "sliding_attention" in kinds)


def _granite(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_embedding_scale(float(config["embedding_multiplier"]))
    writer.add_residual_scale(float(config["residual_multiplier"]))
    writer.add_attention_scale(float(config["attention_multiplier"]))
    writer.add_logit_scale(float(config["logits_scaling"]))


def _phi3(writer: gguf.GGUFWriter, config: Config) -> None:
    rope = ropes(config)["full_attention"]
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        writer.add_rope_scaling_attn_factors(_by_transformers(config)[1])


def _gemma3(writer: gguf.GGUFWriter, config: Config) -> None:
    turning = ropes(config)
    writer.add_sliding_window(int(config["sliding_window"]))
    writer.add_sliding_window_pattern(_period(config["layer_types"], "full_attention") or len(config["layer_types"]))
    writer.add_rope_freq_base_swa(float(turning["sliding_attention"]["rope_theta"]))
    if turning["full_attention"]["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(turning["full_attention"]["factor"]))


def _gemma4(writer: gguf.GGUFWriter, config: Config) -> None:
    slides = [kind == "sliding_attention" for kind in config["layer_types"]]
    width = int(config["head_dim"])
    writer.add_sliding_window(int(config["sliding_window"]))
    writer.add_sliding_window_pattern(slides)
    writer.add_rope_freq_base_swa(float(ropes(config)["sliding_attention"]["rope_theta"]))
    writer.add_key_length_swa(width)
    writer.add_value_length_swa(width)
    writer.add_rope_dimension_count_swa(width)
    writer.add_shared_kv_layers(int(config["num_kv_shared_layers"] or 0))
    writer.add_embedding_length_per_layer_input(int(config["hidden_size_per_layer_input"] or 0))
    if config["final_logit_softcapping"]:
        writer.add_final_logit_softcapping(float(config["final_logit_softcapping"]))


def _ministral3(writer: gguf.GGUFWriter, config: Config) -> None:
    rope = ropes(config)["full_attention"]
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(float(rope["factor"]))
    writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
    writer.add_rope_scaling_yarn_beta_fast(float(rope["beta_fast"]))
    writer.add_rope_scaling_yarn_beta_slow(float(rope["beta_slow"]))
    writer.add_rope_scaling_yarn_log_mul(float(rope["mscale_all_dim"]))
    writer.add_attn_temperature_scale(float(rope["llama_4_scaling_beta"]))


def _qwen3_5(writer: gguf.GGUFWriter, config: Config) -> None:
    values = int(config["linear_num_value_heads"])
    writer.add_ssm_conv_kernel(int(config["linear_conv_kernel_dim"]))
    writer.add_ssm_state_size(int(config["linear_key_head_dim"]))
    writer.add_ssm_group_count(int(config["linear_num_key_heads"]))
    writer.add_ssm_time_step_rank(values)
    writer.add_ssm_inner_size(values * int(config["linear_value_head_dim"]))
    writer.add_full_attention_interval(_period(config["layer_types"], "full_attention") or 1)
    # Text has one position for all three axes, so that the sections change nothing; the key has to be there.
    sections = ropes(config)["full_attention"].get("mrope_section", [11, 11, 10])
    writer.add_rope_dimension_sections([*sections, 0])


def _period(kinds: list[str], kind: str) -> int | None:
    """Every so manieth layer is of a kind, the last of each group; None where that is not so."""
    period = kinds.index(kind) + 1 if kind in kinds else 0
    alike = period and all((found == kind) == ((at + 1) % period == 0) for at, found in enumerate(kinds))
    return period if alike else None


def _smollm3_unable(config: Config) -> str | None:
    # `n_no_rope_layer_step` of llama.cpp is 4, whatever the file says.
    expected = [int((at + 1) % 4 != 0) for at in range(config["num_hidden_layers"])]
    return None if config["no_rope_layers"] == expected else f"no_rope_layers {config['no_rope_layers']}"


def _phi3_unable(config: Config) -> str | None:
    whole = head_dim(config) * config["num_attention_heads"] == config["hidden_size"]
    return None if whole else f"heads of {head_dim(config)} that are not the width {config['hidden_size']} together"


def _gemma3_unable(config: Config) -> str | None:
    if "full_attention" in config["layer_types"] and _period(config["layer_types"], "full_attention") is None:
        return f"layer_types {config['layer_types']}, which are no repeated group"
    # llama.cpp scales by the head's width, and the one of 62 layers (27B) by the width of the model over its heads.
    largest = config["num_hidden_layers"] == 62
    width = config["hidden_size"] // config["num_attention_heads"] if largest else head_dim(config)
    scale = config["query_pre_attn_scalar"]
    if scale != width:
        return f"query_pre_attn_scalar {scale}, where llama.cpp takes {width}"
    capped = [name for name in ("attn_logit_softcapping", "final_logit_softcapping") if config.get(name)]
    return f"{', '.join(capped)}" if capped else None


def _gemma4_unable(config: Config) -> str | None:
    return "enable_moe_block" if config.get("enable_moe_block") else None


def _ministral3_unable(config: Config) -> str | None:
    rope = ropes(config)["full_attention"]
    # llama.cpp takes `mscale` to be 1 where `mscale_all_dim` is given.
    missing = [name for name in ("mscale_all_dim", "llama_4_scaling_beta") if not rope.get(name)]
    if missing or rope.get("mscale") != 1 or rope.get("attention_factor"):
        return f"rope_parameters {dict(rope)}"
    return None


def _olmo2_unable(config: Config) -> str | None:
    return "tie_word_embeddings" if config["tie_word_embeddings"] else None


def _qwen3_5_unable(config: Config) -> str | None:
    if _period(config["layer_types"], "full_attention") is None:
        return f"layer_types {config['layer_types']}, which are no repeated group"
    keys, values = config["linear_key_head_dim"], config["linear_value_head_dim"]
    return None if keys == values else f"linear_key_head_dim {keys}, linear_value_head_dim {values}"


_ARCH = gguf.MODEL_ARCH
FAMILIES: dict[str, Family] = {
    "llama": Family(_ARCH.LLAMA, ("default", "llama3"), interleaved=True),
    "mistral": Family(_ARCH.LLAMA, interleaved=True),
    "qwen2": Family(_ARCH.QWEN2),
    "qwen3": Family(_ARCH.QWEN3),
    "smollm3": Family(_ARCH.SMOLLM3, interleaved=True, unable=_smollm3_unable),
    "granite": Family(_ARCH.GRANITE, interleaved=True, describe=_granite),
    "olmo2": Family(_ARCH.OLMO2, unable=_olmo2_unable),
    "phi3": Family(_ARCH.PHI3, ("default", "longrope"), describe=_phi3, unable=_phi3_unable),
    "gemma3_text": Family(
        _ARCH.GEMMA3,
        ("default", "linear"),
        norm_offset=1.0,
        windows=True,
        describe=_gemma3,
        unable=_gemma3_unable,
    ),
    "gemma4_text": Family(
        _ARCH.GEMMA4, ("default", "proportional"), windows=True, describe=_gemma4, unable=_gemma4_unable
    ),
    "ministral3": Family(_ARCH.MISTRAL3, ("yarn",), interleaved=True, describe=_ministral3, unable=_ministral3_unable),
    "qwen3_5_text": Family(_ARCH.QWEN35, norm_offset=1.0, describe=_qwen3_5, unable=_qwen3_5_unable),
}
"""By the model type of the text part."""
