"""ONNX against PyTorch on real prompts: the same logits, alone, padded and with a cache, and the same greedy tokens.

An exporter's own check, where it has one, compares no real prompts and no prefill that goes on step by step.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ucotron_ray.core.recipe import Export
from ucotron_ray.data.records import RawRow
from ucotron_ray.data.wire import chat_messages, user_prompt
from ucotron_ray.models.generation import generate, until
from ucotron_ray.models.runner import Floats, OnnxRunner
from ucotron_ray.models.served import BundleModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CACHED_STEPS = 8
"""How many last tokens of a prompt are fed one by one to compare the cache with a full pass."""

SHORT_LENGTHS, LONG_LENGTH = (1, 17), 1000
"""Prompts of other lengths than those of real ones: beginnings of the first, and all of them one after the other."""

BATCH = 4


@dataclass
class _Differences:
    """Over all positions that were compared so far."""

    largest: float = 0.0
    total: float = 0.0
    values: int = 0
    same_top: int = 0
    positions: int = 0
    finite: bool = field(default=True)

    def add(self, reference_SV: Floats, found_SV: Floats) -> None:
        difference_SV = np.abs(reference_SV - found_SV)
        self.finite &= bool(np.isfinite(found_SV).all())
        # NaN would lose every comparison of Python's max.
        self.largest = float(np.maximum(self.largest, difference_SV.max()))
        self.total += float(difference_SV.sum(dtype=np.float64))
        self.values += difference_SV.size
        self.same_top += int((reference_SV.argmax(-1) == found_SV.argmax(-1)).sum())
        self.positions += len(reference_SV)


def compare(
    model_directory: Path,
    graph: Path,
    prompts: Sequence[Sequence[int]],
    settings: Export,
    *,
    eos: int,
    num_threads: int = 0,
) -> dict[str, float]:
    """Largest differences and shares of agreement over all prompts, and the speed of both.

    Returns:
        `max_logit_difference`, `mean_logit_difference` and `top1_agreement` over every position of every prompt, one at
        a time; `batch_difference` in left-padded batches, `cache_difference` step by step against one pass;
        `greedy_match` (share of prompts with exactly the same tokens) and `greedy_prefix` (mean share of the tokens
        before the first other one); `onnx_tokens_per_second`, `torch_tokens_per_second` (greedy, one at a time).
    """
    model = load(model_directory)
    runner = OnnxRunner(graph, num_threads=num_threads)
    alone, batched, cached = _Differences(), _Differences(), _Differences()
    for other in _other_lengths(prompts):
        alone.add(_logits(model, other), runner.logits(other))
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        for ids, padded_SV in zip(batch, runner.logits_of(batch), strict=True):
            reference_SV, found_SV = _logits(model, ids), runner.logits(ids)
            alone.add(reference_SV, found_SV)
            batched.add(reference_SV, padded_SV)
            first = max(1, len(ids) - CACHED_STEPS)
            cached.add(found_SV[first - 1 :], runner.stepwise_logits(ids, num_prefill=first)[first - 1 :])
    return {
        "prompts": float(len(prompts)),
        "positions": float(alone.positions),
        "max_logit_difference": alone.largest if alone.finite else float("nan"),
        "mean_logit_difference": alone.total / alone.values,
        "top1_agreement": alone.same_top / alone.positions,
        "batch_difference": batched.largest,
        "cache_difference": cached.largest,
        **_compare_greedy(model, runner, prompts, settings, eos=eos),
    }


def _compare_greedy(
    model: "PreTrainedModel", runner: OnnxRunner, prompts: Sequence[Sequence[int]], settings: Export, *, eos: int
) -> dict[str, float]:
    matches, prefixes = [], []
    seconds = {"onnx": 0.0, "torch": 0.0}
    tokens = {"onnx": 0, "torch": 0}
    for ids in prompts:
        began = time.perf_counter()
        by_onnx = runner.greedy(ids, max_new_tokens=settings.parity_new_tokens, eos=eos)
        between = time.perf_counter()
        by_torch = greedy(model, [ids], max_new_tokens=settings.parity_new_tokens, eos=eos)[0]
        ended = time.perf_counter()
        seconds["onnx"] += between - began
        seconds["torch"] += ended - between
        tokens["onnx"] += len(by_onnx) + 1
        tokens["torch"] += len(by_torch) + 1
        matches.append(by_onnx == by_torch)
        prefixes.append(common_prefix(by_onnx, by_torch))
    return {
        "greedy_match": float(np.mean(matches)),
        "greedy_prefix": float(np.mean(prefixes)),
        "onnx_tokens_per_second": tokens["onnx"] / seconds["onnx"],
        "torch_tokens_per_second": tokens["torch"] / seconds["torch"],
    }


def prompt_ids_match(
    model: BundleModel, rows: Sequence[RawRow], layouts: Sequence[str], prompts: Sequence[Sequence[int]]
) -> float:
    """Share of the prompts that the bundle's own tokenizer and template turn into the very ids of training."""
    same = []
    for row, layout, ids in zip(rows, layouts, prompts, strict=True):
        raw = layout == "raw"
        found = (
            model.raw_ids(user_prompt(row.text, row.entities))
            if raw
            else model.chat_ids(chat_messages(row.text, row.entities))
        )
        same.append(found == list(ids))
    return float(np.mean(same))


def failures(figures: Mapping[str, float], settings: Export) -> list[str]:
    """The thresholds that are missed, in words. Written so that NaN misses."""
    bounds = {
        "max_logit_difference": settings.max_logit_difference,
        "batch_difference": settings.max_logit_difference,
        "cache_difference": settings.max_logit_difference,
        "mean_logit_difference": settings.max_mean_logit_difference,
    }
    missed = [
        f"{name} {figures[name]:.2e} > {bound:.2e}" for name, bound in bounds.items() if not figures[name] <= bound
    ]
    least = {
        "top1_agreement": settings.min_top1_agreement,
        "greedy_match": settings.min_greedy_match,
        "prompt_ids_match": 1.0,
    }
    missed += [
        f"{name} {figures[name]:.4f} < {bound:.4f}" for name, bound in least.items() if not figures[name] >= bound
    ]
    return missed


def load(model_directory: Path) -> "PreTrainedModel":
    """The merged model in float32."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 - 2 s

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        model_directory, dtype=torch.float32, local_files_only=True
    )
    return model.eval()


def greedy(
    model: "PreTrainedModel", prompts: Sequence[Sequence[int]], *, max_new_tokens: int, eos: int
) -> list[list[int]]:
    """The most likely tokens of each prompt, up to and without the end token, in one left-padded batch."""
    return [until(eos, answer) for answer in generate(model, prompts, max_new_tokens=max_new_tokens, eos=eos, pad=eos)]


def common_prefix(one: Sequence[int], other: Sequence[int]) -> float:
    """Share of the longer sequence before the first token that differs; 1 for equal ones."""
    longer = max(len(one), len(other))
    same = next((index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
    return (min(len(one), len(other)) if same is None else same) / longer if longer else 1.0


def _other_lengths(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    joined = [token for ids in prompts for token in ids][:LONG_LENGTH]
    return [list(prompts[0][:length]) for length in SHORT_LENGTHS] + [joined]


@torch.inference_mode()
def _logits(model: "PreTrainedModel", ids: Sequence[int]) -> Floats:
    logits_SV: Floats = model(input_ids=torch.tensor([list(ids)])).logits[0].numpy()
    return logits_SV
