"""What OpenAI-compatible servers do that the specification does not say: read, found out, or said in the right words."""

import asyncio
import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate

import pytest
from aiohttp import web

from tests.teacher import serving
from ucotron_ray.core import config
from ucotron_ray.core.errors import ConfigError, InputError
from ucotron_ray.synthesis.contents import found as marks_found
from ucotron_ray.teacher.chat import client_timeout
from ucotron_ray.teacher.check import check
from ucotron_ray.teacher.client import Client
from ucotron_ray.teacher.endpoint import Endpoint, endpoint_of
from ucotron_ray.teacher.outcome import OutcomeKind, RequestOutcome
from ucotron_ray.teacher.thinking import ALL_THOUGHT, without_thinking

ANSWER = "Ana Silva lives in Lyon."
BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "Write."}],
    "temperature": 0.7,
    "max_tokens": 64,
    "seed": 7,
    "top_p": 0.9,
    "response_format": {"type": "json_object"},
    "context_length_exceeded_behavior": "error",
}


def completion(content: object, finish: str | None = "stop", usage: dict | None = None, **message) -> dict:
    made = {"choices": [{"index": 0, "message": {"role": "assistant", "content": content, **message}}]}
    made["choices"][0]["finish_reason"] = finish
    return {**made, "usage": usage or {"prompt_tokens": 50, "completion_tokens": 40, "total_tokens": 90}}


def event(text: object, finish: str | None = None, **delta) -> str:
    chunk = {"choices": [{"index": 0, "delta": {"content": text, **delta}, "finish_reason": finish}]}
    return f"data: {json.dumps(chunk)}"


@dataclass
class Server:
    """A server with one habit: what it says to a request, and the bodies that it was sent."""

    url: str
    bodies: list[dict] = field(default_factory=list)
    requests: list[web.Request] = field(default_factory=list)

    def endpoint(self, **settings: object) -> Endpoint:
        overrides = [("api.inference_base_url", self.url), *((f"api.{key}", value) for key, value in settings.items())]
        return endpoint_of(config.load(overrides=overrides).place.api, "m")


Habit = Callable[[dict, int], object]
"""Body, number of the request → JSON of a 200, or (status, JSON or text), or a response."""


