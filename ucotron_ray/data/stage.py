"""Rows: from the user's files, for scoring, mixed. A stage says what is asked for, reuses it or makes it."""

import logging
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from ucotron_ray.core import artifacts
from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request
from ucotron_ray.core.errors import ConfigError, InputError
from ucotron_ray.core.files import canonical_hash, content_hash, file_hash, list_files
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl, readers, wire
from ucotron_ray.data.records import ChatRow, PreferenceRow, RawRow, Row

log = logging.getLogger(__name__)


TRAIN, VAL, ROWS = "train.jsonl", "val.jsonl", "rows.jsonl"
SCHEMA = "schema.yaml"
"""Of a dataset whose rows are written in a schema: that schema (`schema_file.py`)."""
GUIDE_TRAIN, GUIDE_VAL, GUIDE_PAIRS = "train_sft.jsonl", "val_sft.jsonl", "train_dpo.jsonl"


def rows_request(train: Path, val: Path | None) -> Request:
    """What importing the user's own files would make, named by their content."""
    hashes = {"train": _content_of(train), "val": _content_of(val) if val else None}
    return Request("dataset", f"rows-{canonical_hash(hashes)[:12]}", {"files": hashes})


def import_rows(run: Run, train: Path, val: Path | None) -> Artifact:
    """The user's own files or directory → a dataset named by content. Chat rows are read back where they can be."""
    # A directory, or a table with splits, brings its own validation rows.
    splits = train.is_dir() and val is None
    train_rows, num_chat, num_as_is = _readable_rows(jsonl.read_training_rows(train, "train" if splits else None))
    val_rows = _readable_rows(jsonl.read_training_rows(val))[0] if val else []
    if splits and any(entry.split == "val" for entry in readers.entries(train)):
        val_rows = _readable_rows(jsonl.read_training_rows(train, "val"))[0]
    common = {row_key(row) for row in train_rows} & {row_key(row) for row in val_rows}
    if common:
        raise InputError(
            f"{len(common)} validation row(s) are training rows too",
            where=f"{train}, {val}",
            expected="validation rows that training does not see",
            found=sorted(common)[0][:120],
            next_step="remove them from the validation file",
        )

    def build(build: Build) -> BuildResult:
        jsonl.write_rows(build.path / TRAIN, train_rows)
        jsonl.write_rows(build.path / VAL, val_rows)
        counts = {"train": len(train_rows), "val": len(val_rows), "chat": num_chat, "chat_as_is": num_as_is}
        notes = [f"from {train}" + (f" and {val}" if val else "")]
        return BuildResult({}, counts, notes)

    return run.make("import-rows", rows_request(train, val), build)


def held_out_request(path: Path) -> Request:
    """What importing held-out rows would make, named by their content."""
    digest = _content_of(path)
    if _has_validation(path):
        return Request("dataset", f"rows-{digest[:12]}-val", {"file": digest, "split": "val"})
    return Request("dataset", f"rows-{digest[:12]}", {"file": digest})


def held_out(run: Run, reference: str | None, dataset: Artifact | None) -> Artifact:
    """The rows to score on: a file or directory (imported by content hash), a dataset, or the dataset's own split.

    Raises ConfigError or InputError where there is no row that could be scored.
    """
    if reference is not None and not in_store(run, reference):
        return _import_held_out(run, reference)
    if reference is not None:
        dataset = run.store.get("dataset", reference, accept_rejected=run.accept_rejected)
    if dataset is None or not scorable(rows_file(dataset)):
        raise ConfigError(
            "there are no rows to score on",
            where="evaluation.data",
            expected="a JSONL file, the name of a dataset, or a dataset with validation rows that hold relations",
            found=f"dataset '{dataset.manifest.name}'" if dataset else None,
            next_step="pass --data FILE",
        )
    return dataset


def check_held_out(run: Run, reference: str) -> None:
    """Raise InputError if a reference to held-out rows names neither a dataset nor rows that can be scored."""
    if not in_store(run, reference):
        _rows_to_score(reference, run)


def in_store(run: Run, reference: str) -> bool:
    """Whether a reference to rows names a dataset; a file of that name comes first, a directory does not."""
    path = Path(reference)
    return not path.is_file() and path.name == reference and run.store.find("dataset", reference) is not None


def _rows_to_score(reference: str, run: Run) -> list[RawRow]:
    """The relation rows of a file; of a directory with a validation split those of that split alone."""
    path = Path(reference)
    if not path.exists():
        raise InputError(
            "there is no such held-out file or dataset",
            where="evaluation.data",
            expected="a JSONL file or one of: " + (", ".join(run.store.names("dataset")) or "(no dataset yet)"),
            found=reference,
            next_step="check the path",
        )
    rows, _, num_as_is = _readable_rows(jsonl.read_training_rows(path, "val" if _has_validation(path) else None))
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


def _has_validation(path: Path) -> bool:
    """Whether these are several splits: the rows of the others may be what a model learned from."""
    return path.is_dir() and any(entry.split == "val" for entry in readers.entries(path))


def scorable(path: Path) -> bool:
    """Whether a dataset's file holds relation rows; chat rows that hold none train, but are never scored."""
    return path.is_file() and bool(path.stat().st_size and jsonl.relations_among(path))


def _import_held_out(run: Run, reference: str) -> Artifact:
    path = Path(reference)
    rows = _rows_to_score(reference, run)

    def build(build: Build) -> BuildResult:
        jsonl.write_rows(build.path / ROWS, rows)
        counts = {"rows": len(rows), "relations": sum(len(row.expected_relations) for row in rows)}
        return BuildResult({}, counts, [f"from {path}"])

    return run.make("import-rows", held_out_request(path), build)


def rows_file(data: Artifact) -> Path:
    """The file of a dataset that holds the rows to score on."""
    path = data.path / ROWS
    return path if path.is_file() else data.path / VAL


def training_data(run: Run, train: str | None, val: Path | None) -> Artifact:
    """What `--train-data` names: a dataset of the store, a JSONL file, or nothing for the dataset of the run's name."""
    if train is None or (not Path(train).exists() and run.store.find("dataset", Path(train).name) is not None):
        return run.store.get("dataset", train or run.name, accept_rejected=run.accept_rejected)
    return import_rows(run, Path(train), val)


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


def _content_of(path: Path) -> str:
    """sha256 over a file, or over all files of a directory."""
    if path.is_dir():
        return content_hash(list_files(path))
    return file_hash(path)


def copy_file(source: Path, target: Path) -> None:
    """A copy of one file of an artifact where the user wants it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _readable_rows(rows: Sequence[jsonl.TrainingRow]) -> tuple[list[Row], int, int]:
    """Rows with chat rows read back into relations; how many were chat rows, and how many of those stay as they are."""
    made: list[Row] = []
    num_chat = num_as_is = 0
    for row in rows:
        if isinstance(row, ChatRow):
            num_chat += 1
            parsed = wire.relations_of_chat(row)
            num_as_is += parsed is None
            made.append(parsed or row)
        else:
            made.append(row)
    return made, num_chat, num_as_is


def row_key(row: Row) -> str:
    """What makes two rows the same question."""
    if isinstance(row, RawRow):
        return row.text
    if isinstance(row, ChatRow):
        return "\n".join(message.content for message in row.messages if message.role == "user")
    assert isinstance(row, PreferenceRow)
    return row.prompt


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
