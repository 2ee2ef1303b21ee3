"""Rows: from the user's files, for scoring, mixed. A stage says what is asked for, reuses it or makes it."""

import logging
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ucotron_ray.core import artifacts
from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request
from ucotron_ray.core.errors import ConfigError, InputError
from ucotron_ray.core.run import Run
from ucotron_ray.data import importing, jsonl, wire
from ucotron_ray.data.importing import Splits
from ucotron_ray.data.jsonl import Placed
from ucotron_ray.data.records import ChatRow, RawRow

log = logging.getLogger(__name__)


TRAIN, VAL, TEST, ROWS = "train.jsonl", "val.jsonl", "test.jsonl", "rows.jsonl"
SCHEMA = "schema.yaml"
"""Of a dataset whose rows are written in a schema: that schema (`schema_file.py`)."""

GUIDE_TRAIN, GUIDE_VAL, GUIDE_PAIRS = "train_sft.jsonl", "val_sft.jsonl", "train_dpo.jsonl"

Purpose = Literal["claim", "choice"]
"""What rows are scored for: what is claimed of a model (test rows), or a choice (validation rows, never test rows)."""


def rows_request(train: Path, val: Path | None, *, layout: str | None = None, drop_overlap: bool = False) -> Request:
    """What importing the user's own files would make, named by their content."""
    made = importing.read_splits(train, val, layout=layout, drop_overlap=drop_overlap, quiet=True)
    return _rows_request(train, val, made)


def _rows_request(train: Path, val: Path | None, made: Splits) -> Request:
    hashes = {"train": importing.content_of(train), "val": importing.content_of(val) if val else None}
    name, fields = importing.named("rows", {"files": hashes}, hashes, made.reading)
    return Request("dataset", name, fields)


def import_rows(
    run: Run, train: Path, val: Path | None, *, layout: str | None = None, drop_overlap: bool = False
) -> Artifact:
    """The user's own files or directory → a dataset named by content. Chat rows are read back where they can be."""
    made = importing.read_splits(train, val, layout=layout, drop_overlap=drop_overlap)

    def build(build: Build) -> BuildResult:
        jsonl.write_rows(build.path / TRAIN, made.train)
        jsonl.write_rows(build.path / VAL, made.val)
        if made.test:
            jsonl.write_rows(build.path / TEST, made.test)
        counts = {"train": len(made.train), "val": len(made.val), **made.counts}
        notes = [f"from {train}" + (f" and {val}" if val else "")]
        return BuildResult({}, counts, notes)

    return run.make("import-rows", _rows_request(train, val, made), build)


def held_out_request(path: Path, purpose: Purpose = "claim") -> Request:
    """What importing held-out rows would make, named by their content."""
    placed = jsonl.training_rows(path)
    split = _split_to_score(path, placed, purpose)
    digest = importing.content_of(path)
    fields = {"file": digest, **({"split": split} if split else {})}
    reading = {name for row in placed for name in row.honoured} - {"turns"}
    if split == "val" and any(row.split == "test" for row in placed):
        # They were once taken for validation rows.
        reading.add("without test")
    name, fields = importing.named("rows", fields, digest, sorted(reading))
    return Request("dataset", f"{name}-{split}" if split else name, fields)


def held_out(run: Run, reference: str | None, dataset: Artifact | None, *, purpose: Purpose = "claim") -> Artifact:
    """The rows to score on: a file or directory (imported by content hash), a dataset, or the dataset's own split.

    For a claim that is the test split where there is one, else the validation split; for a choice it is never the test
    split. Raises ConfigError or InputError where there is no row that could be scored.
    """
    if reference is not None and not in_store(run, reference):
        return _import_held_out(run, reference, purpose)
    if reference is not None:
        dataset = run.store.get("dataset", reference, accept_rejected=run.accept_rejected)
    if dataset is not None and purpose == "claim" and scorable(dataset.path / TEST):
        return _import_held_out(run, str(dataset.path / TEST), purpose)
    if dataset is None or not scorable(rows_file(dataset)):
        raise ConfigError(
            "there are no rows to score on",
            where="evaluation.data",
            expected="a JSONL file, the name of a dataset, or a dataset with validation rows that hold relations",
            found=f"dataset '{dataset.manifest.name}'" if dataset else None,
            next_step="pass --data FILE",
        )
    return dataset


