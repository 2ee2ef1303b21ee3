"""Answers of a served model to an evaluation's questions, each kept as soon as it is there: none is asked twice."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ucotron_ray.core.errors import Stopped
from ucotron_ray.data.records import RawRow
from ucotron_ray.evaluation import endpoint
from ucotron_ray.evaluation.decoded import Question
from ucotron_ray.evaluation.predictions import Prediction, append_predictions, asked_row, read_predictions
from ucotron_ray.teacher.endpoint import Endpoint

log = logging.getLogger(__name__)

FILE = "shard-endpoint.jsonl"


def answers(
    served: Endpoint,
    rows: Sequence[RawRow],
    questions: Sequence[Question],
    asking: endpoint.Asking,
    directory: Path,
    *,
    examples: Sequence[RawRow] = (),
) -> list[Prediction]:
    """An answer to every question, in their order. What the directory has already is not asked.

    A question that the server refuses for good costs its row: it counts as an answer that cannot be read. Raises
    Stopped where others have no answer; the same command asks for those alone.
    """
    file = directory / FILE
    done = {(entry.row, entry.layout) for entry in read_predictions(file)}
    left = [question for question in questions if question not in done]
    turns = [
        endpoint.question(asked_row(rows[row], layout)[0], asking, [asked_row(one, layout)[0] for one in examples])
        for row, layout in left
    ]
    refused: list[str] = []

    def keep(index: int, reply: endpoint.Reply) -> None:
        if reply.error is not None and not reply.refused:
            return
        if reply.refused:
            refused.append(reply.error or "")
        made = Prediction(*left[index], reply.text, reply.completion_tokens, reply.finish == "length")
        append_predictions(file, [replace(made, prompt_tokens=reply.prompt_tokens)])

    replies = endpoint.replies(served, turns, asking, keep) if turns else []
    if refused:
        log.warning("evaluate: the server refuses %d of %d questions: %s", len(refused), len(questions), refused[0])
    lost = [reply.error for reply in replies if reply.error and not reply.refused]
    if lost:
        raise Stopped(
            f"{len(lost)} of {len(questions)} questions have no answer, so there is no score",
            where=f"{served.base_url}#{served.model}",
            found=max(lost, key=lost.count),
            next_step="run the same command again: the other answers are kept",
        )
    found = {(entry.row, entry.layout): entry for entry in read_predictions(file)}
    return [found[question] for question in questions]
