"""Guesses from counts: what they say, and that they stand beside every model whose training rows are known."""

import json

import pytest

from tests.registered import answer_with, base_directory, held_out_file, make_bundle
from ucotron_ray import cli
from ucotron_ray.core.artifacts import Store
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.data import wire
from ucotron_ray.data.records import Entity, RawRow, Relation
from ucotron_ray.evaluation import baselines
from ucotron_ray.evaluation.answers import ModelRef


def row(text: str, entities: dict[str, str], *triples: tuple[str, str, str]) -> RawRow:
    return RawRow(
        text=text,
        entities=[Entity.located(name, label, text) for name, label in entities.items()],
        expected_relations=[Relation(subject=s, predicate=p, object=o) for s, p, o in triples],
    )


TRAINING = [
    row("Ann works at Acme", {"Ann": "person", "Acme": "organization"}, ("Ann", "works_at", "Acme")),
    row("Bo works at Umbra", {"Bo": "person", "Umbra": "organization"}, ("Bo", "works_at", "Umbra")),
    row("Cy founded Ix", {"Cy": "person", "Ix": "organization"}, ("Cy", "founded", "Ix")),
    row("Di lives in Oslo", {"Di": "person", "Oslo": "location"}, ("DI", "lives_in", "Oslo")),
    row("Acme is owned by Ed", {"Acme": "organization", "Ed": "person"}, ("Acme", "owned_by", "Ed")),
    row("Nothing here", {}),
]


def said(answer: str) -> set[tuple[str, str, str]]:
    return {(item["subject"], item["predicate"], item["object"]) for item in json.loads(answer)}


def test_every_pair_has_the_majority_predicate_in_both_directions_if_the_text_has_both():
    held_out = row("Eve met Rome", {"Eve": "person", "Rome": "location", "Mars": "location"})
    (answer,) = baselines.answers([held_out], TRAINING)[baselines.EVERY_PAIR]
    assert said(answer) == {("Eve", "works_at", "Rome"), ("Rome", "works_at", "Eve")}


def test_a_pair_of_types_has_its_own_majority_in_its_direction_and_nothing_where_none_was_seen():
    held_out = row("Eve, Rome, Ix", {"Eve": "person", "Rome": "location", "Ix": "organization"})
    (answer,) = baselines.answers([held_out], TRAINING)[baselines.BY_TYPES]
    assert said(answer) == {("Eve", "works_at", "Ix"), ("Ix", "owned_by", "Eve"), ("Eve", "lives_in", "Rome")}


def test_of_equally_frequent_predicates_the_first_in_the_alphabet_is_said():
    assert baselines.majority_predicate(TRAINING[2:]) == "founded"
    assert baselines.majority_by_types(reversed(TRAINING[1:3])) == {("person", "organization"): "founded"}


def test_without_relations_to_learn_from_there_is_no_baseline():
    assert baselines.answers(TRAINING, [TRAINING[-1]]) == {}
    assert baselines.scores(TRAINING, []) == {}


def test_they_stand_beside_a_model_in_evaluate_and_compare(tmp_path, capsys, monkeypatch):
    store = Store(tmp_path / "store")
    make_bundle(store, "mine", base_directory(tmp_path / "base"))
    answer_with(monkeypatch, {"mine": 0.5, "base": 0.1})
    common = ["--data", str(held_out_file(tmp_path)), "--set", f"store={store.root}", "--json"]
    common += ["--set", "tracking.mlflow_uri=none", "--set", "evaluation.resamples=50"]
    results = []
    for words in (["evaluate", "mine", "--no-base"], ["compare", "mine", "bundle/mine"]):
        assert cli.main([*words, *common]) == 0
        out = capsys.readouterr().out
        result = json.loads(out.splitlines()[-1])
        # One relation a row, both entities persons, one predicate: right, and once more the other way round.
        for name in (baselines.EVERY_PAIR, baselines.BY_TYPES):
            guess = result["baselines"][name]
            assert (guess["precision"], guess["recall"], guess["rows"]) == (0.5, 1.0, 60.0)
            assert name in out
        results.append(result)
    page = (store.root / "scores" / "mine" / "report.html").read_text()
    assert "What has to be beaten" in page
    assert baselines.BY_TYPES in page


def test_a_model_that_did_not_learn_here_has_none(tmp_path, capsys, monkeypatch):
    base = base_directory(tmp_path / "base")
    answer_with(monkeypatch, {"base": 0.1})
    words = ["evaluate", str(base), "--data", str(held_out_file(tmp_path)), "--set", f"store={tmp_path / 'store'}"]
    words += ["--set", "tracking.mlflow_uri=none", "--set", "evaluation.resamples=50", "--json"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["baselines"] == {}


def test_examples_are_answered_turns_before_the_servers_own_question():
    shown, asked = TRAINING[0], TRAINING[3]
    turns = wire.chat_messages(asked.text, asked.entities, [shown])
    plain = wire.chat_messages(asked.text, asked.entities)
    assert [turns[0], turns[-1]] == plain
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "user"]
    assert turns[1]["content"] == wire.user_prompt(shown.text, shown.entities)
    assert wire.parse_answer(turns[2]["content"]) == shown.expected_relations


def test_examples_show_as_many_predicates_as_they_can_and_no_held_out_text():
    source = ModelRef("base", "endpoint")
    chosen = baselines.with_examples(source, TRAINING, ["Cy founded Ix"], 3)
    assert {relation.predicate for row in chosen.examples for relation in row.expected_relations} == {
        "works_at",
        "lives_in",
        "owned_by",
    }
    assert chosen.label == "base with 3 examples"
    assert baselines.with_examples(source, reversed(TRAINING), [], 3).identity != chosen.identity
    with pytest.raises(ConfigError, match="not enough training rows"):
        baselines.with_examples(source, TRAINING, ["Cy founded Ix"], 5)


def test_the_base_with_examples_stands_beside_the_tuned_model(tmp_path, capsys, monkeypatch):
    store = Store(tmp_path / "store")
    make_bundle(store, "mine", base_directory(tmp_path / "base"))
    answer_with(monkeypatch, {"mine": 0.5, "base": 0.1})
    common = ["--data", str(held_out_file(tmp_path)), "--set", f"store={store.root}", "--json"]
    common += ["--set", "tracking.mlflow_uri=none", "--set", "evaluation.resamples=50"]
    recipes = []
    for shots in ("0", "4"):
        assert cli.main(["evaluate", "mine", "--set", f"evaluation.few_shots={shots}", *common]) == 0
        out = capsys.readouterr().out
        assert ("mine-base with 4 examples" in out) == (shots == "4")
        recipes.append(store.find("scores", "mine").manifest.recipe)
    assert recipes[0] == recipes[1], "the model's own scores do not depend on a baseline"
    shown = store.find("scores", "mine-base-4-examples").manifest
    assert shown.recipe != store.find("scores", "mine-base").manifest.recipe
    code = cli.main(["compare", "mine", "bundle/mine", "--set", "evaluation.few_shots=4", *common])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0
    assert set(result["models"]) == {"mine", "bundle/mine", "base with 4 examples"}
