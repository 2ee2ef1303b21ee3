"""Training, validation and test rows stay apart, from the user's files to what is scored."""

import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ucotron_ray.core import config
from ucotron_ray.core.errors import ConfigError, InputError
from ucotron_ray.core.files import canonical_hash, file_hash
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl, readers
from ucotron_ray.data import stage as datasets
from ucotron_ray.synthesis import validation


def row(name, **more):
    entities = [{"text": name, "label": "person"}, {"text": "Bo", "label": "person"}]
    return {
        "text": f"{name} met Bo.",
        "entities": entities,
        "expected_relations": [{"subject": name, "predicate": "met", "object": "Bo"}],
        **more,
    }


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in rows), encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path):
    loaded = config.load(overrides=[("store", str(tmp_path / "store")), ("tracking.mlflow_uri", "none")])
    with Run(loaded, verb="sft", name="x") as opened:
        yield opened


def texts(path):
    return [found.text for found in jsonl.read_relations(path)] if path.is_file() and path.stat().st_size else []


def as_files(directory):
    for name, who in (("train", "Ann"), ("dev", "Cy"), ("test", "Di")):
        write(directory / f"{name}.jsonl", row(who))


def as_dataset_dict(directory):
    import datasets as hugging_face

    parts = {"train_sft": "Ann", "validation": "Cy", "test_sft": "Di"}
    made = {name: hugging_face.Dataset(pa.Table.from_pylist([row(who)])) for name, who in parts.items()}
    hugging_face.DatasetDict(made).save_to_disk(directory)


def as_hub_shards(directory):
    (directory / "data").mkdir(parents=True)
    for name, who in (("train-00000-of-00001", "Ann"), ("validation-0", "Cy"), ("test-00000-of-00001", "Di")):
        pq.write_table(pa.Table.from_pylist([row(who)]), directory / "data" / f"{name}.parquet")


def as_one_document(directory):
    directory.mkdir()
    (directory / "train.json").write_text(json.dumps({"train": [row("Ann")], "dev": [row("Cy")], "test": [row("Di")]}))


@pytest.mark.parametrize("make", [as_files, as_dataset_dict, as_hub_shards, as_one_document])
def test_a_test_split_stays_a_split_of_its_own_and_is_what_is_claimed_on(tmp_path, run, make):
    make(tmp_path / "data")
    reference = tmp_path / "data" / "train.json" if make is as_one_document else tmp_path / "data"
    made = datasets.training_data(run, str(reference), None)
    for name, who in ((datasets.TRAIN, "Ann"), (datasets.VAL, "Cy"), (datasets.TEST, "Di")):
        assert texts(made.path / name) == [f"{who} met Bo."]
    assert (made.manifest.counts["train"], made.manifest.counts["val"], made.manifest.counts["test"]) == (1, 1, 1)
    for purpose, who in (("claim", "Di"), ("choice", "Cy")):
        for scored in (
            datasets.held_out(run, str(reference), None, purpose=purpose),
            datasets.held_out(run, None, made, purpose=purpose),
            datasets.held_out(run, made.manifest.name, None, purpose=purpose),
        ):
            assert texts(datasets.rows_file(scored)) == [f"{who} met Bo."]


def test_of_training_and_test_rows_alone_none_is_validation(tmp_path, run, caplog):
    write(tmp_path / "data" / "train.jsonl", row("Ann"))
    write(tmp_path / "data" / "test.jsonl", row("Di"), row("Ed"))
    with caplog.at_level(logging.INFO):
        made = datasets.training_data(run, str(tmp_path / "data"), None)
    assert texts(made.path / datasets.VAL) == []
    assert len(texts(made.path / datasets.TEST)) == 2
    assert "2 test rows are kept for the claim and not used; there are no validation rows" in caplog.text
    assert len(texts(datasets.rows_file(datasets.held_out(run, None, made)))) == 2
    with pytest.raises(InputError, match="spoil what is claimed"):
        datasets.held_out(run, str(tmp_path / "data"), None, purpose="choice")
    with pytest.raises(ConfigError, match="no rows to score on"):
        datasets.held_out(run, None, made, purpose="choice")
    assert validation.validate([tmp_path / "data"], run.config.recipe.generation)["splits"] == {"test": 2, "train": 1}


def test_a_file_that_is_named_is_all_meant_whatever_its_name_says(tmp_path, run):
    path = write(tmp_path / "test.jsonl", row("Ann"), row("Cy"))
    assert len(texts(datasets.training_data(run, str(path), None).path / datasets.TRAIN)) == 2
    assert len(texts(datasets.rows_file(datasets.held_out(run, str(path), None, purpose="choice")))) == 2


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "train"), ("test_sft", "test"), ("validation-00000", "val"), ("Dev", "val"), ("testimony", None)],
)
def test_names_of_splits(name, split):
    assert readers.split_named(name) == split


# --- what stores have ------------------------------------------------------------------------------------------------


