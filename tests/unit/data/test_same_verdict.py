"""`validate` and `sft` say the same of a file, with the same place."""

import json
import logging

import pytest

from ucotron_ray.core import config
from ucotron_ray.core.errors import InputError
from ucotron_ray.core.recipe import Gate
from ucotron_ray.data import importing, jsonl
from ucotron_ray.synthesis import validation

GENERATION = config.load().recipe.generation
LENIENT = GENERATION.model_copy(update={"gate": Gate.model_validate({**GENERATION.gate.model_dump(), "defects": {}})})

RAW = {
    "text": "Ann met Bo.",
    "entities": [{"text": "Ann"}, {"text": "Bo"}],
    "expected_relations": [{"subject": "Ann", "predicate": "met", "object": "Bo"}],
}
GENERATED = {
    "text": "Cy met Di here.",
    "entities": [
        {"text": "Cy", "type": "Person", "start": 0, "end": 2},
        {"text": "Di", "type": "Person", "start": 7, "end": 9},
    ],
    "relations": [
        {"subject": "Cy", "subject_type": "Person", "relation": "friend_of", "object": "Di", "object_type": "Person"}
    ],
}


def chat(*turns):
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


GOOD = chat(("user", "Who met whom?"), ("assistant", "Ed met Flo."))


def write(tmp_path, *values):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(value if isinstance(value, str) else json.dumps(value) + "\n" for value in values))
    return path


@pytest.mark.parametrize(
    ("bad", "defect"),
    [
        (chat(("user", "q"), ("assistant", "")), "empty_answer"),
        (chat(("user", "q"), ("assistant", " \n")), "empty_answer"),
        (chat(("user", "q"), ("assistant", ""), ("user", "again"), ("assistant", "a")), "empty_answer"),
        (chat(("user", "q"), ("user", "hello?")), "unanswered"),
        (chat(("user", "q"), ("robot", "a")), "schema"),
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, "schema"),
        ('{"messages": [}\n', "schema"),
        ({**RAW, "text": None}, "schema"),
    ],
)
@pytest.mark.parametrize("generation", [GENERATION, LENIENT])
def test_what_sft_refuses_validate_rejects_with_the_line_whatever_the_limits(tmp_path, bad, defect, generation):
    path = write(tmp_path, GOOD, RAW, "\n", bad, GENERATED)
    with pytest.raises(InputError, match=r"rows\.jsonl, line 4"):
        jsonl.read_training_rows(path)
    report = validation.validate([path], generation)
    assert report["state"] == "rejected"
    assert "sft refuses the file: line 4" in report["failures"]
    assert {"where": "line 4", "defects": [defect]}.items() <= report["findings"][0].items()
    assert report["would_train"] == 3


def test_rows_that_train_together_are_one_file_for_both(tmp_path):
    path = write(tmp_path, RAW, GOOD, GENERATED)
    assert len(jsonl.read_training_rows(path)) == 3
    report = validation.validate([path], GENERATION)
    assert (report["state"], report["would_train"], report["findings"]) == ("ok", 3, [])
    assert report["labels"]["friend_of"] == 1


def test_a_pair_that_dpo_refuses_is_rejected_with_the_line(tmp_path):
    pair = {"prompt": "p", "chosen": "c", "rejected": "r"}
    path = write(tmp_path, pair, {**pair, "rejected": " "}, GOOD)
    with pytest.raises(InputError, match="line 2"):
        jsonl.read_preferences(path)
    assert "dpo refuses the file: line 2 and 1 more" in validation.validate([path], LENIENT)["failures"]


def test_a_span_in_another_unit_is_found_by_both(tmp_path, caplog):
    # The emoji is one character here and two in UTF-16.
    row = {
        "text": "😀 Ann met Bo.",
        "entities": [{"text": "Ann", "start": 3, "end": 6}, {"text": "Bo"}],
        "expected_relations": [],
    }
    path = write(tmp_path, RAW, row, {**RAW, "text": "Nobody.", "entities": []})
    findings = validation.validate([path], GENERATION)["findings"]
    assert [finding["where"] for finding in findings if "wrong_span" in finding["defects"]] == ["line 2", "line 3"]
    with caplog.at_level(logging.WARNING):
        importing.read_splits(path, None)
    assert (
        "2 row(s) with a span or a name that does not hold, first line 2 ('Ann' at 3 to 6, where 'nn ' stands)"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("text", "is_defect"),
    [
        ("می\u200cخواهم", False),
        ("👩\u200d🚀 flew", False),
        ("क्\u200dष", False),
        ("ad\u200bmin", True),
        ("pay \u200dnow", True),
        ("\u200cstart", True),
    ],
)
def test_joiners_that_join_are_no_control_characters(tmp_path, text, is_defect):
    report = validation.validate(
        [write(tmp_path, {"text": text, "entities": [], "expected_relations": []})], GENERATION
    )
    assert [finding["defects"] for finding in report["findings"]] == ([["control_character"]] if is_defect else [])
