"""Greedy answers of a model to the server's prompts, in batches, each answer kept in a file as soon as it is there."""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ucotron_ray.data.jsonl import read_relations, read_rows
from ucotron_ray.evaluation.predictions import Prediction, PredictJob, append_predictions, asked_row, read_predictions
from ucotron_ray.evaluation.scoring import RowScore, relation_row, score_row
from ucotron_ray.evaluation.token_confidence import pieces, token_confidence
from ucotron_ray.models import base as base_models
from ucotron_ray.models import lora, precision
from ucotron_ray.models.generation import generate, until
from ucotron_ray.models.prompts import prompt_ids, server_row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def predict(job: PredictJob) -> dict[str, float]:
    """Answer the questions that the output file does not answer yet; return tokens and seconds of this call."""
    done = {(entry.row, entry.layout) for entry in read_predictions(Path(job.output_file))}
    questions = [question for question in job.questions if question not in done]
    if not questions:
        return {"new_tokens": 0.0, "seconds": 0.0}
    if job.num_threads:
        torch.set_num_threads(job.num_threads)
    base = base_models.located(job.base)
    tokenizer = base_models.load_tokenizer(base)
    model = lora.load_for_inference(
        base, Path(job.adapter) if job.adapter else None, precision.compute_dtype(job.dtype, rows=job.batch_size)
    )
    rows = read_relations(Path(job.rows_file))
    prompts = [prompt_ids(server_row(*asked_row(rows[row], layout)), tokenizer) for row, layout in questions]
    # Equal lengths side by side: less padding, and the answers of short texts end together.
    order = sorted(range(len(questions)), key=lambda index: len(prompts[index]))
    began, new_tokens = time.monotonic(), 0
    for start in range(0, len(order), job.batch_size):
        batch = order[start : start + job.batch_size]
        sure: list[list[float] | None] = []
        answers = greedy(
            model, tokenizer, [prompts[index] for index in batch], max_new_tokens=job.max_new_tokens, sure=sure
        )
        predictions = [
            Prediction(*questions[index], text, num_tokens, cut, sureness_of)
            for index, (text, num_tokens, cut), sureness_of in zip(batch, answers, sure, strict=True)
        ]
        append_predictions(Path(job.output_file), predictions)
        new_tokens += sum(prediction.num_tokens for prediction in predictions)
        seconds = time.monotonic() - began
        finished = start + len(batch)
        log.info(
            "evaluate: %d/%d answers  %.0f tokens/s  %.0f s left",
            finished,
            len(order),
            new_tokens / seconds,
            seconds / finished * (len(order) - finished),
        )
    return {"new_tokens": float(new_tokens), "seconds": time.monotonic() - began}


def triples_of(
    val_file: Path,
    num_rows: int,
    *,
    max_new_tokens: int,
    batch_size: int,
    each: Callable[[RowScore], None] | None = None,
) -> Callable[["PreTrainedModel", "PreTrainedTokenizerBase", int, int], tuple[int, int, int]]:
    """A scorer for a model in training: (model, tokenizer, worker, workers) → right, predicted, expected triples.

    Of the first rows of the file that say what is right, as many as wanted (a preference pair does by its chosen
    answer); each worker answers its share of them. `each` is told the counts of every row of this worker's.
    """
    rows = [row for row in map(relation_row, read_rows(val_file)) if row is not None][:num_rows]

    def score(
        model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rank: int, world: int
    ) -> tuple[int, int, int]:
        share = rows[rank::world]
        right = predicted = expected = 0
        for start in range(0, len(share), batch_size):
            batch = share[start : start + batch_size]
            prompts = [prompt_ids(server_row(row, "chat"), tokenizer) for row in batch]
            answers = greedy(model, tokenizer, prompts, max_new_tokens=max_new_tokens)
            for row, (answer, _, _) in zip(batch, answers, strict=True):
                scored = score_row(row, answer)
                if each is not None:
                    each(scored)
                right, predicted, expected = (
                    right + scored.right,
                    predicted + scored.predicted,
                    expected + scored.expected,
                )
        return right, predicted, expected

    return score


def greedy(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    sure: list[list[float] | None] | None = None,
) -> list[tuple[str, int, bool]]:
    """For each prompt the answer, the number of its tokens, and whether it was cut before its end token.

    A list given as `sure` gets the token_confidence of the relations of each answer.
    """
    eos = tokenizer.eos_token_id
    recorder = _Recorder()
    made = generate(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        eos=eos,
        pad=tokenizer.pad_token_id,
        watch=recorder if sure is not None else None,
    )
    answers = []
    logprobs_BT = recorder.logprobs()

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))

    for index, row_T in enumerate(made):
        tokens = until(eos, row_T)
        answer = decode(tokens)
        answers.append((answer, len(tokens), eos not in row_T))
        if sure is not None:
            sure.append(token_confidence(answer, pieces(decode, tokens, answer), logprobs_BT[index][: len(tokens)]))
    return answers


class _Recorder:
    """Notes the log-probability of the most likely token at every step, which is the one that greedy search takes.

    `output_scores` of transformers would keep all logits: 1.6 GB for 32 answers of 256 tokens and 49,152 words.
    """

    def __init__(self) -> None:
        self._steps: list[torch.Tensor] = []

    def __call__(self, ids_BT: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
        floats_BV = logits_BV.float()
        self._steps.append(floats_BV.amax(-1) - floats_BV.logsumexp(-1))
        return logits_BV

    def logprobs(self) -> list[list[float]]:
        """[batch][step]."""
        logprobs: list[list[float]] = torch.stack(self._steps, dim=1).tolist() if self._steps else []
        return logprobs
