"""What a set of rows is worth: counts, balance, repetitions, leaks, spans, hostile and private strings.

Rows in, report out. Nothing is taken on trust from what made the rows: they are read back from their file, validated
by their typed model, and looked at again. `page.py` draws the pictures.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from ucotron_ray.core.recipe import Gate
from ucotron_ray.data.readers import Entry
from ucotron_ray.data.records import name_key
from ucotron_ray.synthesis.contents import found
from ucotron_ray.synthesis.quality import Duplicates
from ucotron_ray.synthesis.rows import DEFECTS, Fields, RowKind, strings

HISTOGRAM_BARS = 20
EXAMPLES = 20
"""Rows that a report names for each defect."""


@dataclass(frozen=True)
class RowReport:
    """What was found in one row."""

    where: str
    split: str
    defects: tuple[str, ...]
    length: int = 0
    labels: tuple[str, ...] = ()
    detail: str | None = None
    repeats_other_split: bool = False


@dataclass
class _Seen:
    """What has to be remembered of the rows so far."""

    duplicates: Duplicates
    splits: list[str] = field(default_factory=list)
    """Of every text that was new, by its number."""
    train_names: set[str] = field(default_factory=set)


def examine(kind: RowKind, entries: Iterable[Entry], near_duplicate: float) -> Iterator[RowReport]:
    """Look at every row. Held-out rows come back at the end: the names of all training rows must be known first."""
    seen = _Seen(Duplicates(near_duplicate if kind.repeats_nearly else 1.0))
    waiting: list[tuple[RowReport, frozenset[str]]] = []
    for entry in entries:
        looked, names = _look(kind, entry, seen)
        if entry.split != "train":
            waiting.append((looked, names))
        else:
            seen.train_names |= names
            yield looked
    for looked, names in waiting:
        leaks = looked.repeats_other_split or bool(names & seen.train_names)
        yield _with(looked, "leak") if leaks else looked


def report(
    kind: RowKind,
    looked: Iterable[RowReport],
    settings: Gate,
    *,
    caught: Mapping[str, int] | None = None,
    samples: int = 0,
    judge: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The report of what `examine` found, with the marks of a model that read some of the rows, if one did.

    `caught`: in how many of `samples` each defect was found and kept out. `state` is `rejected` if a share is above its
    limit, or too much of the vocabulary does not occur.
    """
    splits: Counter[str] = Counter()
    labels: Counter[str] = Counter()
    defects: Counter[str] = Counter()
    examples: dict[str, list[dict[str, str]]] = {}
    lengths: list[int] = []
    for row in looked:
        splits[row.split] += 1
        labels.update(row.labels)
        defects.update(row.defects)
        if "schema" not in row.defects:
            lengths.append(row.length)
        for name in row.defects:
            if len(examples.setdefault(name, [])) < EXAMPLES:
                examples[name].append({"where": row.where, **({"found": row.detail} if row.detail else {})})
    rows = sum(splits.values())
    made: dict[str, Any] = {
        "kind": kind.name,
        "rows": rows,
        "splits": dict(sorted(splits.items())),
        "labels": {label: labels[label] for label in (*kind.vocabulary, *sorted(set(labels) - set(kind.vocabulary)))},
        "vocabulary": _vocabulary(kind, labels),
        "lengths": _lengths(lengths),
        "defects": _shares(defects, rows, settings.defects, examples),
        "caught": _shares(Counter(caught or {}), samples, settings.caught, {}),
        "samples": samples,
        "judge": dict(judge) if judge else None,
    }
    return decided(made, settings)