@contextmanager
def habitual(habit: Habit, *, path: str = "/v1", models: object = None):
    server = Server("")

    async def chat(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        server.bodies.append(body)
        server.requests.append(request)
        said = habit(body, len(server.bodies))
        if isinstance(said, web.Response):
            return said
        status, value = said if isinstance(said, tuple) else (200, said)
        if isinstance(value, str):
            return web.Response(text=value, status=status, content_type="text/event-stream")
        return web.json_response(value, status=status)

    async def listed(request: web.Request) -> web.Response:
        server.requests.append(request)
        return web.json_response(models if models is not None else {"data": [{"id": "m"}]})

    application = web.Application()
    application.router.add_post(f"{path}/chat/completions", chat)
    if models is not False:
        application.router.add_get(f"{path}/models", listed)
    with serving(application) as url:
        server.url = url + path
        yield server


def asked(endpoint: Endpoint, times: int = 1, body: dict = BODY, **more) -> list[RequestOutcome]:
    """One process that asks several times."""

    async def run() -> list[RequestOutcome]:
        client = Client(endpoint, **more)
        await client.open(client_timeout(connect=5, read=5, total=5))
        try:
            return [await client.ask(body) for _ in range(times)]
        finally:
            await client.close()

    return asyncio.run(run())


def said_by(habit: Habit) -> RequestOutcome:
    with habitual(habit) as server:
        (outcome,) = asked(server.endpoint(dialect="fireworks"))
        return outcome


# ---- what is thought aloud -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "more"),
    [
        (f"<think>\nShort. Or {{}}?\n</think>\n\n{ANSWER}", {}),
        (f"The user wants it short.\n</think>\n\n{ANSWER}", {}),
        (f"<THINK>a <think> b </think> c</think>{ANSWER}", {}),
        (f"Let me see. <think>a</think> b </think>{ANSWER}", {}),
        (f"[THINK]hm[/THINK]{ANSWER}", {}),
        (f"<thinking>hm</thinking>\n{ANSWER}", {}),
        (f"<seed:think>hm</seed:think>{ANSWER}", {}),
        (f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}<|return|>", {}),
        (f"analysisWe need one.assistantfinal{ANSWER}", {}),
        (f"<|channel>thought\nhm<channel|>{ANSWER}", {}),
        (ANSWER, {"reasoning_content": "I think"}),
        (ANSWER, {"reasoning": "I think"}),
        ([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": ANSWER}], {}),
    ],
)
def test_what_is_thought_is_cut_off_and_counted(content, more):
    outcome = said_by(lambda *_: completion(content, **more))
    assert (outcome.kind, outcome.text) == (OutcomeKind.ANSWER, ANSWER)
    assert 0 < outcome.usage.hidden <= outcome.usage.completion == 40


@pytest.mark.parametrize("text", [ANSWER, "  two lines\n", "analysis of the final", "x < think > y", "the think tank"])
def test_a_text_without_marks_is_left_as_it_is(text):
    assert without_thinking(text) == (text, "")


@pytest.mark.parametrize(
    ("content", "finish", "kind", "detail"),
    [
        (None, "length", OutcomeKind.TRUNCATED, ALL_THOUGHT),
        ("<think>and so on", "length", OutcomeKind.TRUNCATED, ALL_THOUGHT),
        ("<|channel|>analysis<|message|>and so on", "length", OutcomeKind.TRUNCATED, ALL_THOUGHT),
        ("<think>and so on", "stop", OutcomeKind.REFUSED, "thought, and said nothing"),
        ("[THINK]and so on", "stop", OutcomeKind.REFUSED, "thought, and said nothing"),
    ],
)
def test_thinking_that_does_not_end_is_no_answer(content, finish, kind, detail):
    outcome = said_by(lambda *_: completion(content, finish, reasoning_content="" if content else "I think"))
    assert (outcome.kind, outcome.text) == (kind, "")
    assert detail in outcome.detail


def test_a_sample_says_where_its_tokens_went():
    from ucotron_ray.synthesis.conversation import whole
    from ucotron_ray.synthesis.plan import Answer, Ask, Ended

    talk = whole(Ask("write", (("user", "Write."),), 0.7, 64), cap=64)
    next(talk)
    with pytest.raises(Ended) as ended:
        talk.send(Answer(OutcomeKind.TRUNCATED, ALL_THOUGHT))
    assert "api.hidden_tokens" in ended.value.done.reason


@pytest.mark.parametrize(
    "mark", ["<think>", "</think>", "</THINKING>", "[THINK]", "<|channel|>", "<channel|>", "◁think▷"]
)
def test_the_gate_knows_the_marks(mark):
    assert marks_found([f"{mark} {ANSWER}"]) == ["special_token"]


def test_room_for_reasoning_is_learned_and_shared_by_the_processes_of_a_run(tmp_path):
    def thinks(body: dict, _: int) -> dict:
        usage = {"prompt_tokens": 5, "completion_tokens": 460, "completion_tokens_details": {"reasoning_tokens": 400}}
        return completion(None, "length") if body["max_tokens"] < 464 else completion(ANSWER, usage=usage)

    file = tmp_path / "server.json"
    with habitual(thinks) as server:
        asked(server.endpoint(), body={**BODY, "max_tokens": 464}, file=file)
        assert Client(server.endpoint(), file).room == 1024, "twice of what was seen, in steps of 256"
        assert Client(server.endpoint(hidden_tokens=300), file).room == 300, "what the place says is not changed"


@pytest.mark.parametrize(
    ("usage", "completion_tokens", "hidden"),
    [
        # OpenAI: inside of the completion; xAI: beside it.
        (
            {"completion_tokens": 120, "total_tokens": 130, "completion_tokens_details": {"reasoning_tokens": 90}},
            120,
            90,
        ),
        ({"completion_tokens": 9, "total_tokens": 109, "completion_tokens_details": {"reasoning_tokens": 90}}, 99, 90),
        ({"completion_tokens": 9, "total_tokens": 19, "completion_tokens_details": None}, 9, 0),
    ],
)
def test_tokens_of_reasoning_are_paid_once(usage, completion_tokens, hidden):
    outcome = said_by(lambda *_: completion(ANSWER, usage={"prompt_tokens": 10, **usage}))
    assert (outcome.usage.completion, outcome.usage.hidden) == (completion_tokens, hidden)


# ---- keys ------------------------------------------------------------------------------------------------------------


def unsupported(key: str, message: str) -> tuple[int, dict]:
    return 400, {"error": {"message": message, "type": "invalid_request_error", "param": key, "code": "unsupported"}}


def newer(body: dict, _: int) -> object:
    """A reasoning model of OpenAI's."""
    if "context_length_exceeded_behavior" in body:
        return unsupported("", "Unrecognized request argument supplied: context_length_exceeded_behavior")
    if "max_tokens" in body:
        words = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'."
        return unsupported("max_tokens", words)
    for key, only in (("temperature", 1), ("top_p", 1)):
        if body.get(key, only) != only:
            return unsupported(key, f"Unsupported value: '{key}' does not support {body[key]} with this model.")
    return completion(ANSWER)


def wordless(body: dict, _: int) -> object:
    """Says nothing of the key."""
    return (422, {"error": "Unprocessable"}) if "max_tokens" in body else completion(ANSWER)


def pedantic(body: dict, _: int) -> object:
    """pydantic with `extra: forbid`."""
    extra = sorted(body.keys() - {"model", "messages", "max_completion_tokens", "temperature"})
    detail = [{"loc": ["body", key], "msg": "Extra inputs are not permitted"} for key in extra[:1]]
    return (422, {"detail": detail}) if extra else completion(ANSWER)


@pytest.mark.parametrize(
    ("habit", "gone", "tries"),
    [
        (newer, {"context_length_exceeded_behavior", "max_tokens", "temperature", "top_p"}, 5),
        (wordless, {"max_tokens"}, 6),
        (pedantic, {"context_length_exceeded_behavior", "max_tokens", "response_format", "seed", "top_p"}, 6),
    ],
)
def test_keys_that_a_server_refuses_are_found_out_once(tmp_path, habit, gone, tries):
    with habitual(habit) as server:
        outcomes = asked(server.endpoint(), 3, file=tmp_path / "server.json")
        assert [outcome.kind for outcome in outcomes] == [OutcomeKind.ANSWER] * 3
        assert len(server.bodies) == tries + 2
        assert BODY.keys() - server.bodies[-1].keys() == gone
        assert server.bodies[-1]["max_completion_tokens"] == 64
        # Another process of the run does not find it out again.
        asked(server.endpoint(), file=tmp_path / "server.json")
        assert len(server.bodies) == tries + 3


def test_the_dialect_of_newer_models_needs_no_finding_out():
    with habitual(newer) as server:
        assert asked(server.endpoint(dialect="openai-reasoning"))[0].kind is OutcomeKind.ANSWER
        assert len(server.bodies) == 1


def test_a_prompt_that_is_refused_is_not_asked_in_other_ways_once_the_keys_are_known():
    words = "This model's maximum context length is 4096 tokens: reduce max_tokens or the messages."

    def refuses(_: dict, number: int) -> object:
        return completion(ANSWER) if number == 1 else (400, {"error": {"message": words}})

    with habitual(refuses) as server:
        outcomes = asked(server.endpoint(), 2)
        assert [outcome.kind for outcome in outcomes] == [OutcomeKind.ANSWER, OutcomeKind.POISON]
        assert len(server.bodies) == 2


def test_what_the_place_adds_is_sent_and_counts_for_what_was_asked():
    from ucotron_ray.synthesis.plan import Ask, Task, request_body, request_id

    thinking_off = {"chat_template_kwargs": {"enable_thinking": False}}
    with habitual(lambda *_: completion(ANSWER)) as server:
        endpoint = server.endpoint(extra_body=thinking_off, reasoning_effort="low")
    assert endpoint.extra_body == {**thinking_off, "reasoning_effort": "low"}
    ask = Ask("write", (("user", "Write."),), 0.7, 64)
    task = Task("t", 1, lambda _: {}, None, None)
    assert request_body("m", ask, "7", endpoint.extra_body)["reasoning_effort"] == "low"
    ids = {request_id(task, "m", {}, ask, [], extra) for extra in (None, {}, endpoint.extra_body, thinking_off)}
    assert len(ids) == 3, "what adds nothing changes nothing"


@pytest.mark.parametrize("key", ["messages", "model", "stream", "max_tokens", "reasoning_effort"])
def test_keys_that_something_else_sets_are_refused(key):
    with pytest.raises(ConfigError, match=r"api\.extra_body") as caught:
        config.load(overrides=[("api.extra_body", {key: "sk-canary4711"})])
    assert "canary" not in str(caught.value)
    assert f"`{key}`" in str(caught.value)


# ---- errors in a 200, streams ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind", "maybe_billed"),
    [
        ({"error": {"message": "Insufficient credits for this key", "code": 402}}, OutcomeKind.BILLING, False),
        (
            {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}},
            OutcomeKind.BILLING,
            False,
        ),
        ({"choices": None, "error": {"message": "Too Many Requests", "code": 429}}, OutcomeKind.RATE_LIMITED, False),
        ({"error": {"message": "Rate limit reached for requests"}}, OutcomeKind.RATE_LIMITED, False),
        ({"error": "model is loading"}, OutcomeKind.OVERLOADED, False),
        ({"error": {"message": "upstream error", "code": "502"}}, OutcomeKind.TRANSIENT, True),
        ({"error": {"message": "Input flagged", "code": 403}}, OutcomeKind.REJECTED, False),
        ({"object": "error", "message": "context length exceeded", "code": 400}, OutcomeKind.POISON, False),
        (
            {"choices": [{"error": {"code": 429, "message": "busy"}, "message": {"content": ""}}]},
            OutcomeKind.RATE_LIMITED,
            False,
        ),
        (completion("half an ans", "error"), OutcomeKind.TRANSIENT, True),
        (
            event("Ana") + '\n\ndata: {"error": {"message": "Rate limit exceeded", "code": 429}}\n\n',
            OutcomeKind.RATE_LIMITED,
            False,
        ),
        ('data: {"error": {"message": "Insufficient credits"}}\n\ndata: [DONE]\n\n', OutcomeKind.BILLING, False),
        ('{"error": {"message": "Insufficient balance", "code": 402}}', OutcomeKind.BILLING, False),
    ],
)
def test_an_error_in_a_200_is_read(value, kind, maybe_billed):
    outcome = said_by(lambda *_: value)
    assert (outcome.kind, outcome.maybe_billed, outcome.text) == (kind, maybe_billed, "")


