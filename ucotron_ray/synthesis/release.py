"""From the outcomes of all samples to the files of a dataset. Every planned sample ends in exactly one place.

<task>.jsonl            the accepted rows in the guide's layout, in the order of the plan
train.jsonl val.jsonl   the same as rows that train (for the training stages)
vendor.jsonl            the same in the vendor's layout (preference pairs only)
rejected.jsonl          rejected, duplicate, quarantined and pending samples, each with its reason
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.artifacts import write_text
from ucotron_ray.errors import StageFailed
from ucotron_ray.synthesis import outcomes
from ucotron_ray.synthesis.outcomes import REJECTED
from ucotron_ray.synthesis.plan import STATUSES, Status
from ucotron_ray.synthesis.quality import Duplicates, leaking
from ucotron_ray.synthesis.tasks import preference, relation_extraction

CARD = "DATASET_CARD.md"
TRAIN, VAL, VENDOR = "train.jsonl", "val.jsonl", "vendor.jsonl"
NOT_NEEDED = "accepted, but the count was reached; a larger --count takes it at no cost"


@dataclass(frozen=True)
class Verdict:
    """Where one sample ended up, and where its row lies: the outcome file and the offset of its line."""

    number: int
    status: Status
    reason: str | None
    split: str
    place: tuple[Path, int]


def judge(directory: Path, task: str, count: int, near_duplicate: float) -> list[Verdict]:
    """The verdict on every sample of the outcome files, by number. At most `count` are accepted.

    Rows are read one at a time and not kept: their places are.
    """
    lying = outcomes.places(directory)
    # Pairs of one text are alike by nature: only the same answers again make a duplicate.
    duplicates = Duplicates(1.0 if task == preference.NAME else near_duplicate)
    verdicts: list[Verdict] = []
    accepted: list[tuple[int, str, list[str]]] = []
    for number in sorted(lying):
        outcome = outcomes.read(lying[number])
        status, reason = outcome["status"], outcome.get("reason")
        if status == "accepted":
            repeated = duplicates.reason(_identity(task, outcome["row"]))
            if repeated:
                status, reason = "duplicate", repeated
            else:
                accepted.append((number, outcome["split"], _names(task, outcome["row"])))
        verdicts.append(Verdict(number, status, reason, outcome["split"], lying[number]))
    return list(_settled(verdicts, _leaks(accepted, count), count))


def counts(verdicts: Sequence[Verdict], planned: int) -> dict[str, int]:
    """How many samples ended where. Raises StageFailed if that is not what was planned: then rows were lost."""
    found = Counter(verdict.status for verdict in verdicts)
    if len(verdicts) != planned:
        raise StageFailed(
            "samples were lost",
            expected=f"{planned} planned samples in one of {', '.join(STATUSES)}",
            found=f"{len(verdicts)}: {dict(found)}",
            next_step="run the same command again: answers that were paid for are in the journal",
        )
    return {status: found[status] for status in STATUSES}


def write_files(directory: Path, task: str, verdicts: Sequence[Verdict]) -> dict[str, int]:
    """The files of the dataset; returns the rows of each. Lines go through one at a time."""
    split_files = {"train": TRAIN, "val": VAL}
    made: Counter[str] = Counter()
    names = [f"{task}.jsonl", TRAIN, VAL, REJECTED, *([VENDOR] if task == preference.NAME else [])]
    files = {name: (directory / name).open("w", encoding="utf-8") for name in names}
    try:
        for verdict in verdicts:
            outcome = outcomes.read(verdict.place)
            for name, line in _lines(task, verdict, outcome, split_files[verdict.split]):
                files[name].write(line + "\n")
                made[name] += 1
    finally:
        for file in files.values():
            file.close()
    return dict(made)


def write_card(directory: Path, facts: Mapping[str, Any], verdicts: Sequence[Verdict]) -> None:
    """The dataset card: what this is, how it was made, what was thrown away and why."""
    reasons = Counter(f"{v.status}: {v.reason}" for v in verdicts if v.status != "accepted")
    lines = [f"# {facts['name']}", "", f"Rows for `{facts['task']}`, written by a language model: synthetic data.", ""]
    lines += [f"- {key}: {value}" for key, value in facts.items() if key not in ("name", "task")]
    lines += ["", "| samples that are not in it | number |", "|---|---|"]
    lines += [f"| {reason} | {number} |" for reason, number in reasons.most_common()]
    write_text(directory / CARD, "\n".join(lines) + "\n")


def _leaks(accepted: Sequence[tuple[int, str, list[str]]], count: int) -> set[int]:
    """The validation rows that leak, among as many of the first rows as it takes to keep `count`.

    Rows beyond those have no say: how many there are depends on how a run was disturbed.
    """
    taken = count
    while True:
        leaks = leaking(accepted[:taken])
        missing = count - (min(taken, len(accepted)) - len(leaks))
        if missing <= 0 or taken >= len(accepted):
            return leaks
        taken += missing


def _settled(verdicts: Sequence[Verdict], leaks: set[int], count: int) -> Iterator[Verdict]:
    room = count
    for verdict in verdicts:
        if verdict.status != "accepted":
            yield verdict
        elif verdict.number in leaks:
            reason = "a name in this validation row also stands in a training row"
            yield Verdict(verdict.number, "rejected", reason, verdict.split, verdict.place)
        elif room:
            room -= 1
            yield verdict
        else:
            yield Verdict(verdict.number, "pending", NOT_NEEDED, verdict.split, verdict.place)


def _lines(task: str, verdict: Verdict, outcome: Mapping[str, Any], split_file: str) -> Iterator[tuple[str, str]]:
    if verdict.status != "accepted":
        entry = {"number": verdict.number, "status": verdict.status, "reason": verdict.reason}
        yield REJECTED, _dump({**entry, "notes": outcome.get("notes", []), "row": outcome.get("row")})
        return
    row = outcome["row"]
    if task == relation_extraction.NAME:
        yield f"{task}.jsonl", _dump(row)
        yield split_file, relation_extraction.raw_row(row).model_dump_json(exclude_none=True)
        return
    yield f"{task}.jsonl", _dump({key: value for key, value in row.items() if key not in ("train", "scores")})
    pair = row["train"]
    yield split_file, _dump(pair)
    yield VENDOR, _dump(preference.vendor_row(pair))


def _identity(task: str, row: Mapping[str, Any]) -> str:
    """What must not repeat: a text; of a pair its text with both answers."""
    if task == preference.NAME:
        return " ".join((row["prompt"], row["chosen"], row["rejected"]))
    return str(row["text"])


def _names(task: str, row: Mapping[str, Any]) -> list[str]:
    if task == preference.NAME:
        return []  # the input's own split holds, and was made by names
    return [entity["text"] for entity in row["entities"]]


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
