"""The sizes of a language model's layers, read from its configuration alone: no weights are loaded."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.models.base import Located

FAMILIES = (
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "ministral3",
    "smollm3",
    "granite",
    "olmo2",
    "gemma3_text",
)
"""Model types whose layers are those of `Shape.linears`. Phi-3 has fused ones, Gemma 4 and Qwen3.5 several kinds."""

_NORMS = {"gemma3_text": 4}
"""Norms of a block that are as wide as the model, where they are not two."""

_SIZES = {
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
}


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama family: attention with grouped keys, a gated MLP of three matrices."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    tied: bool
    norms: int = 2
    """Of a block, as wide as the model."""

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers of one block by PEFT's names: (inputs, outputs)."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (self.hidden, q),
            "self_attn.k_proj": (self.hidden, kv),
            "self_attn.v_proj": (self.hidden, kv),
            "self_attn.o_proj": (q, self.hidden),
            "mlp.gate_proj": (self.hidden, self.mlp),
            "mlp.up_proj": (self.hidden, self.mlp),
            "mlp.down_proj": (self.mlp, self.hidden),
        }

    @property
    def body(self) -> int:
        """Parameters of all linear layers in the blocks."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def head(self) -> int:
        """Parameters of the language model's head."""
        return self.hidden * self.vocab

    @property
    def total(self) -> int:
        """All parameters: blocks, norms, embeddings and a head of its own."""
        return self.body + self.hidden * (self.norms * self.layers + 1) + self.head * (1 if self.tied else 2)

    def targets(self, setting: str | list[str]) -> list[str]:
        """The linear layers of a block that PEFT's `target_modules` selects; none if it names none of them."""
        if setting == "all-linear":
            return list(self.linears)
        if isinstance(setting, str):
            # PEFT takes a string as a pattern for the whole path of a module.
            return [name for name in self.linears if re.fullmatch(setting, f"model.layers.0.{name}")]
        return [name for name in self.linears if any(name == part or name.endswith(f".{part}") for part in setting)]

    def lora(self, rank: int, setting: str | list[str]) -> int:
        """Parameters of a LoRA adapter."""
        chosen = [self.linears[name] for name in self.targets(setting)]
        return self.layers * sum(rank * (inputs + outputs) for inputs, outputs in chosen)


KNOWN = {
    "Qwen/Qwen2.5-0.5B-Instruct": Shape(896, 24, 14, 2, 64, 4864, 151_936, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": Shape(1536, 28, 12, 2, 128, 8960, 151_936, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": Shape(3584, 28, 28, 4, 128, 18_944, 152_064, tied=False),
}
"""The guide's tiers: a plan for them asks no hub."""


def shape_of(base: Located) -> Shape | None:
    """The shape of a model; None for a family that is not of this kind, or a hub model that is not on this machine."""
    if base.kind == "gguf":
        assert base.path is not None
        return _of_gguf(base.path)
    if base.kind == "directory":
        assert base.path is not None
        return _of_config(json.loads((base.path / "config.json").read_text(encoding="utf-8")))
    if base.reference in KNOWN:
        return KNOWN[base.reference]
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - hub models only

    cached = try_to_load_from_cache(base.reference, "config.json", revision=base.revision)
    return _of_config(json.loads(Path(cached).read_text(encoding="utf-8"))) if isinstance(cached, str) else None


def _of_config(config: Mapping[str, Any]) -> Shape | None:
    """Of a model's configuration; of one that also sees, the shape of its text part."""
    text = config.get("text_config") or config
    family = text.get("model_type")
    if family not in FAMILIES:
        return None
    tied = config.get("tie_word_embeddings", False)
    if not text.keys() >= _SIZES:
        text, tied = _completed(config)
    heads = text["num_attention_heads"]
    return Shape(
        hidden=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=heads,
        kv_heads=text["num_key_value_heads"] or heads,
        head_dim=text.get("head_dim") or text["hidden_size"] // heads,
        mlp=text["intermediate_size"],
        vocab=text["vocab_size"],
        tied=bool(tied),
        norms=_NORMS.get(family, 2),
    )


def _completed(config: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The text part's configuration with its class's defaults, and whether the head is tied: a file may leave them out.

    Of Gemma 3 4B the file has neither the number of heads nor that of words.
    """
    from transformers import AutoConfig  # noqa: PLC0415 - 2 s

    whole = AutoConfig.for_model(**config)
    # As `base.loaded_as` has it: the head is the whole model's.
    return whole.get_text_config().to_dict(), bool(whole.tie_word_embeddings)


def _of_gguf(path: Path) -> Shape | None:
    from gguf import GGUFReader  # noqa: PLC0415 - GGUF models only

    reader = GGUFReader(str(path))
    family = str(reader.fields["general.architecture"].contents())
    if family not in FAMILIES:
        return None

    def number(name: str) -> int:
        return int(reader.fields[f"{family}.{name}"].contents())

    tensors = {tensor.name: tensor.shape for tensor in reader.tensors}
    heads = number("attention.head_count")
    own = f"{family}.attention.key_length" in reader.fields
    return Shape(
        hidden=number("embedding_length"),
        layers=number("block_count"),
        heads=heads,
        kv_heads=number("attention.head_count_kv"),
        head_dim=number("attention.key_length") if own else number("embedding_length") // heads,
        mlp=number("feed_forward_length"),
        vocab=int(tensors["token_embd.weight"][1]),
        tied="output.weight" not in tensors,
    )
