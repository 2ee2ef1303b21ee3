"""Tiny random models of each family that is tuned, in the class and with the peculiarities of the hub's checkpoint.

Those that also see have a tiny tower for images, whose weights a text model must leave behind. What a family has of its
own is small here, so that a prompt of a few hundred tokens meets it: windows, the length up to which positions were
trained, layers without positions, layers that share keys.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast

from tests.tiny_models import tokenizer_of
from ucotron_ray.models.runner import Floats, OnnxRunner

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    # Of the hub's 0.02 logits are so close to each other that any rounding turns a choice.
    "initializer_range": 0.08,
}
WINDOW, TRAINED_LENGTH = 16, 64
LINEAR_FACTOR = 8.0

SIGHT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
IMAGES = {"image_size": 28, "patch_size": 14}

ALIKE = {
    "llama3": "llama",
    "gemma3": "llama",
    "gemma4": "llama",
    "ministral3": "llama",
    "qwen3": "qwen3",
    "qwen3_5": "qwen3",
    "smollm3": "qwen3",
}
"""Tokenizers of `tiny_models.tokenizer_of` that are like a family's: with BOS (`llama`), with a thinking mode (`qwen3`).
The others have neither."""


def qwen2(**common: Any) -> PreTrainedConfig:
    return transformers.Qwen2Config(**common, tie_word_embeddings=True)


def qwen3(**common: Any) -> PreTrainedConfig:
    return transformers.Qwen3Config(**common, head_dim=32)


def qwen3_5(**common: Any) -> PreTrainedConfig:
    """A recurrent layer (gated delta rule) and one that attends, through a gate; positions in three sections."""
    words = common["vocab_size"]
    text = {
        **common,
        "head_dim": 32,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    }
    sight = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
    return transformers.Qwen3_5Config(
        text_config=text,
        vision_config={**sight, "num_position_embeddings": 16},
        image_token_id=words - 1,
        video_token_id=words - 2,
        vision_start_token_id=words - 3,
        vision_end_token_id=words - 4,
    )


def llama3(**common: Any) -> PreTrainedConfig:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return transformers.LlamaConfig(
        **common, tie_word_embeddings=True, rope_parameters={**rope, "original_max_position_embeddings": TRAINED_LENGTH}
    )


def gemma3(**common: Any) -> PreTrainedConfig:
    """As 4B and larger; 1B and 270M are its text part in files of its own, which is what we save of it."""
    words = common["vocab_size"]
    text = {
        **common,
        "head_dim": 32,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 32,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "factor": LINEAR_FACTOR, "rope_theta": 1e6},
        },
    }
    return transformers.Gemma3Config(
        text_config=text,
        vision_config={**SIGHT, **IMAGES},
        image_token_index=words - 1,
        boi_token_index=words - 2,
        eoi_token_index=words - 3,
        mm_tokens_per_image=4,
    )


def gemma4(**common: Any) -> PreTrainedConfig:
    """As E2B and E4B: wider heads where it attends to all, an embedding a layer, last layers with others' keys."""
    words = common["vocab_size"]
    text = {
        **common,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": WINDOW,
        "head_dim": 16,
        "global_head_dim": 32,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": words,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "final_logit_softcapping": 3.0,
    }
    return transformers.Gemma4Config(
        text_config=text,
        vision_config={**SIGHT, "num_key_value_heads": 2, "head_dim": 16, "position_embedding_size": 64},
        audio_config=None,
        image_token_id=words - 1,
        video_token_id=words - 2,
        boi_token_id=words - 3,
        eoi_token_id=words - 4,
        boa_token_id=words - 5,
        eoa_token_index=words - 6,
        audio_token_id=words - 7,
    )


def smollm3(**common: Any) -> PreTrainedConfig:
    """Every fourth layer knows no positions."""
    return transformers.SmolLM3Config(**{**common, "num_hidden_layers": 4})


def phi4(**common: Any) -> PreTrainedConfig:
    """Phi-4-mini: three quarters of a head turn, slower beyond the trained length, and a window that nothing fills."""
    half = common["hidden_size"] // common["num_attention_heads"] * 3 // 8
    factors = {"short_factor": [1.0 + 0.1 * at for at in range(half)], "long_factor": [1.0 + at for at in range(half)]}
    return transformers.Phi3Config(
        **common,
        tie_word_embeddings=True,
        original_max_position_embeddings=TRAINED_LENGTH * 16,
        partial_rotary_factor=0.75,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75, **factors},
        sliding_window=262_144,
    )


def granite(**common: Any) -> PreTrainedConfig:
    """With scales that all show: as large as the hub's 12, the embedding would hide all that the layers add."""
    own = {"embedding_multiplier": 1.5, "residual_multiplier": 0.7, "attention_multiplier": 0.5}
    return transformers.GraniteConfig(**common, **own, logits_scaling=0.5, tie_word_embeddings=True)


