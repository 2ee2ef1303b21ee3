"""Questions to an engine, and a model that is exchanged under load: none is lost, none gets half of two answers."""

import asyncio
from contextlib import aclosing

import pytest

from tests.serving_fakes import FakeStepper, answer_to, engine, question, target, whole
from ucotron_ray.errors import CorruptArtifact
from ucotron_ray.serving import target as targets
from ucotron_ray.serving.engine import ClosedError
from ucotron_ray.serving.exchange import Refusal
from ucotron_ray.serving.switch import Switch


def test_the_pieces_of_a_stream_are_the_whole_answer_and_only_the_last_has_counts():
    async def ask():
        served = engine(FakeStepper())
        text = await whole(served.answer(question("Müller é")))
        pieces = [piece async for piece in served.answer(question("Müller é", stream=True))]
        served.close()
        return text, pieces

    text, pieces = asyncio.run(ask())
    assert text == answer_to("m", "Müller é")
    assert "".join(piece.text for piece in pieces) == text
    assert len(pieces) > 5
    assert all("\ufffd" not in piece.text for piece in pieces)
    assert [piece.finish for piece in pieces] == [None] * (len(pieces) - 1) + ["stop"]
    assert pieces[-1].usage.completion_tokens == len(text.encode())
    assert pieces[-1].usage.prompt_tokens == len("Müller é".encode())


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_cuts_the_answer_before_it(stream):
    async def ask():
        served = engine(FakeStepper())
        pieces = [piece async for piece in served.answer(question("one two three", stop=("two", "thr"), stream=stream))]
        served.close()
        return pieces

    pieces = asyncio.run(ask())
    assert "".join(piece.text for piece in pieces) == '["m:one '
    assert pieces[-1].finish == "stop"


def test_a_limit_of_tokens_is_said_as_length():
    async def ask():
        served = engine(FakeStepper())
        pieces = [piece async for piece in served.answer(question("x" * 20, max_tokens=6))]
        served.close()
        return pieces

    pieces = asyncio.run(ask())
    assert pieces[-1].finish == "length"
    assert pieces[-1].text == '["m:xx'


def test_a_prompt_that_is_too_long_is_refused_and_one_that_leaves_no_room_is_cut_at_the_context():
    async def ask():
        served = engine(FakeStepper(), max_prompt_tokens=1000)
        # The context of 200 tokens holds the prompt and what is left of it.
        pieces = [piece async for piece in served.answer(question("x" * 190, max_tokens=100))]
        with pytest.raises(Refusal) as refused:
            await whole(served.answer(question("x" * 200)))
        served.close()
        return pieces, refused.value

    pieces, refusal = asyncio.run(ask())
    assert pieces[-1].finish == "length"
    assert pieces[-1].usage.completion_tokens == 10
    assert (refusal.status, refusal.code) == (400, "context_length_exceeded")
    assert "200 tokens" in refusal.message


def test_a_listener_that_goes_frees_its_place_in_the_batch():
    async def ask():
        stepper = FakeStepper()
        served = engine(stepper, max_batch=1)
        async with aclosing(served.answer(question("x" * 90, stream=True))) as pieces:
            await anext(pieces)
        # With one place, this one runs only once the other has left.
        text = await whole(served.answer(question("next")))
        served.close()
        return text, len(stepper.sizes)

    text, steps = asyncio.run(ask())
    assert text == answer_to("m", "next")
    assert steps < 90


def test_a_failing_model_is_a_refusal_that_may_be_tried_again():
    async def ask():
        stepper = FakeStepper(broken=True)
        served = engine(stepper)
        with pytest.raises(Refusal) as refused:
            await whole(served.answer(question("x")))
        stepper.broken = False
        text = await whole(served.answer(question("x")))
        served.close()
        return refused.value, text

    refusal, text = asyncio.run(ask())
    assert (refusal.status, refusal.code) == (503, "model_failed")
    assert refusal.retry_after
    assert text == answer_to("m", "x")


def test_a_closed_engine_says_so_before_the_first_piece():
    async def ask():
        served = engine(FakeStepper())
        served.close()
        with pytest.raises(ClosedError):
            await whole(served.answer(question("x")))

    asyncio.run(ask())


def test_a_model_is_exchanged_under_load_without_losing_or_mixing_an_answer(tmp_path):
    """Clients ask without a pause while the file goes from a to b to c; all get one whole answer of one of them."""
    file = tmp_path / "target.json"
    loaded = []

    def load(wanted):
        loaded.append(wanted.model)
        return engine(FakeStepper(wanted.model), max_batch=3)

    async def client(switch, name, stop, answers):
        count = 0
        while not stop.is_set():
            asked = f"{name}-{count}"
            answers.append((asked, await whole(switch.answer(question(asked, stream=count % 2 == 0)))))
            count += 1

    async def run():
        targets.write(file, target("a"))
        switch = Switch(file, load, seconds=3600.0)
        stop, answers = asyncio.Event(), []
        clients = [asyncio.create_task(client(switch, f"client{n}", stop, answers)) for n in range(8)]
        for model in "bcab":
            seen = len(answers)
            while len(answers) < seen + 20:
                await asyncio.sleep(0)
            targets.write(file, target(model))
            assert await asyncio.to_thread(switch.look)
            assert (await switch.served()).model == model
        seen = len(answers)
        while len(answers) < seen + 20:
            await asyncio.sleep(0)
        stop.set()
        await asyncio.gather(*clients)
        switch.close()
        return answers

    answers = asyncio.run(run())
    assert loaded == ["a", "b", "c", "a", "b"]
    models = []
    for asked, text in answers:
        model = text[2]
        assert text == answer_to(model, asked)
        models.append(model)
    assert set(models) == {"a", "b", "c"}
    assert models[-1] == "b"


def test_what_cannot_be_loaded_leaves_the_old_one_at_work_and_is_not_tried_twice(tmp_path):
    file, tried = tmp_path / "target.json", []

    def load(wanted):
        tried.append(wanted.model)
        if wanted.model == "bad":
            raise CorruptArtifact("bundle 'bad' is damaged")
        return engine(FakeStepper(wanted.model))

    async def run():
        targets.write(file, target("good"))
        switch = Switch(file, load, seconds=3600.0)
        targets.write(file, target("bad"))
        looks = [switch.look(), switch.look()]
        text = await whole(switch.answer(question("x")))
        targets.write(file, target("better"))
        looks.append(switch.look())
        after = await whole(switch.answer(question("x")))
        switch.close()
        return looks, text, after

    looks, text, after = asyncio.run(run())
    assert looks == [False, False, True]
    assert tried == ["good", "bad", "better"]
    assert (text, after) == (answer_to("good", "x"), answer_to("better", "x"))


def test_the_switch_follows_its_file_by_itself(tmp_path):
    file = tmp_path / "target.json"
    targets.write(file, target("a"))
    switch = Switch(file, lambda wanted: engine(FakeStepper(wanted.model)), seconds=0.01)

    async def until_it_is_there():
        async with asyncio.timeout(30):
            while (await switch.served()).model != "b":
                await asyncio.sleep(0.005)

    targets.write(file, target("b"))
    asyncio.run(until_it_is_there())
    switch.close()
