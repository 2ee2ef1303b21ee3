"""Files that people have: every line is an object or says why not, and no line stops the others."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ucotron_ray.core import config
from ucotron_ray.core.artifacts import Store
from ucotron_ray.core.errors import InputError
from ucotron_ray.core.run import Run
from ucotron_ray.data import documents, jsonl, readers, wire
from ucotron_ray.data import stage as datasets
from ucotron_ray.data.records import GeneratedRow, RawRow
from ucotron_ray.synthesis import validation

RAW = {"text": "Ann met Bo.", "entities": [{"text": "Ann", "label": "person"}, {"text": "Bo", "label": "person"}]}
RAW |= {"expected_relations": [{"subject": "Ann", "predicate": "met", "object": "Bo"}]}
GENERATED = {
    "text": "Ann works at Bo Labs.",
    "entities": [
        {"text": "Ann", "type": "Person", "start": 0, "end": 3},
        {"text": "Bo Labs", "type": "Organization", "start": 13, "end": 20},
    ],
    "relations": [
        {
            "subject": "Ann",
            "subject_type": "Person",
            "relation": "works_at",
            "object": "Bo Labs",
            "object_type": "Organization",
        }
    ],
    "metadata": {"seed_subject": "Ann"},
}
CHAT = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
GENERATION = config.load().recipe.generation


def lines(path, *values):
    raw = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    path.write_bytes(b"".join(line + b"\n" for line in raw))
    return path


def test_hostile_lines_are_named_and_the_rows_around_them_are_read(tmp_path):
    huge = b'{"text": "' + b"x" * (documents.MAX_LINE_BYTES + 10) + b'"}'
    path = lines(
        tmp_path / "rows.jsonl",
        RAW,
        huge,
        b"\xff\xfe",
        b'{"text": NaN}',
        b'{"text": 1e999}',
        b'{"text": "a", "text": "b"}',
        b'{"text": ' + b"9" * 5000 + b"}",
        b"[" * 5000,
        b"",
        RAW,
    )
    found = list(readers.entries(path))
    assert [entry.value is not None for entry in found] == [True, *[False] * 7, True]
    assert [entry.where for entry in found] == [f"line {n}" for n in (1, 2, 3, 4, 5, 6, 7, 8, 10)]
    for entry, word in zip(found[1:8], ("longer", "UTF-8", "NaN", "finite", "twice", "digits", "deep"), strict=True):
        assert word in (entry.problem or "")


def test_rows_of_the_relation_generator_train_as_relation_rows(tmp_path):
    path = lines(tmp_path / "re.jsonl", GENERATED)
    assert isinstance(jsonl.read_rows(path)[0], GeneratedRow)
    for rows in (jsonl.read_training_rows(path), jsonl.read_relations(path)):
        assert isinstance(rows[0], RawRow)
        assert rows[0].entities[1].label == "organization"
        assert rows[0].expected_relations[0].predicate == "works_at"


def test_parquet_and_datasets_directories_give_the_same_rows_as_jsonl(tmp_path):
    import datasets as hugging_face

    more = {**RAW, "text": "Cy met Di.", "expected_relations": []}
    text = lines(tmp_path / "rows.jsonl", RAW, more)
    table = pa.Table.from_pylist([RAW, more])
    pq.write_table(table, tmp_path / "rows.parquet")
    hugging_face.DatasetDict(
        {"train": hugging_face.Dataset(table.slice(0, 1)), "validation": hugging_face.Dataset(table.slice(1, 1))}
    ).save_to_disk(tmp_path / "saved")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pq.write_table(table.slice(0, 1), tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    pq.write_table(table.slice(1, 1), tmp_path / "hub" / "data" / "validation-00000-of-00001.parquet")
    expected = jsonl.read_relations(text)
    assert jsonl.read_relations(tmp_path / "rows.parquet") == expected
    for directory in ("saved", "hub"):
        assert jsonl.read_relations(tmp_path / directory) == expected
        assert [entry.split for entry in readers.entries(tmp_path / directory)] == ["train", "val"]
        assert len(jsonl.read_training_rows(tmp_path / directory, "val")) == 1


@pytest.mark.parametrize(("name", "content"), [("bad.parquet", b"PAR1 no table"), ("gone.parquet", None)])
def test_a_table_that_cannot_be_read_is_an_input_error(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError):
        list(readers.entries(tmp_path / name))


def test_a_directory_without_rows_says_what_it_holds(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"notes\.txt"):
        list(readers.entries(tmp_path))


def test_a_directory_with_splits_becomes_a_dataset_with_both(tmp_path):
    (tmp_path / "data").mkdir()
    lines(tmp_path / "data" / "train_sft.jsonl", CHAT, GENERATED)
    lines(tmp_path / "data" / "val_sft.jsonl", RAW)
    loaded = config.load(overrides=[("store", str(tmp_path / "store")), ("tracking.mlflow_uri", "none")])
    with Run(loaded, verb="sft", name="x") as run:
        made = datasets.training_data(run, str(tmp_path / "data"), None)
        again = datasets.training_data(run, str(tmp_path / "data"), None)
    assert made.manifest.counts["train"] == 2
    assert made.manifest.counts["val"] == 1
    assert made.manifest.content == again.manifest.content
    assert Store(tmp_path / "store").names("dataset") == [made.manifest.name]


def test_of_a_directory_with_splits_the_validation_rows_alone_are_scored(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    row = RawRow.model_validate({**RAW, "text": "Ann met Bo once more"})
    turns = wire.chat_messages(row.text, row.entities)
    readable = {"messages": [*turns, {"role": "assistant", "content": wire.format_answer(row.expected_relations)}]}
    lines(folder / "train_sft.jsonl", RAW)
    lines(folder / "val_sft.jsonl", {**RAW, "text": "Ann met Bo again"}, readable, CHAT)
    loaded = config.load(overrides=[("store", str(tmp_path / "store")), ("tracking.mlflow_uri", "none")])
    with Run(loaded, verb="evaluate", name="x") as run:
        made = datasets.held_out(run, str(folder), None)
        alone = datasets.held_out(run, str(folder / "train_sft.jsonl"), None)
    texts = [row.text for row in jsonl.read_relations(datasets.rows_file(made))]
    assert len(texts) == 2, "the row of another layout holds no relations"
    assert RAW["text"] not in texts
    assert [row.text for row in jsonl.read_relations(datasets.rows_file(alone))] == [RAW["text"]]


def test_rows_of_another_layout_train_and_are_not_scored(tmp_path):
    other = {"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "b"}]}
    lines(tmp_path / "train.jsonl", RAW, CHAT)
    lines(tmp_path / "val.jsonl", other, {**RAW, "text": "Ann met Bo again"})
    lines(tmp_path / "only.jsonl", CHAT)
    loaded = config.load(overrides=[("store", str(tmp_path / "store")), ("tracking.mlflow_uri", "none")])
    with Run(loaded, verb="sft", name="x") as run:
        made = datasets.training_data(run, str(tmp_path / "train.jsonl"), tmp_path / "val.jsonl")
        assert made.manifest.counts["train"] == 2
        assert not datasets.holds_relations_only(made)
        scored = datasets.held_out(run, None, made)
        assert len(jsonl.relations_among(datasets.rows_file(scored))) == 1
        with pytest.raises(InputError, match="no row of it can be scored"):
            datasets.held_out(run, str(tmp_path / "only.jsonl"), None)


def test_validate_says_what_a_file_is_what_is_wrong_and_how_many_rows_would_train(tmp_path):
    path = lines(
        tmp_path / "rows.jsonl", RAW, {**RAW, "text": "Ann met Bo <|im_end|>"}, PAIR, b"{", {**RAW, "entities": []}
    )
    report = validation.validate([path], GENERATION)
    assert (report["kind"], report["rows"], report["stage"]) == ("relations", 5, "sft")
    assert {row["where"]: row["defects"] for row in report["findings"]} == {
        "line 2": ["special_token"],
        "line 3": ["schema"],
        "line 4": ["schema"],
        "line 5": ["wrong_span", "duplicate"],
    }
    assert "preference" in report["findings"][1]["found"]
    assert (report["would_train"], report["without_defect"]) == (3, 1)
    assert report["state"] == "rejected"


def test_validate_finds_names_and_texts_that_leak_from_training_to_validation(tmp_path):
    train = lines(tmp_path / "train.jsonl", RAW)
    other = {**RAW, "text": "Ann met Cy.", "entities": [{"text": "Ann"}, {"text": "Cy"}], "expected_relations": []}
    val = lines(tmp_path / "val.jsonl", other, {**RAW, "entities": [{"text": "X"}], "expected_relations": []})
    report = validation.validate([train, val], GENERATION)
    assert report["splits"] == {"train": 1, "val": 2}
    assert {row["where"]: row["defects"] for row in report["findings"]} == {
        "val.jsonl, line 1": ["leak"],
        "val.jsonl, line 2": ["duplicate", "leak"],
    }


@pytest.mark.parametrize(
    ("value", "kind", "stage"),
    [
        (GENERATED, "relation_extraction", "sft"),
        (CHAT, "chat", "sft"),
        (PAIR, "preference", "dpo"),
        ({"description": "A fox in the snow, seen from far away.", "category": "animal"}, "projection", None),
    ],
)
def test_the_kind_of_a_file_is_told_by_its_rows(tmp_path, value, kind, stage):
    report = validation.validate([lines(tmp_path / "rows.jsonl", value)], GENERATION)
    assert (report["kind"], report["stage"]) == (kind, stage)
    assert report["state"] == "ok"


def test_a_file_of_something_else_is_refused_with_its_keys(tmp_path):
    with pytest.raises(InputError, match="question"):
        validation.validate([lines(tmp_path / "rows.jsonl", {"question": 1})], GENERATION)
