"""What workers know of their samples, on the way to the dataset: JSONL files that are made anew by every run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ucotron_ray.core.files import write_json
from ucotron_ray.synthesis.ledger import Budget

OUTCOMES = "outcomes"
REJECTED = "rejected.jsonl"
UNSETTLED = "unsettled.json"
"""Dollars that were in flight or lost with a dead process: perhaps paid, and in no journal."""


def append_outcomes(path: Path, outcomes: Sequence[Mapping[str, Any]]) -> None:
    """What a worker knows of its samples, one JSON object a line: {number, status, reason, notes, split, row}."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(outcome, ensure_ascii=False, separators=(",", ":")) + "\n" for outcome in outcomes)


def keep_unsettled(directory: Path, budget: Budget, usd: float) -> None:
    """Note the dollars that may be spent beside the journal's, those of earlier invocations included."""
    write_json(directory / UNSETTLED, {"usd": budget.unsettled_before + usd})


def unsettled(directory: Path) -> float:
    """What earlier invocations noted."""
    path = directory / UNSETTLED
    return float(json.loads(path.read_text(encoding="utf-8"))["usd"]) if path.is_file() else 0.0


def places(directory: Path) -> dict[int, tuple[Path, int]]:
    """Where the outcome of each sample lies. One that was run twice has two equal outcomes, unless one is pending."""
    found: dict[int, tuple[Path, int]] = {}
    for path in sorted((directory / OUTCOMES).glob("*.jsonl")):
        offset = 0
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    number = int(line[len(b'{"number":') : line.index(b",")])
                    if number not in found or b'"status":"pending"' not in line[:64]:
                        found[number] = path, offset
                offset += len(line)
    return found


def read(place: tuple[Path, int]) -> dict[str, Any]:
    """The outcome that lies there."""
    path, offset = place
    with path.open("rb") as file:
        file.seek(offset)
        outcome: dict[str, Any] = json.loads(file.readline())
    return outcome
