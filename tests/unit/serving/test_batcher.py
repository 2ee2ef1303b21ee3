"""Rows that join and leave a running batch get the answers that they would get alone."""

import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.serving_fakes import PATIENCE, FakeStepper, answer_to
from ucotron_ray.models.decoding import Answer
from ucotron_ray.serving.batcher import Batcher, Row
from ucotron_ray.serving.torch_model import TorchStepper


class Log:
    """The ends of rows, in their order."""

    def __init__(self, expected):
        self.ends, self._expected, self.all = [], expected, threading.Event()

    def row(self, name, answer, stepped=None):
        def over(error):
            self.ends.append((name, error))
            if len(self.ends) == self._expected:
                self.all.set()

        return Row(answer, over, stepped)


def fake_answer(prompt, max_new_tokens=100):
    return Answer(list(prompt.encode()), max_new_tokens=max_new_tokens, eos=(0,), piece=chr)


def test_a_row_that_leaves_makes_room_for_the_next_before_the_others_end():
    stepper, log = FakeStepper(), Log(3)
    stepper.free.clear()
    batcher = Batcher(stepper, max_batch=2)
    answers = {name: fake_answer(name) for name in ("a" * 50, "b", "c" * 5)}
    for name, answer in answers.items():
        assert batcher.submit(log.row(name, answer))
    stepper.free.set()
    assert log.all.wait(PATIENCE)
    batcher.close()
    assert [name for name, _ in log.ends] == ["b", "c" * 5, "a" * 50]
    assert max(stepper.sizes) == 2
    for name, answer in answers.items():
        assert bytes(answer.tokens).decode() == answer_to("m", name)


def test_a_row_that_takes_the_place_of_another_costs_one_copy_of_the_batch():
    stepper, log = FakeStepper(), Log(5)
    stepper.free.clear()
    batcher = Batcher(stepper, max_batch=3)
    prompts = ("a" * 60, "b" * 40, "c", "d" * 3, "e" * 5)
    answers = [fake_answer(prompt) for prompt in prompts]
    for prompt, answer in zip(prompts, answers, strict=True):
        batcher.submit(log.row(prompt, answer))
    stepper.free.set()
    assert log.all.wait(PATIENCE)
    batcher.close()
    # One for each that came to others (the first three may come one by one), none for "c", "d" and "e" that left, one
    # when "a" is alone in a batch of three.
    assert stepper.picks <= 5
    assert stepper.sizes[-1] == 1
    for prompt, answer in zip(prompts, answers, strict=True):
        assert bytes(answer.tokens).decode() == answer_to("m", prompt)


def test_a_cancelled_row_leaves_at_the_next_step_and_the_others_stay():
    stepper, log = FakeStepper(), Log(2)
    stepper.free.clear()
    batcher = Batcher(stepper, max_batch=2)
    long = log.row("long", fake_answer("x" * 60))
    leaving = log.row("leaving", fake_answer("y" * 60))
    leaving.stepped = lambda: setattr(leaving, "cancelled", len(leaving.answer.tokens) >= 3) or True
    for row in (long, leaving):
        batcher.submit(row)
    stepper.free.set()
    assert log.all.wait(PATIENCE)
    batcher.close()
    assert [name for name, _ in log.ends] == ["leaving", "long"]
    assert len(leaving.answer.tokens) == 4
    assert bytes(long.answer.tokens).decode() == answer_to("m", "x" * 60)
    assert stepper.sizes[-1] == 1
    assert long.batch_rows < 2


def test_a_model_that_fails_tells_its_rows_and_goes_on_until_it_counts_as_broken():
    stepper = FakeStepper()
    batcher = Batcher(stepper, max_batch=2)
    for failures in range(1, 4):
        stepper.broken = True
        log = Log(1)
        batcher.submit(log.row("row", fake_answer("x")))
        assert log.all.wait(PATIENCE)
        assert isinstance(log.ends[0][1], RuntimeError)
        # The count is written before the rows hear of it.
        assert batcher.healthy == (failures < 3)
    stepper.broken, log = False, Log(1)
    batcher.submit(log.row("row", fake_answer("x")))
    assert log.all.wait(PATIENCE)
    batcher.close()
    assert log.ends == [("row", None)]
    assert batcher.healthy


def test_closing_answers_what_was_taken_and_takes_nothing_more():
    stepper, log = FakeStepper(), Log(5)
    stepper.free.clear()
    batcher = Batcher(stepper, max_batch=2)
    for number in range(5):
        assert batcher.submit(log.row(number, fake_answer(str(number))))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    stepper.free.set()
    closing.join(PATIENCE)
    assert sorted(name for name, error in log.ends if error is None) == list(range(5))
    assert not batcher.submit(log.row("late", fake_answer("late")))


@pytest.fixture(scope="module")
def tiny(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="eager").eval()


def test_answers_of_transformers_do_not_depend_on_who_joins_and_leaves(tiny):
    """Rows of unequal lengths, each submitted by an earlier one in the middle of its answer."""
    generator = torch.Generator().manual_seed(5)
    lengths, limits = (40, 7, 90, 21, 22, 5), (12, 5, 9, 20, 3, 8)
    prompts = [torch.randint(5, 600, (length,), generator=generator).tolist() for length in lengths]
    alone = [greedy(tiny, prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)]
    assert len({tuple(answer) for answer in alone}) > 3

    log, batcher = Log(len(prompts)), Batcher(TorchStepper(tiny), max_batch=3)
    answers = [
        Answer(prompt, max_new_tokens=limit, eos=(tiny.config.eos_token_id,), piece=lambda _: "")
        for prompt, limit in zip(prompts, limits, strict=True)
    ]
    rows = [log.row(number, answer) for number, answer in enumerate(answers)]

    def submit_next(number):
        def stepped():
            if len(answers[number].tokens) == 2 and number + 2 < len(rows):
                batcher.submit(rows[number + 2])
            return True

        return stepped

    for number, row in enumerate(rows):
        row.stepped = submit_next(number)
    batcher.submit(rows[0])
    batcher.submit(rows[1])
    assert log.all.wait(PATIENCE)
    batcher.close()
    assert [answer.tokens for answer in answers] == alone
    assert max(row.batch_rows for row in rows) > 1.5


def greedy(model, prompt, limit):
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
        max_new_tokens=limit,
        do_sample=False,
        pad_token_id=model.config.pad_token_id,
    )
    answer = output[0, len(prompt) :].tolist()
    eos = model.config.eos_token_id
    return answer[: answer.index(eos)] if eos in answer else answer