def check_held_out(run: Run, reference: str, purpose: Purpose = "claim") -> None:
    """Raise InputError if a reference to held-out rows names neither a dataset nor rows that can be scored."""
    if not in_store(run, reference):
        _rows_to_score(reference, run, purpose)


def in_store(run: Run, reference: str) -> bool:
    """Whether a reference to rows names a dataset; a file of that name comes first, a directory does not."""
    path = Path(reference)
    return not path.is_file() and path.name == reference and run.store.find("dataset", reference) is not None


def _rows_to_score(reference: str, run: Run, purpose: Purpose) -> list[RawRow]:
    """The relation rows of a file; of several splits those of the one that the purpose has."""
    path = Path(reference)
    if not path.exists():
        raise InputError(
            "there is no such held-out file or dataset",
            where="evaluation.data",
            expected="a JSONL file or one of: " + (", ".join(run.store.names("dataset")) or "(no dataset yet)"),
            found=reference,
            next_step="check the path",
        )
    placed = jsonl.training_rows(path)
    split = _split_to_score(path, placed, purpose)
    importing.say_layouts(path, placed)
    chosen = [row.row for row in placed if split in (None, row.split)]
    rows, _, num_as_is = importing.readable_rows(chosen)
    found = [row for row in rows if isinstance(row, RawRow)]
    if not found:
        raise InputError(
            "no row of it can be scored",
            where=reference,
            expected='{"text", "entities", "expected_relations"}, or chat rows that hold a sentence and its relations',
            found=f"{len(rows)} other rows",
        )
    if num_as_is:
        log.warning("%s: %d of %d rows hold no relations and are not scored", reference, num_as_is, len(rows))
    return found


def _split_to_score(path: Path, placed: Sequence[Placed[Any]], purpose: Purpose) -> str | None:
    """The split of a set to score on; None for a file that is no set of splits, whose rows are all meant.

    The rows of the others may be what a model learned from. Raises InputError for a choice where there are test rows
    and no validation rows.
    """
    there = {row.split for row in placed}
    if not path.is_dir() and len(there) == 1:
        return None
    if "test" in there and purpose == "claim":
        return "test"
    if "test" in there and "val" not in there:
        raise InputError(
            "there are test rows and no validation rows: a choice made on them would spoil what is claimed on them",
            where=str(path),
            expected="a split of validation rows",
            found=", ".join(sorted(there)),
            next_step="add val.jsonl, or name a file of rows for the choice",
        )
    return "val" if "val" in there else None


def scorable(path: Path) -> bool:
    """Whether a dataset's file holds relation rows; chat rows that hold none train, but are never scored."""
    return path.is_file() and bool(path.stat().st_size and jsonl.relations_among(path))


def _import_held_out(run: Run, reference: str, purpose: Purpose) -> Artifact:
    path = Path(reference)
    rows = _rows_to_score(reference, run, purpose)

    def build(build: Build) -> BuildResult:
        jsonl.write_rows(build.path / ROWS, rows)
        counts = {"rows": len(rows), "relations": sum(len(row.expected_relations) for row in rows)}
        return BuildResult({}, counts, [f"from {path}"])

    return run.make("import-rows", held_out_request(path, purpose), build)


def rows_file(data: Artifact) -> Path:
    """The file of a dataset with rows to score on: its own, else validation. Test rows come through `held_out`."""
    path = data.path / ROWS
    return path if path.is_file() else data.path / VAL


def training_data(
    run: Run, train: str | None, val: Path | None, *, layout: str | None = None, drop_overlap: bool = False
) -> Artifact:
    """What `--train-data` names: a dataset of the store, a JSONL file, or nothing for the dataset of the run's name."""
    if train is None or (not Path(train).exists() and run.store.find("dataset", Path(train).name) is not None):
        return run.store.get("dataset", train or run.name, accept_rejected=run.accept_rejected)
    return import_rows(run, Path(train), val, layout=layout, drop_overlap=drop_overlap)


def data_of(run: Run, adapter: Artifact | None) -> Artifact | None:
    """The relation rows that an adapter learned from, if the store has these very bytes still.

    Aligned by preferences it has pairs as its data: the rows are those of the adapter that it started from.
    """
    if adapter is None:
        return None
    start = started_from(run, adapter)
    if start is not None:
        return data_of(run, start)
    is_aligned = any(entry.role == "base" for entry in adapter.manifest.inputs)
    return None if is_aligned else _input(run, adapter, "data", "dataset")


