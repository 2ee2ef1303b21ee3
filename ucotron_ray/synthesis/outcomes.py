"""What workers know of their samples, on the way to the dataset: JSONL files that are made anew by every run."""

import json
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.core.files import write_json
from ucotron_ray.synthesis.plan import SampleResult

OUTCOMES = "outcomes"
REJECTED = "rejected.jsonl"
ELSEWHERE = "elsewhere"
UNSETTLED = "unsettled.json"
"""Dollars that were in flight or lost with a dead process: perhaps paid, and in no journal."""


def line_of(result: SampleResult, split: str) -> dict[str, Any]:
    """What an outcome file says of a sample: `number` and `status` come first, where `places` looks for them.

    `requests` and `usd` are what this asking took.
    """
    done = result.done
    line = {
        "number": result.number,
        "status": done.status,
        "split": split,
        "reason": done.reason,
        "notes": list(done.notes),
        "row": done.row,
        "requests": result.requests,
        "usd": result.usd,
    }
    return {**line, ELSEWHERE: list(result.elsewhere)} if result.elsewhere else line


def append_outcomes(path: Path, outcomes: Sequence[Mapping[str, Any]]) -> None:
    """What a worker knows of its samples, one JSON object a line (`line_of`)."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(outcome, ensure_ascii=False, separators=(",", ":")) + "\n" for outcome in outcomes)


@dataclass(frozen=True)
class SetAside:
    """Prompts that never got an answer, and what asking for them took. Dollars at most: some may not be billed."""

    prompts: int = 0
    requests: int = 0
    usd: float = 0.0

    def __add__(self, other: "SetAside") -> "SetAside":
        return SetAside(self.prompts + other.prompts, self.requests + other.requests, self.usd + other.usd)


def set_aside(directory: Path, numbers: Collection[int]) -> SetAside:
    """Quarantine samples whose prompts got no answer in any round, with the server's last words."""
    lines: dict[int, list[dict[str, Any]]] = {number: [] for number in numbers}
    for path in sorted((directory / OUTCOMES).glob("*.jsonl")):
        for text in path.read_bytes().split(b"\n"):
            if b'"status":"pending"' in text[:64]:
                line = json.loads(text)
                lines.get(line["number"], []).append(line)
    ends, total = [], SetAside()
    for asked in lines.values():
        took = SetAside(1, sum(line["requests"] for line in asked), sum(line["usd"] for line in asked))
        total += took
        reason = f"no answer in {len(asked)} rounds, {took.requests} requests, {took.usd:.6f} dollars at most"
        ends.append({**asked[-1], "status": "quarantined", "reason": f"{reason}: {asked[-1]['reason']}"})
    append_outcomes(directory / OUTCOMES / f"aside-{uuid.uuid4().hex}.jsonl", ends)
    return total


def elsewhere(directory: Path) -> Counter[str]:
    """How many journaled answers other servers of the same model id gave, by server."""
    by_sample: dict[int, list[str]] = {}
    for path in sorted((directory / OUTCOMES).glob("*.jsonl")):
        for text in path.read_bytes().split(b"\n"):
            if f'"{ELSEWHERE}":'.encode() in text:
                line = json.loads(text)
                by_sample[line["number"]] = line[ELSEWHERE]
    return Counter(server for servers in by_sample.values() for server in servers)


def keep_unsettled(directory: Path, usd: float, requests: Mapping[str, float]) -> None:
    """Note the dollars that may be spent beside the journal's: those of earlier invocations, and by request id."""
    write_json(directory / UNSETTLED, {"usd": usd, "requests": dict(requests)})


def unsettled(directory: Path, journaled: Callable[[Collection[str]], Collection[str]]) -> float:
    """What earlier invocations noted, less the requests that the journal has (`journaled` says which of them).

    What a process had in flight when it was killed may be journaled although nobody heard of it: then it is counted
    there. What is in no journal was perhaps paid, and stays.
    """
    path = directory / UNSETTLED
    if not path.is_file():
        return 0.0
    noted = json.loads(path.read_text(encoding="utf-8"))
    # Files of before have no requests.
    requests: dict[str, float] = noted.get("requests", {})
    known = journaled(requests) if requests else ()
    return float(noted["usd"]) + sum(usd for rid, usd in requests.items() if rid not in known)


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
