"""The HTTP side over scripted answers: OpenAI's shapes, limits, the queue, the deadline, the key, figures, draining."""

import asyncio
import json
from dataclasses import replace

import httpx
import pytest

from tests.serving_fakes import SERVED, Scripted, last_piece
from ucotron_ray.data.records import Entity
from ucotron_ray.data.wire import parse_answer, server_request_body
from ucotron_ray.serving.app import Front, Limits, digest_of
from ucotron_ray.serving.exchange import Piece, Refusal
from ucotron_ray.serving.gate import Gate

LIMITS = {"slots": 1, "queue": 1, "deadline": 20.0, "max_body_bytes": 4000, "max_tokens": 512}
BODY = server_request_body("any-id", "Ana works at Acme.", [Entity(text="Ana", label="person")])
ANSWER = '[{"subject":"Ana","predicate":"works_at","object":"Acme","confidence":0.9}]'


async def says(question):
    yield last_piece(ANSWER)


async def streams(question):
    for text in ("[{", '"a"', ":1"):
        yield Piece(text, SERVED)
    yield last_piece("}]")


def run(front, conversation):
    """Run an async conversation with a client of the app."""

    async def with_client():
        transport = httpx.ASGITransport(front.app(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await conversation(client)

    return asyncio.run(with_client())


def front(script=says, **limits):
    return Front(Scripted(script), Limits(**{**LIMITS, **limits}))


def post(body, **options):
    return lambda client: client.post("/v1/chat/completions", json=body, **options)


def test_the_servers_own_body_gets_what_its_parser_takes():
    reply = run(front(), post(BODY))
    assert reply.status_code == 200
    relations = parse_answer(reply.json()["choices"][0]["message"]["content"])
    assert [relation.predicate for relation in relations] == ["works_at"]
    assert reply.json()["choices"][0]["finish_reason"] == "stop"
    assert reply.json()["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert reply.json()["model"] == "scripted"


def test_what_is_asked_reaches_the_model():
    asked = []

    async def script(question):
        asked.append(question)
        yield last_piece("[]")

    parts = [{"type": "text", "text": "Hola "}, {"type": "text", "text": "Ana"}]
    messages = [{"role": "developer", "content": "S"}, {"role": "user", "content": parts}]
    run(front(script), post({"model": "m", "messages": messages, "max_completion_tokens": 9, "stop": "x"}))
    run(front(script), post({"model": "m", "messages": messages}))
    assert [(turn.role, turn.content) for turn in asked[0].turns] == [("system", "S"), ("user", "Hola Ana")]
    assert (asked[0].max_tokens, asked[0].stop) == (9, ("x",))
    assert asked[1].max_tokens == LIMITS["max_tokens"]


def test_a_stream_has_openais_events_and_the_counts_if_they_are_wanted():
    reply = run(front(streams), post({**BODY, "stream": True, "stream_options": {"include_usage": True}}))
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]
    assert "".join(deltas) == '[{"a":1}]'
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] == 10
    without = run(front(streams), post({**BODY, "stream": True}))
    assert '"usage"' not in without.text


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": 513}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"temperature": 3}, "temperature"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ],
)
def test_a_request_that_cannot_be_answered_is_400_with_the_key_that_is_wrong(change, param):
    reply = run(front(), post({**BODY, **change}))
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert "retry-after" not in reply.headers


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"model": "m"}', b"[" * 3000])
def test_a_body_that_is_no_request_is_400(content):
    reply = run(front(), lambda client: client.post("/v1/chat/completions", content=content))
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_400_also_without_its_length(declared):
    read = 0

    async def chunks():
        nonlocal read
        for _ in range(10):
            read += 1000
            yield b"x" * 1000

    content = b"x" * 4001 if declared else chunks()
    reply = run(front(), lambda client: client.post("/v1/chat/completions", content=content))
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "too_large")


