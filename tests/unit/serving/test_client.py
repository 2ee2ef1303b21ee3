"""OpenAI's own client and the server's own request against a real model over HTTP on loopback."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import openai
import pytest
import uvicorn

from ucotron_ray.data.wire import chat_messages, parse_answer, server_request_body
from ucotron_ray.models.prompts import prompt_ids, server_row
from ucotron_ray.serving import backends
from ucotron_ray.serving.app import Front, Limits, digest_of
from ucotron_ray.serving.engine import Engine
from ucotron_ray.serving.target import Target
from ucotron_ray.simulators import demo_world

ROWS = [row for row in demo_world.rows(demo_world.graph_world(1), 30, seed=4) if len(row.entities) > 2][:4]


@contextmanager
def listening(front: Front) -> Iterator[str]:
    """The front behind uvicorn on a free port, in a thread with a loop of its own."""
    server = uvicorn.Server(uvicorn.Config(front.app(), host="127.0.0.1", port=0, log_config=None, lifespan="off"))
    started = threading.Event()
    startup = server.startup

    async def told(sockets=None):
        await startup(sockets)
        started.set()

    server.startup = told
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        assert started.wait(30)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def endpoint(tiny_model) -> Iterator[str]:
    wanted = Target("tiny", "transformers", None, "c0ffee", decoding="entities", base=str(tiny_model), dtype="float32")
    served = Engine(wanted, backends.load(wanted, num_threads=0), max_batch=4, max_prompt_tokens=900)
    limits = Limits(4, 8, 25.0, 50_000, 512, digest_of("key"))
    with listening(Front(served_by(served), limits)) as url:
        yield url
    served.close()


def served_by(engine: Engine):
    class One:
        def answer(self, question):
            return engine.answer(question)

        async def served(self):
            return engine.served

    return One()


@pytest.fixture
def client(endpoint) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=endpoint, api_key="key", max_retries=0) as made:
        yield made


def test_the_clients_answers_parse_and_name_only_entities_of_the_prompt(client):
    """A random model knows nothing; the grammar of the prompt's entities holds all the same."""
    for row in ROWS:
        reply = client.chat.completions.create(**server_request_body("ucotron-re", row.text, row.entities))
        relations = parse_answer(reply.choices[0].message.content)
        assert relations is not None
        names = {entity.text for entity in row.entities}
        assert {relation.subject for relation in relations} | {relation.object for relation in relations} <= names
        assert reply.usage.completion_tokens > 0


def test_a_stream_says_the_same_as_a_whole_answer(client):
    row = ROWS[0]
    # Short enough that no answer is cut, as a stream cannot take back what it has sent.
    body = {"model": "any", "messages": chat_messages(row.text, row.entities[:1]), "max_tokens": 64}
    whole = client.chat.completions.create(**body)
    with client.chat.completions.create(**body, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content == "[]"
    assert chunks[-1].usage == whole.usage


def test_the_model_is_asked_with_exactly_the_prompt_that_it_was_trained_on(tiny_model):
    from ucotron_ray.models import base as base_models

    tokenizer = base_models.load_tokenizer(base_models.resolve(str(tiny_model)))
    wanted = Target("tiny", "transformers", None, "c0ffee", base=str(tiny_model), dtype="float32")
    speech = backends.load(wanted, num_threads=0).speech
    for row in ROWS:
        assert speech.chat_ids(chat_messages(row.text, row.entities)) == prompt_ids(server_row(row, "chat"), tokenizer)


def test_another_layout_is_answered_freely(client):
    reply = client.chat.completions.create(
        model="any", messages=[{"role": "user", "content": "Who are you?"}], max_tokens=5
    )
    assert reply.choices[0].finish_reason in ("length", "stop")
    assert reply.usage.completion_tokens <= 5
    # Any id is answered by the model that is served, and the reply says which one that is.
    assert reply.model == "tiny"


def test_the_clients_errors_are_what_openai_would_raise(client, endpoint):
    with pytest.raises(openai.BadRequestError, match="max_tokens is 4000"):
        client.chat.completions.create(model="any", messages=[{"role": "user", "content": "x"}], max_tokens=4000)
    with pytest.raises(openai.BadRequestError, match="tokens, and 900 are allowed") as too_long:
        client.chat.completions.create(model="any", messages=[{"role": "user", "content": "word " * 2000}])
    assert too_long.value.code == "context_length_exceeded"
    with (
        openai.OpenAI(base_url=endpoint, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
    assert [model.id for model in client.models.list()] == ["tiny"]
