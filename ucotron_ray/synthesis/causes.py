"""Why requests of a run fail: the most frequent reason, and when refusals are so many that the run must stop."""

import re
from collections import Counter
from dataclasses import dataclass, field

REFUSED_AT_THE_START = 12
"""Refusals without a single answer, after which a run stops: no prompt of it will fare better."""

REFUSED_IN_A_ROW = 50
"""Refusals of new prompts without an answer in between, after which a run stops that had answers before."""

MOST_REASONS = 200
_ID = re.compile(r"\b(?=\w*\d)(?=\w*[a-zA-Z])[\w-]{8,}\b|\b\d{5,}\b")
"""Ids of requests, and times: what differs between two failures of one reason."""


@dataclass
class Causes:
    """The failures of one run so far."""

    reasons: Counter[str] = field(default_factory=Counter)
    in_a_row: int = 0
    """Refusals of prompts that were never refused before, since the last answer."""

    def answered(self) -> None:
        """The server answered somebody."""
        self.in_a_row = 0

    def failed(self, reason: str) -> None:
        """A request failed, for this reason."""
        alike = _ID.sub("…", " ".join(reason.split()))
        if alike in self.reasons or len(self.reasons) < MOST_REASONS:
            self.reasons[alike] += 1

    def refused(self, *, is_new: bool) -> None:
        """A request was refused for what it is; `is_new` if nobody had refused it before."""
        self.in_a_row += is_new

    def reason_to_stop(self, answers: int) -> str | None:
        """What to stop the run with after so many answers; None as long as it may go on."""
        most = REFUSED_IN_A_ROW if answers else REFUSED_AT_THE_START
        if self.in_a_row < most:
            return None
        said = "requests in a row were refused" if answers else "requests were refused and none was answered"
        return f"{self.in_a_row} {said}, most often so: {self.most_frequent}"

    @property
    def most_frequent(self) -> str | None:
        """The reason of most failures, and of how many; None without a failure."""
        if not self.reasons:
            return None
        reason, count = self.reasons.most_common(1)[0]
        return f"{reason} ({count} of {self.reasons.total()} failures)"
