"""One model at work: questions become rows of its batcher, tokens become text, and a broken model says so."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator

from ucotron_ray.core.errors import StageFailed, UcotronRayError
from ucotron_ray.data.wire import parse_prompt
from ucotron_ray.models.constrain import Constraint
from ucotron_ray.models.decoding import Answer
from ucotron_ray.serving.backends import LoadedModel
from ucotron_ray.serving.batcher import Batcher, Row
from ucotron_ray.serving.exchange import Piece, Question, Refusal, Served, Usage
from ucotron_ray.serving.target import Target

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
UNFINISHED_LETTER = "\ufffd"
"""What a decoder gives for the first bytes of a letter whose last ones are not there yet."""


class ClosedError(Exception):
    """The engine takes no further question: another one has replaced it."""


class Engine:
    """A loaded model with its batcher. Used from one event loop, closed from any thread."""

    def __init__(self, target: Target, loaded: LoadedModel, *, max_batch: int, max_prompt_tokens: int) -> None:
        self.target = target
        self.served = Served(target.model, target.content, int(time.time()))
        self._speech = loaded.speech
        self._context = loaded.context
        self._max_prompt_tokens = min(max_prompt_tokens, loaded.context - 1)
        self._batcher = Batcher(loaded.stepper, max_batch=max_batch)

    @property
    def healthy(self) -> bool:
        """Whether questions have a chance."""
        return self._batcher.healthy

    def close(self) -> None:
        """Answer what was taken, take nothing more, and return when that is done."""
        self._batcher.close()

    async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        """The parts of the answer. Raises Refusal, or ClosedError before the first part."""
        ids = self._prompt(question)
        asked = question.turns[-1].content
        # Another layout, or one with a blank name, is answered freely.
        is_servers = parse_prompt(asked) is not None
        answer = self._speech.answer(
            ids,
            max_new_tokens=min(question.max_tokens, self._context - len(ids)),
            constraint=self._constraint(asked) if is_servers else None,
            # What is no question of the server's may be answered with more than an array.
            to_array_end=is_servers,
        )
        writing = _Writing(self, answer, question, prompt_tokens=len(ids))
        if not self._batcher.submit(writing.row):
            raise ClosedError
        try:
            while True:
                piece = await writing.parts.get()
                if isinstance(piece, Refusal):
                    raise piece
                yield piece
                if piece.finish is not None:
                    return
        finally:
            # Whoever stops listening frees the row's place in the batch.
            writing.row.cancelled = True

    def _prompt(self, question: Question) -> list[int]:
        messages = [{"role": turn.role, "content": turn.content} for turn in question.turns]
        try:
            ids = self._speech.chat_ids(messages)
        except UcotronRayError as error:
            # Some templates refuse turns that do not alternate.
            found = error.found or str(error)
            raise Refusal(
                400,
                f"the model's chat template refuses these messages: {found}",
                code="invalid_value",
                param="messages",
            ) from error
        if len(ids) > self._max_prompt_tokens:
            message = f"the prompt has {len(ids)} tokens, and {self._max_prompt_tokens} are allowed"
            raise Refusal(400, message, code="context_length_exceeded", param="messages")
        return ids

    def _constraint(self, asked: str) -> Constraint | None:
        """The grammar of the answer to the server's question."""
        try:
            return self._speech.constraint(asked, self.target.decoding)
        except StageFailed as error:
            log.warning("serve: answered freely: %s (%s)", error.problem, error.found)
            return None

    def text_of(self, answer: Answer, *, whole: bool) -> str:
        """The text so far, or of an answer that is over."""
        return self._speech.finished(answer) if whole else self._speech.text(answer.tokens)


class _Writing:
    """One row's text side. `stepped` and `over` run in the batcher's thread, the parts are read in the event loop."""

    def __init__(self, engine: Engine, answer: Answer, question: Question, *, prompt_tokens: int) -> None:
        self.parts: asyncio.Queue[Piece | Refusal] = asyncio.Queue()
        self._engine = engine
        self._question = question
        self._prompt_tokens = prompt_tokens
        self._loop = asyncio.get_running_loop()
        self._sent = ""
        self._stopped: str | None = None
        watches = question.stream or question.stop
        self.row = Row(answer, self.over, self.stepped if watches else None)
        # A stop string may begin in one token and end in a later one: what could be its beginning is not sent yet.
        self._held_back = max((len(stop) for stop in question.stop), default=1) - 1

    def stepped(self) -> bool:
        """Send what is new, and see whether a stop string has come."""
        text = self._engine.text_of(self.row.answer, whole=False)
        found = [at for stop in self._question.stop if (at := text.find(stop)) >= 0]
        if found:
            self._stopped = text[: min(found)]
            return False
        safe = text.removesuffix(UNFINISHED_LETTER)
        safe = safe[: max(0, len(safe) - self._held_back)]
        if self._question.stream and self.row.answer.reason is None and len(safe) > len(self._sent):
            new, self._sent = safe[len(self._sent) :], safe
            self._put(Piece(new, self._engine.served))
        return True

    def over(self, error: BaseException | None) -> None:
        """Send the end."""
        if error is not None:
            message = "the model failed on this batch; its log says more"
            self._put(Refusal(503, message, code="model_failed", retry_after=RETRY_SECONDS))
            return
        answer = self.row.answer
        # A stream cannot take back what it has sent, so it ends as the model did.
        whole = self._engine.text_of(answer, whole=not self._question.stream)
        text = whole if self._stopped is None else self._stopped
        usage = Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=len(answer.tokens),
            queued_seconds=self.row.queued_seconds,
            batch_rows=self.row.batch_rows,
            constrained=answer.constrained,
            running_seconds=self.row.running_seconds,
        )
        finish = "length" if answer.reason == "length" and self._stopped is None else "stop"
        self._put(Piece(text[len(self._sent) :], self._engine.served, finish, usage))

    def _put(self, part: Piece | Refusal) -> None:
        try:
            self._loop.call_soon_threadsafe(self.parts.put_nowait, part)
        except RuntimeError:
            # The loop has ended, and the listener with it.
            log.debug("serve: nobody listens any more")
