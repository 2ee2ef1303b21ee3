"""Rows that something was chosen by, followed through all that a model is made of."""

import pytest

from tests.benchmarks import real_rows
from ucotron_ray.core import config
from ucotron_ray.core.artifacts import BuildResult, Input, Request, Store
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl, uses
from ucotron_ray.data.records import PreferenceRow, name_key
from ucotron_ray.data.wire import format_answer, user_prompt
from ucotron_ray.simulators import demo_world

ROWS = list(demo_world.rows(demo_world.graph_world(3), 8, seed=3))


def made(store: Store, kind, name: str, *, files=None, inputs=(), rows=()):
    with store.building(Request(kind, name, {"made": name}, tuple(inputs))) as build:
        for file, written in (files or {}).items():
            jsonl.write_rows(build.path / file, written)
        return build.publish(BuildResult({}, {}, [], rows=rows))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def test_choices_of_a_bundle_are_its_own_its_adapters_and_those_of_what_it_started_from(store):
    rows = made(store, "dataset", "rows", files={"train.jsonl": ROWS[:4], "val.jsonl": ROWS[4:6]})
    dev = made(store, "dataset", "dev", files={"rows.jsonl": ROWS[6:7]})
    sweep = made(store, "sweep", "sweep", rows=uses.validation("the settings", rows))
    learned = [uses.used("training", "weights", rows, "train.jsonl"), *uses.validation("the step", rows)]
    adapter = made(
        store, "adapter", "a", inputs=[rows.as_input("data")], rows=[*learned, *uses.of_sweep(store, "sweep")]
    )
    merged = made(store, "model", "a-merged", inputs=[adapter.as_input("adapter")])
    aligned = made(store, "adapter", "a-dpo", inputs=[merged.as_input("base")])
    bundle = made(
        store,
        "bundle",
        "b",
        inputs=[aligned.as_input("adapter"), dev.as_input("data")],
        rows=[uses.used("choice", "decoding and gates", dev, "rows.jsonl")],
    )
    assert sweep.manifest.rows[0].rows == 2
    found = uses.choices(store, bundle)
    assert {(use.what, use.dataset, use.file) for use in found} == {
        ("decoding and gates", "dev", "rows.jsonl"),
        ("the step", "rows", "val.jsonl"),
        ("the settings", "rows", "val.jsonl"),
    }
    assert uses.texts(store, found) == {name_key(row.text) for row in ROWS[4:7]}
    # What was trained on is no choice, and is looked at by itself.
    assert name_key(ROWS[0].text) not in uses.texts(store, found)


def test_a_bundle_from_before_manifests_said_it_was_gated_on_its_data(store):
    dev = made(store, "dataset", "dev", files={"rows.jsonl": ROWS[:2]})
    bundle = made(store, "bundle", "old", inputs=[dev.as_input("data")])
    assert uses.texts(store, uses.choices(store, bundle)) == {name_key(row.text) for row in ROWS[:2]}


def test_rows_that_the_store_has_no_longer_are_unknown(store):
    dev = made(store, "dataset", "dev", files={"rows.jsonl": ROWS[:2]})
    gone = Input(role="data", kind="dataset", name="dev", content="other bytes")
    assert uses.texts(store, uses.choices(store, made(store, "bundle", "old", inputs=[gone]))) is None
    assert uses.texts(store, []) == set()
    assert dev.manifest.rows == []


def test_pairs_are_compared_by_the_text_in_their_prompt(store):
    row = ROWS[0]
    pair = PreferenceRow(
        prompt=user_prompt(row.text, row.entities), chosen=format_answer(row.expected_relations), rejected="[]"
    )
    pairs = made(store, "dataset", "pairs", files={"val.jsonl": [pair]})
    assert uses.texts(store, uses.validation("the step", pairs)) == {name_key(row.text)}


def test_choices_are_made_by_validation_rows_and_by_those_of_the_claim_only_where_there_are_none(tmp_path, caplog):
    claimed = tmp_path / "test.jsonl"
    jsonl.write_rows(claimed, ROWS[6:])
    overrides = [("store", str(tmp_path / "store")), ("tracking.mlflow_uri", "none"), ("evaluation.data", str(claimed))]
    run = Run(config.load(overrides=overrides), verb="export", name="n")
    rows = made(run.store, "dataset", "rows", files={"train.jsonl": ROWS[:4], "val.jsonl": ROWS[4:6]})
    bare = made(run.store, "dataset", "bare", files={"train.jsonl": ROWS[:4], "val.jsonl": []})
    assert uses.rows_to_choose_by(run, None, rows) == rows
    assert caplog.text == ""
    assert [row.text for row in jsonl.read_rows(uses.rows_to_choose_by(run, None, bare).path / "rows.jsonl")] == [
        row.text for row in ROWS[6:]
    ]
    assert "cannot prove the model" in caplog.text
    with pytest.raises(ConfigError):
        uses.rows_to_choose_by(run, "bare", None)


def test_the_split_of_the_real_rows_is_fixed_and_its_parts_share_no_text(shared_data):
    parts = {name: {row.text for row in real_rows.part(name)} for name in ("test", "dev", "rest")}
    assert {name: len(texts) for name, texts in parts.items()} == {"test": 500, "dev": 500, "rest": 1006}
    assert len(set().union(*parts.values())) == 2006
