"""Objects out of files that people have, as this application's own rows: JSON and JSONL, tables, directories.

No code of theirs runs. What an object means as a row says `jsonl.py`. A line that cannot be used is an entry with a
problem, not an exception: the caller decides whether one bad line stops it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ucotron_ray.core.errors import ConfigError, InputError
from ucotron_ray.data import conll, documents, encodings, layouts, tables, triples
from ucotron_ray.data.conversations import NotUsable
from ucotron_ray.data.documents import Item

PARQUET_SUFFIXES = (".parquet", ".pq")
SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "val",
    "val": "val",
    "valid": "val",
    "dev": "val",
    "development": "val",
    "test": "test",
}
"""Names of splits and of their files: for training, for choices (validation), or for the claim (test)."""

MARKS = ("", "_sft")
ENDINGS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", *PARQUET_SUFFIXES)

OWN_KEYS = (
    "expected_relations", "messages", "chosen", "relations", "fact_a", "canonical", "path_node_ids", "description",
)  # fmt: skip
"""The keys that tell what a row of the application's own is; `jsonl.py` has the models."""


@dataclass(frozen=True)
class Entry:
    """One object: where it stands, the split it is for, and its value, or what keeps it from being one.

    `layout` is what it was read as; `honoured` names what earlier versions of this application dropped in it.
    """

    where: str
    split: str
    value: dict[str, Any] | None
    problem: str | None = None
    layout: str = layouts.OWN
    honoured: frozenset[str] = frozenset()


def entries(path: Path, layout: str | None = None) -> Iterator[Entry]:
    """Every object of a file or directory, one at a time. Raises InputError if it cannot be read at all.

    `layout`: a name of `layouts.NAMES` that every object must have; None detects.
    """
    if layout is not None and layout not in layouts.NAMES:
        raise ConfigError(
            "there is no such layout", where="--format", expected=", ".join(layouts.NAMES), found=str(layout)
        )
    if path.is_dir():
        yield from _directory(path, layout)
    else:
        yield from _file(path, split_of(path), layout)


def split_of(path: Path) -> str:
    """The split that a file's name says; train if it says none."""
    return split_named(path.name.partition(".")[0].removesuffix("_sft")) or "train"


def split_named(name: str) -> str | None:
    """The split of a name such as `validation`, `test_sft` or `train-00000-of-00001`; None for any other name."""
    return SPLITS.get(re.split(r"[-_.]", name.lower())[0])


HONOURED = {
    "weight": "with answers of weight 0, which are not trained",
    "system": "whose `system` is their first turn",
    "turns": "with several answers, each of which is trained",
}
"""What an entry's `honoured` can name, in words."""


def says(found: Iterable[tuple[str, Iterable[str]]]) -> str | None:
    """What was read as what, of every row's layout and what was honoured in it; None where all is plain and own."""
    rows = list(found)
    names = Counter(name for name, _ in rows)
    read = [f"{count} of layout {name}" for name, count in sorted(names.items()) if name != layouts.OWN]
    if read and names[layouts.OWN]:
        read.append(f"{names[layouts.OWN]} in the own layout")
    parts = ["read " + ", ".join(read)] if read else []
    if {"triplets", layouts.GROUPED} & set(names):
        parts.append("entities without a type have the label `concept`")
    honoured = Counter(name for _, marks in rows for name in marks)
    parts += [f"{count} row(s) {HONOURED[name]}" for name, count in sorted(honoured.items())]
    return "; ".join(parts) or None


def _file(path: Path, split: str, layout: str | None) -> Iterator[Entry]:
    read = _entries_of(_items(path, layout), split, layout)
    first = next(read, None)
    if first is None:
        return
    if first.layout == layouts.GROUPED:
        yield from _grouped([first, *read])
        return
    yield first
    yield from read


def _items(path: Path, layout: str | None) -> Iterator[Item]:
    if path.suffix in PARQUET_SUFFIXES or encodings.begins_with(path, encodings.PARQUET):
        yield from tables.parquet(path)
        return
    with encodings.opened(path) as file:
        ending = encodings.ending(path)
        if ending in tables.SEPARATED:
            yield from tables.separated(file, ending)
        elif layout == "conll04" or (layout is None and conll.is_conll(_peeked(file))):
            yield from conll.sentences(file)
        else:
            yield from documents.objects(file, _is_row)


def _peeked(file: Any) -> bytes:
    """The beginning of a file that is read again after it."""
    head: bytes = file.peek(conll.HEAD_BYTES) if hasattr(file, "peek") else file.getvalue()[: conll.HEAD_BYTES]
    return head


def _is_row(value: dict[str, Any]) -> bool:
    return any(key in value for key in OWN_KEYS) or layouts.layout_of(value) is not None


def _entries_of(items: Iterable[Item], split: str, layout: str | None) -> Iterator[Entry]:
    # CoNLL04's sentences come as SpERT's objects.
    wanted = "spert" if layout == "conll04" else layout
    for item in items:
        within = split_named(item.within) if item.within else None
        entry = Entry(item.where, within or split, None, item.problem)
        if item.value is None:
            yield entry
            continue
        try:
            value, name, honoured = layouts.as_own(item.value, wanted)
        except NotUsable as error:
            yield replace(entry, problem=str(error))
        else:
            yield replace(entry, value=value, layout=layout or name, honoured=honoured)


def _grouped(found: list[Entry]) -> Iterator[Entry]:
    """Lines with a relation each: those of one text are one row, where the first of them stands."""
    by_text: dict[str, list[Entry]] = {}
    for number, entry in enumerate(found):
        is_part = entry.layout == layouts.GROUPED and entry.value is not None
        by_text.setdefault(str(entry.value["text"]) if is_part and entry.value else f"\0{number}", []).append(entry)
    for group in by_text.values():
        values = [entry.value for entry in group if entry.value is not None]
        yield replace(group[0], value=triples.merged(values)) if len(values) > 1 else group[0]


def _directory(path: Path, layout: str | None) -> Iterator[Entry]:
    groups = [_group(path, mark, ending) for mark in MARKS for ending in ENDINGS]
    chosen = next((group for group in groups if any(split == "train" for _, split in group)), None)
    if chosen is None and ((path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file()):
        for name, item in tables.hugging_face(path):
            yield from _entries_of([item], split_named(name) or "train", layout)
        return
    chosen = chosen or next((group for group in groups if group), None)
    if chosen is None:
        # As the hub stores them: data/train-00000-of-00001.parquet.
        found = sorted(file for suffix in PARQUET_SUFFIXES for file in path.rglob(f"*{suffix}"))
        chosen = [(file, split_named(file.name) or "train") for file in found]
    if not chosen:
        raise InputError(
            "the directory holds no rows",
            where=str(path),
            expected="train.jsonl, a directory that `Dataset.save_to_disk` wrote, or Parquet files",
            found=", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing",
        )
    for file, split in chosen:
        for entry in _file(file, split, layout):
            yield replace(entry, where=f"{file.name}, {entry.where}")


def _group(path: Path, mark: str, ending: str) -> list[tuple[Path, str]]:
    """The files of one kind that are the splits of one set, training first."""
    names = [(f"{name}{mark}{ending}{packed}", split) for name, split in SPLITS.items()
             for packed in ("", *encodings.PACKED)]  # fmt: skip
    found = [(path / name, split) for name, split in names if (path / name).is_file()]
    return sorted(found, key=lambda entry: ("train", "val", "test").index(entry[1]))
