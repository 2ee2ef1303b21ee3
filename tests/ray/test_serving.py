"""The endpoint on a real Ray head: answers, a bundle exchanged and a replica killed under load, a stop that drains."""

import asyncio
import json
import os
import re
import signal
import tempfile
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack

import openai
import psutil
import pytest

from tests.ray.conftest import Head, free_port
from tests.serving_load import Asked, Load, Service, serving
from tests.tiny_models import publish_bundle
from ucotron_ray.data.wire import parse_answer, server_request_body
from ucotron_ray.simulators import demo_world

# Tracing warns about every branch of the model's code that it fixes.
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::Warning")]

ROWS = [row for row in demo_world.rows(demo_world.graph_world(1), 60, seed=4) if len(row.entities) > 1][:16]
NAME, KEY = "relations", "a-test-key"
BATCH = 4


@pytest.fixture(scope="module")
def files(tiny_bundle):
    return tiny_bundle("qwen2")


@pytest.fixture(scope="module")
def store(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("serving") / "store"
    publish_bundle(root, NAME, files, "first")
    return root


@pytest.fixture(scope="module")
def started(store, ray_head: Head):
    """Gives the service that runs; starts it where none runs yet, or where a test stopped it."""
    environment = {**ray_head.environment, "RAY_ADDRESS": ray_head.address, "UCOTRON_RE_KEY": KEY}
    settings = [f"store={store}", f"serving.max_batch={BATCH}", "serving.watch=0.2", "serving.max_queue=100"]
    arguments = [NAME, "--replicas", "2", "--api-key-env", "UCOTRON_RE_KEY"]
    arguments += [part for setting in settings for part in ("--set", setting)]
    running: list[Service] = []
    with ExitStack() as stack:

        def service() -> Service:
            if not running or running[-1].process.poll() is not None:
                new = serving(*arguments, environment=environment, port=free_port())
                running.append(stack.enter_context(new))
            return running[-1]

        yield service


@pytest.fixture
def service(started) -> Service:
    return started()


def get(service: Service, path: str) -> tuple[int, str]:
    with urllib.request.urlopen(service.url.removesuffix("/v1") + path, timeout=10) as answer:
        return answer.status, answer.read().decode()


def asked_while(service: Service, what, *, clients: int = 8) -> list[Asked]:
    """Everything that clients asked while a coroutine ran."""

    async def run():
        load = Load(service.url, ROWS, key=KEY)
        async with load.running(clients):
            await what(load)
        return load.asked

    return asyncio.run(run())


async def exchanged(service: Service, publish: Callable[[], object]) -> None:
    """Publish another bundle, and wait until both replicas, whichever is asked, have it."""
    before = sum("switched" in line for line in service.log)
    publish()
    async with asyncio.timeout(60):
        while sum("switched" in line for line in service.log) < before + 2:
            await asyncio.sleep(0.05)


def requests_answered(service: Service) -> float:
    status, text = get(service, "/metrics")
    assert status == 200
    found = re.search(r'ucotron_serving_requests_total\{outcome="ok"\} (\S+)', text)
    return float(found[1]) if found else 0.0


def content_of(service: Service) -> str:
    return json.loads(get(service, "/healthz")[1])["content"]


def test_openais_client_and_the_servers_body_get_arrays_that_parse(service, store, files):
    # Answers that name entities, whichever bundle the test before left.
    asyncio.run(exchanged(service, lambda: publish_bundle(store, NAME, files, "constrained")))
    answered = requests_answered(service)
    with openai.OpenAI(base_url=service.url, api_key=KEY, max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [NAME]
        for row in ROWS[:3]:
            body = server_request_body("ucotron-re", row.text, row.entities)
            whole = client.chat.completions.create(**body)
            names = {entity.text for entity in row.entities}
            relations = parse_answer(whole.choices[0].message.content)
            assert relations is not None
            assert {name for relation in relations for name in (relation.subject, relation.object)} <= names
        # Another layout is answered freely, by a random model until it is cut.
        body = {"model": "any", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 20}
        whole = client.chat.completions.create(**body)
        with client.chat.completions.create(**body, stream=True) as stream:
            chunks = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert len(chunks) > 3
        assert whole.choices[0].message.content == "".join(chunks)
    with (
        openai.OpenAI(base_url=service.url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    assert requests_answered(service) == answered + 5
    assert "ucotron_serving_capacity 108.0" in get(service, "/metrics")[1]


def test_a_bundle_is_exchanged_under_load_without_losing_a_request(service, store, files):
    before = content_of(service)

    async def exchange(load):
        await load.answered(10)
        # From here on answers are long: they are free, and the model knows no end.
        await exchanged(service, lambda: publish_bundle(store, NAME, files, "second", decoding="free"))
        await load.answered(10)

    asked = asked_while(service, exchange)
    assert {entry.status for entry in asked} == {200}
    assert len(asked) > 20
    assert content_of(service) != before
    # Each answer is one of the two models', and none is a part of both.
    for row in range(len(ROWS)):
        texts = {entry.text for entry in asked if entry.number % len(ROWS) == row}
        assert len([text for text in texts if parse_answer(text) is not None]) <= 1
        assert len([text for text in texts if parse_answer(text) is None]) <= 1


def test_a_damaged_bundle_is_not_exchanged(service, store, files):
    before = content_of(service)
    stays = sum("stays with" in line for line in service.log)
    path = publish_bundle(store, NAME, files, "third", decoding="free")
    # Damaged at once: the look that sees it may come before, so the bytes of before must be those that were verified.
    with (path / "model.onnx").open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))

    async def until_refused(load):
        async with asyncio.timeout(60):
            while sum("stays with" in line for line in service.log) == stays:
                await asyncio.sleep(0.05)
        await load.answered(5)

    asked = asked_while(service, until_refused)
    assert {entry.status for entry in asked} == {200}
    assert content_of(service) == before
    asyncio.run(exchanged(service, lambda: publish_bundle(store, NAME, files, "fourth", decoding="free")))


def test_kill_9_of_a_replica_costs_at_most_the_requests_in_it_and_those_may_be_tried_again(service):
    async def kill(load):
        await load.answered(10)
        victim = service.replicas()[0]
        os.kill(victim.pid, signal.SIGKILL)
        # It comes back: both replicas answer again.
        async with asyncio.timeout(120):
            while len([p for p in service.replicas() if p.pid != victim.pid]) < 2:
                await asyncio.sleep(0.1)
        await load.answered(20)

    asked = asked_while(service, kill)
    failed = [entry for entry in asked if entry.status != 200]
    assert len(failed) <= 2 * BATCH
    assert {(entry.status, entry.code) for entry in failed} <= {(503, "replica_lost")}
    assert all(entry.retry_after for entry in failed)
    assert sum(entry.status == 200 for entry in asked) >= 30


def test_a_stop_answers_what_is_inside_and_ends_with_0(service):
    async def stop(load):
        await load.answered(5)
        service.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(service.process.wait, 120)

    asked = asked_while(service, stop)
    assert service.process.returncode == 0
    result = service.result()
    assert (result["status"], result["unanswered"], result["model"]) == ("ok", 0, NAME)
    # Whoever was inside got an answer; whoever came later was told to come again, or found nobody.
    inside = [entry for entry in asked if entry.status not in (200, 0)]
    assert {entry.code for entry in inside} <= {"draining"}
    last = max(entry.began + entry.seconds for entry in asked if entry.status == 200)
    assert not [entry for entry in asked if entry.status == 0 and entry.began < last - 1]
    assert service.replicas() == []


@pytest.mark.slow
def test_a_head_of_its_own_is_gone_after_ctrl_c(tmp_path, files):
    publish_bundle(tmp_path, NAME, files, "alone")
    environment = {**os.environ, "RAY_ADDRESS": ""}
    with (
        # Not pytest's own directory: the names of Ray's sockets below it would be too long.
        tempfile.TemporaryDirectory(prefix="ur-", dir="/tmp") as ray_files,
        serving(
            *(NAME, "--set", f"store={tmp_path}", "--set", f"ray.temp_dir={ray_files}"),
            environment=environment,
            port=free_port(),
        ) as own,
    ):
        family = psutil.Process(own.process.pid).children(recursive=True)
        assert any("raylet" in process.name() for process in family)
        row = ROWS[0]
        with openai.OpenAI(base_url=own.url, api_key="any", max_retries=0) as client:
            reply = client.chat.completions.create(**server_request_body("any", row.text, row.entities))
        assert parse_answer(reply.choices[0].message.content) is not None
        code, result = own.stop(signal.SIGINT)
    assert (code, result["status"]) == (0, "ok")
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []
