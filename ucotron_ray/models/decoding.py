"""One answer as it grows, token by token: what is fed next, and when it is over. No model runs here."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np

from ucotron_ray.models.constrain import Constraint
from ucotron_ray.models.runner import Floats, OnnxRunner, State, pick

Reason = Literal["end", "array", "length"]
"""Why an answer is over: the end token, the end of its JSON array, or the limit of new tokens."""


class ArrayEnd:
    """Watches a text that comes in pieces for the end of its first JSON array: brackets in strings do not count."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def closes(self, piece: str) -> bool:
        """Whether the array ends within this piece."""
        return any(self._closes(character) for character in piece)

    def _closes(self, character: str) -> bool:
        if self._depth == 0:
            self._depth = int(character == "[")
        elif self._escaped:
            self._escaped = False
        elif self._in_string:
            self._escaped = character == "\\"
            self._in_string = character != '"'
        elif character == '"':
            self._in_string = True
        elif character in "[{":
            self._depth += 1
        elif character in "]}":
            self._depth -= 1
            return self._depth == 0
        return False


class Answer:
    """A greedy answer to one prompt. Feed `prompt` first, then what `advance` gives, until it gives nothing."""

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        eos: Sequence[int],
        piece: Callable[[int], str] | None,
        constraint: Constraint | None = None,
    ) -> None:
        """`piece` is the text of one token, to see where the JSON array ends; None = go on to the end token."""
        self.tokens: list[int] = []
        """Of the answer so far, without the end token."""
        self.logprobs: list[float] = []
        """Of each token, as the model sees it without a grammar; 0 for one that the grammar left no choice about."""
        self.reason: Reason | None = None
        self._left = max_new_tokens
        self._eos = frozenset(eos)
        self._piece = piece
        self._constraint = constraint
        self._array = ArrayEnd()
        self.prompt = [*prompt, *self._take_forced()]
        """With the first tokens of the answer, where only one beginning is allowed."""

    @property
    def left(self) -> int:
        """How many tokens it may still have."""
        return self._left

    @property
    def constrained(self) -> bool:
        """Whether a grammar holds for it."""
        return self._constraint is not None

    def advance(self, logits_V: Floats) -> list[int]:
        """Choose what follows, given the logits after all that was fed; the tokens to feed next, none at the end."""
        if self.reason is not None:
            return []
        token = self._choose(logits_V)
        return self.follow(token, _logprob(logits_V, token))

    def follow(self, token: int, logprob: float) -> list[int]:
        """Go on by a token that was chosen already; the tokens to feed next, none at the end."""
        if self.reason is not None:
            return []
        if token in self._eos:
            self.reason = "end"
            return []
        if self._constraint is not None:
            self._constraint.read([token])
        taken = [*self._take([token], [logprob]), *self._take_forced()]
        return taken if self.reason is None else []

    def replay(self, tokens: Sequence[int]) -> None:
        """Take tokens that another model chose, up to where the answer is over."""
        for token in tokens:
            if token in self._eos:
                self.reason = self.reason or "end"
            if self.reason is None:
                self._take([token], [0.0])

    def _choose(self, logits_V: Floats) -> int:
        if self._constraint is None:
            return int(logits_V.argmax())
        return int(np.where(self._constraint.allowed_V(), logits_V, -np.inf).argmax())

    def _take_forced(self) -> list[int]:
        """Add what the grammar leaves no choice about: no step of the model is needed for it."""
        if self._constraint is None or self.reason is not None:
            return []
        forced = [token for token in self._constraint.forced() if token not in self._eos]
        self._constraint.read(forced)
        return self._take(forced, [0.0] * len(forced))

    def _take(self, tokens: Sequence[int], logprobs: Sequence[float]) -> list[int]:
        """Add tokens to the answer up to where it is over."""
        taken: list[int] = []
        for token in tokens:
            if self.reason is None:
                taken.append(token)
                self._left -= 1
                over: Reason | None = "length" if self._left <= 0 else None
                ends = self._piece is not None and self._array.closes(self._piece(token))
                self.reason = "array" if ends else over
        self.tokens += taken
        self.logprobs += logprobs[: len(taken)]
        return taken


def _logprob(logits_V: Floats, token: int) -> float:
    largest = logits_V.max()
    return float(logits_V[token] - largest - np.log(np.exp(logits_V - largest).sum()))


def answered(runner: OnnxRunner, answers: Sequence[Answer]) -> Iterator[Answer]:
    """Run a batch until all of its answers are over; give each as soon as it is."""
    yield from (answer for answer in answers if answer.reason is not None)
    running = [answer for answer in answers if answer.reason is None]
    state: State | None = runner.prefill([answer.prompt for answer in running]) if running else None
    while state is not None:
        fed = [answer.advance(logits_V) for answer, logits_V in zip(running, state.logits_BV, strict=True)]
        left = [index for index, answer in enumerate(running) if answer.reason is None]
        yield from (answer for answer in running if answer.reason is not None)
        if not left:
            return
        if len(left) < len(running):
            state = pick([(state, left)])
        running = [running[index] for index in left]
        state = runner.step(state, [fed[index] for index in left])


def closed(text: str) -> str:
    """An answer that was cut by its limit, as an array of the items that were whole; unchanged if none was begun."""
    start = text.find("[")
    if start < 0:
        return text
    decoder, items, at = json.JSONDecoder(), [], start + 1
    while at < len(text):
        try:
            _, end = decoder.raw_decode(text, at)
        except ValueError:
            break
        items.append(text[at:end])
        at = end + 1 if text[end : end + 1] == "," else len(text)
    return f"{text[:start]}[{','.join(items)}]"