def test_a_page_that_is_not_found_names_no_model():
    assert said_by(lambda *_: (404, "<html>nginx 404</html>")).kind is OutcomeKind.REJECTED
    assert said_by(lambda *_: (404, {"error": "no m here"})).kind is OutcomeKind.MODEL_MISSING


def test_an_answer_beside_an_empty_error_is_an_answer():
    assert said_by(lambda *_: {**completion(ANSWER), "error": None}).text == ANSWER
    assert said_by(lambda *_: {**completion(ANSWER), "error": {}}).text == ANSWER


@pytest.mark.parametrize(
    "lines",
    [
        [event(ANSWER[:10]), event(ANSWER[10:]), "data: [DONE]"],
        [
            ": PROCESSING",
            'event: ping\ndata: {"type": "ping"}',
            event(ANSWER[:10]),
            ": ping",
            event(ANSWER[10:], "stop"),
        ],
        [event([{"type": "text", "text": ANSWER}], "stop"), "data: [DONE]"],
        [event(None, reasoning_content="hm"), event("<think>hm</th"), event(f"ink>{ANSWER}", "stop"), "data: [DONE]"],
        [event("", role="assistant"), event(ANSWER, "stop"), 'data: {"choices": [], "usage": null}', "data: [DONE]"],
    ],
)
@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n"])
def test_streams_of_all_kinds_are_joined(lines, end):
    stream = "".join(line.replace("\n", end[: len(end) // 2]) + end for line in lines)
    outcome = said_by(lambda *_: stream)
    assert (outcome.kind, outcome.text, outcome.finish) == (OutcomeKind.ANSWER, ANSWER, "stop")


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "Ana Silva "}, {"type": "text", "text": "lives in Lyon."}],
        [{"text": ANSWER}],
        [{"type": "reasoning", "text": "hm"}, {"type": "output_text", "text": ANSWER}],
    ],
)
def test_content_in_parts_is_read(content):
    assert said_by(lambda *_: completion(content)).text == ANSWER


