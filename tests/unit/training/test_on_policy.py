"""Pairs of the model's own answers, and pairs whose lengths tell nothing."""

from pathlib import Path

import pytest

from tests.unit.training.test_dpo import SETTINGS
from ucotron_ray.core import config
from ucotron_ray.core.errors import InputError
from ucotron_ray.data import jsonl, wire
from ucotron_ray.data.records import PreferenceRow
from ucotron_ray.evaluation.scoring import f1_of
from ucotron_ray.models import base as base_models
from ucotron_ray.simulators import demo_world
from ucotron_ray.training import dpo, on_policy, pairs

ROWS = [row for row in demo_world.rows(demo_world.graph_world(2), 60, seed=2) if row.expected_relations][:20]


def answer(row, number: int) -> str:
    """The right answer with only the first relations, or with wrong ones added."""
    relations = list(row.expected_relations)
    if number < 0:
        return wire.format_answer(relations[:number])
    wrong = relations[0].model_copy(update={"predicate": "knows"})
    return wire.format_answer([*relations, *[wrong] * number])


def test_the_rejected_answer_is_wrong_and_its_length_is_the_one_that_is_wanted():
    row = ROWS[0]
    right, short, long = wire.format_answer(row.expected_relations), "[]", answer(row, 2)
    every = [right, short, long]
    longer = on_policy.pair_of(row, every, f1_of, want_longer=True)
    assert longer.rejected == short
    assert longer.chosen == right
    assert on_policy.pair_of(row, every, f1_of, want_longer=False).rejected == long
    # Where no answer of that length is wrong, another one is taken.
    assert on_policy.pair_of(row, [right, long], f1_of, want_longer=True).rejected == long
    # Spelt otherwise it is still right; and silence is no answer.
    assert on_policy.pair_of(row, [right, right.replace(":", ": "), "", " "], f1_of, want_longer=True) is None
    assert longer.prompt == wire.user_prompt(row.text, row.entities)


def test_an_answer_that_cannot_be_read_scores_nothing():
    assert f1_of(ROWS[0], "I do not know") == 0.0
    assert f1_of(ROWS[0], wire.format_answer(ROWS[0].expected_relations)) == 1.0
    empty = ROWS[0].model_copy(update={"expected_relations": []})
    assert (f1_of(empty, "[]"), f1_of(empty, "nonsense")) == (1.0, 0.0)


def test_lengths_are_balanced_as_pairs_are_made(tmp_path, tiny_model, monkeypatch):
    """Every row is answered both too shortly and too fully: half of the chosen answers are the longer ones."""
    source, target = tmp_path / "rows.jsonl", tmp_path / "pairs.jsonl"
    jsonl.write_rows(source, ROWS)
    monkeypatch.setattr(
        on_policy, "sample", lambda model, tokenizer, rows, settings: [["[]", answer(row, 3)] for row in rows]
    )
    job = sample_job(tiny_model, source, target)
    assert on_policy.write_pairs(job, f1_of) == {"pairs": 20, "always_right": 0}
    made = jsonl.read_preferences(target)
    assert abs(sum(len(pair.chosen) > len(pair.rejected) for pair in made) - 10) <= 1


def test_a_model_answers_as_often_as_asked_and_the_same_seed_gives_the_same_pairs(tmp_path, tiny_model):
    source = tmp_path / "rows.jsonl"
    jsonl.write_rows(source, ROWS[:4])
    base = base_models.resolve(str(tiny_model))
    settings = config.load().recipe.dpo.on_policy.model_copy(update={"samples": 3, "max_tokens": 8})
    answers = on_policy.sample(
        base_models.load_model(base, "float32").eval(), base_models.load_tokenizer(base), ROWS[:4], settings
    )
    assert [len(entry) for entry in answers] == [3] * 4
    for name in ("a", "b"):
        on_policy.write_pairs(sample_job(tiny_model, source, tmp_path / name), f1_of)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != b""


def sample_job(model: Path, source: Path, target: Path) -> on_policy.SampleJob:
    settings = {"samples": 3, "temperature": 1.0, "max_tokens": 8}
    return on_policy.SampleJob(str(model), ((str(source), str(target)),), settings, "float32", "none", 6, 1, 42)


def test_pairs_are_dropped_until_length_tells_no_more_than_it_may(tiny_model):
    tokenizer = base_models.load_tokenizer(base_models.resolve(str(tiny_model)))
    rows = [
        PreferenceRow(prompt=wire.user_prompt(row.text, row.entities), chosen=answer(row, 0), rejected=rejected)
        for row, rejected in zip(ROWS, ["[]"] * 14 + [answer(row, 2) for row in ROWS[14:]], strict=True)
    ]
    settings = SETTINGS.model_copy(update={"max_longer_share": 0.6})
    kept, counts = pairs.pairs(rows, tokenizer, settings)
    assert (counts["rows"], counts["chosen_longer"], counts["for_balance"]) == (15, 9, 5)
    assert dpo.longer_shares(counts) == {"longer_wins": 0.6}
    assert pairs.pairs(rows, tokenizer, settings)[0] == kept
    free, counts = pairs.pairs(rows, tokenizer, SETTINGS)
    assert (counts["rows"], counts["for_balance"]) == (20, 0)
    order = [free.index(pair) for pair in kept]
    assert order == sorted(order)
    with pytest.raises(InputError, match="no preference pair"):
        pairs.pairs(rows[:14], tokenizer, settings)