def ministral3(**common: Any) -> PreTrainedConfig:
    """Queries grow with their position beyond the trained length."""
    text = {
        **common,
        "model_type": "ministral3",
        "head_dim": 32,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": common["max_position_embeddings"] / TRAINED_LENGTH,
            "original_max_position_embeddings": TRAINED_LENGTH,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale_all_dim": 1.0,
            "mscale": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    }
    return transformers.Mistral3Config(
        text_config=text,
        vision_config={"model_type": "pixtral", **SIGHT, **IMAGES},
        image_token_index=common["vocab_size"] - 1,
        tie_word_embeddings=True,
    )


def olmo2(**common: Any) -> PreTrainedConfig:
    return transformers.Olmo2Config(**common)


CONFIGS: dict[str, Callable[..., PreTrainedConfig]] = {
    made.__name__: made
    for made in (qwen2, qwen3, qwen3_5, llama3, gemma3, gemma4, smollm3, phi4, granite, ministral3, olmo2)
}
FAMILIES = tuple(CONFIGS)


def save_family(directory: Path, family: str) -> Path:
    """A random instruct model of the family, as the hub has it, in float32."""
    tokenizer = family_tokenizer(family)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CONFIGS[family](**SIZES, **special, vocab_size=len(tokenizer))
    save_random(config, directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_random(config: PreTrainedConfig, directory: Path) -> None:
    """A random model of a configuration. Norms and biases are random too: of ones and zeros nobody would miss any."""
    kind = transformers.AutoModelForImageTextToText if sees(config) else transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    model = kind.from_config(config)
    with torch.no_grad():
        for values in model.state_dict().values():
            if values.ndim == 1 and values.is_floating_point():
                values += 0.1 * torch.randn_like(values)
    model.save_pretrained(directory)


def family_tokenizer(family: str) -> PreTrainedTokenizerFast:
    return tokenizer_of(ALIKE.get(family, "qwen2"))


def sees(config: PreTrainedConfig) -> bool:
    """Whether it is the configuration of a model that also sees."""
    return config.get_text_config() is not config


def whole_logits(directory: Path, ids: list[int]) -> torch.Tensor:
    """Logits [S, V] of a text alone, by the very class that the model was saved with."""
    config = transformers.AutoConfig.from_pretrained(directory)
    model = getattr(transformers, config.architectures[0]).from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits[0]


def likelihood_difference(directory: Path, answers: Iterable[Mapping[str, Any]]) -> float:
    """The largest difference between what llama.cpp (`llama_cpp.llama_cpp`) and PyTorch give the most likely tokens.

    Of logarithms of probabilities, all through the answers: a random model says one word again and again, whatever is
    wrong with it.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    largest, compared = 0.0, 0
    for answer in answers:
        ids = [*answer["ids"], *answer["tokens"]]
        with torch.inference_mode():
            expected = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for at, likely in enumerate(answer["likely"], start=len(answer["ids"]) - 1):
            largest = max([largest, *(abs(value - float(expected[at, token])) for token, value in likely)])
            compared += len(likely)
    assert compared
    return largest


def graph_differences(directory: Path, graph: Path, *, longest: int = 130) -> dict[str, float]:
    """The largest differences between a graph's logits and those of the model that it was made of, in PyTorch.

    Of random texts: `alone`, all of them in one `batch`, `stepwise` with the cache after 60 tokens, and `ragged`, where
    two rows go on from a cache by different numbers of tokens.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    runner = OnnxRunner(graph, num_threads=1)
    draw = torch.Generator().manual_seed(1)
    lengths = (1, 5, 17, 40, 64, 70, longest)
    rows = [torch.randint(3, 800, (length,), generator=draw).tolist() for length in lengths]
    with torch.inference_mode():
        expected = [model(input_ids=torch.tensor([ids])).logits[0].numpy() for ids in rows]

    def largest(found: Iterable[Floats]) -> float:
        return max(float(abs(ours - theirs).max()) for ours, theirs in zip(found, expected, strict=True))

    stepwise = runner.stepwise_logits(rows[-1], num_prefill=60)
    ends = [30, 9]
    state = runner.prefill([rows[-1][:30], rows[-2][:9]])
    ragged = 0.0
    for counts in ((1, 3), (5, 1), (2, 2), (10, 20), (1, 1), (20, 1)):
        new = [row[end : end + count] for row, end, count in zip((rows[-1], rows[-2]), ends, counts, strict=True)]
        state, ends = runner.step(state, new), [end + count for end, count in zip(ends, counts, strict=True)]
        last = [expected[-1][ends[0] - 1], expected[-2][ends[1] - 1]]
        ragged = max(ragged, float(abs(state.logits_BV - last).max()))
    return {
        "alone": largest(runner.logits(ids) for ids in rows),
        "batch": largest(runner.logits_of(rows)),
        "stepwise": float(abs(stepwise - expected[-1]).max()),
        "ragged": ragged,
    }