def test_a_refusal_among_the_parts_is_one():
    outcome = said_by(lambda *_: completion([{"type": "refusal", "refusal": "I will not"}]))
    assert (outcome.kind, outcome.detail) == (OutcomeKind.REFUSED, "I will not")


def packed(value: object) -> web.Response:
    response = web.json_response(value)
    response.enable_compression(web.ContentCoding.gzip)
    return response


@pytest.mark.parametrize(
    "value",
    [
        packed,
        lambda value: web.Response(body=b"\xef\xbb\xbf" + json.dumps(value).encode(), content_type="application/json"),
        lambda value: web.Response(text="\n \n" + json.dumps(value), content_type="text/plain"),
        lambda value: {key: part for key, part in value.items() if key != "usage"},
    ],
    ids=["gzip", "bom", "white space for pings", "no usage"],
)
def test_what_worked_before_works(value):
    assert said_by(lambda *_: value(completion(ANSWER))).text == ANSWER


def test_a_wait_is_counted_by_the_servers_clock():
    headers = {"Retry-After": formatdate(5_000_002, usegmt=True), "Date": formatdate(5_000_000, usegmt=True)}
    outcome = said_by(lambda *_: web.Response(status=429, text="slow down", headers=headers))
    assert (outcome.kind, outcome.retry_after) == (OutcomeKind.RATE_LIMITED, 2.0)


