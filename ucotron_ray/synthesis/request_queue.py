"""Requests that wait for a permit: those of samples that were begun go first, and both in the order in which they came.

A sample that is passed over again and again would hold up its whole block.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence

from ucotron_ray.synthesis.ledger import Need, Reserved

Waiting = tuple[Need, "asyncio.Future[Reserved | None]"]
"""What a request needs, and whom to tell: what was reserved for it, or None if it is never sent."""

Offered = tuple[deque[Waiting], Waiting]
"""One that was offered, with the queue that it was taken from."""


class RequestQueue:
    """The requests of one process."""

    def __init__(self) -> None:
        self._begun: deque[Waiting] = deque()
        self._new: deque[Waiting] = deque()

    def __bool__(self) -> bool:
        return bool(self._begun or self._new)

    def add(self, waiting: Waiting, *, begun: bool) -> None:
        """One more, of a sample that was begun or of a new one."""
        (self._begun if begun else self._new).append(waiting)

    def offer(self, most: int) -> list[Offered]:
        """Take out the first that wait, so many at most."""
        from_begun = min(most, len(self._begun))
        from_new = min(most - from_begun, len(self._new))
        queues = [self._begun] * from_begun + [self._new] * from_new
        return [(queue, queue.popleft()) for queue in queues]

    def put_back(self, offered: Sequence[Offered]) -> None:
        """Put those that got no permit where they were."""
        for queue, waiting in reversed(offered):
            queue.appendleft(waiting)

    def drain(self) -> Iterator[Waiting]:
        """All of them, until none is left."""
        for queue in (self._begun, self._new):
            while queue:
                yield queue.popleft()
