"""Work in a thread, so that a stop lets what is in flight come home first: it is paid."""

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

DRAIN_SECONDS = 30.0


def run_in_background(work: Callable[[], None], *, stop: Callable[[], None], in_flight: Callable[[], int]) -> None:
    """Do the work; raises what it raises.

    On Ctrl-C and SIGTERM nothing new is sent (`stop`), and KeyboardInterrupt goes on once nothing is `in_flight`, or
    after DRAIN_SECONDS.
    """
    failed: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread below
            failed.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="synthesis", daemon=True).start()
    try:
        while not done.wait(0.2):
            pass
    except KeyboardInterrupt:
        log.info("synthesize: stopping; waiting for the answers in flight")
        stop()
        # Not until every planned sample has ended as pending: of a large plan that takes longer than the answers.
        deadline = time.monotonic() + DRAIN_SECONDS
        while not done.wait(0.2) and time.monotonic() < deadline and in_flight():
            pass
        raise
    if failed:
        raise failed[0]
