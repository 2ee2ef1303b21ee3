"""One request, one classified outcome; the key goes to one host and into no text."""

import asyncio
import json
import socket
import threading
import time
import traceback

import aiohttp
import pytest
from aiohttp import web

from tests.teacher import serving, teaching
from ucotron_ray.core import config, variables
from ucotron_ray.core.errors import ConfigError, InputError
from ucotron_ray.core.place import Api
from ucotron_ray.simulators.fireworks_settings import TEACHER
from ucotron_ray.teacher import chat as chats
from ucotron_ray.teacher import endpoint as endpoints
from ucotron_ray.teacher.check import check
from ucotron_ray.teacher.outcome import Limits, OutcomeKind, RequestOutcome

CANARY = "fw-canary-4711"
BODY = {
    "model": TEACHER,
    "messages": [{"role": "user", "content": "Text:\nAna Silva lives in Lyon."}],
    "max_tokens": 200,
}


def ask(url: str, body: dict = BODY, *, total: float = 5.0, read: float = 5.0) -> RequestOutcome:
    async def run() -> RequestOutcome:
        timeout = chats.client_timeout(connect=1.0, read=read, total=total)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            headers = {"Authorization": f"Bearer {CANARY}", "Content-Type": "application/json"}
            return await chats.chat(session, f"{url}/chat/completions", body, headers)

    outcome = asyncio.run(run())
    assert CANARY not in repr(outcome)
    return outcome


def answering(payload: object, *, status: int = 200, headers: dict | None = None, content_type="application/json"):
    async def handler(_: web.Request) -> web.Response:
        text = payload if isinstance(payload, str) else json.dumps(payload)
        return web.Response(text=text, status=status, headers=headers, content_type=content_type)

    application = web.Application()
    application.router.add_post("/chat/completions", handler)
    return serving(application)


def completion(content: object, finish: str = "stop", **more) -> dict:
    return {"choices": [{"message": {"role": "assistant", "content": content, **more}, "finish_reason": finish}]}


def test_an_answer_with_its_usage_and_the_limits_of_its_headers():
    with teaching(requests_per_minute=600, generated_tokens_per_minute=60_000) as teacher:
        outcome = ask(teacher.base_url)
    assert outcome.kind is OutcomeKind.ANSWER
    assert json.loads(outcome.text)["relations"][0]["relation"] == "lives_in"
    assert outcome.usage.completion > 0
    assert not outcome.usage.estimated
    assert outcome.limits == Limits(requests=600, generated_tokens=60_000), "tokens a second become tokens a minute"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, OutcomeKind.POISON),
        (413, OutcomeKind.POISON),
        (422, OutcomeKind.POISON),
        (401, OutcomeKind.AUTH),
        (403, OutcomeKind.REJECTED),
        (424, OutcomeKind.REJECTED),
        (451, OutcomeKind.REJECTED),
        (418, OutcomeKind.REJECTED),
        (402, OutcomeKind.BILLING),
        (404, OutcomeKind.REJECTED),
        (408, OutcomeKind.TRANSIENT),
        (429, OutcomeKind.RATE_LIMITED),
        (500, OutcomeKind.TRANSIENT),
        (502, OutcomeKind.TRANSIENT),
        (503, OutcomeKind.OVERLOADED),
        (529, OutcomeKind.OVERLOADED),
        (302, OutcomeKind.MISDIRECTED),
        (405, OutcomeKind.MISDIRECTED),
        (409, OutcomeKind.TRANSIENT),
        (201, OutcomeKind.ANSWER),
    ],
)
def test_the_status_decides_whatever_the_body_says(status, kind):
    whole = completion("[]") | {"error": {"type": "invalid_request_error"}}
    with answering(whole, status=status, headers={"Location": "http://127.0.0.1:9/elsewhere"}) as url:
        outcome = ask(url)
    assert outcome.kind is kind
    assert bool(outcome.text) == (kind is OutcomeKind.ANSWER)


