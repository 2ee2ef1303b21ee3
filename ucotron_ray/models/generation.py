"""Answers of a PyTorch model to a batch of prompts: the most likely tokens, or drawn ones, and no rule beside it.

A hub model brings a `generation_config.json`, and transformers follows it: a repetition penalty, for instance, which
Qwen2.5-Instruct has and which counts the prompt's tokens too. An answer copies names from its prompt and JSON repeats
its keys, so such a rule would change what is scored here, and not what a bundle answers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

Watch = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Sees token ids [batch, time] and logits [batch, vocabulary] before each token; returns the logits."""


@torch.inference_mode()
def generate(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    eos: int,
    pad: int,
    temperature: float | None = None,
    samples: int = 1,
    watch: Watch | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt, `samples` lists a prompt, with end and padding tokens behind a shorter one.

    Greedy, unless a temperature is given: then tokens are drawn from the whole vocabulary.
    """
    from transformers import LogitsProcessorList  # noqa: PLC0415 - 2 s

    longest = max(len(prompt) for prompt in prompts)
    ids_BT = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask_BT = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with _without_own_rules(model):
        output_BT = model.generate(
            input_ids=ids_BT.to(model.device),
            attention_mask=mask_BT.to(model.device),
            generation_config=_config(max_new_tokens, eos, pad, temperature, samples),
            logits_processor=LogitsProcessorList([watch] if watch else []),
        )
    answers: list[list[int]] = output_BT[:, longest:].tolist()
    return answers


@contextmanager
def _without_own_rules(model: "PreTrainedModel") -> Iterator[None]:
    """Hide the model's own file: `generate` fills in what it has and the given configuration leaves open."""
    from transformers import GenerationConfig  # noqa: PLC0415 - 2 s

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _config(max_new_tokens: int, eos: int, pad: int, temperature: float | None, samples: int) -> "GenerationConfig":
    from transformers import GenerationConfig  # noqa: PLC0415 - 2 s

    # top_k is 50 by default.
    drawn = {"temperature": temperature, "top_k": 0} if temperature is not None else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature is not None,
        num_return_sequences=samples,
        eos_token_id=eos,
        pad_token_id=pad,
        **drawn,
    )


def until(eos: int, tokens: list[int]) -> list[int]:
    """The tokens before the first end token; all of them where there is none."""
    return tokens[: tokens.index(eos)] if eos in tokens else tokens
