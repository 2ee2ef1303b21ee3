"""Answers of a bundle to the server's prompts by ONNX Runtime, without PyTorch, kept as soon as they are there."""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ucotron_ray.data.jsonl import read_relations
from ucotron_ray.data.records import RawRow
from ucotron_ray.data.wire import chat_messages, user_prompt
from ucotron_ray.evaluation.decoded import Question, prediction
from ucotron_ray.evaluation.predictions import (
    Prediction,
    PredictJob,
    append_predictions,
    asked_row,
    read_predictions,
)
from ucotron_ray.models import served

log = logging.getLogger(__name__)


def predict(job: PredictJob) -> dict[str, float]:
    """Answer the questions that the output file does not answer yet; return tokens and seconds of this call."""
    output = Path(job.output_file)
    done = {(entry.row, entry.layout) for entry in read_predictions(output)}
    questions = [question for question in job.questions if question not in done]
    if not questions:
        return {"new_tokens": 0.0, "seconds": 0.0}
    assert job.bundle is not None
    model = served.load(Path(job.bundle), variant=job.variant, num_threads=job.num_threads or 0)
    rows = read_relations(Path(job.rows_file))
    began, new_tokens, finished = time.monotonic(), 0, 0
    for batch in answers(
        model,
        rows,
        questions,
        decoding=job.decoding,
        max_new_tokens=job.max_new_tokens,
        batch_size=job.batch_size,
    ):
        append_predictions(output, batch)
        new_tokens += sum(prediction.num_tokens for prediction in batch)
        finished += len(batch)
        seconds = time.monotonic() - began
        log.info("evaluate: %d/%d answers  %.0f tokens/s", finished, len(questions), new_tokens / seconds)
    return {"new_tokens": float(new_tokens), "seconds": time.monotonic() - began}


def answers(
    model: served.BundleModel,
    rows: Sequence[RawRow],
    questions: Sequence[Question],
    *,
    decoding: str,
    max_new_tokens: int,
    batch_size: int,
) -> Iterator[list[Prediction]]:
    """Greedy answers, a batch at a time. Equal lengths go together: less padding, and short answers end together."""
    asked = [(question, *_asked(model, rows[question[0]], question[1])) for question in questions]
    asked.sort(key=lambda entry: len(entry[1]))
    for start in range(0, len(asked), batch_size):
        batch = asked[start : start + batch_size]
        running = [
            model.answer(ids, max_new_tokens=max_new_tokens, constraint=model.constraint(prompt, decoding))
            for _, ids, prompt in batch
        ]
        for _ in model.run(running):
            pass
        yield [prediction(model, question, answer) for (question, _, _), answer in zip(batch, running, strict=True)]


def _asked(model: served.BundleModel, row: RawRow, layout: str) -> tuple[list[int], str]:
    """Token ids of a question, and the user's part of it."""
    row, layout = asked_row(row, layout)
    prompt = user_prompt(row.text, row.entities)
    return model.raw_ids(prompt) if layout == "raw" else model.chat_ids(chat_messages(row.text, row.entities)), prompt
