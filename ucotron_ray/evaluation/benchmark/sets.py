"""The public sets by name: which files they have, and how a split of them is read."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

from ucotron_ray.core.errors import ConfigError, InputError
from ucotron_ray.core.files import canonical_hash, file_hash
from ucotron_ray.evaluation.benchmark import token_layouts, triple_layouts
from ucotron_ray.evaluation.benchmark.records import BenchmarkRow, BenchmarkSet, last_parts

Made = TypeVar("Made")

Patterns = Mapping[str, tuple[str, ...]]
"""Split → globs of its files below the directory; the first glob that finds something is read."""

Reader = Callable[[Path, Path], list[BenchmarkRow]]
"""(directory, file) → rows."""

_NYT_DEV = ("dev_triples.json", "dev.json", "valid.json", "raw_valid.json")

_WRONG = (KeyError, IndexError, TypeError, ValueError, AttributeError)
"""What a record of another layout raises where it is taken apart."""


@dataclass(frozen=True)
class Layout:
    """One public set: its files, its reader, and which measures its annotation allows."""

    files: Patterns
    read: Reader
    has_spans: bool
    """Whether it says where names stand: without that there are no boundaries to score."""
    whole_labels: bool = True
    """Whether predicates are asked as they are written; else by the last part of a path."""
    vocabulary: str | None = None
    """Glob of the files that list its predicates, needed to read it."""
    default_split: str = "test"


def layouts() -> dict[str, Layout]:
    """Every layout by its name on the command line."""
    splits = ("train", "dev", "test")
    return {
        "conll04": Layout(_each("conll04_{split}.json", splits), _records(token_layouts.conll04), True),
        "scierc": Layout(
            _each("processed_data/json/{split}.json {split}.json", splits), _records(token_layouts.scierc), True
        ),
        "crossre": Layout(_each("crossre_data/*-{split}.json *-{split}.json", splits), _crossre, True),
        "docred": Layout(
            {"train": ("train_annotated.json",), "dev": ("dev.json",)},
            _docred,
            True,
            vocabulary="rel_info.json",
            # The labels of its test split are not public.
            default_split="dev",
        ),
        "nyt": Layout(
            {**_each("{split}_triples.json {split}.json raw_{split}.json", splits), "dev": _NYT_DEV},
            _sentences,
            False,
            whole_labels=False,
        ),
        "webnlg": Layout(
            {
                "train": ("train_triples.json", "**/train/*triples/*.xml"),
                "dev": ("dev_triples.json", "**/dev/*triples/*.xml"),
                "test": ("test_triples.json", "**/semantic-parsing-test-data-with-refs-en.xml"),
            },
            _webnlg,
            False,
        ),
        "text2kgbench": Layout(
            {"train": ("train/ont_*_train.jsonl",), "test": ("ground_truth/ont_*_ground_truth.jsonl",)},
            _text2kgbench,
            False,
            vocabulary="ontologies/*_ontology.json",
        ),
    }


def layout_of(name: str) -> Layout:
    """The layout of that name. Raises ConfigError."""
    known = layouts()
    if name not in known:
        raise ConfigError("there is no such layout", where="LAYOUT", expected=", ".join(known), found=name)
    return known[name]


def read_set(name: str, directory: Path, split: str | None = None) -> BenchmarkSet:
    """A split of a public set, by default the one that is scored. Raises ConfigError, InputError."""
    layout = layout_of(name)
    split = split or layout.default_split
    if split not in layout.files:
        raise ConfigError(
            f"{name} has no split of this name with labels",
            where="--split",
            expected=", ".join(layout.files),
            found=split,
        )
    files = split_files(name, directory, split)
    rows = [row for file in files for row in layout.read(directory, file)]
    if not rows:
        raise InputError("the split has no rows", where=", ".join(str(file) for file in files))
    labels = _vocabulary(name, directory, layout)
    if not layout.whole_labels:
        short = last_parts(sorted(labels))
        rows = [replace(row, relations=tuple((h, short[p], t) for h, p, t in row.relations)) for row in rows]
        labels = set(short.values())
    relative = tuple(file.relative_to(directory).as_posix() for file in files)
    return BenchmarkSet(name, split, tuple(rows), tuple(sorted(labels)), relative)


def split_files(name: str, directory: Path, split: str) -> list[Path]:
    """The files of a split. Raises InputError that says which files the layout has."""
    layout = layout_of(name)
    found = _found(directory, layout.files[split])
    missing = layout.vocabulary if layout.vocabulary and not _found(directory, (layout.vocabulary,)) else None
    if not found or missing:
        has = [f"{part}: {' or '.join(globs)}" for part, globs in layout.files.items()]
        raise InputError(
            f"the directory does not hold {name} as it is published",
            where=str(directory),
            expected="; ".join([*has, *([f"always: {layout.vocabulary}"] if layout.vocabulary else [])]),
            found=f"no {missing or ' and no '.join(layout.files[split])}" if directory.is_dir() else "no directory",
            next_step="--data DIR is the directory that these paths are below",
        )
    return found


def has_split(name: str, directory: Path, split: str) -> bool:
    """Whether the files of a split are there."""
    return bool(_found(directory, layout_of(name).files.get(split, ())))


def fingerprint(name: str, directory: Path) -> str:
    """sha256 over the files of all splits that are there, and of the vocabulary: what a score depends on."""
    layout = layout_of(name)
    globs = [*layout.files.values(), *([(layout.vocabulary,)] if layout.vocabulary else [])]
    files = {file for patterns in globs for file in _found(directory, patterns)}
    return canonical_hash({file.relative_to(directory).as_posix(): file_hash(file) for file in files})


def _found(directory: Path, globs: tuple[str, ...]) -> list[Path]:
    return next((files for glob in globs if (files := sorted(directory.glob(glob)))), [])


def _each(patterns: str, splits: tuple[str, ...]) -> Patterns:
    return {split: tuple(glob.format(split=split) for glob in patterns.split()) for split in splits}


def _vocabulary(name: str, directory: Path, layout: Layout) -> set[str]:
    if name == "docred":
        return set(_relation_names(directory).values())
    if name == "text2kgbench":
        files = _found(directory, (layout.vocabulary or "",))
        return {label for file in files for label in _ontology(file)}
    rows = [
        row
        for split, globs in layout.files.items()
        for file in _found(directory, globs)
        for row in layout.read(directory, file)
    ]
    return {predicate for row in rows for _, predicate, _ in row.relations}


def _records(read: Callable[[Mapping[str, Any]], list[BenchmarkRow]]) -> Reader:
    def rows(_: Path, file: Path) -> list[BenchmarkRow]:
        return [row for record, where in _objects(file) for row in _checked(read, record, where)]

    return rows


def _crossre(directory: Path, file: Path) -> list[BenchmarkRow]:
    domain = file.stem.rsplit("-", 1)[0]
    return [replace(row, group=domain) for row in _records(token_layouts.crossre)(directory, file)]


def _docred(directory: Path, file: Path) -> list[BenchmarkRow]:
    names = _relation_names(directory)
    return _records(lambda record: token_layouts.docred(record, names))(directory, file)


def _sentences(directory: Path, file: Path) -> list[BenchmarkRow]:
    def read(record: Mapping[str, Any]) -> list[BenchmarkRow]:
        return triple_layouts.triple_list(record) if "triple_list" in record else triple_layouts.sentence(record)

    return _records(read)(directory, file)


def _webnlg(directory: Path, file: Path) -> list[BenchmarkRow]:
    if file.suffix != ".xml":
        return _sentences(directory, file)
    try:
        return triple_layouts.webnlg_xml(file.read_bytes())
    except (ElementTree.ParseError, *_WRONG) as error:
        raise _other_layout(str(file), error) from error


def _text2kgbench(directory: Path, file: Path) -> list[BenchmarkRow]:
    """The rows of one ontology: `ont_1_movie_train.jsonl` belongs to `1_movie_ontology.json`."""
    key = file.stem.removeprefix("ont_").removesuffix("_train").removesuffix("_ground_truth")
    ontology = directory / "ontologies" / f"{key}_ontology.json"
    types = _ontology(ontology) if ontology.is_file() else {}
    return _records(lambda record: triple_layouts.text2kgbench(record, types, key))(directory, file)


def _ontology(file: Path) -> dict[str, tuple[str, str]]:
    return _checked(triple_layouts.ontology, _json(file), str(file))


def _relation_names(directory: Path) -> dict[str, str]:
    file = directory / "rel_info.json"
    return _checked(lambda value: {str(key): str(name) for key, name in value.items()}, _json(file), str(file))


def _objects(file: Path) -> Iterator[tuple[Any, str]]:
    """The records of a file: one JSON array, or one object a line, whatever the name ends in."""
    text = _text(file)
    if text.lstrip().startswith("["):
        for number, record in enumerate(_parsed(text, str(file)), 1):
            yield record, f"{file}, record {number}"
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _parsed(line, f"{file}, line {number}"), f"{file}, line {number}"


def _json(file: Path) -> Any:
    return _parsed(_text(file), str(file))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("the file cannot be read", where=str(file), expected="UTF-8", found=str(error)) from error


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("this is no JSON", where=where, found=str(error)) from error


def _checked(read: Callable[[Any], Made], value: Any, where: str) -> Made:
    try:
        return read(value)
    except _WRONG as error:
        raise _other_layout(where, error) from error


def _other_layout(where: str, error: Exception) -> InputError:
    return InputError(
        "a record is not in the layout of this set",
        where=where,
        expected="the layout as it is published",
        found=f"{type(error).__name__}: {error}"[:200],
        next_step="check that --data is the set that LAYOUT names",
    )
