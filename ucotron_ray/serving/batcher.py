"""Continuous batching: rows join and leave between two steps of the model, so that none waits for another's end.

One thread per model. A model that runs is a `Stepper`; a batch of it is a value that only the stepper looks into.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from ucotron_ray.models.decoding import Answer
from ucotron_ray.models.runner import Floats

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")

PADDING = 1.25
"""Prompts go through the model side by side while the longest is at most so many times the shortest."""
NOTHING = (0,)
"""What a place reads whose row is over: the answer to it is looked at by nobody."""
FAILURES = 3
"""Failed steps in a row after which the model counts as broken."""


class Stepper(Protocol[Batch]):
    """A model that runs batches. Shapes: B rows, V words."""

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Batch:
        """A batch that has read these prompts."""
        ...

    def step(self, batch: Batch, tokens: Sequence[Sequence[int]]) -> Batch:
        """The batch after every row has read one token or more."""
        ...

    def pick(self, parts: Sequence[tuple[Batch, Sequence[int]]]) -> Batch:
        """One batch of these rows of these batches, in their order."""
        ...

    def logits(self, batch: Batch) -> Floats:
        """Logits [B, V] after the last token of each row."""
        ...


@dataclass(eq=False)
class Row:
    """One answer on its way through the batcher. Its callbacks run in the batcher's thread and must be quick."""

    answer: Answer
    over: Callable[[BaseException | None], None]
    """Called exactly once: the answer is complete, or the model failed."""
    stepped: Callable[[], bool] | None = None
    """Called after every choice; False = enough, whatever the model would still say."""
    cancelled: bool = False
    """Set by whoever does not want it any more; the row leaves at the next step."""
    came: float = field(default_factory=time.monotonic)
    queued_seconds: float = 0.0
    steps: int = 0
    beside: int = 0
    """Rows of all its steps, itself included."""
    ended: bool = False

    @property
    def running_seconds(self) -> float:
        """Since the first pass over its prompt."""
        return time.monotonic() - self.came - self.queued_seconds

    @property
    def batch_rows(self) -> float:
        """Mean number of rows decoded together with it."""
        return self.beside / self.steps if self.steps else 1.0

    def end(self, error: BaseException | None = None) -> None:
        """Say that it is over, unless that was said before."""
        if not self.ended:
            self.ended = True
            self.over(error)


Rows = list[Row | None]
"""The rows of a batch; None where one is over and its place not yet taken."""


class Batcher(Generic[Batch]):
    """Runs rows through a stepper, at most `max_batch` at a time, the others first come first served."""

    def __init__(self, stepper: Stepper[Batch], *, max_batch: int) -> None:
        self._stepper = stepper
        self._max_batch = max_batch
        self._waiting: deque[Row] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """False once the model failed several times in a row, or its thread ended by itself."""
        return self._failures < FAILURES and (self._thread.is_alive() or self._closed)

    def submit(self, row: Row) -> bool:
        """Take a row in. False once the batcher is closed: nobody would run it."""
        with self._changed:
            if self._closed:
                return False
            self._waiting.append(row)
            self._changed.notify()
        return True

    def close(self) -> None:
        """Take no further row, and return when all that were taken are over."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        running: Rows = []
        batch: Batch | None = None
        while True:
            inside = [row for row in running if row is not None]
            new = self._admitted(len(inside))
            if not inside and not new:
                return
            try:
                running, batch = self._round(running, batch, new)
                self._failures = 0
            except Exception as error:
                # Whatever the model raises: its rows must learn of it, and the next ones may go better.
                together = [*inside, *new]
                log.error("serve: the model failed with %d rows", len(together), exc_info=error)
                self._failures += 1
                for row in together:
                    row.end(error)
                running, batch = [], None

    def _admitted(self, num_running: int) -> list[Row]:
        """Rows that enter now. Waits while there is nothing to run; none at all = closed and empty."""
        new: list[Row] = []
        with self._changed:
            while True:
                while self._waiting and num_running + len(new) < self._max_batch:
                    row = self._waiting.popleft()
                    if row.cancelled:
                        row.end()
                        continue
                    row.queued_seconds = time.monotonic() - row.came
                    new.append(row)
                if new or num_running or self._closed:
                    return new
                self._changed.wait()

    def _round(self, running: Rows, batch: Batch | None, new: list[Row]) -> tuple[Rows, Batch | None]:
        """New rows read their prompts, every row chooses, those that are over leave, the others make one step."""
        running, batch = self._packed(running, batch, new)
        for entering in new:
            if entering.answer.reason is not None:
                entering.end()
        if batch is None:
            return [], None
        beside = sum(row is not None for row in running)
        fed: list[Sequence[int]] = []
        for index, (row, logits_V) in enumerate(zip(running, self._stepper.logits(batch), strict=True)):
            fed.append(NOTHING)
            if row is None:
                continue
            row.steps += 1
            row.beside += beside
            tokens = row.answer.advance(logits_V)
            if _goes_on(row):
                fed[index] = tokens
            else:
                row.end()
                running[index] = None
        if not any(running):
            return [], None
        return running, self._stepper.step(batch, fed)

    def _packed(self, running: Rows, batch: Batch | None, new: list[Row]) -> tuple[Rows, Batch | None]:
        """The batch with the new rows, which have read their prompts.

        Copying the cache of all rows takes as long as a step, so the places of rows that are over stay in the batch
        until others come, or until half of it is empty.
        """
        left = [index for index, row in enumerate(running) if row is not None]
        packed: Rows = [running[index] for index in left]
        parts: list[tuple[Batch, Sequence[int]]] = [(batch, left)] if batch is not None and left else []
        for group in _similar([row for row in new if row.answer.reason is None]):
            parts.append((self._stepper.prefill([row.answer.prompt for row in group]), range(len(group))))
            packed += group
        if not parts:
            return [], None
        if len(parts) == 1 and (parts[0][0] is not batch or 2 * len(left) > len(running)):
            return (running if parts[0][0] is batch else packed), parts[0][0]
        return packed, self._stepper.pick(parts)


def _goes_on(row: Row) -> bool:
    if row.cancelled or (row.stepped is not None and not row.stepped()):
        return False
    return row.answer.reason is None


def _similar(rows: Sequence[Row]) -> list[list[Row]]:
    """Groups of similar lengths: padding a short prompt to a long one costs as much as reading it twice."""
    groups: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: len(row.answer.prompt)):
        if groups and len(row.answer.prompt) <= PADDING * len(groups[-1][0].answer.prompt):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
