"""A served model's answers, scored by triples; the guide's keywords beside them."""

import json

import pytest
from aiohttp import web

from tests.teacher import serving
from tests.unit.fireworks.test_account import answering
from tests.vendor import TINY, vending
from ucotron_ray.core.errors import AuthError, FireworksError, NotFoundError, Stopped
from ucotron_ray.data import wire
from ucotron_ray.data.records import Entity, RawRow, Relation
from ucotron_ray.evaluation import endpoint, endpoint_answers
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


def rows_about(count: int) -> list[RawRow]:
    return [ROW.model_copy(update={"text": f"Ada works at Acme. {number}."}) for number in range(count)]


def judged_by_text(verdict) -> tuple[web.Application, list[str]]:
    """A server that answers each text as the verdict says: a status, or None for a right answer."""
    asked: list[str] = []

    async def reply(request: web.Request) -> web.Response:
        text, _ = wire.parse_prompt((await request.json())["messages"][-1]["content"])
        asked.append(text)
        status = verdict(text)
        if status is not None:
            return web.json_response({"error": f"no {text}"}, status=status)
        return web.json_response(completion(wire.format_answer(ROW.expected_relations))[1])

    application = web.Application()
    application.router.add_post("/inference/v1/chat/completions", reply)
    return application, asked


def test_answers_are_kept_and_only_the_lost_ones_are_asked_again(tmp_path):
    rows, questions = rows_about(6), [(number, "chat") for number in range(6)]
    failing, _ = judged_by_text(lambda text: 500 if text.endswith((" 2.", " 4.")) else None)
    with serving(failing) as url, pytest.raises(Stopped, match="2 of 6 questions have no answer"):
        endpoint_answers.answers(at(url), rows, questions, FAST, tmp_path)
    # As a kill leaves it: half a line at the end.
    kept = tmp_path / endpoint_answers.FILE
    kept.write_bytes(kept.read_bytes() + b'{"row": 2, "lay')
    well, asked = judged_by_text(lambda text: None)
    with serving(well) as url:
        found = endpoint_answers.answers(at(url), rows, questions, FAST, tmp_path)
        assert sorted(asked) == [rows[2].text, rows[4].text]
        assert [entry.row for entry in found] == list(range(6))
        assert {(entry.num_tokens, entry.prompt_tokens) for entry in found} == {(3, 7)}
        endpoint_answers.answers(at(url), rows, questions, FAST, tmp_path)
    assert len(asked) == 2
    assert len([json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]) == 6


def test_a_question_that_the_server_refuses_for_good_costs_its_row_alone(tmp_path, caplog):
    rows, questions = rows_about(5), [(number, "chat") for number in range(5)]
    application, asked = judged_by_text(lambda text: 403 if text.endswith(" 1.") else None)
    with serving(application) as url:
        found = endpoint_answers.answers(at(url), rows, questions, FAST, tmp_path)
    assert [entry.answer == "" for entry in found] == [False, True, False, False, False]
    assert len(asked) == 5
    assert "refuses 1 of 5 questions" in caplog.text


def test_a_server_that_refuses_every_question_is_not_asked_all_of_them(tmp_path):
    rows = rows_about(200)
    application, asked = judged_by_text(lambda text: 422)
    questions = [(number, "chat") for number in range(200)]
    with serving(application) as url, pytest.raises(FireworksError, match="refused the first 12 questions"):
        endpoint_answers.answers(at(url), rows, questions, FAST, tmp_path)
    # With those in flight, and those that took the places of the refused ones meanwhile.
    assert len(asked) <= endpoint.MOST_REFUSED + 2 * endpoint.IN_FLIGHT