# ---- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1", "/api/v1", "/inference/v1"])
def test_an_address_without_its_path_is_told_the_right_one(path):
    with habitual(lambda *_: completion(ANSWER), path=path) as server:
        meant = server.url
        server.url = meant.removesuffix(path)
        with pytest.raises(InputError, match="did you mean") as caught:
            check(server.endpoint())
        assert f"did you mean {meant} ?" in str(caught.value)
        assert caught.value.exit_code == 2
        assert not server.bodies


def test_an_address_of_something_else_is_refused():
    with habitual(lambda *_: (404, "<html>"), models=False) as server, pytest.raises(InputError, match="no OpenAI"):
        check(server.endpoint())


def test_a_server_that_sends_us_elsewhere_is_not_followed_and_says_where():
    elsewhere = web.Response(status=308, headers={"Location": "https://there.example/v1/models?signature=canary"})
    application = web.Application()

    async def moved(_: web.Request) -> web.Response:
        return elsewhere

    application.router.add_get("/v1/models", moved)
    with serving(application) as url, pytest.raises(InputError, match="elsewhere") as caught:
        check(Server(f"{url}/v1").endpoint())
    assert "https://there.example/v1/models" in str(caught.value)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    "ending", ["/chat/completions", "/chat/completions/", "/completions", "/chat/completions?api-version=1"]
)
def test_the_address_of_a_request_is_told_the_servers(ending):
    with pytest.raises(ConfigError, match="did you mean") as caught:
        Server(f"http://127.0.0.1:9/v1{ending}").endpoint()
    meant = "http://127.0.0.1:9/v1" + ("?api-version=1" if "?" in ending else "")
    assert f"--set api.inference_base_url={meant}" in str(caught.value).replace("/chat ", " ")


def test_a_server_without_a_list_whose_neighbour_has_one_is_taken_where_it_answers():
    """Azure: models are listed for the resource, and answer at their deployment's path."""

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "another"}]})

    async def chat(_: web.Request) -> web.Response:
        return web.json_response(completion(ANSWER))

    application = web.Application()
    application.router.add_get("/openai/models", models)
    application.router.add_post("/openai/deployments/m/chat/completions", chat)
    with serving(application) as url:
        assert "on trust" in (check(Server(f"{url}/openai/deployments/m").endpoint()) or "")


def test_a_query_stays_behind_every_path_and_headers_bring_their_key(monkeypatch):
    monkeypatch.setenv("AZURE_KEY", "canary-4711")
    with habitual(lambda *_: completion(ANSWER), path="/openai/deployments/m") as server:
        server.url += "?api-version=2024-10-21"
        headers = {"api-key": {"variable": "AZURE_KEY"}, "X-Title": "rows"}
        endpoint = server.endpoint(headers=headers, query={"region": "eu"})
        assert check(endpoint) is None
        assert asked(endpoint)[0].text == ANSWER
        for request in server.requests:
            assert request.query_string == "api-version=2024-10-21&region=eu"
            assert (request.headers["api-key"], request.headers["X-Title"]) == ("canary-4711", "rows")
            assert "Authorization" not in request.headers
    assert "canary" not in repr(endpoint)


