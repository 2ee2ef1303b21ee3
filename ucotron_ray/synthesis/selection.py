"""From the outcomes of all samples to the files of a dataset. Every planned sample ends in exactly one place.

<task>.jsonl            the accepted rows in the guide's layout, in the order of the plan
<task>.parquet          the same
train.jsonl val.jsonl   the same as rows that train (for the training stages)
vendor.jsonl            the same in the vendor's layout, of the kinds that the vendor trains on
rejected.jsonl          rejected, duplicate, quarantined and pending samples, each with its reason
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ucotron_ray.core.errors import StageFailed
from ucotron_ray.synthesis import outcomes
from ucotron_ray.synthesis.contents import UNUSABLE, found
from ucotron_ray.synthesis.outcomes import REJECTED
from ucotron_ray.synthesis.plan import STATUSES, Status
from ucotron_ray.synthesis.quality import Duplicates, leaking
from ucotron_ray.synthesis.rows import DEFECTS, RowKind, dump, strings
from ucotron_ray.synthesis.tables import TableWriter

_REPEATS = {"duplicate": "the same text as an earlier row", "near_duplicate": "nearly the text of an earlier row"}
NOT_NEEDED = "accepted, but the count was reached; a larger --count takes it at no cost"


@dataclass(frozen=True)
class Verdict:
    """Where one sample ended up, and where its row lies: the outcome file and the offset of its line."""

    number: int
    status: Status
    reason: str | None
    split: str
    place: tuple[Path, int]
    label: str = ""
    """Class of an accepted row, where classes have exact shares."""
    defect: str | None = None
    """What kept it out, in the words of DEFECTS, where that was found here."""


@dataclass(frozen=True)
class Written:
    """What the files hold: lines by file, and in how many samples each defect was found and kept out."""

    lines: dict[str, int]
    caught: dict[str, int]


def select(
    directory: Path, kind: RowKind, count: int, near_duplicate: float, planned: int | None = None
) -> list[Verdict]:
    """The verdict on every (`planned`) sample of the outcome files, by number. At most `count` are accepted.

    Rows are read one at a time and not kept: their places are.
    """
    lying = outcomes.places(directory)
    duplicates = Duplicates(near_duplicate if kind.repeats_nearly else 1.0)
    verdicts: list[Verdict] = []
    names: dict[int, list[str]] = {}
    for number in sorted(number for number in lying if planned is None or number < planned):
        outcome = outcomes.read(lying[number])
        verdict = Verdict(number, outcome["status"], outcome.get("reason"), outcome["split"], lying[number])
        if verdict.status == "accepted":
            verdict = _looked_at(verdict, outcome["row"], kind, duplicates)
        if verdict.status == "accepted":
            names[number] = list(kind.names(outcome["row"]))
        verdicts.append(verdict)
    quotas = kind.quotas(count) or {"": count}
    kept, leaks = _chosen([v for v in verdicts if v.status == "accepted"], names, quotas)
    return [_settled(verdict, kept, leaks) for verdict in verdicts]


def counts(verdicts: Sequence[Verdict], planned: int) -> dict[str, int]:
    """How many samples ended where. Raises StageFailed if that is not what was planned: then rows were lost."""
    ended = Counter(verdict.status for verdict in verdicts)
    if len(verdicts) != planned:
        raise StageFailed(
            "samples were lost",
            expected=f"{planned} planned samples in one of {', '.join(STATUSES)}",
            found=f"{len(verdicts)}: {dict(ended)}",
            next_step="run the same command again: answers that were paid for are in the journal",
        )
    return {status: ended[status] for status in STATUSES}


def missing(verdicts: Iterable[Verdict], kind: RowKind, count: int) -> int:
    """How many more rows it takes, of the plan's mixture of classes, until every class has its share of `count`."""
    quotas = kind.quotas(count)
    accepted = Counter(verdict.label for verdict in verdicts if verdict.status == "accepted")
    if quotas is None:
        return count - sum(accepted.values())
    return max(math.ceil((rows - accepted[label]) * count / rows) for label, rows in quotas.items() if rows)