def started_from(run: Run, aligned: Artifact) -> Artifact | None:
    """The adapter that DPO started from, if the store has it and the merged model still."""
    merged = _input(run, aligned, "base", "model")
    return _input(run, merged, "adapter", "adapter") if merged else None


def _input(run: Run, artifact: Artifact, role: str, kind: artifacts.ArtifactKind) -> Artifact | None:
    """What an artifact was made of, if the store has it still; not what has been made under its name since."""
    entry = next((entry for entry in artifact.manifest.inputs if entry.role == role), None)
    found = run.store.find(kind, entry.name) if entry else None
    return found if found is not None and entry is not None and found.manifest.content == entry.content else None


def holds_relations_only(dataset: Artifact) -> bool:
    """Whether all training rows can be built on: the user's own chat rows may not be readable as relations."""
    return set(jsonl.kinds(jsonl.read_rows(dataset.path / TRAIN))) == {"RawRow"}


def write_chat_copy(dataset: Artifact, path: Path) -> int:
    """The training rows as the guide's chat JSONL, in the server's inference prompt; returns how many."""
    rows = jsonl.read_relations(dataset.path / TRAIN)
    messages = [
        [
            *wire.chat_messages(row.text, row.entities),
            {"role": "assistant", "content": wire.format_answer(row.expected_relations)},
        ]
        for row in rows
    ]
    return jsonl.write_rows(path, [ChatRow.model_validate({"messages": turns}) for turns in messages])


def mix_request(run: Run, graph: Artifact, teacher: Artifact) -> Request:
    """What mixing two datasets would make."""
    fields = {"mix": "shuffled", "seed": run.config.recipe.graph.seed}
    return Request("dataset", f"{run.name}-mix", fields, (graph.as_input("graph"), teacher.as_input("teacher")))


def mix(run: Run, graph: Artifact, teacher: Artifact) -> Artifact:
    """The rows of a graph and those of a teacher in one shuffled order → `dataset/<name>-mix`."""

    def build(build: Build) -> BuildResult:
        # A split that nothing was drawn into is an empty file.
        rows = {
            split: [
                row
                for made in (graph, teacher)
                if (made.path / split).stat().st_size
                for row in jsonl.read_relations(made.path / split)
            ]
            for split in (TRAIN, VAL)
        }
        held_out = {row.text for row in rows[VAL]}
        train = [row for row in rows[TRAIN] if row.text not in held_out]
        random.Random(run.config.recipe.graph.seed).shuffle(train)
        jsonl.write_rows(build.path / TRAIN, train)
        jsonl.write_rows(build.path / VAL, rows[VAL])
        counts = {"train": len(train), "val": len(rows[VAL]), "teacher": teacher.manifest.counts["train"]}
        return BuildResult({}, counts, [f"{graph.manifest.name} and {teacher.manifest.name}"])

    return run.make("mix", mix_request(run, graph, teacher), build)


def copy_file(source: Path, target: Path) -> None:
    """A copy of one file of an artifact where the user wants it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def guide_files(run: Run, directory: Path | None) -> tuple[Path, Path | None] | None:
    """The guide's two files in a directory (None = `output.data_dir`), for training and for validation.

    None where no directory is given and the store has the dataset of the run's name. Raises InputError for files that
    are not there or cannot be read.
    """
    if directory is None:
        if run.store.find("dataset", run.name) is not None or run.store.find("dataset", f"{run.name}-mix") is not None:
            return None
        directory = Path(run.config.place.output.data_dir)
    train, val = directory / GUIDE_TRAIN, directory / GUIDE_VAL
    if not train.is_file():
        raise InputError(
            "there is no training data to go on with",
            where=str(directory),
            expected=f"{GUIDE_TRAIN} (and {GUIDE_VAL}, if you have it)",
            found=", ".join(sorted(path.name for path in directory.iterdir())[:8])
            if directory.is_dir()
            else "no directory",
            next_step="pass --data-dir, or leave --skip-generate away",
        )
    jsonl.read_training_rows(train)
    if val.is_file():
        jsonl.read_training_rows(val)
    return train, val if val.is_file() else None