def test_a_date_is_a_version():
    api = config.load(overrides=[config.parse_override("api.query={api-version: 2024-10-21}")]).place.api
    assert api.query == {"api-version": "2024-10-21"}


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("headers", {"api-key": "sk-canary4711"}),
        ("headers", {"Authorization": "Bearer sk-canary4711"}),
        ("headers", {"X-Id": "a\r\nb: sk-canary4711"}),
        ("query", {"key": "sk-canary4711"}),
        ("proxy", "http://me:sk-canary4711@proxy:3128"),
        ("inference_base_url", "http://127.0.0.1/v1?key=sk-canary4711"),
    ],
)
def test_no_secret_stands_in_a_setting_or_in_the_error_about_it(setting, value):
    with pytest.raises(ConfigError) as caught:
        Server("http://127.0.0.1:9/v1").endpoint(**{setting: value})
    assert "canary" not in str(caught.value)


def test_a_key_in_a_header_is_taken_out_of_what_the_server_says(monkeypatch):
    monkeypatch.setenv("AZURE_KEY", "canary-4711")
    with habitual(lambda *_: (401, {"error": "no such key: canary-4711"})) as server:
        (outcome,) = asked(server.endpoint(headers={"api-key": {"variable": "AZURE_KEY"}}))
    assert "***" in outcome.detail
    assert "canary" not in repr(outcome)


def test_several_servers_of_one_model_are_asked_in_turn():
    with habitual(lambda *_: completion("one")) as one, habitual(lambda *_: completion("two")) as two:
        endpoint = one.endpoint(inference_base_urls=[one.url, two.url])
        assert check(endpoint) is None
        assert [outcome.text for outcome in asked(endpoint, 4)] == ["one", "two", "one", "two"]
        broken = one.endpoint(inference_base_urls=[one.url, f"{two.url}/chat"])
        with pytest.raises(InputError, match="did you mean") as caught:
            check(broken)
    assert two.url in str(caught.value)


def test_a_server_that_is_gone_is_passed_over():
    with habitual(lambda *_: completion("one")) as one:
        with habitual(lambda *_: completion("two")) as two:
            endpoint = one.endpoint(inference_base_urls=[one.url, two.url])
        assert [outcome.text for outcome in asked(endpoint, 4)] == ["one"] * 4
        nobody = one.endpoint(inference_base_urls=[two.url])
    assert asked(nobody)[0].kind is OutcomeKind.TRANSIENT


def test_a_key_that_was_exchanged_is_read_again_once(tmp_path):
    key = tmp_path / "key"
    key.write_text("old-key-1")
    key.chmod(0o600)

    def habit(_: dict, number: int) -> object:
        if number == 1:
            return completion(ANSWER)
        key.write_text("new-key-2")
        is_new = server.requests[-1].headers["Authorization"] == "Bearer new-key-2"
        return completion(ANSWER) if is_new else (401, {"error": "expired"})

    with habitual(habit) as server:
        outcomes = asked(server.endpoint(key_file=str(key)), 3)
        assert [outcome.kind for outcome in outcomes] == [OutcomeKind.ANSWER] * 3
        assert len(server.bodies) == 4
    with habitual(lambda *_: (401, {})) as refusing:
        assert asked(refusing.endpoint(key_file=str(key)))[0].kind is OutcomeKind.AUTH
        assert len(refusing.bodies) == 1, "the same key is not asked twice"


@pytest.mark.parametrize(
    "models", [[{"id": "m"}], {"data": [{"id": "m"}]}, {"object": "list", "data": [{"id": "m"}, {"id": "n"}]}]
)
def test_lists_of_all_shapes_are_read(models):
    with habitual(lambda *_: completion(ANSWER), models=models) as server:
        assert check(server.endpoint()) is None
        assert not server.bodies


@pytest.mark.parametrize("habit", [newer, lambda *_: completion(ANSWER)])
def test_a_list_that_lacks_the_model_does_not_decide(habit):
    with habitual(habit, models={"data": [{"id": "m:latest"}]}) as server:
        assert "answers as 'm'" in (check(server.endpoint()) or "")
