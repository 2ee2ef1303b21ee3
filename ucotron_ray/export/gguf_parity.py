"""A GGUF file loaded back: the token ids of its own tokenizer, and the same greedy answers in the raw layout."""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ucotron_ray.core.recipe import Export
from ucotron_ray.data.records import RawRow
from ucotron_ray.export import gguf_families, gguf_tensors, parity, tasks
from ucotron_ray.models import base as base_models
from ucotron_ray.models.decoding import Answer
from ucotron_ray.models.generation import generate
from ucotron_ray.models.prompts import prompt_ids, server_row
from ucotron_ray.models.runner import Integers
from ucotron_ray.models.served import BundleModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 8
"""Prompts in one pass, so that memory does not grow with the rows that are compared."""


def compare(
    file: Path,
    model_directory: Path,
    rows: Sequence[RawRow],
    prompts: Sequence[Sequence[int]],
    expected: Sequence[Sequence[int]],
    settings: Export,
    *,
    eos: int,
) -> dict[str, float]:
    """How far a file agrees with the model that it was made of, on rows, their prompts' ids and float32's answers.

    Returns:
        `bytes`, `load_seconds` (`loaded`), `prompt_ids_match` (share of the rows that
        the file's tokenizer turns into the prompts' ids), `greedy_match` and `greedy_prefix` as in `parity.compare`.
    """
    tokenizer = base_models.load_tokenizer(base_models.located(str(file)))
    same_ids = [
        prompt_ids(server_row(row, "raw"), tokenizer) == list(ids) for row, ids in zip(rows, prompts, strict=True)
    ]
    began = time.monotonic()
    model = loaded(file, model_directory)
    load_seconds = time.monotonic() - began
    answers: list[list[int]] = []
    for start in range(0, len(prompts), BATCH):
        batch = prompts[start : start + BATCH]
        answers += parity.greedy(model, batch, max_new_tokens=settings.parity_new_tokens, eos=eos)
    pairs = list(zip(answers, expected, strict=True))
    return {
        "bytes": float(file.stat().st_size),
        "load_seconds": load_seconds,
        "prompt_ids_match": float(np.mean(same_ids)),
        "greedy_match": float(np.mean([found == list(wanted) for found, wanted in pairs])),
        "greedy_prefix": float(np.mean([parity.common_prefix(found, wanted) for found, wanted in pairs])),
    }


def loaded(file: Path, model_directory: Path) -> "PreTrainedModel":
    """The model that a file was made of, with the file's weights, in float32.

    transformers reads GGUF of some families only, and not how Llama 3, Phi or Gemma turn positions. So the settings are
    the model's own; that llama.cpp takes the same from the file's metadata is shown by `tests/e2e/test_families.py`.
    """
    import gguf  # noqa: PLC0415 - in the task only

    family, config = gguf_families.of(model_directory)
    model = parity.load(model_directory)
    own = model.state_dict()
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(str(file)).tensors}
    for place in gguf_tensors.places(model_directory, family, config):
        tensor = tensors[place.name]
        values = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        own[place.own_name].copy_(torch.from_numpy(gguf_tensors.restored(values, place, family, config)))
    return model


def failures(files: Mapping[str, Mapping[str, float]], settings: Export) -> list[str]:
    """What the files miss, in words. Rounded weights may turn a close choice: of q8_0 the tokens up to there count.

    Written so that NaN misses.
    """
    missed = [
        f"gguf {kind} prompt_ids_match {figures['prompt_ids_match']:.4f} < 1"
        for kind, figures in files.items()
        if not figures["prompt_ids_match"] >= 1
    ]
    if "f16" in files and not files["f16"]["greedy_match"] >= settings.min_gguf_match:
        missed.append(f"gguf f16 greedy_match {files['f16']['greedy_match']:.3f} < {settings.min_gguf_match:.3f}")
    if "q8_0" in files and not files["q8_0"]["greedy_prefix"] >= settings.min_gguf_q8_prefix:
        missed.append(
            f"gguf q8_0 greedy_prefix {files['q8_0']['greedy_prefix']:.3f} < {settings.min_gguf_q8_prefix:.3f}"
        )
    return missed


def task_figures(
    file: Path, model_directory: Path, bundle: BundleModel, reference: tasks.Reference, settings: Export
) -> dict[str, float]:
    """A file's F1 on the rows that float32 answered, compared as a rounded graph is (`tasks.compared`)."""
    model = loaded(file, model_directory)

    def greedy(ids: Sequence[int], count: int) -> Integers:
        with torch.inference_mode():
            logits_SV = model(input_ids=torch.tensor([list(ids)]), logits_to_keep=count).logits[0]
        found_S: Integers = logits_SV.argmax(-1).numpy()
        return found_S

    def decoded(indices: Sequence[int]) -> list[Answer]:
        answers = []
        for start in range(0, len(indices), tasks.BATCH):
            batch = [reference.prompts[index] for index in indices[start : start + tasks.BATCH]]
            eos, growing = (
                bundle.eos[0],
                [bundle.answer(prompt, max_new_tokens=settings.task_new_tokens) for prompt in batch],
            )
            generate(
                model,
                batch,
                max_new_tokens=settings.task_new_tokens,
                eos=eos,
                pad=eos,
                watch=partial(_watch, growing, eos),
            )
            answers += growing
        return answers

    return tasks.compared(bundle, reference, greedy, decoded)


def _watch(growing: Sequence[Answer], eos: int, _: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
    """Let each answer take its most likely token, which the model goes on with; end a row whose answer is over."""
    for answer, logits_V in zip(growing, logits_BV, strict=True):
        answer.replay([int(logits_V.argmax())])
        if answer.reason is not None:
            logits_V[eos] = torch.inf
    return logits_BV


def withheld(files: Mapping[str, Mapping[str, float]], settings: Export) -> dict[str, list[str]]:
    """The files in four bits that lose too much, each with its reasons."""
    reasons = {
        kind: tasks.too_lossy(kind, figures, settings.max_int4_f1_drop, settings)
        for kind, figures in files.items()
        if "f1_drop_upper" in figures
    }
    return {kind: found for kind, found in reasons.items() if found}
