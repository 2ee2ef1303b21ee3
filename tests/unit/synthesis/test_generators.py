"""The generators that are not about relations: what they ask, take and refuse, and that what the gate says of them is true."""

import itertools
import json
import random
from collections import Counter

import pytest

from tests.unit.synthesis.test_tasks import play
from ucotron_ray.core import config
from ucotron_ray.data.readers import Entry
from ucotron_ray.data.records import name_key
from ucotron_ray.simulators.fireworks_answers import answer_to
from ucotron_ray.synthesis import aliases, facts, gate
from ucotron_ray.synthesis.plan import Answer, Ask, Done, Task, request_body, request_id
from ucotron_ray.synthesis.tasks import contradiction, entity_resolution, projection
from ucotron_ray.teacher.outcome import OutcomeKind

GENERATION = config.load().recipe.generation
PAIRS = contradiction.make_task(GENERATION)
NAMES = entity_resolution.make_task(GENERATION)
SCENES = projection.make_task(GENERATION)


def answered(task: Task, number: int) -> Done:
    """A sample as the simulator answers it."""
    facts, answers = task.sample(number), []
    step = play(task, facts)
    while isinstance(step, Ask):
        rid = request_id(task, "m", facts, step, answers)
        text = answer_to(request_body("m", step, rid), random.Random(rid)).answer
        answers.append(Answer(OutcomeKind.ANSWER, text))
        step = play(task, facts, *answers)
    return step


@pytest.mark.parametrize("task", [PAIRS, NAMES, SCENES], ids=lambda task: task.name)
def test_rows_of_the_stand_in_pass_the_gate_and_their_typed_model(task):
    done = [(task.sample(number)["split"], answered(task, number)) for number in range(200)]
    rows = [(split, end.row) for split, end in done if end.status == "accepted"]
    assert len(rows) > 190
    entries = [Entry(str(number), split, json.loads(json.dumps(row))) for number, (split, row) in enumerate(rows)]
    looked = list(gate.examine(task.rows, entries, 0.8))
    assert not [entry for entry in looked if set(entry.defects) - {"duplicate"}]
    assert task.sample(7) == task.sample(7)


# ---- contradictions --------------------------------------------------------------------------------------------------

FACTS = {
    **PAIRS.sample(0),
    "label": "contradicts",
    "predicate": "lives_in",
    "subject": "Ana Silva",
    "values": ["Oslo", "Lima"],
    "times": [1_704_067_200, 1_704_067_300],
    "confidences": [0.9, 0.5],
}


def written(one: str, two: str) -> str:
    return json.dumps({"fact_a": one, "fact_b": two})


ONE, TWO = "Ana Silva has lived in Oslo for years.", "In Lima everybody knows Ana Silva, who lives there."


def test_a_pair_is_kept_if_both_sentences_state_their_own_value_and_a_reader_finds_them():
    done = play(PAIRS, FACTS, written(ONE, TWO), json.dumps({"value_a": "Oslo", "value_b": "lima"}))
    assert isinstance(done, Done)
    assert done.status == "accepted"
    assert done.row["fact_a"] == {
        "subject": "Ana Silva",
        "predicate": "lives_in",
        "object": "Oslo",
        "text": ONE,
        "confidence": 0.9,
        "timestamp": 1_704_067_200,
    }
    assert (done.row["label"], done.row["resolution_strategy"]) == ("contradicts", "confidence")
    assert set(done.row["metadata"]) == {"subject_type", "predicate", "value_type"}


@pytest.mark.parametrize(
    ("texts", "defect"),
    [
        ((ONE, "Ana Silva is at home in Oslo."), "same_fact"),
        ((ONE, ONE), "same_fact"),
        ((ONE, "Ana Silva moved from Oslo to Lima."), "same_fact"),
        ((ONE, "Ana Silva lives by the sea."), "unstated"),
        ((ONE, "She lives in Lima."), "unstated"),
        ((ONE, "Ana Silva lives in Limassol."), "unstated"),
    ],
)
def test_sentences_that_do_not_say_what_they_should_are_refused_with_the_name_of_the_defect(texts, defect):
    done = play(PAIRS, FACTS, written(*texts))
    assert isinstance(done, Done)
    assert (done.status, done.notes[-1]) == ("rejected", defect)


def test_a_reader_that_finds_another_value_refuses_the_pair():
    done = play(PAIRS, FACTS, written(ONE, TWO), json.dumps({"value_a": "Oslo", "value_b": None}))
    assert isinstance(done, Done)
    assert done.status == "rejected"


def test_labels_follow_from_the_servers_own_rule_and_have_their_shares():
    assert Counter(facts.label_cycle(42)) == {"supersedes": 7, "contradicts": 6, "ambiguous": 4, "agrees": 3}
    for number in range(2000):
        sample = PAIRS.sample(number)
        one, two = sample["times"]
        low, high = sorted(sample["confidences"])
        gap = round((high - low) * 100)
        assert two >= one
        if sample["label"] == "supersedes":
            assert two - one > 31_557_600
        elif sample["label"] == "contradicts":
            assert two - one <= 31_557_600
            assert gap > 30
        elif sample["label"] == "ambiguous":
            assert two - one <= 31_557_600
            assert gap <= 30
        assert (sample["values"][0] == sample["values"][1]) == (sample["label"] == "agrees")


def test_names_of_a_pair_stand_in_one_split_only():
    found = {"train": set(), "val": set()}
    for number in range(2000):
        sample = PAIRS.sample(number)
        kind = next(p.kind for p in facts.PREDICATES if p.name == sample["predicate"])
        names = [sample["subject"], *(sample["values"] if kind in facts.NAME_KINDS else [])]
        found[sample["split"]] |= set(map(name_key, names))
    assert not found["train"] & found["val"]


