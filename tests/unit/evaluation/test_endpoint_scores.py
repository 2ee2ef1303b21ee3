"""A served model's answers, scored by triples; the guide's keywords beside them."""

import pytest

from tests.teacher import serving
from tests.unit.fireworks.test_account import answering
from tests.vendor import TINY, vending
from ucotron_ray.core.errors import AuthError, NotFoundError
from ucotron_ray.data import wire
from ucotron_ray.data.records import Entity, RawRow, Relation
from ucotron_ray.evaluation import endpoint
from ucotron_ray.evaluation.endpoint import Asking
from ucotron_ray.evaluation.guide_prompts import guide_rows
from ucotron_ray.teacher.endpoint import Endpoint

FAST = Asking(retry_delay=0.001)
ROW = RawRow(
    text="Ada works at Acme.",
    entities=[Entity(text="Ada", label="person"), Entity(text="Acme", label="organization")],
    expected_relations=[Relation(subject="Ada", predicate="works_at", object="Acme")],
)


def at(url: str, model: str = TINY) -> Endpoint:
    return Endpoint(f"{url}/inference/v1", model, None, None, ())


def completion(text: str) -> tuple:
    message = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    return 200, {**message, "usage": {"prompt_tokens": 7, "completion_tokens": 3}}, {}


def test_a_right_answer_scores_and_an_echo_of_the_prompt_does_not():
    right, _ = answering(completion(wire.format_answer(ROW.expected_relations)))
    with serving(right) as url:
        good = endpoint.tested(at(url), [ROW], FAST)
    echo, _ = answering(completion(f"{ROW.text} works_at"))
    with serving(echo) as url:
        bad = endpoint.tested(at(url), [ROW], FAST)
    assert (good["summary"]["f1"], good["summary"]["keyword_score"]) == (1.0, 1.0)
    # Every keyword is in it, and not one triple: what the guide's measure cannot tell apart.
    assert (bad["summary"]["f1"], bad["summary"]["keyword_score"]) == (0.0, 1.0)
    assert (good["answers"][0]["prompt_tokens"], good["answers"][0]["completion_tokens"]) == (7, 3)
    compared = endpoint.compare([{**bad, "model": "base"}, {**good, "model": "tuned"}])
    assert (compared["wins"], compared["ties"]) == ({"base": 0, "tuned": 1}, 0)
    assert compared["improvement"] == {"tuned": 1.0}
    report = endpoint.report(compared)
    assert "Winner: tuned" in report
    assert "tuned: 1/1 triples, F1 1.00, 3/3 keywords" in report
    assert "improvement of tuned: +1.000 F1" in report


def test_an_answer_that_cannot_be_read_never_wins():
    """A row without relations: garbage is not the empty answer."""
    empty = ROW.model_copy(update={"expected_relations": []})
    application, _ = answering(completion("I do not know"))
    with serving(application) as url:
        assert endpoint.tested(at(url), [empty], FAST)["answers"][0]["f1"] == 0.0


def test_what_passes_is_repeated_and_what_does_not_is_noted():
    application, asked = answering((503, {}, {}), (429, {}, {"Retry-After": "0"}), completion("[]"))
    with serving(application) as url:
        assert endpoint.tested(at(url), [ROW], FAST)["answers"][0]["error"] is None
    assert len(asked) == 3
    application, asked = answering((400, {"error": "too long"}, {}))
    with serving(application) as url:
        tested = endpoint.tested(at(url), [ROW], FAST)
    assert len(asked) == 1
    assert "too long" in tested["answers"][0]["error"]
    assert "ERROR" in endpoint.report(endpoint.compare([tested]))


@pytest.mark.parametrize(("status", "kind"), [(401, AuthError), (404, NotFoundError)])
def test_what_no_other_request_would_change_stops_at_once(status, kind):
    application, asked = answering((status, {}, {}))
    with serving(application) as url, pytest.raises(kind):
        endpoint.replies(at(url), [[{"role": "user", "content": "Hi"}]], FAST)
    assert len(asked) == 1


def test_the_five_prompts_are_the_servers_and_the_stand_ins_base_model_needs_tuning(monkeypatch):
    messages = [endpoint.question(row, FAST) for row in guide_rows()]
    assert [wire.parse_prompt(turns[1]["content"])[0] for turns in messages] == [row.text for row in guide_rows()]
    other = endpoint.question(ROW, Asking(system_prompt="mine"))
    assert other[0]["content"] == "mine"
    row = RawRow(text="Ada works at Acme.", entities=ROW.entities, expected_relations=ROW.expected_relations)
    with vending(monkeypatch) as vendor:
        served = Endpoint(f"{vendor.url}/inference/v1", TINY, "FIREWORKS_API_KEY", None, ())
        base = endpoint.tested(
            served, [row.model_copy(update={"text": f"Ada works at Acme. {n}"}) for n in range(20)], FAST
        )
    assert base["summary"]["valid_answers"] < 0.9
