"""A replica's model, exchanged while it serves: the new one is loaded beside the old, which answers what it has."""

import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

from ucotron_ray.serving import target as targets
from ucotron_ray.serving.engine import ClosedError, Engine
from ucotron_ray.serving.exchange import Piece, Question, Refusal, Served, internal_error
from ucotron_ray.serving.target import Target

log = logging.getLogger(__name__)

Load = Callable[[Target], Engine]


class Switch:
    """Answers with the newest model that could be loaded, and follows the file that names it."""

    def __init__(self, file: Path, load: Load, *, seconds: float) -> None:
        """Load what the file names now. Raises what loading raises."""
        self._file = file
        self._load = load
        self._engine = load(targets.read(file))
        self._refused: Target | None = None
        self._said = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, args=(seconds,), name="switch", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether the model works."""
        return self._engine.healthy

    async def served(self) -> Served:
        """What is served now."""
        return self._engine.served

    async def answer(self, question: Question) -> AsyncGenerator[Piece, None]:
        """The parts of the answer, all from one model."""
        while True:
            engine = self._engine
            try:
                async with aclosing(engine.answer(question)) as parts:
                    async for piece in parts:
                        yield piece
                return
            except ClosedError:
                # It was replaced between our look and its queue: the next look finds the new one.
                continue
            except Refusal:
                raise
            except Exception as error:
                # Raised through Ray it would look like a lost replica, which is worth another try.
                log.error("serve: a question failed", exc_info=error)
                raise internal_error() from error

    def close(self) -> None:
        """Follow no more, and answer what was taken."""
        self._stopped.set()
        self._thread.join()
        self._engine.close()

    def look(self) -> bool:
        """Exchange the model if the file names another one; whether that was done."""
        wanted = targets.read(self._file)
        if wanted in (self._engine.target, self._refused):
            return False
        began = time.monotonic()
        try:
            engine = self._load(wanted)
        except Exception as error:  # noqa: BLE001 - whatever a library raises while it loads, the old one goes on
            # Files that cannot be read now may be readable at the next look; all else would only fail again.
            if not isinstance(error, OSError):
                self._refused = wanted
            self._say(f"stays with {self._engine.target.model}, as {wanted.model} cannot be served: {error!s}")
            return False
        old, self._engine, self._refused, self._said = self._engine, engine, None, ""
        log.info("serve: switched from %s to %s", _named(old.target), _named(wanted))
        old.close()
        log.info("serve: the old model has answered what it had; %.1f s in all", time.monotonic() - began)
        return True

    def _follow(self, seconds: float) -> None:
        while not self._stopped.wait(seconds):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - a thread that ends would never follow again
                self._say(f"{self._file} cannot be followed now: {error!s}")

    def _say(self, problem: str) -> None:
        """Log it once, however often it is met."""
        if problem != self._said:
            log.error("serve: %s", problem)
        self._said = problem


def _named(target: Target) -> str:
    return f"{target.model} ({target.content[:12]}, {target.variant}, {target.decoding})"
