"""Which keys of a request a server takes and how much room its reasoning needs, found out by its first answers."""

import json
import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from ucotron_ray.teacher.endpoint import OPTIONAL_KEYS, RENAMED, Endpoint, without_refused
from ucotron_ray.teacher.outcome import FINAL, OutcomeKind, RequestOutcome

log = logging.getLogger(__name__)

Post = Callable[[dict[str, Any]], Awaitable[RequestOutcome]]

ROOM_STEP = 256
MOST_ROOM = 16_384
"""Tokens. More only by `api.hidden_tokens`: each request is reserved with it, and a budget may hold few of them."""

_UNSUPPORTED = re.compile(
    r"unsupported|not support|not permitted|not allowed|unrecognized|unknown|unexpected|deprecated", re.IGNORECASE
)


class Capabilities:
    """What a process knows of a server so far; what the processes of a run know together lies in `file`."""

    def __init__(self, endpoint: Endpoint, file: Path | None = None) -> None:
        self._refused = set(endpoint.refused_keys or ())
        self._taken = set() if endpoint.refused_keys is None else set(OPTIONAL_KEYS)
        self._learns_room = endpoint.hidden_tokens is None
        self.room = endpoint.hidden_tokens or 0
        """Tokens for reasoning, beside those that an answer may have."""
        self._file = file
        self._load()

    async def send(
        self, body: Mapping[str, Any], post: Post, *, is_stopped: Callable[[], bool] = lambda: False
    ) -> RequestOutcome:
        """One request; where the server refuses it and may mean one of its keys, again without that key.

        What the server names comes first. Then each key alone that it never took, before several at once: what is found
        out must not depend on which request finds it out.
        """
        refused = frozenset(self._refused)
        outcome = await post(without_refused(body, refused))
        if outcome.kind is OutcomeKind.POISON:
            self._load()
            if refused != self._refused:
                # Another process has found it out meanwhile.
                refused = frozenset(self._refused)
                outcome = await post(without_refused(body, refused))
        dropped: frozenset[str] = frozenset()
        named = self._named(outcome, body, refused)
        while named and not is_stopped():
            dropped |= {named}
            outcome = await post(without_refused(body, refused | dropped))
            named = self._named(outcome, body, refused | dropped)
        doubtful = [key for key in OPTIONAL_KEYS if key in body and key not in self._taken | refused]
        ways = [[key] for key in doubtful] + [doubtful[:count] for count in range(2, len(doubtful) + 1)]
        while outcome.kind is OutcomeKind.POISON and ways and not is_stopped():
            dropped = frozenset(ways.pop(0))
            outcome = await post(without_refused(body, refused | dropped))
        if outcome.kind in FINAL:
            self._taken.update(body.keys() - refused - dropped)
            self._learn(dropped - self._refused, outcome.usage.hidden)
        return outcome

    def _named(self, outcome: RequestOutcome, body: Mapping[str, Any], refused: frozenset[str]) -> str | None:
        """The key that the server's words are about. One that it took before has to be called unsupported."""
        if outcome.kind is not OutcomeKind.POISON:
            return None
        known = set() if _UNSUPPORTED.search(outcome.detail) else self._taken
        keys = [key for key in OPTIONAL_KEYS if key in body and key not in refused | known]
        return next((key for key in keys if re.search(rf"(?<!\w){key}(?!\w)", outcome.detail)), None)

    def _learn(self, news: frozenset[str], hidden: int) -> None:
        """Keep what an answer showed."""
        room = min(MOST_ROOM, -(-2 * hidden // ROOM_STEP) * ROOM_STEP) if self._learns_room else self.room
        if not news and room <= self.room:
            return
        if news:
            words = [f"{key} (asked by {RENAMED[key]})" if key in RENAMED else key for key in sorted(news)]
            log.info("teacher: the server does not take %s", ", ".join(words))
        if "temperature" in news:
            log.warning("teacher: the server answers with a temperature of its own, whatever the recipe says")
        if room > self.room:
            log.info("teacher: the server reasons before it answers: %d tokens more for every request", room)
        self._refused |= news
        self.room = max(room, self.room)
        if self._file is not None:
            # Whole or not at all, and without fsync: it stands in the event loop, and a lost one is found out again.
            aside = self._file.with_name(f".{self._file.name}.{os.getpid()}")
            aside.write_text(json.dumps({"refused": sorted(self._refused), "room": self.room}), encoding="utf-8")
            aside.replace(self._file)

    def _load(self) -> None:
        """What other processes of the run have found out."""
        if self._file is None or not self._file.is_file():
            return
        known = json.loads(self._file.read_text(encoding="utf-8"))
        self._refused |= set(known["refused"])
        self.room = max(self.room, known["room"]) if self._learns_room else self.room
