"""The limits of an account at the vendor, as its headers and refusals show them."""

import time
from collections.abc import Callable

from ucotron_ray.simulators.fireworks_settings import Settings


class Limiter:
    """The limits as the server keeps them: a bucket of requests, and one of generated tokens that may go into debt."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._began: float | None = None
        self._seen = 0.0
        self._requests = self._tokens = 0.0
        self.allowed_tokens = 0.0

    @property
    def factor(self) -> float:
        """What the limits are now, as a multiple of those at the start."""
        passed = self._clock() - self._began if self._began is not None else 0.0
        return next((factor for at, factor in reversed(self._settings.limit_moves) if passed >= at), 1.0)

    def admits(self) -> bool:
        """Whether a request may come in now."""
        rpm, tpm = self._settings.requests_per_minute, self._settings.generated_tokens_per_minute
        now, factor = self._clock(), self.factor
        if self._began is None:
            self._began = self._seen = now
            self._requests = REQUEST_BURST_SECONDS * (rpm or 0) / 60
            self._tokens = (tpm or 0) / 60
        passed, self._seen = now - self._seen, now
        if rpm is not None:
            rate = rpm * factor / 60
            self._requests = min(rate * REQUEST_BURST_SECONDS, self._requests + rate * passed)
        if tpm is not None:
            rate = tpm * factor / 60
            self.allowed_tokens += rate * passed
            self._tokens = min(rate * BURST_SECONDS, self._tokens + rate * passed)
        if (rpm is not None and self._requests < 1) or (tpm is not None and self._tokens <= 0):
            return False
        self._requests -= 1
        return True

    def generated(self, tokens: int) -> None:
        """An answer went out."""
        self._tokens -= tokens

    def headers(self) -> dict[str, str]:
        """The vendor's headers: requests per minute, tokens per second."""
        rpm, tpm = self._settings.requests_per_minute, self._settings.generated_tokens_per_minute
        headers = {}
        if rpm is not None:
            headers["X-Ratelimit-Limit-Requests"] = f"{rpm * self.factor:.3f}"
        if tpm is not None:
            headers["X-Ratelimit-Limit-Tokens-Generated"] = f"{tpm * self.factor / 60:.3f}"
        return headers


BURST_SECONDS = 5.0

REQUEST_BURST_SECONDS = 2.0
