"""Scores against figures worked out by hand."""

import pytest

from ucotron_ray.data.records import Entity, RawRow, Relation
from ucotron_ray.data.wire import format_answer, user_prompt
from ucotron_ray.evaluation.guide_prompts import guide_rows
from ucotron_ray.evaluation.scoring import by_group, by_predicate, normalise, score_row, summary
from ucotron_ray.evaluation.stage import sampled


def row(
    *triples: tuple[str, str, str], entities: tuple[str, ...] = ("Ann", "Bo", "Cy"), group: str | None = None
) -> RawRow:
    return RawRow(
        text="Ann, Bo and Cy.",
        entities=[Entity(text=name, label="person") for name in entities],
        expected_relations=[Relation(subject=s, predicate=p, object=o) for s, p, o in triples],
        group=group,
    )


def answer(*triples: tuple[str, str, str]) -> str:
    return format_answer([Relation(subject=s, predicate=p, object=o) for s, p, o in triples])


def test_micro_scores_of_a_small_corpus():
    scores = [
        # one right, one wrong predicate, one repeated
        score_row(
            row(("Ann", "met", "Bo"), ("Bo", "met", "Cy")),
            answer(("Ann", "met", "Bo"), ("Bo", "saw", "Cy"), ("ann", "met", "bo")),
        ),
        # nothing expected, one invented name
        score_row(row(), answer(("Ann", "met", "Zed"))),
        # no array
        score_row(row(("Ann", "met", "Cy")), "I cannot help with that."),
        # nothing expected, nothing said
        score_row(row(), "[]"),
    ]
    result = summary(scores)
    assert result["precision"] == pytest.approx(1 / 3)
    assert result["recall"] == pytest.approx(1 / 3)
    assert result["f1"] == pytest.approx(2 * 1 / (3 + 3))
    assert result["valid_answers"] == 0.75
    assert result["invented_entities"] == pytest.approx(1 / 6)
    assert result["f1_low"] <= result["f1"] <= result["f1_high"]


def test_strict_forgives_spelling_of_case_and_underscores_and_exact_does_not():
    score = score_row(row(("Ann", "works_at", "Bo")), answer(("ANN", "Works At", "“Bo”.")))
    assert (score.right, score.exact_right) == (1, 0)
    assert normalise('  "Dr._Smith"  ') == "dr. smith"
    assert normalise("Acme Inc.") == normalise("‘ACME  Inc’") == "acme inc"
    # The same letter in one code point and in two.
    assert normalise("Jose\u0301") == normalise("José")


def test_names_that_differ_by_a_sign_are_other_names():
    names = ["C", "C++", "C#", ".NET", "$9", "(the band)", "AT&T", "Yahoo!", "A*", "–", "..."]
    assert len({normalise(name) for name in names}) == len(names)
    assert score_row(row(("Ann", "writes", "C++")), answer(("Ann", "writes", "C#"))).right == 0


def test_a_second_spelling_is_a_wrong_triple_for_the_exact_score_alone():
    score = score_row(row(("Ann", "met", "Bo")), answer(("Ann", "met", "Bo"), ("ann", "met", "Bo")))
    both = row(("Ann", "met", "Bo"), ("ann", "met", "Bo"))
    made = summary([score])
    assert (made["f1"], made["exact_f1"]) == (1.0, pytest.approx(2 / 3))
    twice = score_row(both, answer(("Ann", "met", "Bo"), ("ann", "met", "Bo")))
    assert summary([twice])["exact_f1"] == 1.0


def test_direction_counts():
    assert score_row(row(("Ann", "met", "Bo")), answer(("Bo", "met", "Ann"))).right == 0


def test_a_model_that_echoes_the_prompt_scores_nothing():
    rows = guide_rows()
    scores = [score_row(entry, user_prompt(entry.text, entry.entities)) for entry in rows]
    result = summary(scores)
    assert result["f1"] == 0.0


def test_perfect_answers_score_one_and_five_of_them_do_not_prove_it():
    rows = guide_rows()
    scores = [score_row(entry, format_answer(entry.expected_relations)) for entry in rows]
    result = summary(scores)
    assert (result["f1"], result["f1_high"], result["invented_entities"]) == (1.0, 1.0, 0.0)
    # Wilson's lower bound for 5 of 5.
    assert result["f1_low"] == result["valid_answers_low"] == pytest.approx(0.5655, abs=1e-4)


def test_predicates_and_groups_are_scored_apart():
    seen = score_row(row(("Ann", "met", "Bo"), group="seen"), answer(("Ann", "met", "Bo")))
    unseen = score_row(row(("Ann", "saw", "Bo"), group="unseen"), answer(("Ann", "met", "Bo")))
    table = by_predicate([seen, unseen])
    assert (table["met"]["precision"], table["met"]["recall"]) == (0.5, 1.0)
    assert table["saw"]["f1"] == 0.0
    groups = by_group({"seen": [seen], "unseen": [unseen], None: [seen]})
    assert (groups["seen"]["f1"], groups["unseen"]["f1"], len(groups)) == (1.0, 0.0, 2)


def test_guide_rows_name_entities_that_are_in_their_sentences():
    for entry in guide_rows():
        assert all(entry.text[entity.start : entity.end] == entity.text for entity in entry.entities)
        names = {entity.text for entity in entry.entities}
        assert all({r.subject, r.object} <= names for r in entry.expected_relations)


@pytest.mark.parametrize(
    ("sizes", "total", "expected"),
    [
        ([10] * 10, 26, [3] * 6 + [2] * 4),
        ([50, 30, 20], 10, [5, 3, 2]),
        ([1, 1, 98], 3, [0, 0, 3]),
        ([5, 4], 8, [4, 4]),
    ],
)
def test_a_sample_has_as_many_rows_as_are_wanted_and_every_group_its_share(sizes, total, expected):
    rows = [row(group=str(number)) for number, size in enumerate(sizes) for _ in range(size)]
    picked = [entry.group for entry in sampled(rows, total, seed=1)]
    assert [picked.count(str(number)) for number in range(len(sizes))] == expected
