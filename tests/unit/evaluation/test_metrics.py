"""Metrics beyond strict triples, against figures worked out by hand."""

import json

import numpy as np
import pytest

from ucotron_ray.data.records import Entity, RawRow, Relation
from ucotron_ray.data.wire import format_answer
from ucotron_ray.evaluation import bootstrap, intervals
from ucotron_ray.evaluation.calibration import calibration
from ucotron_ray.evaluation.matching import is_whole_array, keeps_schema, relaxed_matches, same_name
from ucotron_ray.evaluation.scoring import counts_of, score_row, summary
from ucotron_ray.evaluation.token_confidence import token_confidence
from ucotron_ray.graph import cooccurrence

DRAWN = {"resamples": 200, "seed": 1}


def row(text: str, names: tuple[str, ...], *triples: tuple[str, str, str]) -> RawRow:
    return RawRow(
        text=text,
        entities=[Entity.located(name, "concept", text) for name in names],
        expected_relations=[Relation(subject=s, predicate=p, object=o) for s, p, o in triples],
    )


def answer(*triples: tuple[str, str, str], confidence: float = 1.0) -> str:
    return format_answer([Relation(subject=s, predicate=p, object=o, confidence=confidence) for s, p, o in triples])


def test_close_names_count_once_each_and_only_with_their_predicate():
    expected = {("ann lee", "met", "bo"), ("ann lee", "saw", "cy")}
    assert relaxed_matches({("ann", "met", "bo smith")}, expected, either_way=False) == 1
    # Both predictions are close to one expected triple: it is found once.
    assert relaxed_matches({("ann", "met", "bo"), ("lee", "met", "bo")}, expected, either_way=False) == 1
    assert relaxed_matches({("ann lee", "knows", "bo")}, expected, either_way=False) == 0
    assert same_name("the new york office", "new york office")
    assert not same_name("ann lee", "bo lee kim sung")


def test_the_matching_is_the_largest_not_the_first_one_found():
    # "a k b c" is close to both expected names and "k" to "a k" alone: who gives "a k" to the first one loses one.
    expected = {("x", "met", "a k"), ("x", "met", "b c")}
    assert relaxed_matches({("x", "met", "a k b c"), ("x", "met", "k")}, expected, either_way=False) == 2


def test_symmetric_predicates_match_in_both_directions_and_others_do_not():
    assert relaxed_matches({("bo", "married to", "ann")}, {("ann", "married to", "bo")}, either_way=True) == 1
    assert relaxed_matches({("bo", "married to", "ann")}, {("ann", "married to", "bo")}, either_way=False) == 0
    assert relaxed_matches({("bo", "child of", "ann")}, {("ann", "child of", "bo")}, either_way=True) == 0


def test_form_tells_what_the_servers_parser_forgives():
    good = answer(("Ann", "met", "Bo"))
    assert (is_whole_array(good), keeps_schema(good)) == (True, True)
    wrapped = f"Sure: {good}"
    assert (is_whole_array(wrapped), keeps_schema(wrapped)) == (False, True)
    for bad in (
        '[{"subject":"a","predicate":"b","object":"c"}]',
        '[{"subject":"a","predicate":"b","object":"c","confidence":2}]',
        '[{"subject":"a","predicate":"b","object":"c","confidence":1,"why":"so"}]',
        '[{"subject":" ","predicate":"b","object":"c","confidence":1}]',
        '["a"]',
        "no",
    ):
        assert not keeps_schema(bad), bad


