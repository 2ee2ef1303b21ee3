"""How the window takes noise and limits: `python -m tests.benchmarks.window`. Writes `results/synthesis_window.json`.

The real sender, limiter and journal on a clock that jumps (`tests/virtual_time.py`): no latency here is a real one, and
no figure depends on the machine. Steady state: five minutes after a ramp of two.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.run import processor
from tests.benchmarks.table import RESULTS
from tests.virtual_time import send_for, sending
from ucotron_ray.core.provenance import provenance
from ucotron_ray.simulators.fireworks_settings import Settings as Server

CAP, RAMP, STEADY = 256, 120.0, 300.0
LATENCIES, NOISE = (0.5, 8.0), (0.0, 0.002, 0.01, 0.05)
LIMIT = 10.0
"""Requests a second of the limited server: it has room for two seconds of them, as the vendor's."""


def arm(latency: float, **server: Any) -> dict[str, float]:
    """Answers a second, and what came of the other requests, in the steady state."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-window-") as place,
        sending(Path(place), CAP, latency=latency, **server) as (worker, governor, sleeping),
    ):
        send_for(worker, sleeping, RAMP + STEADY, CAP)
        window = governor.window
    counts = {name: sleeping.count(name, RAMP, RAMP + STEADY) for name in ("200", "500", "reset", "429")}
    taken = counts["200"] + counts["500"] + counts["reset"]
    return {
        "answers_per_second": counts["200"] / STEADY,
        "requests_per_second": taken / STEADY,
        "share_429": counts["429"] / (taken + counts["429"]),
        "window_at_the_end": window,
    }


def noise(latency: float) -> dict[str, Any]:
    """The same minutes with more and more errors that have nothing to do with load."""
    arms = {f"{share:.1%}": arm(latency, noise=share) for share in NOISE}
    free = arms["0.0%"]["answers_per_second"]
    return {name: {**found, "share_of_noise_free": found["answers_per_second"] / free} for name, found in arms.items()}


def limits(latency: float, *, tells: bool) -> dict[str, Any]:
    """A limit of requests, told in headers or by refusals alone, without noise and with the most of it."""
    server = Server(requests_per_minute=60 * LIMIT)
    arms = {f"{share:.1%}": arm(latency, noise=share, limits=server, tells_limits=tells) for share in (0.0, NOISE[-1])}
    return {name: {**found, "share_of_limit": found["requests_per_second"] / LIMIT} for name, found in arms.items()}


def main() -> None:
    """All arms, on standard output too."""
    began = time.monotonic()
    result: dict[str, Any] = {"cap": CAP, "ramp_seconds": RAMP, "steady_seconds": STEADY, "limit_per_second": LIMIT}
    for name, measure in (
        ("noise", noise),
        ("limit told in headers", lambda latency: limits(latency, tells=True)),
        ("limit not told", lambda latency: limits(latency, tells=False)),
    ):
        result[name] = {f"{latency:g} s": measure(latency) for latency in LATENCIES}
        print(name, json.dumps(result[name], indent=1), file=sys.stderr)
    result["overloaded"] = {f"{latency:g} s": arm(latency, capacity=100) for latency in LATENCIES}
    made = provenance(seconds=time.monotonic() - began)
    result |= {"commit": made["commit"], "packages": made["packages"], "processor": processor()}
    (RESULTS / "synthesis_window.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
