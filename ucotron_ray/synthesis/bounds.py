"""What samples can cost at most: each step whole, cut off and asked again, then mended; and as many samples as planned.

Answers that are lost on their way are not in it: each may be billed, at its worst, and asked for again.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from ucotron_ray.core.recipe import Generation
from ucotron_ray.synthesis.conversation import MAX_REASON_CHARACTERS, REPAIR
from ucotron_ray.synthesis.plan import Answer, Ask, Ended, Task, request_body
from ucotron_ray.synthesis.tasks import judge as judge_task
from ucotron_ray.teacher.lengths import most_prompt_tokens
from ucotron_ray.teacher.outcome import OutcomeKind
from ucotron_ray.teacher.prices import Price

MOST_LOOKED_AT = 2000
"""Samples of which the dearest stands for all."""

_BYTES_A_CHARACTER = 4
_REMARK = 200
"""Bytes of the sentence around a reason, and of a turn's markers."""


@dataclass(frozen=True)
class Most:
    """Tokens of a sample at most."""

    prompt: int = 0
    completion: int = 0

    def usd(self, price: Price) -> float:
        """Dollars at most."""
        return price.cost(self.prompt, 0, self.completion)


def steps_of(task: Task, number: int) -> list[Ask]:
    """The requests of a sample whose answers all fit; none of one that asks nobody."""
    facts = task.sample(number)
    conversation = task.converse(facts)
    steps: list[Ask] = []
    with contextlib.suppress(StopIteration, Ended):
        ask = next(conversation)
        # Where a stand-in does not fit, the step is the last one: a turn of repair is counted of every step anyway.
        while not ask.step.endswith(REPAIR):
            steps.append(ask)
            text = task.stand_in(facts, ask) if task.stand_in else _stand_in(ask)
            ask = conversation.send(Answer(OutcomeKind.ANSWER, text))
    conversation.close()
    return steps


def most_of(steps: Sequence[Ask], cap: int, room: int = 0) -> Most:
    """What a sample of these steps takes at most.

    `cap` = `generation.max_answer_tokens`; `room` = tokens of every request for reasoning (`api.hidden_tokens`).
    """
    prompt = completion = before = 0
    for ask in steps:
        longest = max(ask.max_tokens, min(cap, 2 * ask.max_tokens))
        # `whole`: once, and once more with twice the tokens. What was answered before may be quoted.
        own = most_prompt_tokens(request_body("", ask, "0")) + before
        times = 2 if ask.max_tokens < cap else 1
        tokens = ask.max_tokens + (longest if times > 1 else 0) + times * room
        prompt, completion = prompt + times * own, completion + tokens
        if ask.json_mode:
            # `parsed`: the same again, with the answer and what was wrong in it.
            mended = own + longest + _BYTES_A_CHARACTER * MAX_REASON_CHARACTERS + _REMARK
            prompt, completion = prompt + times * mended, completion + tokens
        before += longest
    return Most(prompt, completion)


def dearest(task: Task, count: int, cap: int, price: Price, room: int = 0) -> float:
    """Dollars of the dearest of the first samples."""
    looked_at = range(min(count, MOST_LOOKED_AT))
    return max(most_of(steps_of(task, number), cap, room).usd(price) for number in looked_at)


def judge_at_most(generation: Generation, count: int, price: Price | None, room: int = 0) -> float | None:
    """Dollars of reading a sample of `count` rows with the recipe's judge; 0 without one, None without a price."""
    judge = generation.gate.judge
    if judge.model_id is None:
        return 0.0
    if price is None:
        return None
    longest = {"text": "\N{GRINNING FACE}" * judge_task.MAX_ROW_CHARACTERS}
    task = judge_task.make_task(generation, [("row", 1, longest)])
    return min(judge.rows, count) * most_of(steps_of(task, 0), generation.max_answer_tokens, room).usd(price)


def _stand_in(ask: Ask) -> str:
    """A text that holds everything that was asked for, so that the conversation goes on."""
    return '{"entities": [], "relations": []}' if ask.json_mode else ask.messages[-1][1]
