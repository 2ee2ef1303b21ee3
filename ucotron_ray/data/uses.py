"""Rows that a choice was made by make no claim: which rows an artifact and all that it is made of have chosen by."""

import logging
from collections.abc import Iterable
from typing import Literal

from ucotron_ray.core.artifacts import Artifact, ArtifactKind, Store
from ucotron_ray.core.rows_use import RowsUse
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl, wire
from ucotron_ray.data.records import ChatRow, PreferenceRow, RawRow, name_key
from ucotron_ray.data.stage import ROWS, VAL, held_out, rows_file, scorable

log = logging.getLogger(__name__)

_MADE_OF: tuple[ArtifactKind, ...] = ("adapter", "model", "bundle", "sweep")
"""Kinds whose own choices count for what is made of them."""


def used(purpose: Literal["training", "choice", "score"], what: str, dataset: Artifact, file: str) -> RowsUse:
    """That the rows of a dataset's file are used; `rows` is how many the file has."""
    with (dataset.path / file).open("rb") as lines:
        count = sum(bool(line.strip()) for line in lines)
    manifest = dataset.manifest
    return RowsUse(purpose=purpose, what=what, dataset=manifest.name, content=manifest.content, file=file, rows=count)


def choices(store: Store, artifact: Artifact) -> list[RowsUse]:
    """The rows by which an artifact, or what it is made of, was chosen, stopped or gated."""
    found = [use for use in artifact.manifest.rows if use.purpose == "choice"]
    for entry in artifact.manifest.inputs:
        if entry.kind in _MADE_OF:
            made_of = store.find(entry.kind, entry.name)
            if made_of is not None and made_of.manifest.content == entry.content:
                found += choices(store, made_of)
        elif artifact.manifest.kind == "bundle" and entry.role == "data" and not artifact.manifest.rows:
            # A bundle from before manifests said it: its gates and decoding were judged on this input.
            rows = store.find("dataset", entry.name)
            file = rows_file(rows).name if rows is not None else ROWS
            found.append(
                RowsUse(
                    purpose="choice",
                    what="decoding and gates",
                    dataset=entry.name,
                    content=entry.content,
                    file=file,
                    rows=0,
                )
            )
    return list(dict.fromkeys(found))


def of_sweep(store: Store, name: str | None) -> list[RowsUse]:
    """The rows by which a sweep chose its settings; none if the store does not have it."""
    sweep = store.find("sweep", name) if name else None
    return choices(store, sweep) if sweep is not None else []


def texts(store: Store, uses: Iterable[RowsUse]) -> set[str] | None:
    """The texts of these rows, to be compared with those of other rows (`name_key`); None if some are not here."""
    found: set[str] = set()
    for use in uses:
        dataset = store.find("dataset", use.dataset)
        if dataset is None or dataset.manifest.content != use.content:
            return None
        rows = jsonl.read_rows(dataset.path / use.file)
        found |= {name_key(text) for row in rows if (text := _text(row)) is not None}
    return found


def _text(row: object) -> str | None:
    """The text that a row asks about; None where nobody can tell it from the rest of a prompt."""
    if isinstance(row, RawRow):
        return row.text
    if isinstance(row, PreferenceRow):
        asked = wire.parse_prompt(row.prompt)
        return asked[0] if asked else None
    relations = wire.relations_of_chat(row) if isinstance(row, ChatRow) else None
    return relations.text if relations else None


def rows_to_choose_by(run: Run, reference: str | None, dataset: Artifact | None) -> Artifact | None:
    """The rows for choices and gates: those that are named, else the dataset's own validation rows.

    Where it has none the rows that are scored have to do, and make no claim afterwards; None where there are none.
    """
    if reference is not None:
        return held_out(run, reference, dataset, purpose="choice")
    if dataset is not None and scorable(dataset.path / VAL):
        return dataset
    if run.config.recipe.evaluation.data is None:
        return None
    log.warning(
        "there are no validation rows: choices are made by the rows of evaluation.data, which cannot prove the model "
        "afterwards; name others with export.data"
    )
    return held_out(run, run.config.recipe.evaluation.data, dataset)


def validation(what: str, dataset: Artifact) -> list[RowsUse]:
    """That a choice is made by a dataset's own validation rows; nothing where it has none."""
    file = dataset.path / VAL
    return [used("choice", what, dataset, VAL)] if file.is_file() and file.stat().st_size else []