def write_files(directory: Path, kind: RowKind, verdicts: Sequence[Verdict]) -> Written:
    """The files of the dataset. Lines go through one at a time."""
    lines: Counter[str] = Counter()
    caught: Counter[str] = Counter()
    files: dict[str, Any] = {}
    table = TableWriter(directory / f"{kind.name}.parquet")
    try:
        for name in (f"{kind.name}.jsonl", "train.jsonl", "val.jsonl", REJECTED):
            files[name] = (directory / name).open("w", encoding="utf-8")
        for verdict in verdicts:
            outcome = outcomes.read(verdict.place)
            caught.update({note for note in outcome.get("notes", []) if note in DEFECTS} | _own(verdict))
            for name, value in _lines(kind, verdict, outcome):
                if name not in files:
                    files[name] = (directory / name).open("w", encoding="utf-8")
                files[name].write(dump(value) + "\n")
                lines[name] += 1
            if verdict.status == "accepted":
                table.add(kind.published(outcome["row"]))
    finally:
        table.close()
        for file in files.values():
            file.close()
    return Written(dict(lines), dict(caught))


def reasons(verdicts: Iterable[Verdict]) -> Counter[str]:
    """Why samples are not in the dataset, and how many for each reason."""
    return Counter(f"{v.status}: {v.reason}" for v in verdicts if v.status != "accepted")


def splits(verdicts: Iterable[Verdict]) -> Iterator[str]:
    """The split of every published row, in the order of the file."""
    return (verdict.split for verdict in verdicts if verdict.status == "accepted")


def _looked_at(verdict: Verdict, row: Mapping[str, Any], kind: RowKind, duplicates: Duplicates) -> Verdict:
    """An accepted sample's verdict after its row was validated, looked through for hostile text, and compared."""
    try:
        kind.model.model_validate(kind.published(row))
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{DEFECTS['schema']}: {'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
        return replace(verdict, status="quarantined", reason=reason, defect="schema")
    unusable = found(strings(row), UNUSABLE)
    if unusable:
        return replace(verdict, status="quarantined", reason=DEFECTS[unusable[0]], defect=unusable[0])
    repeated = duplicates.earlier(kind.identity(row))
    if repeated:
        return replace(verdict, status="duplicate", reason=_REPEATS[repeated[0]], defect=repeated[0])
    return replace(verdict, label=kind.class_of(row) if kind.shares else "")


def _chosen(
    accepted: Sequence[Verdict], names: Mapping[int, list[str]], quotas: Mapping[str, int]
) -> tuple[set[int], set[int]]:
    """The rows that are published, the first of each class, and the validation rows among them that leak.

    Rows beyond those have no say in what leaks: how many there are depends on how a run was disturbed.
    """
    leaks: set[int] = set()
    while True:
        room = dict(quotas)
        kept = []
        for verdict in accepted:
            if room.get(verdict.label, 0) and verdict.number not in leaks:
                room[verdict.label] -= 1
                kept.append(verdict)
        more = leaking((verdict.number, verdict.split, names[verdict.number]) for verdict in kept)
        if not more:
            return {verdict.number for verdict in kept}, leaks
        leaks |= more


def _settled(verdict: Verdict, kept: set[int], leaks: set[int]) -> Verdict:
    if verdict.status != "accepted" or verdict.number in kept:
        return verdict
    if verdict.number in leaks:
        return replace(verdict, status="rejected", reason=DEFECTS["leak"], defect="leak")
    return replace(verdict, status="pending", reason=NOT_NEEDED)


def _own(verdict: Verdict) -> set[str]:
    return {verdict.defect} if verdict.defect else set()


def _lines(kind: RowKind, verdict: Verdict, outcome: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if verdict.status != "accepted":
        entry = {"number": verdict.number, "status": verdict.status, "reason": verdict.reason}
        notes = [*outcome.get("notes", []), *_own(verdict)]
        yield REJECTED, {**entry, "notes": notes, "row": outcome.get("row")}
        return
    row = outcome["row"]
    yield f"{kind.name}.jsonl", kind.published(row)
    yield from kind.files(row, verdict.split)