def test_the_key_is_asked_for_and_never_shown():
    locked = front(key_digest=digest_of("s3cret"))

    async def conversation(client):
        replies = []
        for header in (None, "s3cret", "Bearer wrong", "Basic s3cret", "Bearer s3cret", "bearer s3cret"):
            headers = {"Authorization": header} if header else {}
            for reply in (
                await client.post("/v1/chat/completions", json=BODY, headers=headers),
                await client.get("/v1/models", headers=headers),
            ):
                assert "s3cret" not in reply.text
                replies.append(reply.status_code)
        assert (await client.get("/healthz")).status_code == 200
        return replies

    assert run(locked, conversation) == [401] * 8 + [200] * 4
    assert "s3cret" not in repr(locked._limits)


def test_the_queue_is_bounded_and_a_place_comes_free_when_an_answer_ends():
    go = asyncio.Event()

    async def waits(question):
        await go.wait()
        yield last_piece("[]")

    async def conversation(client):
        asked = [asyncio.create_task(client.post("/v1/chat/completions", json=BODY)) for _ in range(5)]
        refused = [task for task in asked if await _done_or_waiting(task)]
        first = [await task for task in refused]
        go.set()
        rest = [await task for task in asked if task not in refused]
        after = await client.post("/v1/chat/completions", json=BODY)
        return first, rest, after

    refused, answered, after = run(front(waits), conversation)
    assert [reply.status_code for reply in refused] == [429] * 3
    assert [reply.status_code for reply in answered] == [200] * 2
    assert after.status_code == 200
    for reply in refused:
        assert 1 <= int(reply.headers["retry-after"]) <= 10
        assert reply.json()["error"] == {**reply.json()["error"], "type": "rate_limit_error", "code": "queue_full"}


async def _done_or_waiting(task):
    """Whether a task is over once everything that can run has run."""
    for _ in range(50):
        await asyncio.sleep(0)
    return task.done()


def test_the_deadline_is_503_with_retry_after_and_the_asker_is_told_to_stop():
    async def never(question):
        await asyncio.Event().wait()
        yield last_piece("[]")

    scripted = Scripted(never)
    late = Front(scripted, Limits(**{**LIMITS, "deadline": 0.05}))
    for body in (BODY, {**BODY, "stream": True}):
        reply = run(late, post(body))
        assert (reply.status_code, reply.json()["error"]["code"]) == (503, "deadline")
        assert int(reply.headers["retry-after"]) >= 1
    assert scripted.closed == 2
    assert late.gate.inside == 0


def test_a_stream_that_breaks_says_so_in_an_event():
    async def breaks(question):
        yield Piece("[", SERVED)
        raise Refusal(503, "the replica was lost", code="replica_lost", retry_after=1.0)

    broken = front(breaks)
    reply = run(broken, post({**BODY, "stream": True}))
    assert reply.status_code == 200
    last = json.loads([line for line in reply.text.split("\n\n") if line][-1].removeprefix("data: "))
    assert last["error"]["code"] == "replica_lost"
    assert "[DONE]" not in reply.text
    assert broken.gate.inside == 0


def test_a_lost_replica_is_503_that_a_client_may_try_again():
    async def lost(question):
        raise Refusal(503, "the replica was lost", code="replica_lost", retry_after=1.0)
        yield

    for body in (BODY, {**BODY, "stream": True}):
        reply = run(front(lost), post(body))
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert reply.json()["error"]["type"] == "server_error"


def test_an_error_of_ours_is_500_in_the_same_shape_and_frees_the_place():
    async def bug(question):
        raise ZeroDivisionError("secret detail")
        yield

    buggy = front(bug)
    for body in (BODY, {**BODY, "stream": True}):
        reply = run(buggy, post(body))
        assert reply.status_code == 500
        assert reply.json()["error"]["code"] == "internal_error"
        assert "secret detail" not in reply.text
    assert buggy.gate.inside == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("events", [0, 1, 3])
