"""The live line of a synthesis, and the same figures in `metrics.jsonl`, once a second."""

import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucotron_ray.synthesis.job import SynthesisJob
from ucotron_ray.synthesis.ledger import Totals

if TYPE_CHECKING:
    from ucotron_ray.synthesis.governor import Governor

log = logging.getLogger(__name__)

GAUGES = {
    "in_flight": "requests in flight",
    "window": "requests that may be in flight",
    "sent": "requests sent",
    "answered": "requests answered",
    "rate_limited": "requests answered with 429",
    "failed": "requests that failed otherwise",
    "completion_tokens": "tokens that the teacher generated",
    "usd": "dollars spent",
}
"""Figures that are also metrics of Ray, with what they mean."""

SECONDS = 1.0
LINE_SECONDS = 10.0
"""Between two lines in a log; a terminal's line is rewritten every second."""


class Progress:
    """What the driver counts: samples by how they ended. `accepted` is exact between rounds."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.round = 0
        self.accepted = 0
        self.asked_at: float | None = None
        """When the first request had been sent, by the monotonic clock."""
        self.done: Counter[str] = Counter()

    def count(self, statuses: Iterable[str]) -> None:
        """Samples of one block ended."""
        self.done.update(str(status) for status in statuses)

    @property
    def accept_share(self) -> float | None:
        """Of the samples that ended."""
        ended = sum(self.done.values()) - self.done["pending"]
        return self.done["accepted"] / ended if ended else None


def line(status: dict[str, Any], progress: Progress, seconds: float) -> str:
    """One line: rows/s, in flight and window, share of 429, dollars now and at the end, accepted share, time left."""
    rows = progress.done["accepted"]
    rate = rows / seconds if seconds > 0 else 0.0
    limited = status["rate_limited"] / status["sent"] if status["sent"] else 0.0
    share = progress.accept_share
    left = max(0, progress.target - rows)
    projected = status["usd"] * progress.target / rows if rows else None
    parts = [
        f"round {progress.round}: {rows}/{progress.target} rows",
        f"{rate:.1f} rows/s",
        f"{status['in_flight']} in flight (window {status['window']:.0f})",
        f"429 {limited:.1%}",
        f"${status['usd']:.4f}" + (f" of about ${projected:.4f}" if projected is not None else ""),
        f"accepted {share:.0%}" if share is not None else "nothing accepted yet",
    ]
    if rate > 0:
        parts.append(f"{left / rate:.0f} s left")
    return "  ".join(parts)


def status_of(governor: "Governor", run: str) -> dict[str, Any]:
    """What a driver shows of its run, and `open`: the dollars of each request that is perhaps paid."""
    ledger = governor.runs[run]
    return {
        **asdict(ledger.totals),
        "usd": ledger.usd,
        "lost_usd": ledger.lost_usd,
        "reserved_usd": governor.reserved_of(run),
        "open": governor.open_of(run),
        "window": governor.window,
        "in_flight": governor.in_flight_of(run),
        "stop": ledger.stop,
        "stop_kind": ledger.stop_kind,
        "cause": ledger.causes.most_frequent,
    }


def of_task(job: SynthesisJob, status: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The ledger's status less what other tasks on the same ledger had used before this one began."""
    counts = [entry.name for entry in fields(Totals) if entry.name != "usd"]
    own = {name: status[name] - before[name] for name in counts}
    return {**status, **own, "usd": job.spent + status["usd"] - before["usd"]}


@contextmanager
def watching(progress: Progress, ask: Callable[[], dict[str, Any]], metrics_file: Path) -> Iterator[None]:
    """Ask once a second (the limiter takes it as the driver's sign of life), show and write the figures."""
    done = threading.Event()
    began = time.monotonic()
    metrics_file.parent.mkdir(parents=True, exist_ok=True)
    terminal = sys.stderr.isatty()

    def watch() -> None:
        shown = began
        while not done.wait(SECONDS):
            try:
                status = ask()
            except Exception as error:  # noqa: BLE001 - the driver's own thread learns what was lost, and says so
                log.debug("no status: %s", error)
                continue
            now = time.monotonic()
            if progress.asked_at is None and status["sent"]:
                progress.asked_at = now
            text = line(status, progress, now - began)
            if terminal:
                sys.stderr.write(f"\r\033[Ksynthesize: {text}")
                sys.stderr.flush()
            elif now - shown >= LINE_SECONDS:
                log.info("synthesize: %s", text)
                shown = now
            figures = {key: value for key, value in status.items() if key != "open"}
            figures |= {"rows": progress.done["accepted"], "seconds": round(now - began, 1), "at": time.time()}
            with metrics_file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(figures) + "\n")
        if terminal:
            sys.stderr.write("\n")

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(5 * SECONDS)