@pytest.mark.parametrize(
    ("status", "words", "kind", "maybe_billed"),
    [
        (404, "Model not found, inaccessible, and/or not deployed", OutcomeKind.MODEL_MISSING, False),
        (404, f"No endpoints found for {TEACHER}.", OutcomeKind.MODEL_MISSING, False),
        (404, "404 page not found", OutcomeKind.REJECTED, False),
        (429, '{"error": {"code": "insufficient_quota"}}', OutcomeKind.BILLING, False),
        (403, "Insufficient credits to run this model", OutcomeKind.BILLING, False),
        (400, "Your credit balance is too low to access the API", OutcomeKind.BILLING, False),
        (500, "Internal error", OutcomeKind.TRANSIENT, False),
        (502, "Bad gateway", OutcomeKind.TRANSIENT, True),
        (504, "Gateway timeout", OutcomeKind.TRANSIENT, True),
        (524, "A timeout occurred", OutcomeKind.TRANSIENT, True),
    ],
)
def test_words_tell_whose_fault_it_is_where_a_status_means_two_things(status, words, kind, maybe_billed):
    with answering(words, status=status) as url:
        outcome = ask(url)
    assert (outcome.kind, outcome.maybe_billed) == (kind, maybe_billed)


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (completion("x", "length"), OutcomeKind.TRUNCATED),
        (completion("", "stop"), OutcomeKind.REFUSED),
        (completion(None, "stop"), OutcomeKind.REFUSED),
        (completion("no", "content_filter"), OutcomeKind.REFUSED),
        (completion("no", "stop", refusal="I will not"), OutcomeKind.REFUSED),
        ({"choices": []}, OutcomeKind.TRANSIENT),
        ([1], OutcomeKind.TRANSIENT),
        ("<html>", OutcomeKind.TRANSIENT),
        (completion(["a"]), OutcomeKind.TRANSIENT),
        ("[" * 100_000, OutcomeKind.TRANSIENT),
        (completion("half a pair: \ud83d"), OutcomeKind.ANSWER),
    ],
)
def test_a_200_is_an_answer_only_if_it_holds_one(payload, kind):
    with answering(payload) as url:
        assert ask(url).kind is kind


def test_a_server_that_streams_and_counts_nothing_is_understood():
    events = [{"choices": [{"delta": {"content": part}}]} for part in ("Hel", "lo")]
    events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    with answering(stream + "data: [DONE]\n\n", content_type="text/event-stream") as url:
        outcome = ask(url)
    assert (outcome.kind, outcome.text) == (OutcomeKind.ANSWER, "Hello")
    assert outcome.usage.estimated
    with answering(stream.rsplit("data:", 1)[0], content_type="text/event-stream") as url:
        assert ask(url).kind is OutcomeKind.TRANSIENT, "a stream that breaks off is no answer"


@pytest.mark.parametrize("line", ["null", '{"choices": [7]}', '{"choices": [{"delta": {"content": ["a"]}}]}', "[]"])
def test_a_stream_with_nonsense_in_it_is_transient(line):
    with answering(f"data: {line}\n\ndata: [DONE]\n\n", content_type="text/event-stream") as url:
        assert ask(url).kind is OutcomeKind.TRANSIENT


def test_line_separators_inside_of_a_streamed_answer_do_not_cut_it():
    text = "one\u2028two\u0085three"
    event = {"choices": [{"delta": {"content": text}, "finish_reason": "stop"}]}
    stream = f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
    with answering(stream, content_type="text/event-stream") as url:
        assert ask(url).text == text


def test_a_server_that_repeats_the_key_does_not_get_it_into_the_outcome():
    with answering(f"Incorrect API key provided: {CANARY}", status=401, content_type="text/plain") as url:
        assert "***" in ask(url).detail


@pytest.mark.parametrize("fault", ["reset", "half"])
def test_a_broken_connection_is_transient_and_may_have_been_billed(fault):
    with teaching(faults={fault: 1.0}) as teacher:
        outcome = ask(teacher.base_url)
    assert outcome.kind is OutcomeKind.TRANSIENT
    assert outcome.maybe_billed


def test_a_server_that_hangs_is_left_after_the_time_given():
    began = time.monotonic()
    with teaching(faults={"hang": 1.0}) as teacher:
        outcome = ask(teacher.base_url, total=0.5)
        assert time.monotonic() - began < 3
    assert outcome.kind is OutcomeKind.TRANSIENT
    assert outcome.detail == "timeout"
    assert outcome.maybe_billed


def test_nobody_there_was_not_billed():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    outcome = ask(url)
    assert outcome.kind is OutcomeKind.TRANSIENT
    assert not outcome.maybe_billed


def test_a_connection_that_is_never_taken_was_not_billed():
    with socket.socket() as full:
        # Nobody accepts, and the queue holds one: what comes then gets no answer at all.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        outcome = ask(f"http://127.0.0.1:{port}")
        for one in waiting:
            one.close()
    assert outcome.kind is OutcomeKind.TRANSIENT
    assert not outcome.maybe_billed


@pytest.mark.parametrize(
    ("text", "seconds"), [("3", 3.0), ("86400", 60.0), ("-1", 0.0), ("soon", None), ("nan", 60.0), ("", None)]
)
def test_retry_after_is_read_and_bounded(text, seconds):
    assert chats.retry_after({"Retry-After": text}) == seconds


def test_retry_after_as_a_date():
    from email.utils import formatdate

    assert 8 < chats.retry_after({"Retry-After": formatdate(time.time() + 10, usegmt=True)}) <= 10


# ---- the endpoint ----------------------------------------------------------------------------------------------------


def api(url: str, **changes) -> Api:
    return config.load().place.api.model_copy(update={"inference_base_url": url, **changes})


