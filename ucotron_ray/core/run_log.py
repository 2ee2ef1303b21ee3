"""The log of a run: workers write their lines into one file, and the driver repeats them."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ucotron_ray.core import redaction, variables

log = logging.getLogger(__name__)

FOLLOW_SECONDS = 0.5


def set_up_worker(log_file: str, *, prefix: str = "") -> None:
    """Logging of a worker: our own lines into the run's log, which the driver follows and which outlives Ray."""
    path = Path(log_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    lines = logging.Formatter(prefix.replace("%", "%%") + "%(message)s")
    handler.setFormatter(redaction.Redacting(lines, variables.known_secrets()))
    logger = logging.getLogger("ucotron_ray")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


@contextmanager
def following(log_file: str) -> Iterator[None]:
    """Repeat the lines that workers add to the run's log, for the time of the block."""
    path, done = Path(log_file), threading.Event()
    start = path.stat().st_size if path.exists() else 0

    def follow() -> None:
        position = start
        while True:
            last = done.wait(FOLLOW_SECONDS)
            if path.exists():
                with path.open(encoding="utf-8", errors="replace") as file:
                    file.seek(position)
                    for line in file:
                        if line.endswith("\n"):
                            position += len(line.encode())
                            log.info("%s", line.rstrip())
            if last:
                return

    thread = threading.Thread(target=follow, name="log", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(FOLLOW_SECONDS * 4)
