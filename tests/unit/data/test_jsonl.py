"""Files of rows: what is wrong in them and where."""

import pytest

from ucotron_ray.core.errors import InputError
from ucotron_ray.data import jsonl
from ucotron_ray.data.records import RawRow

GOOD = '{"text": "Ann met Bo.", "entities": [{"text": "Ann", "label": "person"}], "expected_relations": []}'
CHAT = '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}'


def write(tmp_path, *lines: str):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("{", "line 3"),
        ("[1]", "list"),
        ('{"question": 1}', "keys question"),
        ('{"text": "", "entities": [], "expected_relations": []}', "text:"),
        ('{"text": "x", "entities": {}, "expected_relations": []}', "entities"),
        ('{"text": "x", "entities": [], "expected_relations": [{"subject": "a", "predicate": "b"}]}', "object"),
        ('{"messages": [{"role": "robot", "content": ""}, {"role": "user", "content": ""}]}', "role"),
        ("[" * 5000, "line 3"),
    ],
)
def test_a_bad_line_is_named_by_its_number_in_the_file(tmp_path, line, found):
    path = write(tmp_path, GOOD, "", line)
    with pytest.raises(InputError, match=found) as caught:
        jsonl.read_rows(path)
    assert "line 3" in str(caught.value)


def test_empty_missing_and_binary_files_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n", encoding="utf-8")
    (tmp_path / "binary.jsonl").write_bytes(b"\x80\x81\x82")
    for name, found in (("empty.jsonl", "no rows"), ("gone.jsonl", "No such file"), ("binary.jsonl", "not UTF-8")):
        with pytest.raises(InputError, match=found):
            jsonl.read_rows(tmp_path / name)


def test_training_rows_refuse_what_cannot_be_learned(tmp_path):
    preference = '{"prompt": "p", "chosen": "c", "rejected": "r"}'
    backwards = '{"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]}'
    for line, found in ((preference, "preference pairs"), (backwards, "not the assistant's")):
        with pytest.raises(InputError, match=found):
            jsonl.read_training_rows(write(tmp_path, GOOD, line))
    assert len(jsonl.read_training_rows(write(tmp_path, GOOD, CHAT))) == 2
    with pytest.raises(InputError, match="line 2"):
        jsonl.read_relations(write(tmp_path, GOOD, CHAT))


def test_rows_written_and_read_back_are_equal_and_labels_are_the_servers(tmp_path):
    row = RawRow.model_validate(
        {
            "text": "Zoë met “Bo”\u2028.",
            "entities": [{"text": "Zoë", "label": "Human", "start": 0, "end": 3}],
            "expected_relations": [{"subject": "Zoë", "predicate": "met", "object": "“Bo”", "confidence": 0.25}],
        }
    )
    path = tmp_path / "out.jsonl"
    assert jsonl.write_rows(path, [row, row]) == 2
    assert jsonl.read_relations(path) == [row, row]
    assert row.entities[0].label == "person"