def test_a_missing_model_names_those_that_exist():
    with teaching() as teacher:
        endpoint = endpoints.endpoint_of(api(teacher.base_url), "accounts/fireworks/models/glm-4-plus")
        with pytest.raises(InputError, match="glm-4-plus") as error:
            check(endpoint)
    assert TEACHER in str(error.value)
    assert "models.generation.model_id" in str(error.value)
    assert error.value.exit_code == 2


def test_a_model_that_is_served_but_not_listed_is_taken():
    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "another"}]})

    application = web.Application()
    application.router.add_get("/models", models)
    application.router.add_post("/chat/completions", lambda _: _json(completion("ok")))
    with serving(application) as url:
        assert "does not list" in (check(endpoints.endpoint_of(api(url), "mine")) or "")


def test_a_server_that_loads_its_model_when_it_is_first_asked_gets_the_time_for_it():
    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "another"}]})

    async def loads(_: web.Request) -> web.Response:
        await asyncio.sleep(0.5)
        return web.json_response(completion("ok"))

    application = web.Application()
    application.router.add_get("/models", models)
    application.router.add_post("/chat/completions", loads)
    with serving(application) as url:
        endpoint = endpoints.endpoint_of(api(url), "mine")
        with pytest.raises(InputError, match="cannot be reached"):
            check(endpoint, probe_timeout=0.1)
        assert "answers as 'mine'" in (check(endpoint, probe_timeout=30) or "")


async def _json(value: object) -> web.Response:
    return web.json_response(value)


def test_a_refused_key_is_found_at_the_first_probe_and_not_printed(monkeypatch):
    monkeypatch.setenv("FIREWORKS_API_KEY", CANARY)
    with teaching(api_key="another") as teacher:
        endpoint = endpoints.endpoint_of(api(teacher.base_url), TEACHER)
        assert CANARY not in repr(endpoint)
        with pytest.raises(InputError, match="refuses the key") as error:
            check(endpoint)
    assert CANARY not in "".join(traceback.format_exception(error.value))
    assert "FIREWORKS_API_KEY" in str(error.value)


def test_the_probe_asks_no_proxy_of_the_shell(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with teaching() as teacher:
        assert check(endpoints.endpoint_of(api(teacher.base_url), TEACHER)) is None


def test_no_server_says_how_to_get_one():
    with pytest.raises(InputError, match="cannot be reached") as error:
        check(endpoints.endpoint_of(api("http://127.0.0.1:9"), TEACHER))
    assert "simulate-fireworks" in str(error.value)


def test_the_key_goes_to_the_vendor_and_nowhere_else_unless_said(monkeypatch):
    monkeypatch.setenv("FIREWORKS_API_KEY", CANARY)
    assert endpoints.endpoint_of(api("https://api.fireworks.ai/inference/v1"), "m").key_variable == "FIREWORKS_API_KEY"
    assert endpoints.endpoint_of(api("https://example.org/v1"), "m").key_variable is None
    assert endpoints.endpoint_of(api("https://evilfireworks.ai/v1"), "m").key_variable is None
    with pytest.raises(ConfigError, match="http is not encrypted"):
        endpoints.endpoint_of(api("http://api.fireworks.ai/inference/v1"), "m")


def test_the_vendor_without_a_key_is_refused():
    with pytest.raises(ConfigError, match="FIREWORKS_API_KEY is not set"):
        endpoints.endpoint_of(api("https://api.fireworks.ai/inference/v1"), "m")


def test_a_key_file_must_be_its_owners_alone(tmp_path):
    file = tmp_path / "key"
    file.write_text(CANARY + "\n")
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="others can read"):
        variables.secret(None, str(file))
    file.chmod(0o600)
    assert variables.secret(None, str(file)) == CANARY
    file.write_text(f"{CANARY}\n# of the account acme\n")
    with pytest.raises(ConfigError, match="more than a key") as caught:
        variables.secret(None, str(file))
    assert CANARY not in str(caught.value)


def test_a_mistake_about_the_teacher_leaves_nothing_that_a_corrected_command_would_run_into(tmp_path, capsys):
    from ucotron_ray.cli import main

    command = ["synthesize", "relation_extraction", "--count", "3", "--set", f"store={tmp_path / 'store'}"]
    assert main(command) == 2
    assert "FIREWORKS_API_KEY is not set" in capsys.readouterr().err
    with teaching() as teacher:
        assert main([*command, "--set", f"api.inference_base_url={teacher.base_url}"]) == 2
    assert TEACHER in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.partial"))


def test_a_server_that_does_not_speak_http_is_an_input_error():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(InputError, match="cannot be reached"):
            check(endpoints.endpoint_of(api(f"http://127.0.0.1:{listening.getsockname()[1]}/v1"), "m"))
        thread.join()
