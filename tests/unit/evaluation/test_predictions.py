"""The file that keeps each answer: read back as it was written, whatever the answer holds and wherever a kill cut it."""

from types import SimpleNamespace

from tests.registered import rows
from ucotron_ray.core import config
from ucotron_ray.evaluation.comparison import chat_answers
from ucotron_ray.evaluation.predictions import Prediction, append_predictions, read_predictions
from ucotron_ray.evaluation.report import write_scores

LINE_ENDS = "a\u2028b\u2029c\u0085d\x1ce\r\nf"
"""Characters at which `str.splitlines` splits; JSON escapes only the last three."""


def predictions(*texts: str) -> list[Prediction]:
    return [Prediction(index, "chat", text, 3, False) for index, text in enumerate(texts)]


def test_an_answer_may_hold_characters_that_end_a_line_elsewhere(tmp_path):
    made = predictions(LINE_ENDS, "[]")
    append_predictions(tmp_path / "shard-0.jsonl", made)
    assert read_predictions(tmp_path / "shard-0.jsonl") == made
    settings = config.load(overrides=[("evaluation.resamples", 10)]).recipe.evaluation
    write_scores(tmp_path, rows("Bo", 2), made, settings)
    assert chat_answers(SimpleNamespace(path=tmp_path)) == [LINE_ENDS, "[]"]


def test_a_line_that_is_cut_within_a_letter_is_an_answer_not_given(tmp_path):
    path = tmp_path / "shard-0.jsonl"
    made = predictions("[]", "é")
    append_predictions(path, made)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex("é".encode()) + 1])
    assert read_predictions(path) == made[:1]
    append_predictions(path, made[1:])
    assert read_predictions(path) == made
