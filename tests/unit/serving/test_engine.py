"""Questions to an engine, and a model that is exchanged under load: none is lost, none gets half of two answers."""

import asyncio
import threading
from contextlib import aclosing

import pytest

from tests.serving_fakes import PATIENCE, FakeStepper, answer_to, engine, question, target, whole
from ucotron_ray.core.errors import CorruptArtifact
from ucotron_ray.models.decoding import Answer
from ucotron_ray.serving import target as targets
from ucotron_ray.serving.batcher import Row
from ucotron_ray.serving.engine import ClosedError, Engine
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


def test_no_part_of_a_stop_string_is_sent_before_it_is_whole():
    async def ask():
        served = engine(FakeStepper())
        pieces = [piece async for piece in served.answer(question("one", stop=('["m:one',), stream=True))]
        served.close()
        return pieces

    assert "".join(piece.text for piece in asyncio.run(ask())) == ""


def test_a_prompt_with_a_name_that_is_none_is_answered_freely():
    prompt = 'Text: "Ana."\nEntities:\n- "" (person)\n'

    async def ask():
        served = engine(FakeStepper())
        text = await whole(served.answer(question(prompt)))
        served.close()
        return text

    assert asyncio.run(ask()) == answer_to("m", prompt)


def test_an_answer_says_how_long_it_ran_without_its_wait():
    row = Row(Answer([1], max_new_tokens=1, eos=(0,), piece=None), lambda error: None)
    row.came -= 100.0
    row.queued_seconds = 100.0
    assert 0.0 <= row.running_seconds < 50.0

    async def ask():
        served = engine(FakeStepper())
        pieces = [piece async for piece in served.answer(question("x"))]
        served.close()
        return pieces[-1].usage

    assert asyncio.run(ask()).running_seconds > 0.0


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
    left = threading.Event()

    class Waiting(FakeStepper):
        def step(self, batch, tokens):
            # Else a busy machine would finish the answer before the listener is gone.
            assert len(self.sizes) < 20 or left.wait(PATIENCE)
            return super().step(batch, tokens)

    async def ask():
        stepper = Waiting()
        served = engine(stepper, max_batch=1)
        async with aclosing(served.answer(question("x" * 90, stream=True))) as pieces:
            await anext(pieces)
        left.set()
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


def test_an_error_of_ours_is_logged_and_is_nothing_to_be_tried_again(tmp_path, caplog, monkeypatch):
    file = tmp_path / "target.json"

    def fail(self, asked):
        raise ZeroDivisionError("secret detail")

    async def run():
        targets.write(file, target("a"))
        switch = Switch(file, lambda wanted: engine(FakeStepper(wanted.model)), seconds=3600.0)
        with monkeypatch.context() as patch, pytest.raises(Refusal) as refused:
            patch.setattr(Engine, "_prompt", fail)
            await whole(switch.answer(question("x")))
        text = await whole(switch.answer(question("x")))
        switch.close()
        return refused.value, text

    refusal, text = asyncio.run(run())
    assert (refusal.status, refusal.code, refusal.retry_after) == (500, "internal_error", None)
    assert "secret detail" not in refusal.message
    assert "secret detail" in caplog.text
    assert text == answer_to("a", "x")


def test_files_that_cannot_be_read_now_are_tried_again_and_what_a_library_refuses_is_not(tmp_path):
    file, tried = tmp_path / "target.json", []
    failures = {"late": [OSError("stale file handle")], "bad": [KeyError("no such operator")] * 2}

    def load(wanted):
        tried.append(wanted.model)
        if failures.get(wanted.model):
            raise failures[wanted.model].pop()
        return engine(FakeStepper(wanted.model))

    targets.write(file, target("good"))
    switch = Switch(file, load, seconds=3600.0)
    targets.write(file, target("late"))
    assert [switch.look(), switch.look()] == [False, True]
    targets.write(file, target("bad"))
    assert [switch.look(), switch.look()] == [False, False]
    assert tried == ["good", "late", "late", "bad"]
    assert asyncio.run(switch.served()).model == "late"
    switch.close()


def test_the_switch_follows_on_after_an_error_that_nobody_foresaw(tmp_path, monkeypatch):
    file = tmp_path / "target.json"
    targets.write(file, target("a"))
    read, failed = targets.read, threading.Event()

    def unforeseen(path):
        if not failed.is_set():
            failed.set()
            raise ZeroDivisionError("unforeseen")
        return read(path)

    switch = Switch(file, lambda wanted: engine(FakeStepper(wanted.model)), seconds=0.01)
    monkeypatch.setattr(targets, "read", unforeseen)
    assert failed.wait(PATIENCE)
    targets.write(file, target("b"))

    async def until_it_is_there():
        async with asyncio.timeout(PATIENCE):
            while (await switch.served()).model != "b":
                await asyncio.sleep(0.005)

    asyncio.run(until_it_is_there())
    switch.close()


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
