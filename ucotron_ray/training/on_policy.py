"""Preference pairs from the model's own mistakes: the right answer against a wrong one that the model itself gives.

Pairs of another model's answers teach what this model would never say. Which of several wrong answers is taken is
decided by length, so that the longer answer is the right one about as often as not.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ucotron_ray.core.hyperparameters import OnPolicy
from ucotron_ray.data.jsonl import read_training_rows, write_rows
from ucotron_ray.data.records import PreferenceRow, RawRow
from ucotron_ray.data.wire import format_answer, user_prompt
from ucotron_ray.models import base as base_models
from ucotron_ray.models import precision, quantization
from ucotron_ray.models.generation import generate
from ucotron_ray.models.prompts import prompt_ids, server_row

log = logging.getLogger(__name__)

F1Of = Callable[[RawRow, str], float]
"""Triple F1 of an answer to a row."""


@dataclass(frozen=True)
class SampleJob:
    """Which model answers which rows how often. Plain data."""

    base: str
    files: tuple[tuple[str, str], ...]
    """Relation rows, and where their pairs go."""
    settings: dict[str, Any]
    dtype: str
    quantize: str
    """As the base is trained on, so that it fits where that fits."""
    batch_size: int
    num_threads: int | None
    seed: int


def write_pairs(job: SampleJob, f1: F1Of) -> dict[str, int]:
    """Sample answers and write the pairs; return how many rows gave one, and how many had no wrong answer."""
    settings = OnPolicy.model_validate(job.settings)
    if job.num_threads:
        torch.set_num_threads(job.num_threads)
    torch.manual_seed(job.seed)
    base = base_models.located(job.base)
    tokenizer = base_models.load_tokenizer(base)
    dtype = precision.compute_dtype(job.dtype, rows=job.batch_size)
    model = quantization.for_answers(base, dtype, quantize=job.quantize)
    counts = {"pairs": 0, "always_right": 0}
    rows_a_batch = max(1, job.batch_size // settings.samples)
    for source, target in job.files:
        rows = [row for row in read_training_rows(Path(source)) if isinstance(row, RawRow)]
        made: list[PreferenceRow] = []
        longer = 0
        for start in range(0, len(rows), rows_a_batch):
            part = rows[start : start + rows_a_batch]
            for row, answers in zip(part, sample(model, tokenizer, part, settings), strict=True):
                pair = pair_of(row, answers, f1, want_longer=2 * longer <= len(made))
                if pair is None:
                    counts["always_right"] += 1
                    continue
                longer += len(pair.chosen) > len(pair.rejected)
                made.append(pair)
            log.info("dpo: %d of %d rows answered, %d pairs", start + len(part), len(rows), len(made))
        write_rows(Path(target), made)
        counts["pairs"] += len(made)
    return counts


def sample(model: Any, tokenizer: Any, rows: Sequence[RawRow], settings: OnPolicy) -> list[list[str]]:
    """For each row several answers, drawn at the settings' temperature."""
    prompts = [prompt_ids(server_row(row, "chat"), tokenizer) for row in rows]
    output = generate(
        model,
        prompts,
        max_new_tokens=settings.max_tokens,
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        temperature=settings.temperature,
        samples=settings.samples,
    )
    answers = tokenizer.batch_decode(output, skip_special_tokens=True)
    return [answers[start : start + settings.samples] for start in range(0, len(answers), settings.samples)]


def pair_of(row: RawRow, answers: Sequence[str], f1: F1Of, *, want_longer: bool) -> PreferenceRow | None:
    """The right answer against a wrong one, shorter than it if `want_longer` (the chosen one is then the longer).

    None if no answer is wrong. An empty answer is none: it could not be told from a model that said nothing.
    """
    chosen = format_answer(row.expected_relations)
    wrong = [answer for answer in dict.fromkeys(answers) if answer.strip() and f1(row, answer) < 1.0]
    if not wrong:
        return None
    fitting = [answer for answer in wrong if (len(answer) < len(chosen)) == want_longer]
    # The worst first; among equals the one that was drawn first.
    rejected = min(fitting or wrong, key=lambda answer: f1(row, answer))
    return PreferenceRow(prompt=user_prompt(row.text, row.entities), chosen=chosen, rejected=rejected)
