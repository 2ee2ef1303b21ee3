"""What a file of rows is, what is wrong in it and where, and how many of its rows would train."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ucotron_ray.core.errors import InputError
from ucotron_ray.core.recipe import Generation
from ucotron_ray.data import checks, readers
from ucotron_ray.data.jsonl import EXPECTED
from ucotron_ray.data.readers import Entry
from ucotron_ray.synthesis import gate
from ucotron_ray.synthesis.gate import RowReport
from ucotron_ray.synthesis.kinds import TRAINS, all_kinds, kind_of
from ucotron_ray.synthesis.rows import RowKind, check_limits

LOOKED_AT_FIRST = 100
"""Rows by which the kind of a file is told: that of most of them."""

UNTRAINABLE = ("schema", checks.UNANSWERED, checks.EMPTY)
"""Defects with which a row cannot train; others are reasons not to let it."""


@dataclass
class Findings:
    """What was found, while the rows go by: the rows with defects, and how many would train."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    trainable: int = 0
    without_defect: int = 0
    refused: list[str] = field(default_factory=list)
    """Where the rows stand for which a training would refuse the file."""
    read: list[tuple[str, frozenset[str]]] = field(default_factory=list)
    """Layout of every row, and what was honoured in it."""


def validate(paths: list[Path], generation: Generation, layout: str | None = None) -> dict[str, Any]:
    """The gate's report on files, with `findings` for every row that has a defect, held-out rows last.

    The last of two files is for validation. A file that a training refuses is `rejected`, whatever the gate's limits
    are. Raises InputError if a file cannot be read or holds no row of any kind.
    """
    check_limits(generation.gate)
    kinds = all_kinds(generation)
    findings = Findings()
    entries = _entries(paths, layout, findings.read)
    first = list(itertools.islice(entries, LOOKED_AT_FIRST))
    kind = _kind_of_most(first, kinds, paths)
    stage = TRAINS.get(kind.name)
    if stage is not None:
        # A training reads them together.
        beside = tuple(other for other in kinds if TRAINS.get(other.name) == stage and other.name != kind.name)
        kind = replace(kind, beside=beside)
    looked = gate.examine(kind, _as_kind(itertools.chain(first, entries), kind, kinds), generation.near_duplicate)
    report = gate.report(kind, _noted(looked, findings), generation.gate)
    refused = _refused(findings, stage)
    return {
        **report,
        "failures": [*report["failures"], *refused],
        "state": "rejected" if refused else report["state"],
        "read_as": readers.says(findings.read),
        "stage": stage,
        "would_train": findings.trainable if stage else 0,
        "without_defect": findings.without_defect,
        "findings": findings.rows,
    }


def _refused(findings: Findings, stage: str | None) -> list[str]:
    if stage is None or not findings.refused:
        return []
    more = f" and {len(findings.refused) - 1:,} more" if len(findings.refused) > 1 else ""
    return [f"{stage} refuses the file: {findings.refused[0]}{more}"]


def _entries(paths: list[Path], layout: str | None, read: list[tuple[str, frozenset[str]]]) -> Iterator[Entry]:
    for number, path in enumerate(paths):
        for entry in readers.entries(path, layout):
            split = "val" if number else entry.split
            where = f"{path.name}, {entry.where}" if len(paths) > 1 else entry.where
            if entry.value is not None:
                read.append((entry.layout, entry.honoured))
            yield replace(entry, where=where, split=split)


def _kind_of_most(first: list[Entry], kinds: tuple[RowKind, ...], paths: list[Path]) -> RowKind:
    found = Counter(kind.name for e in first if e.value is not None and (kind := kind_of(e.value, kinds)) is not None)
    if not found:
        example = next((e for e in first if e.value is not None), None)
        problem = next((f"{e.where}: {e.problem}" for e in first if e.problem), "an empty file")
        raise InputError(
            "these are no rows of any kind that is known" if example else "no row can be used",
            where=", ".join(map(str, paths)),
            expected=EXPECTED + ", or the rows of a generator",
            found="the keys " + ", ".join(sorted(example.value)[:8]) if example and example.value else problem,
        )
    name = found.most_common(1)[0][0]
    return next(kind for kind in kinds if kind.name == name)


def _as_kind(entries: Iterable[Entry], kind: RowKind, kinds: tuple[RowKind, ...]) -> Iterator[Entry]:
    for entry in entries:
        problem = entry.problem
        if entry.value is not None and problem is None:
            other = kind_of(entry.value, kinds)
            if other is None or other.name not in {kind.name, *(beside.name for beside in kind.beside)}:
                problem = f"a row of kind {other.name}" if other else "the keys " + ", ".join(sorted(entry.value)[:8])
        yield replace(entry, problem=problem)


def _noted(looked: Iterable[RowReport], findings: Findings) -> Iterator[RowReport]:
    for row in looked:
        if row.defects:
            detail = {"found": row.detail} if row.detail else {}
            findings.rows.append({"where": row.where, "defects": list(row.defects), **detail})
        else:
            findings.without_defect += 1
        if set(row.defects) & set(UNTRAINABLE):
            findings.refused.append(row.where)
        else:
            findings.trainable += 1
        yield row
