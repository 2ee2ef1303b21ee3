"""SIGTERM and Ctrl-C while workers do something long: they are asked to stop, and the main thread stays free for it."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)


@contextmanager
def stopping(request: Path) -> Iterator[None]:
    """In the block SIGTERM and Ctrl-C make the file that asks the workers to stop; a second one ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(signum: int, frame: FrameType | None) -> None:
        if request.exists():
            raise KeyboardInterrupt
        request.touch()
        log.warning("stopping after this step, with a checkpoint; once more to stop at once")

    previous = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def aside(work: Callable[[], Any]) -> Any:
    """Do the work in a thread: in the main thread Ray has a handler of its own for Ctrl-C, which ends with exit 0."""
    done: dict[str, Any] = {}

    def run() -> None:
        try:
            done["result"] = work()
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread, whatever it is
            done["error"] = error

    thread = threading.Thread(target=run, name="aside", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(1.0)
    if "error" in done:
        raise done["error"]
    return done["result"]
