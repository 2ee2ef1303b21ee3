"""Which of the optional keys of a request a server takes, found out by asking: some refuse what they do not know."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from ucotron_ray.teacher.endpoint import OPTIONAL_KEYS, Endpoint
from ucotron_ray.teacher.outcome import FINAL, OutcomeKind, RequestOutcome

log = logging.getLogger(__name__)

Post = Callable[[dict[str, Any]], Awaitable[RequestOutcome]]


class OptionalKeys:
    """What a process knows of a server's keys so far."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._refused = set(endpoint.refused_keys or ())
        self._taken = set() if endpoint.refused_keys is None else set(OPTIONAL_KEYS)

    async def send(self, body: dict[str, Any], post: Post, *, is_stopped: Callable[[], bool]) -> RequestOutcome:
        """One request; where the server refuses it and may mean a key that it never took, again without that key.

        Each key alone first, so that what is found out does not depend on which request finds it out.
        """
        body = {key: value for key, value in body.items() if key not in self._refused}
        outcome = await post(body)
        doubtful = [key for key in OPTIONAL_KEYS if key in body and key not in self._taken]
        ways = [[key] for key in doubtful] + [doubtful[:count] for count in range(2, len(doubtful) + 1)]
        dropped: list[str] = []
        while outcome.kind is OutcomeKind.POISON and ways and not is_stopped():
            dropped = ways.pop(0)
            outcome = await post({key: value for key, value in body.items() if key not in dropped})
        if outcome.kind in FINAL:
            self._taken.update(set(body) - set(dropped))
            news = set(dropped) - self._refused
            if news:
                self._refused |= news
                log.info("synthesize: the server does not take %s", ", ".join(sorted(news)))
        return outcome
