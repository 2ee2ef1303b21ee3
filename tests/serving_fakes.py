"""A model that answers from its own name and the prompt, one letter a step, and lets a test hold or break its steps."""

import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ucotron_ray.models.decoding import Answer
from ucotron_ray.serving.backends import LoadedModel
from ucotron_ray.serving.engine import Engine
from ucotron_ray.serving.exchange import Piece, Question, Served, Turn, Usage
from ucotron_ray.serving.target import Target

NUM_WORDS, EOS, PATIENCE = 256, 0, 30
SERVED = Served("scripted", "c0ffee", 1)


def answer_to(model: str, prompt: str) -> str:
    """What the model named so says to a prompt."""
    return f'["{model}:{prompt}"]'


@dataclass
class FakeStepper:
    """Batches are lists of [prompt, tokens after it]."""

    model: str = "m"
    free: threading.Event = field(default_factory=threading.Event)
    """Steps wait until it is set."""
    broken: bool = False
    sizes: list[int] = field(default_factory=list)
    """Rows of each step so far."""
    picks: int = 0
    """How often rows were copied into another batch."""

    def __post_init__(self) -> None:
        self.free.set()

    def prefill(self, prompts: Sequence[Sequence[int]]) -> list[tuple[str, int]]:
        assert self.free.wait(PATIENCE)
        if self.broken:
            raise RuntimeError("broken on purpose")
        return [(bytes(prompt).decode(), 0) for prompt in prompts]

    def step(self, batch: list[tuple[str, int]], tokens: Sequence[Sequence[int]]) -> list[tuple[str, int]]:
        assert self.free.wait(PATIENCE)
        if self.broken:
            raise RuntimeError("broken on purpose")
        self.sizes.append(len(batch))
        return [(prompt, done + len(new)) for (prompt, done), new in zip(batch, tokens, strict=True)]

    def pick(self, parts: Sequence[tuple[list[tuple[str, int]], Sequence[int]]]) -> list[tuple[str, int]]:
        self.picks += 1
        return [batch[row] for batch, rows in parts for row in rows]

    def logits(self, batch: list[tuple[str, int]]) -> np.ndarray:
        logits_BV = np.zeros((len(batch), NUM_WORDS), dtype=np.float32)
        for row, (prompt, done) in enumerate(batch):
            text = answer_to(self.model, prompt).encode()
            logits_BV[row, text[done] if done < len(text) else EOS] = 1
        return logits_BV


class FakeSpeech:
    """Bytes are tokens; the prompt is the last turn."""

    def chat_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return list(messages[-1]["content"].encode())

    def constraint(self, prompt: str, decoding: str) -> None:
        return None

    def answer(self, ids: Sequence[int], *, max_new_tokens: int, constraint: object, to_array_end: bool) -> Answer:
        return Answer(ids, max_new_tokens=max_new_tokens, eos=(EOS,), piece=chr if to_array_end else None)

    def text(self, tokens: Sequence[int]) -> str:
        return bytes(tokens).decode(errors="replace")

    def finished(self, answer: Answer) -> str:
        return self.text(answer.tokens)


def target(model: str, path: Path | None = None) -> Target:
    return Target(model=model, backend="onnx", path=str(path) if path else None, content=f"content of {model}")


def engine(stepper: FakeStepper, *, max_batch: int = 4, max_prompt_tokens: int = 100) -> Engine:
    loaded = LoadedModel(FakeSpeech(), stepper, context=200)
    return Engine(target(stepper.model), loaded, max_batch=max_batch, max_prompt_tokens=max_prompt_tokens)


def question(text: str, **settings: object) -> Question:
    return Question(turns=(Turn("user", text),), **{"max_tokens": 100, **settings})


async def whole(pieces: AsyncGenerator[Piece, None]) -> str:
    return "".join([piece.text async for piece in pieces])


class Scripted:
    """An `Answering` that does what a test says: `script(question)` gives pieces, awaits or raises."""

    def __init__(self, script: Callable[[Question], AsyncGenerator[Piece, None]]) -> None:
        self._script = script
        self.closed = 0
        """Answers whose listener is gone."""

    async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        try:
            async for piece in self._script(question):
                yield piece
        finally:
            self.closed += 1

    async def served(self) -> Served:
        return SERVED


def last_piece(text: str, finish: str = "stop") -> Piece:
    usage = Usage(prompt_tokens=7, completion_tokens=3, queued_seconds=0.0, batch_rows=1.0, constrained=False)
    return Piece(text, SERVED, finish, usage)