def decided(made: dict[str, Any], settings: Gate) -> dict[str, Any]:
    """The report with what failed, and the state that follows."""
    failures = [
        f"{part}: {name.replace('_', ' ')} in {entry['rows']} of {of}: {entry['share']:.2%}, not {entry['limit']:.2%}"
        for part, of in (("defects", f"{made['rows']} rows"), ("caught", f"{made['samples']} samples"))
        for name, entry in made[part].items()
        if entry["limit"] is not None and entry["share"] > entry["limit"]
    ]
    vocabulary = made["vocabulary"]
    enough = made["rows"] >= settings.vocabulary_from_rows
    if vocabulary["size"] and enough and vocabulary["share"] < settings.min_vocabulary:
        absent = ", ".join(vocabulary["missing"])
        failures.append(f"vocabulary: {vocabulary['share']:.0%} of the labels occur; missing: {absent}")
    judge = made["judge"]
    if judge and judge["mean"] < settings.min_judge_score:
        failures.append(f"judge: {judge['mean']:.2f} on average, at least {settings.min_judge_score:g}")
    if not made["rows"]:
        failures.append("there is no row")
    return {**made, "failures": failures, "state": "rejected" if failures else "ok"}


def _look(kind: RowKind, entry: Entry, seen: _Seen) -> tuple[RowReport, frozenset[str]]:
    """What is wrong in one row, by itself and beside those before it; and its names."""
    row = entry.value
    problem = entry.problem
    kind = kind.of(row) if row is not None else kind
    if row is not None and problem is None:
        problem = _schema_problem(kind, row)
    if row is None or problem is not None:
        return RowReport(entry.where, entry.split, ("schema",), detail=problem), frozenset()
    defects = [*kind.defects(row), *found(strings(row))]
    text = kind.identity(row)
    repeated = seen.duplicates.earlier(text)
    other_split = False
    if repeated is None:
        seen.splits.append(entry.split)
    else:
        defects.append(repeated[0])
        other_split = seen.splits[repeated[1]] != entry.split
    names = frozenset(name_key(name) for name in kind.names(row))
    labels = tuple(kind.labels(row))
    return RowReport(
        entry.where, entry.split, tuple(defects), len(text), labels, repeats_other_split=other_split
    ), names


def _schema_problem(kind: RowKind, row: Fields) -> str | None:
    try:
        kind.model.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return None


def _with(looked: RowReport, defect: str) -> RowReport:
    return RowReport(looked.where, looked.split, (*looked.defects, defect), looked.length, looked.labels, looked.detail)


def _shares(
    counts: Counter[str], of: int, limits: Mapping[str, float], examples: Mapping[str, Sequence[Mapping[str, str]]]
) -> dict[str, Any]:
    """Every defect that has a limit or occurs: rows, share, limit, and where."""
    names = [name for name in DEFECTS if name in limits or counts[name]]
    return {
        name: {
            "rows": counts[name],
            "share": counts[name] / of if of else 0.0,
            "limit": limits.get(name),
            "examples": list(examples.get(name, ())),
        }
        for name in names
    }


def _vocabulary(kind: RowKind, labels: Mapping[str, int]) -> dict[str, Any]:
    absent = [label for label in kind.vocabulary if not labels.get(label)]
    size = len(kind.vocabulary)
    share = (size - len(absent)) / size if size else 1.0
    return {"size": size, "found": size - len(absent), "share": share, "missing": absent}


def _lengths(lengths: Sequence[int]) -> dict[str, Any]:
    """Characters of what must not repeat: smallest, median, mean, largest, and bars of equal width."""
    if not lengths:
        return {"unit": "characters", "min": 0, "median": 0.0, "mean": 0.0, "max": 0, "histogram": []}
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high - low + 1) // HISTOGRAM_BARS))
    bars = Counter((length - low) // width for length in lengths)
    histogram = [
        {"from": low + bar * width, "to": low + (bar + 1) * width - 1, "rows": bars[bar]}
        for bar in range(max(bars) + 1)
    ]
    return {
        "unit": "characters",
        "min": low,
        "median": float(statistics.median(lengths)),
        "mean": round(statistics.fmean(lengths), 2),
        "max": high,
        "histogram": histogram,
    }
