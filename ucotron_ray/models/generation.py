"""Answers of a PyTorch model to a batch of prompts: as an `Answer` chooses its tokens, or drawn, and no rule beside it.

A hub model brings a `generation_config.json`, and transformers follows it: a repetition penalty, for instance, which
Qwen2.5-Instruct has and which counts the prompt's tokens too. An answer copies names from its prompt and JSON repeats
its keys, so such a rule would change what is scored here, and not what a bundle answers.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from ucotron_ray.models.decoding import Answer

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

Watch = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Sees token ids [batch, time] and logits [batch, vocabulary] before each token; returns the logits to choose by."""


def answer(model: "PreTrainedModel", answers: Sequence[Answer], *, eos: int, pad: int) -> None:
    """Bring a batch of answers to their ends. transformers' `generate` runs the model, whatever its layers remember."""
    running = [one for one in answers if one.reason is None]
    if running:
        # One more: the end token, which an answer does not count.
        longest = max(one.left for one in running) + 1
        prompts = [one.prompt for one in running]
        generate(model, prompts, max_new_tokens=longest, eos=eos, pad=pad, watch=_Following(running, eos))


class _Following:
    """Chooses for each row of a batch what its answer chooses, and the end token once that is over.

    transformers feeds one token at a time: of several that a grammar forces the others wait here.
    """

    def __init__(self, answers: Sequence[Answer], eos: int) -> None:
        self._answers, self._eos = answers, eos
        self._waiting: list[deque[int]] = [deque() for _ in answers]

    def __call__(self, ids_BT: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
        floats_BV = logits_BV.float()
        best = floats_BV.max(dim=-1)
        likely_B, logprob_B = best.indices.tolist(), (best.values - floats_BV.logsumexp(-1)).tolist()
        chosen_B = []
        for row, (one, waiting) in enumerate(zip(self._answers, self._waiting, strict=True)):
            if not waiting and one.constrained:
                waiting.extend(one.advance(floats_BV[row].cpu().numpy()))
            elif not waiting:
                waiting.extend(one.follow(likely_B[row], logprob_B[row]))
            chosen_B.append(waiting.popleft() if waiting else self._eos)
        alone_BV = torch.full_like(logits_BV, -torch.inf)
        alone_BV[torch.arange(len(chosen_B)), chosen_B] = 0.0
        return alone_BV


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
