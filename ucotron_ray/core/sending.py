"""Sends the spool to MLflow while a run works."""

import logging
import os
import threading
from pathlib import Path

from ucotron_ray.core import tracking
from ucotron_ray.core.destination import Destination

log = logging.getLogger(__name__)

SEND_EVERY_SECONDS = 5.0
CLOSE_SECONDS = 30.0


class Sender:
    """Sends the spool in the background, for as long as the block lasts; then once more, for a bounded time."""

    def __init__(self, directory: Path, destination: Destination | None) -> None:
        self._directory = directory
        self._destination = destination
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="tracking", daemon=True)

    def __enter__(self) -> "Sender":
        if self._destination is not None:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        if self._destination is not None:
            self._thread.join(CLOSE_SECONDS)
            if self._thread.is_alive():
                log.warning("tracking: MLflow is slow; what is left is sent by the next run")

    def _loop(self) -> None:
        assert self._destination is not None
        # Importing mlflow and making its database take a processor for ten seconds: give way to the run's own start.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 15)
        while True:
            last = self._done.wait(SEND_EVERY_SECONDS)
            tracking.send_pending(self._directory, self._destination)
            if last:
                return
