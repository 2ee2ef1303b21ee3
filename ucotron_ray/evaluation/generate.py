"""Greedy answers of a model of transformers, in batches, each kept in a file as soon as it is there.

An answer is decoded as it is served (`models/decoding.py`): with the same grammar, and over at the end of its array.
"""

import logging
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ucotron_ray.data.jsonl import read_relations, read_rows
from ucotron_ray.data.records import RawRow
from ucotron_ray.data.wire import user_prompt
from ucotron_ray.evaluation.decoded import prediction
from ucotron_ray.evaluation.predictions import PredictJob, append_predictions, asked_row, read_predictions
from ucotron_ray.evaluation.scoring import RowScore, relation_row, score_row
from ucotron_ray.models import base as base_models
from ucotron_ray.models import generation, lora, precision
from ucotron_ray.models.bundles import DEFAULT_DECODING
from ucotron_ray.models.decoding import Answer
from ucotron_ray.models.prompts import prompt_ids, server_row
from ucotron_ray.models.speech import TokenizerSpeech, speech_of

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
    dtype = precision.compute_dtype(job.dtype, rows=job.batch_size)
    adapter = Path(job.adapter) if job.adapter else None
    model = lora.load_for_inference(base, adapter, dtype, quantize=job.quantize, spread=job.spread)
    rows = read_relations(Path(job.rows_file))
    examples = read_relations(Path(job.examples_file)) if job.examples_file else []
    decoder = RowDecoder(model, tokenizer, job.max_new_tokens, job.decoding, examples)
    asked = [(question, decoder.answer(rows[question[0]], question[1])) for question in questions]
    # Equal lengths side by side: less padding, and the answers of short texts end together.
    asked.sort(key=lambda entry: len(entry[1].prompt))
    began, new_tokens, finished = time.monotonic(), 0, 0
    for start in range(0, len(asked), job.batch_size):
        batch = asked[start : start + job.batch_size]
        decoder.run([answer for _, answer in batch])
        predictions = [prediction(decoder.speech, question, answer) for question, answer in batch]
        append_predictions(Path(job.output_file), predictions)
        new_tokens += sum(entry.num_tokens for entry in predictions)
        seconds, finished = time.monotonic() - began, finished + len(batch)
        log.info(
            "evaluate: %d/%d answers  %.0f tokens/s  %.0f s left",
            finished,
            len(asked),
            new_tokens / seconds,
            seconds / finished * (len(asked) - finished),
        )
    return {"new_tokens": float(new_tokens), "seconds": time.monotonic() - began}


class RowDecoder:
    """A model that is asked rows as the server would ask it."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        max_new_tokens: int,
        decoding: str = DEFAULT_DECODING,
        examples: Sequence[RawRow] = (),
    ) -> None:
        self.speech: TokenizerSpeech = speech_of(tokenizer, model)
        self._model, self._tokenizer = model, tokenizer
        self._max_new_tokens, self._decoding, self._examples = max_new_tokens, decoding, examples

    def answer(self, row: RawRow, layout: str) -> Answer:
        """An answer to a row that has not begun. Layouts as in `PredictJob.questions`."""
        examples = [asked_row(example, layout)[0] for example in self._examples]
        row, layout = asked_row(row, layout)
        constraint = self.speech.constraint(user_prompt(row.text, row.entities), self._decoding)
        ids = prompt_ids(server_row(row, layout, examples), self._tokenizer)
        return self.speech.answer(ids, max_new_tokens=self._max_new_tokens, constraint=constraint, to_array_end=True)

    def run(self, answers: Sequence[Answer]) -> None:
        """Bring answers to their ends as one batch."""
        eos, pad = int(self._tokenizer.eos_token_id), int(self._tokenizer.pad_token_id)
        generation.answer(self._model, answers, eos=eos, pad=pad)


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
    # Making a grammar of the vocabulary takes a second, and the model stays the same one.
    decoder = cache(lambda model, tokenizer: RowDecoder(model, tokenizer, max_new_tokens))

    def score(
        model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", rank: int, world: int
    ) -> tuple[int, int, int]:
        share, asked = rows[rank::world], decoder(model, tokenizer)
        right = predicted = expected = 0
        for start in range(0, len(share), batch_size):
            batch = share[start : start + batch_size]
            answers = [asked.answer(row, "chat") for row in batch]
            asked.run(answers)
            for row, answer in zip(batch, answers, strict=True):
                scored = score_row(row, asked.speech.finished(answer))
                if each is not None:
                    each(scored)
                right, predicted, expected = (
                    right + scored.right,
                    predicted + scored.predicted,
                    expected + scored.expected,
                )
        return right, predicted, expected

    return score
