"""Answers → `predictions.jsonl` (every one of them, read as the server reads it) and `scores.json`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ucotron_ray.artifacts import write_json, write_text
from ucotron_ray.config import Evaluation
from ucotron_ray.evaluation.predictions import Prediction
from ucotron_ray.evaluation.scoring import RowScore, by_group, by_predicate, score_row, summary
from ucotron_ray.records import RawRow
from ucotron_ray.wire import parse_answer

GUIDE_GROUP = "guide"


def write_scores(
    directory: Path, rows: Sequence[RawRow], predictions: Sequence[Prediction], settings: Evaluation
) -> dict[str, Any]:
    """Score and write both files; return the scores.

    `overall` and `groups` are about the chat layout. `raw` is about the rows that were asked in the raw layout too, and
    `chat_of_raw` about the same rows in the chat layout. The guide's five prompts count nowhere but in `guide`.
    """
    scored: dict[tuple[int, str], RowScore] = {}
    lines = []
    for prediction in predictions:
        row = rows[prediction.row]
        scored[prediction.row, prediction.layout] = score = score_row(row, prediction.answer)
        parsed = parse_answer(prediction.answer)
        record = {
            **vars(prediction),
            "text": row.text,
            "group": row.group,
            "expected": [relation.model_dump() for relation in row.expected_relations],
            "predicted": None if parsed is None else [relation.model_dump() for relation in parsed],
            "right": score.right,
        }
        lines.append(json.dumps(record, ensure_ascii=False))
    scores = _scores(rows, scored, predictions, settings)
    write_text(directory / "predictions.jsonl", "".join(line + "\n" for line in lines))
    write_json(directory / "scores.json", scores)
    return scores


def _scores(
    rows: Sequence[RawRow],
    scored: dict[tuple[int, str], RowScore],
    predictions: Sequence[Prediction],
    settings: Evaluation,
) -> dict[str, Any]:
    drawn = {"resamples": settings.resamples, "seed": settings.seed}
    chat = {row: score for (row, layout), score in scored.items() if layout == "chat"}
    raw = {row: score for (row, layout), score in scored.items() if layout == "raw"}
    held_out = {row: score for row, score in chat.items() if rows[row].group != GUIDE_GROUP}
    groups: dict[str | None, list[RowScore]] = {}
    for row, score in held_out.items():
        groups.setdefault(rows[row].group, []).append(score)
    guide = [score for row, score in chat.items() if rows[row].group == GUIDE_GROUP]
    asked = [prediction for prediction in predictions if prediction.layout == "chat" and prediction.row in held_out]
    every = list(held_out.values())
    return {
        "overall": {
            **summary(every, **drawn),
            "cut_answers": sum(prediction.cut for prediction in asked) / len(asked),
            "new_tokens_per_answer": sum(prediction.num_tokens for prediction in asked) / len(asked),
        },
        "groups": by_group(groups, **drawn),
        "raw": summary(list(raw.values()), **drawn) if raw else None,
        "chat_of_raw": summary([chat[row] for row in raw], **drawn) if raw else None,
        "guide": summary(guide, **drawn) if guide else None,
        "by_predicate": by_predicate(every),
        "seed": settings.seed,
    }