def test_a_client_that_goes_frees_its_place_and_stops_the_answer(stream, events):
    """Whether it goes before the first event, or after some of them."""

    async def endless(question):
        while True:
            yield Piece("x", SERVED)
            await asyncio.sleep(0)

    scripted = Scripted(endless)
    left = Front(scripted, Limits(**LIMITS))
    sent, gone = [], asyncio.Event()

    async def conversation():
        messages = [{"type": "http.request", "body": json.dumps({**BODY, "stream": stream}).encode()}]

        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            if len(sent) > events:
                gone.set()
                await asyncio.sleep(0)

        path = "/v1/chat/completions"
        scope = {"type": "http", "method": "POST", "path": path, "headers": [], "query_string": b""}
        asking = asyncio.create_task(left.app()({**scope, "asgi": {"spec_version": "2.3"}}, receive, send))
        if not stream:
            # Ray Serve cancels the call of a client that is gone.
            await _done_or_waiting(asking)
            asking.cancel()
        await asyncio.wait([asking])
        # By then, and not by some later sweep of what nobody holds any more.
        assert scripted.closed == 1

    asyncio.run(asyncio.wait_for(conversation(), 30))
    assert left.gate.inside == 0
    assert 'ucotron_serving_requests_total{outcome="client_gone"} 1.0' in left.metrics.text().decode()


def test_draining_answers_who_is_inside_and_refuses_who_comes():
    go = asyncio.Event()

    async def waits(question):
        await go.wait()
        yield last_piece("[]")

    async def conversation(client):
        inside = asyncio.create_task(client.post("/v1/chat/completions", json=BODY))
        await _done_or_waiting(inside)
        drained = asyncio.create_task(stopping.drain(20.0))
        await _done_or_waiting(drained)
        assert not drained.done()
        refused = await client.post("/v1/chat/completions", json=BODY)
        health = await client.get("/healthz")
        go.set()
        return refused, health, await inside, await drained

    stopping = front(waits)
    refused, health, inside, left = run(stopping, conversation)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert "retry-after" in refused.headers
    assert health.status_code == 503
    assert (inside.status_code, left) == (200, 0)


def test_models_health_and_unknown_addresses():
    async def conversation(client):
        return [
            await client.get("/v1/models"),
            await client.get("/healthz"),
            await client.get("/v1/nothing"),
            await client.get("/v1/chat/completions"),
        ]

    models, health, unknown, wrong_method = run(front(), conversation)
    assert [entry["id"] for entry in models.json()["data"]] == ["scripted"]
    assert health.json() == {"status": "ok", "model": "scripted", "content": "c0ffee"}
    assert unknown.status_code == 404
    assert wrong_method.status_code == 405
    assert unknown.json()["error"]["code"] == "unknown_url"


def test_metrics_count_every_request_once_by_its_end():
    served = front()

    async def conversation(client):
        await client.post("/v1/chat/completions", json=BODY)
        await client.post("/v1/chat/completions", json={**BODY, "stream": True})
        await client.post("/v1/chat/completions", json={**BODY, "max_tokens": 0})
        return (await client.get("/metrics")).text

    lines = run(served, conversation).splitlines()
    assert 'ucotron_serving_requests_total{outcome="ok"} 2.0' in lines
    assert 'ucotron_serving_requests_total{outcome="invalid_value"} 1.0' in lines
    assert 'ucotron_serving_tokens_total{kind="completion"} 6.0' in lines
    assert 'ucotron_serving_answers_total{decoding="free",parsed="true"} 2.0' in lines
    assert "ucotron_serving_request_seconds_count 2.0" in lines
    assert "ucotron_serving_inside 0.0" in lines
    assert "ucotron_serving_capacity 2.0" in lines
    assert 'ucotron_serving_model{model="scripted"} 1.0' in lines


def test_the_gate_counts_what_a_replica_took_and_not_the_wait_on_the_way_to_it():
    async def runs_for_3_seconds(question):
        last = last_piece("[]")
        yield replace(last, usage=replace(last.usage, running_seconds=3.0))

    served = front(runs_for_3_seconds)
    assert run(served, post(BODY)).status_code == 200
    assert served.gate.mean_seconds == 3.0


def test_the_gate_refuses_what_could_not_be_answered_in_time_but_never_an_idle_service():
    gate = Gate(slots=2, queue=100, deadline=25.0)
    gate.measured(10.0)
    entered = 0
    with pytest.raises(Refusal) as refused:
        for _ in range(100):
            gate.enter()
            entered += 1
    # Two run for 10 s, and each further one waits 5 s for a place: the fourth ahead would make it 30 s.
    assert entered == 5
    assert (refused.value.status, refused.value.code) == (429, "queue_too_slow")
    idle = Gate(slots=1, queue=1, deadline=25.0)
    idle.measured(60.0)
    idle.enter()
