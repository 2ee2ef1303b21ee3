"""Answers → `predictions.jsonl` (every one of them, read as the server reads it), `scores.json` and `report.html`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ucotron_ray.core.files import write_json, write_text
from ucotron_ray.core.recipe import Evaluation
from ucotron_ray.data.records import RawRow
from ucotron_ray.data.wire import parse_answer
from ucotron_ray.evaluation import page
from ucotron_ray.evaluation.calibration import calibration
from ucotron_ray.evaluation.predictions import END_TO_END, Prediction
from ucotron_ray.evaluation.scoring import RowScore, by_group, by_predicate, judged, score_row, summary

GUIDE_GROUP = "guide"
PREDICTIONS, SCORES, REPORT = "predictions.jsonl", "scores.json", "report.html"


def write_scores(
    directory: Path,
    rows: Sequence[RawRow],
    predictions: Sequence[Prediction],
    settings: Evaluation,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Score and write all three files; return the scores. `baselines` are metrics on the same rows, to stand beside.

    `overall` and `groups` are about the chat layout. `raw` is about the rows that were asked in the raw layout too, and
    `chat_of_raw` about the same rows in the chat layout; `end_to_end` about those that were asked without entities. The
    guide's five prompts count nowhere but in `guide`.
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
    scores = {**_scores(rows, scored, predictions, settings), "baselines": dict(baselines or {})}
    write_text(directory / PREDICTIONS, "".join(line + "\n" for line in lines))
    write_json(directory / SCORES, scores)
    write_text(directory / REPORT, page.scores_page(scores))
    return scores


def _scores(
    rows: Sequence[RawRow],
    scored: dict[tuple[int, str], RowScore],
    predictions: Sequence[Prediction],
    settings: Evaluation,
) -> dict[str, Any]:
    chat = {row: score for (row, layout), score in scored.items() if layout == "chat"}
    raw = {row: score for (row, layout), score in scored.items() if layout == "raw"}
    found = [score for (_, layout), score in scored.items() if layout == END_TO_END]
    held_out = {row: score for row, score in chat.items() if rows[row].group != GUIDE_GROUP}
    groups: dict[str | None, list[RowScore]] = {}
    for row, score in held_out.items():
        groups.setdefault(rows[row].group, []).append(score)
    guide = [score for row, score in chat.items() if rows[row].group == GUIDE_GROUP]
    asked = [prediction for prediction in predictions if prediction.layout == "chat" and prediction.row in held_out]
    every = list(held_out.values())
    return {
        "overall": {
            **summary(every),
            "cut_answers": sum(prediction.cut for prediction in asked) / len(asked),
            "new_tokens_per_answer": sum(prediction.num_tokens for prediction in asked) / len(asked),
        },
        "groups": by_group(groups),
        "raw": summary(list(raw.values())) if raw else None,
        "chat_of_raw": summary([chat[row] for row in raw]) if raw else None,
        "end_to_end": summary(found) if found else None,
        "guide": summary(guide) if guide else None,
        "by_predicate": by_predicate(every),
        "calibration": {
            "stated": calibration([pair for score in every for pair in score.judged]),
            "by token probability": calibration([pair for answer in asked for pair in _sure(rows[answer.row], answer)]),
        },
        "seed": settings.seed,
    }


def _sure(row: RawRow, prediction: Prediction) -> tuple[tuple[float, bool], ...]:
    if prediction.sureness is None:
        return ()
    return judged(row, parse_answer(prediction.answer) or [], prediction.sureness)
