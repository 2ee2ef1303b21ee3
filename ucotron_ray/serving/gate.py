"""Who may enter: a bounded queue, and no request that could not be answered in time."""

from dataclasses import dataclass

from ucotron_ray.serving.exchange import Refusal

MEMORY = 0.9
"""Share of the old mean that stays at every answer: the last ten or so count."""
MAX_RETRY_SECONDS = 10.0


@dataclass
class Gate:
    """Counts who is inside. One event loop owns it: nothing here waits."""

    slots: int
    """Rows that all replicas decode at once."""
    queue: int
    """Requests that may wait beyond them."""
    deadline: float
    """Seconds after which a request gets 503 instead of its answer."""
    inside: int = 0
    draining: bool = False
    mean_seconds: float = 0.0
    """Of an answer, without its time in the queue; 0 = none was measured yet."""

    def enter(self) -> None:
        """Let one in. Raises Refusal at once where waiting is of no use; every entry needs one `leave`."""
        if self.draining:
            raise Refusal(503, "the service is stopping", code="draining", retry_after=MAX_RETRY_SECONDS)
        if self.inside >= self.slots + self.queue:
            raise Refusal(
                429, f"{self.inside} requests are inside already", code="queue_full", retry_after=self.retry_after()
            )
        # With a slot free everybody may try: only answers tell how long they take.
        if self.inside >= self.slots and self.expected_seconds() > self.deadline:
            raise Refusal(
                429,
                f"an answer would take about {self.expected_seconds():.0f} s, more than {self.deadline:g} s",
                code="queue_too_slow",
                retry_after=self.retry_after(),
            )
        self.inside += 1

    def leave(self) -> None:
        """One is out, however it went."""
        self.inside -= 1

    def measured(self, seconds: float) -> None:
        """An answer took so long, without its time in the queue."""
        self.mean_seconds = seconds if not self.mean_seconds else MEMORY * self.mean_seconds + (1 - MEMORY) * seconds

    def expected_seconds(self) -> float:
        """How long one more would take: a slot comes free every `mean / slots` seconds."""
        ahead = max(0, self.inside + 1 - self.slots)
        return self.mean_seconds * (1 + ahead / self.slots)

    def retry_after(self) -> float:
        """Until about one batch of answers is done."""
        return min(MAX_RETRY_SECONDS, max(1.0, self.mean_seconds))