def test_the_gate_knows_a_wrong_label_from_times_and_confidences():
    row = answered(PAIRS, 0).row
    kind = contradiction.row_kind()
    assert list(kind.defects(row)) == []
    other = {"supersedes": "ambiguous", "contradicts": "ambiguous", "ambiguous": "supersedes", "agrees": "ambiguous"}
    wrong = {**row, "label": other[row["label"]]}
    assert "wrong_label" in kind.defects(wrong)


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "other", "one"),
    [
        ("Ana Silva", "ANA SILVA", True),
        ("Ana Silva", "Silva", True),
        ("Ana Silva", "A. Silva", True),
        ("Albatross Analytics", "AA", True),
        ("Albatross Analytics", "A.A.", True),
        ("Albatross Analytics", "Albatross Analytics, Inc.", True),
        ("Daniel Costa", "Danny Costa", True),
        ("Malmö", "Malmo", True),
        ("Kowalski", "Kowalsky", True),
        ("Ana Silva", "Ana Souza", False),
        ("Albatross Analytics", "Albatross Industries", False),
        ("Oslo", "New Osburn", False),
        ("Daniel Costa", "Danny Castro", False),
    ],
)
def test_which_names_can_mean_one_entity(name, other, one):
    assert aliases.can_be_one(name, other) == one
    assert aliases.can_be_one(other, name) == one


@pytest.mark.parametrize(
    ("one", "two", "steps"),
    [("abc", "abc", 0), ("abc", "acb", 1), ("abc", "ab", 1), ("abc", "axc", 1), ("abcd", "badc", 2), ("a", "xyz", 3)],
)
def test_keystrokes_between_names(one, two, steps):
    assert aliases.distance(one, two, at_most=5) == steps
    assert aliases.distance(one, two, at_most=2) == steps


def of_variation(variation: str) -> dict:
    return next(s for s in map(NAMES.sample, itertools.count()) if s["variation"] == variation and not s["near"])


@pytest.mark.parametrize(
    ("variation", "good", "bad"),
    [
        ("typo", "Ana Slva", "Ana Gomez"),
        ("abbreviation", "A. Silva", "Anastasia Silva"),
        ("nickname", "Annie Silva", "Bob Gomez"),
        ("partial", "Silva", "Ana Silva"),
        ("formal", "Dr. Ana Silva", "Ana Silva"),
        ("transliteration", "Анна Силва", "Bob Gomez"),
    ],
)
def test_a_variation_must_be_of_the_kind_that_was_asked_for(variation, good, bad):
    sample = {**of_variation(variation), "name": "Ana Silva", "kind": "person"}
    kept, refused = play(NAMES, sample, good), play(NAMES, sample, bad)
    assert isinstance(kept, Done)
    assert isinstance(refused, Done)
    assert kept.row["variant"] == good
    assert kept.row["metadata"] == {"generation_method": "llm_variation"}
    assert refused.status == "rejected"


def test_variations_of_case_are_made_without_asking_and_differ_in_case_alone():
    done = play(NAMES, of_variation("case_variation"))
    assert isinstance(done, Done)
    assert done.row["canonical"] != done.row["variant"]
    assert done.row["canonical"].casefold() == done.row["variant"].casefold()
    assert done.row["metadata"] == {"generation_method": "rule"}


def test_an_alias_is_no_negative_and_the_prompt_lists_the_known_ones():
    sample = {**of_variation("different_entity"), "name": "Ana Silva", "entity_type": "Person"}
    ask = play(NAMES, sample)
    assert isinstance(ask, Ask)
    assert '"A. Silva"' in ask.messages[-1][1]
    for alias in ("A. Silva", "ana silva", "Dr. Ana Silva"):
        done = play(NAMES, sample, alias)
        assert isinstance(done, Done)
        assert (done.status, done.notes) == ("rejected", ("alias_as_negative",))
    assert play(NAMES, sample, "Ana Souza").status == "accepted"


def test_both_classes_have_their_share_of_every_beginning_and_near_names_are_half_of_the_negatives():
    samples = [NAMES.sample(number) for number in range(1000)]
    positive = list(itertools.accumulate(sample["is_duplicate"] for sample in samples))
    assert all(abs(count - 0.6 * (number + 1)) <= 1 for number, count in enumerate(positive))
    kinds = Counter(sample["variation"] for sample in samples)
    assert (
        max(kinds[v] for v in entity_resolution.VARIATIONS) - min(kinds[v] for v in entity_resolution.VARIATIONS) <= 1
    )
    negatives = [sample for sample in samples if not sample["is_duplicate"]]
    near = [sample for sample in negatives if sample["near"]]
    assert 0.2 < len(near) / len(negatives) < 0.6
    for sample in near:
        assert aliases.shared_words(sample["name"], sample["near"])
        assert not aliases.can_be_one(sample["name"], sample["near"])


# ---- descriptions ----------------------------------------------------------------------------------------------------


def test_descriptions_are_asked_by_category_in_turn_and_no_request_is_like_another():
    samples = [SCENES.sample(number) for number in range(500)]
    assert set(Counter(sample["category"] for sample in samples).values()) == {20}
    assert len({str(play(SCENES, sample)) for sample in samples}) == 500


@pytest.mark.parametrize(
    "text",
    ["Here is a description: a fox.", "1. A fox sits in the snow beside a fence, and waits.", "A fox.", "fox " * 80],
)
def test_what_is_no_description_alone_is_refused(text):
    done = play(SCENES, SCENES.sample(0), text)
    assert isinstance(done, Done)
    assert done.status == "rejected"