def test_plain_files_are_asked_for_as_they_always_were(tmp_path):
    train, val = write(tmp_path / "a.jsonl", row("Ann")), write(tmp_path / "b.jsonl", row("Cy"))
    hashes = {"train": file_hash(train), "val": file_hash(val)}
    asked = datasets.rows_request(train, val)
    assert (asked.name, asked.fields) == (f"rows-{canonical_hash(hashes)[:12]}", {"files": hashes})
    alone = datasets.held_out_request(train)
    assert (alone.name, alone.fields) == (f"rows-{file_hash(train)[:12]}", {"file": file_hash(train)})
    for name in ("train_sft.jsonl", "val_sft.jsonl"):
        write(tmp_path / "guide" / name, row("Ann" if name < "u" else "Cy"))
    assert set(datasets.rows_request(tmp_path / "guide", None).fields) == {"files"}
    assert datasets.held_out_request(tmp_path / "guide").fields["split"] == "val"


def chat(*turns, **more):
    return {"messages": [{"role": role, "content": content, **keys} for role, content, keys in turns], **more}


@pytest.mark.parametrize(
    ("value", "reading"),
    [
        (chat(("user", "q", {}), ("assistant", "a", {}), system="S"), ["system"]),
        (
            chat(("user", "q", {}), ("assistant", "a", {}), ("user", "t", {}), ("assistant", "b", {"weight": 0})),
            ["weight"],
        ),
        (chat(("user", "q", {}), ("assistant", "a", {}), ("user", "t", {}), ("assistant", "b", {})), ["turns"]),
        (chat(("user", "q", {}), ("assistant", "a", {"weight": 1}), name="x"), None),
    ],
)
def test_rows_that_were_once_read_otherwise_are_asked_for_under_another_name(tmp_path, value, reading):
    path = write(tmp_path / "rows.jsonl", value)
    asked = datasets.rows_request(path, None)
    hashes = {"train": file_hash(path), "val": None}
    assert asked.fields.get("read") == reading
    assert (asked.name == f"rows-{canonical_hash(hashes)[:12]}") == (reading is None)


def test_a_directory_whose_test_rows_were_once_validation_is_asked_for_under_another_name(tmp_path):
    as_files(tmp_path / "data")
    assert datasets.rows_request(tmp_path / "data", None).fields["read"] == ["test", "validation"]
    (tmp_path / "data" / "dev.jsonl").rename(tmp_path / "data" / "val.jsonl")
    assert datasets.rows_request(tmp_path / "data", None).fields["read"] == ["test"]
    assert datasets.held_out_request(tmp_path / "data", "choice").fields["read"] == ["without test"]
    assert datasets.held_out_request(tmp_path / "data").fields["split"] == "test"


# --- rows of two sides -----------------------------------------------------------------------------------------------


def test_validation_rows_that_train_too_are_refused_with_their_count_and_dropped_on_request(tmp_path, run, caplog):
    train = write(tmp_path / "train.jsonl", *(row(name) for name in "ABC"))
    val = write(tmp_path / "val.jsonl", *(row(name) for name in "BCDB"))
    with pytest.raises(InputError, match=r"3 validation row\(s\) are training rows too(.|\n)*--drop-overlap"):
        datasets.import_rows(run, train, val)
    with caplog.at_level(logging.INFO):
        made = datasets.import_rows(run, train, val, drop_overlap=True)
    assert texts(made.path / datasets.TRAIN) == ["A met Bo.", "B met Bo.", "C met Bo."]
    assert texts(made.path / datasets.VAL) == ["D met Bo."]
    assert made.manifest.counts["overlap_dropped"] == 3
    assert "3 row(s) of val stand in another split too" in caplog.text


def test_test_rows_that_are_seen_leave_training_and_validation_and_stay_test_rows(tmp_path, run):
    write(tmp_path / "data" / "train.jsonl", *(row(name) for name in "ABC"))
    write(tmp_path / "data" / "val.jsonl", *(row(name) for name in "CDE"))
    write(tmp_path / "data" / "test.jsonl", *(row(name) for name in "AEF"))
    with pytest.raises(InputError, match=r"1 validation row\(s\)"):
        datasets.import_rows(run, tmp_path / "data", None)
    made = datasets.import_rows(run, tmp_path / "data", None, drop_overlap=True)
    assert [
        "".join(text[0] for text in texts(made.path / name)) for name in (datasets.TRAIN, datasets.VAL, datasets.TEST)
    ] == ["BC", "D", "AEF"]
    write(tmp_path / "data" / "val.jsonl", row("D"))
    with pytest.raises(InputError, match=r"1 test row\(s\) are training or validation rows too"):
        datasets.import_rows(run, tmp_path / "data", None)


def test_dropping_what_does_not_overlap_asks_for_the_same_dataset(tmp_path):
    train, val = write(tmp_path / "train.jsonl", row("A")), write(tmp_path / "val.jsonl", row("B"))
    assert datasets.rows_request(train, val, drop_overlap=True) == datasets.rows_request(train, val)