def test_pairs_predicates_names_and_empty_rows_of_a_small_corpus():
    rows = [
        row("Ann met Bo.", ("Ann", "Bo"), ("Ann", "met", "Bo")),
        row("Cy saw Di.", ("Cy", "Di"), ("Cy", "saw", "Di")),
        row("Ed and Flo.", ("Ed", "Flo")),
        row("Gus, Hal.", ("Gus", "Hal")),
    ]
    answers = [
        answer(("Ann", "met", "Bo")),
        answer(("Cy", "likes", "Di")),
        answer(("Ed", "met", "Zoe")),
        "[]",
    ]
    result = summary([score_row(*pair) for pair in zip(rows, answers, strict=True)])
    assert result["pair_f1"] == pytest.approx(2 * 2 / (3 + 2))
    assert result["predicate_accuracy"] == 0.5
    assert result["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)
    assert (result["empty_rows"], result["false_positives_on_empty"]) == (2.0, 0.5)
    assert result["unknown_predicates"] == pytest.approx(1 / 3)
    assert result["names_not_in_text"] == pytest.approx(1 / 6)
    assert result["json_answers"] == result["schema_answers"] == 1.0


def test_a_name_that_lost_its_space_is_in_the_text_but_was_not_given():
    score = score_row(row("Ann Lee met Bo.", ("Ann Lee", "Bo")), answer(("AnnLee", "met", "Bo")))
    assert (score.invented, score.not_in_text) == (1, 0)


def test_the_floor_of_names_outside_the_text_is_what_a_perfect_answer_has():
    rows = [row("She met Bo.", ("Ann", "Bo"), ("Ann", "met", "Bo"))]
    result = summary([score_row(rows[0], format_answer(rows[0].expected_relations))])
    assert result["names_not_in_text"] == result["expected_names_not_in_text"] == 0.5


def test_the_paired_bootstrap_sees_a_small_steady_gain_that_the_intervals_hide():
    rng = np.random.default_rng(5)
    hardness = rng.integers(0, 5, size=120)
    worse = np.array([(right, 4, 4) for right in np.minimum(hardness, 4)], dtype=float)
    better = worse.copy()
    better[::12, 0] = np.minimum(better[::12, 0] + 1, 4)
    found = bootstrap.paired(better, worse, **DRAWN)
    gained = better[:, 0].sum() - worse[:, 0].sum()
    assert found.difference == pytest.approx(gained / (120 * 4))
    assert found.low > 0
    assert found.p_not_better < 0.05
    low, high = intervals.of_f1(better)
    # Each for itself is far less certain than their difference.
    assert high - low > 3 * (found.high - found.low)


def test_resamples_drawn_in_parts_are_those_drawn_at_once(monkeypatch):
    rng = np.random.default_rng(6)
    one, other = (np.array([(n, 4, 4) for n in rng.integers(0, 5, size=50)], dtype=float) for _ in range(2))
    whole = bootstrap.paired(one, other, **DRAWN)
    monkeypatch.setattr(bootstrap, "DRAWN_AT_ONCE", 130)
    assert bootstrap.paired(one, other, **DRAWN) == whole


def test_a_model_against_itself_differs_by_nothing_and_other_rows_are_refused():
    counts = counts_of([score_row(row("Ann met Bo.", ("Ann", "Bo"), ("Ann", "met", "Bo")), "[]")] * 3)
    same = bootstrap.paired(counts, counts, **DRAWN)
    assert (same.difference, same.low, same.high, same.p_not_better) == (0.0, 0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="same rows"):
        bootstrap.paired(counts, counts[:2], **DRAWN)


def test_a_calibrated_confidence_has_no_error_and_an_overconfident_one_has_its_excess():
    calibrated = [(0.2, index < 20) for index in range(100)] + [(0.9, index < 90) for index in range(100)]
    figures = calibration(calibrated)
    assert figures["ece"] == pytest.approx(0.0, abs=1e-9)
    assert figures["degenerate"]
    assert [entry["triples"] for entry in figures["bins"]] == [100, 100]
    sure = calibration([(1.0, index < 60) for index in range(100)])
    assert sure["ece"] == pytest.approx(0.4)
    assert sure["brier"] == pytest.approx(0.4)
    assert sure["aurc"] == pytest.approx(0.4)
    assert calibration([]) is None


def test_bins_hold_equal_numbers_and_never_part_equal_confidences():
    judged = [(index / 300, index % 3 == 0) for index in range(300)]
    assert [entry["triples"] for entry in calibration(judged)["bins"]] == [20] * 15
    tied = [(0.5, True)] * 40 + [(0.1 + index / 100, False) for index in range(20)]
    figures = calibration(tied)
    assert sum(entry["triples"] for entry in figures["bins"]) == 60
    assert max(entry["triples"] for entry in figures["bins"]) >= 40


def test_aurc_rewards_right_answers_that_are_surer():
    good = calibration([(0.9, True), (0.8, True), (0.2, False), (0.1, False)])
    bad = calibration([(0.1, True), (0.2, True), (0.8, False), (0.9, False)])
    assert good["aurc"] == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert bad["aurc"] > good["aurc"]


def test_sureness_is_the_mean_of_the_names_and_predicates_alone():
    text = '[{"subject":"Ann","predicate":"met","object":"Bo","confidence":1.0}]'
    pieces = ['[{"subject":"', "Ann", '","predicate":"', "met", '","object":"', "Bo", '","confidence":1.0}]']
    logs = [-5.0, np.log(0.5), -5.0, np.log(0.5), -5.0, np.log(0.5), -5.0]
    assert token_confidence(text, pieces, logs) == [pytest.approx(0.5)]
    assert token_confidence("no array", ["no array"], [-1.0]) is None
    # A piece that is not of this answer: nothing can be said.
    assert token_confidence(text, [*pieces, "x"], [*logs, 0.0]) is None


def test_sureness_of_several_relations_keeps_their_order_and_skips_what_the_server_drops():
    items = [
        {"subject": "A", "predicate": "p", "object": "B"},
        {"subject": 1, "predicate": "p", "object": "B"},
        {"subject": "C", "predicate": "p", "object": "D"},
    ]
    text = json.dumps(items)
    logs = [np.log(0.25) if letter in "CD" else 0.0 for letter in text]
    first, second = token_confidence(text, list(text), logs)
    assert first == 1.0
    assert second == pytest.approx(0.25 ** (2 / 3))


def test_cooccurrence_takes_the_first_rule_prefers_a_person_and_falls_with_distance():
    text = "Kite Labs was founded by Ann Lee in Oslo."
    entities = [
        Entity.located("Kite Labs", "organization", text),
        Entity.located("Ann Lee", "person", text),
        Entity.located("Oslo", "location", text),
    ]
    found = {(r.subject, r.object): r for r in cooccurrence.relations(text, entities)}
    founded = found["Ann Lee", "Kite Labs"]
    distance = len(" was founded by ")
    assert founded.predicate == "founded"
    assert founded.confidence == pytest.approx(0.5 * (1 - distance / 200) + 0.3 + 0.2 * 0.9)
    assert found["Ann Lee", "Oslo"].predicate == "located_in"
    confidences = [relation.confidence for relation in cooccurrence.relations(text, entities)]
    assert confidences == sorted(confidences, reverse=True)


def test_cooccurrence_leaves_far_and_overlapping_mentions_alone():
    text = f"Ann {'x' * 201} Bo"
    assert cooccurrence.relations(text, [Entity.located(name, "person", text) for name in ("Ann", "Bo")]) == []
    # Two hundred letters of two bytes are further apart than two hundred of one.
    near = f"Ann {'é' * 150} Bo"
    assert cooccurrence.relations(near, [Entity.located(name, "person", near) for name in ("Ann", "Bo")]) == []
    nested = "TU Berlin"
    assert (
        cooccurrence.relations(nested, [Entity.located(n, "location", nested) for n in ("TU Berlin", "Berlin")]) == []
    )
