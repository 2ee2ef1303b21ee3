"""Promotion gates: what passes, what is refused, and with which numbers."""

import pytest

from ucotron_ray.core import config
from ucotron_ray.core.rows_use import RowsUse
from ucotron_ray.data.records import Entity, RawRow, Relation
from ucotron_ray.data.wire import format_answer
from ucotron_ray.evaluation import gates
from ucotron_ray.evaluation.compare import ScoredModel, scores_of_rows
from ucotron_ray.evaluation.scoring import summary

SETTINGS = config.load().recipe.promotion
DRAWN = {"resamples": 300, "seed": 3}
ROWS = [
    RawRow(
        text=f"Ann met Bo {number}.",
        entities=[Entity(text="Ann", label="person"), Entity(text=f"Bo {number}", label="person")],
        expected_relations=[Relation(subject="Ann", predicate="met", object=f"Bo {number}")],
    )
    for number in range(100)
]


def model(label: str, wrong: int, *, wrong_answer: str = "[]") -> ScoredModel:
    """A model that is wrong on the first rows."""
    answers = [
        wrong_answer if index < wrong else format_answer(row.expected_relations) for index, row in enumerate(ROWS)
    ]
    return ScoredModel(label, {"overall": summary(scores_of_rows(ROWS, answers))}, answers)


def failed(candidate: ScoredModel, base: ScoredModel, champion: ScoredModel | None) -> dict[str, str]:
    found = gates.gates(ROWS, candidate, base, champion, SETTINGS, **DRAWN)
    return {gate.name: gate.said for gate in found if not gate.passed}


def test_a_better_candidate_passes_every_gate():
    assert failed(model("new", 10), model("base", 60), model("old", 30)) == {}


def test_without_a_champion_only_the_base_has_to_be_beaten():
    assert failed(model("new", 10), model("base", 60), None) == {}
    assert set(failed(model("new", 60), model("base", 60), None)) == {"better than the base"}


def test_a_worse_candidate_is_refused_with_its_numbers():
    refused = failed(model("new", 20), model("base", 60), model("old", 10))
    # F1 of 80 of 80 predicted and 100 expected, against 90 of 90.
    assert set(refused) == {"not worse than the champion"}
    said = refused["not worse than the champion"]
    assert said.startswith("F1 0.889 against 0.947 on 100 rows: -0.058 (-")
    assert "at most 0.005 lost" in said


def test_a_gain_that_could_be_chance_does_not_beat_the_base():
    refused = failed(model("new", 59), model("base", 60), None)
    assert "p of «not better»" in refused["better than the base"]


def test_a_small_loss_that_is_certain_is_refused_and_one_that_is_not_passes():
    many = SETTINGS.model_copy(update={"max_f1_loss": 0.2})
    worse, better = model("new", 20), model("old", 10)
    found = gates.gates(ROWS, worse, model("base", 60), better, many, **DRAWN)
    assert [gate.name for gate in found if not gate.passed] == ["not worse than the champion"]
    # The same answers: no loss at all.
    assert failed(model("new", 11), model("base", 60), model("old", 11)) == {}


@pytest.mark.parametrize(
    ("answer", "gate"),
    [
        ("I do not know", "answers that the server reads"),
        ('[{"subject":"Ann"}]', "answers that keep the schema"),
        (format_answer([Relation(subject="Zed", predicate="met", object="Yan")]), "invented names"),
    ],
)
def test_answers_of_bad_form_and_invented_names_are_refused(answer, gate):
    assert gate in failed(model("new", 5, wrong_answer=answer), model("base", 60), model("old", 10))


def test_held_out_rows_that_were_trained_on_are_noticed_in_any_spelling():
    assert gates.not_trained_on(ROWS, ["Something else."]).passed
    gate = gates.not_trained_on(ROWS, ["ann  met BO 7."])
    assert not gate.passed
    assert gate.said.startswith("1 of 100")


def test_a_claim_on_rows_that_something_was_chosen_by_is_refused_with_what_and_where():
    use = RowsUse(purpose="choice", what="the step", dataset="rows", content="c", file="val.jsonl", rows=64)
    assert gates.chose_nothing(ROWS, [use], {"something else."}).passed
    gate = gates.chose_nothing(ROWS, [use], {"ann met bo 7.", "ann met bo 8."})
    assert not gate.passed
    assert gate.said.startswith("2 of 100 held-out texts are among 2 by which something was chosen")
    assert "the step by val.jsonl of dataset 'rows'" in gate.said
    unknown = gates.chose_nothing(ROWS, [use], None)
    assert not unknown.passed
    assert "the store does not have" in unknown.said
