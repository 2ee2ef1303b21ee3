"""ONNX against PyTorch on real prompts: the same logits, with and without cache, and the same greedy tokens."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from ucotron_ray.config import Export
from ucotron_ray.models.runner import OnnxRunner

CACHED_STEPS = 8
"""How many last tokens of a prompt are fed one by one to compare the cache with a full pass."""


def compare(
    model_directory: Path, graph: Path, prompts: Sequence[Sequence[int]], settings: Export, *, eos: int
) -> dict[str, float]:
    """Largest differences and shares of agreement over all prompts, and the speed of both.

    Returns:
        `max_logit_difference` and `mean_logit_difference` over every position of every prompt, `top1_agreement` (share
        of positions), `cache_difference` (ONNX step by step against ONNX in one pass), `greedy_match` (share of prompts
        with exactly the same tokens), `onnx_tokens_per_second`, `torch_tokens_per_second` (greedy, one at a time).
    """
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32, local_files_only=True).eval()
    runner = OnnxRunner(graph)
    largest, cache_largest, means, agreements, matches = 0.0, 0.0, [], [], []
    seconds = {"onnx": 0.0, "torch": 0.0}
    tokens = {"onnx": 0, "torch": 0}
    for prompt in prompts:
        reference_TV = _logits(model, prompt)
        onnx_TV = runner.logits(prompt)
        stepwise_TV = runner.stepwise_logits(prompt, num_prefill=max(1, len(prompt) - CACHED_STEPS))
        difference_TV = np.abs(reference_TV - onnx_TV)
        largest = max(largest, float(difference_TV.max()))
        cache_largest = max(cache_largest, float(np.abs(stepwise_TV - onnx_TV).max()))
        means.append(float(difference_TV.mean()))
        agreements.append(float((reference_TV.argmax(-1) == onnx_TV.argmax(-1)).mean()))
        began = time.perf_counter()
        by_onnx = runner.greedy(prompt, max_new_tokens=settings.parity_new_tokens, eos=eos)
        between = time.perf_counter()
        by_torch = _greedy(model, prompt, max_new_tokens=settings.parity_new_tokens, eos=eos)
        ended = time.perf_counter()
        seconds["onnx"] += between - began
        seconds["torch"] += ended - between
        tokens["onnx"] += len(by_onnx) + 1
        tokens["torch"] += len(by_torch) + 1
        matches.append(by_onnx == by_torch)
    return {
        "prompts": float(len(prompts)),
        "max_logit_difference": largest,
        "mean_logit_difference": float(np.mean(means)),
        "top1_agreement": float(np.mean(agreements)),
        "cache_difference": cache_largest,
        "greedy_match": float(np.mean(matches)),
        "onnx_tokens_per_second": tokens["onnx"] / seconds["onnx"],
        "torch_tokens_per_second": tokens["torch"] / seconds["torch"],
    }


def failures(parity: dict[str, float], settings: Export) -> list[str]:
    """The thresholds that are missed, in words; empty if the bundle may be used."""
    missed = []
    for name in ("max_logit_difference", "cache_difference"):
        # Written so that NaN fails.
        if not parity[name] <= settings.max_logit_difference:
            missed.append(f"{name} {parity[name]:.2e} > {settings.max_logit_difference:.2e}")
    if not parity["greedy_match"] >= settings.min_greedy_match:
        missed.append(f"greedy_match {parity['greedy_match']:.3f} < {settings.min_greedy_match:.3f}")
    return missed


@torch.inference_mode()
def _logits(model: torch.nn.Module, ids: Sequence[int]) -> np.ndarray:
    logits_TV: np.ndarray = model(input_ids=torch.tensor([list(ids)])).logits[0].numpy()
    return logits_TV


@torch.inference_mode()
def _greedy(model: torch.nn.Module, ids: Sequence[int], *, max_new_tokens: int, eos: int) -> list[int]:
    output = model.generate(  # type: ignore[operator]  # a Module attribute is a Tensor or a Module to the checker
        input_ids=torch.tensor([list(ids)]),
        attention_mask=torch.ones((1, len(ids)), dtype=torch.long),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    answer: list[int] = output[0, len(ids) :].tolist()
    return answer[: answer.index(eos)] if eos in answer else answer
