"""The last step of a synthesis: the files, the gate over what was written, its page and numbers, and the card."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.core.files import write_json, write_text
from ucotron_ray.core.recipe import Generation
from ucotron_ray.data.readers import Entry
from ucotron_ray.synthesis import gate, page, selection
from ucotron_ray.synthesis.rows import RowKind
from ucotron_ray.synthesis.selection import Verdict

CARD, PAGE, NUMBERS = "DATASET_CARD.md", "report.html", "report.json"
MOST_REASONS = 30

LIMITS = (
    "Written by a language model or computed, not observed: facts in it are made up and must not be taken for true.",
    "Checks find what they look for (see report.html); a sentence that is merely odd passes them.",
    "English only. Names come from lists, and stand for nobody.",
)


@dataclass(frozen=True)
class Publication:
    """Lines by file, and the report of the gate."""

    lines: dict[str, int]
    report: dict[str, Any]

    @property
    def failures(self) -> list[str]:
        """What the gate found too much of; empty if the dataset may be used."""
        return list(self.report["failures"])


def publish(
    directory: Path,
    kind: RowKind,
    verdicts: Sequence[Verdict],
    generation: Generation,
    facts: Mapping[str, Any],
    *,
    marks: Mapping[str, Any] | None = None,
) -> Publication:
    """Write everything that the dataset consists of. The same verdicts, facts and marks give the same bytes."""
    written = selection.write_files(directory, kind, verdicts)
    entries = read_back(directory / f"{kind.name}.jsonl", selection.splits(verdicts))
    looked = gate.examine(kind, entries, generation.near_duplicate)
    report = gate.report(kind, looked, generation.gate, caught=written.caught, samples=len(verdicts), judge=marks)
    write_report(directory, str(facts["name"]), report)
    write_text(directory / CARD, card(facts, written.lines, report, selection.reasons(verdicts), generation.licence))
    return Publication(written.lines, report)


def write_report(directory: Path, title: str, report: Mapping[str, Any]) -> None:
    """The page and the same numbers as JSON."""
    write_json(directory / NUMBERS, dict(report))
    write_text(directory / PAGE, page.page(title, report))


def read_back(path: Path, splits: Iterable[str]) -> Iterator[Entry]:
    """The rows of a file that was just written, with the split of each."""
    with path.open(encoding="utf-8") as file:
        for number, (line, split) in enumerate(zip(file, splits, strict=True), 1):
            yield Entry(f"line {number}", split, json.loads(line))


def card(
    facts: Mapping[str, Any],
    lines: Mapping[str, int],
    report: Mapping[str, Any],
    reasons: Mapping[str, int],
    licence: str,
) -> str:
    """The dataset card: what this is, how it was made, what it cost, what is in it, what was thrown away and why."""
    state, rows = report["state"], report["rows"]
    parts = [
        f"---\nlicense: {json.dumps(licence)}\ntags: [synthetic, ucotron]\n---",
        f"# {facts['name']}",
        f"{rows:,} rows for `{facts['task']}`. Synthetic data. The gate says: **{state}**.",
        "## How it was made",
        "\n".join(f"- {key}: {value}" for key, value in facts.items() if key not in ("name", "task")),
        "## What is in it",
        _table(("file", "rows"), sorted(lines.items())),
        _table(("split", "rows"), report["splits"].items()),
    ]
    if report["labels"]:
        most = itertools.islice(report["labels"].items(), MOST_REASONS)
        parts.append(_table(("label", "rows"), most))
    if report["failures"]:
        parts += ["## Why it is rejected", "\n".join(f"- {failure}" for failure in report["failures"])]
    top = sorted(reasons.items(), key=lambda entry: (-entry[1], entry[0]))[:MOST_REASONS]
    parts += ["## What is not in it", _table(("samples", "number"), top)]
    parts += ["## Limits", "\n".join(f"- {limit}" for limit in LIMITS)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(head: tuple[str, str], lines: Iterable[tuple[str, int]]) -> str:
    made = [f"| {_cell(name)} | {number:,} |" for name, number in lines]
    return "\n".join([f"| {head[0]} | {head[1]} |", "|---|---|", *made]) if made else ""


def _cell(text: str) -> str:
    """A reason can quote a teacher: no markup, no line end, no column."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
