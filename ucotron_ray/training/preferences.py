"""Preference pairs: the user's own, a dataset of the store, or made of the model's own answers."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request
from ucotron_ray.core.errors import StageFailed
from ucotron_ray.core.files import file_hash
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl
from ucotron_ray.data.importing import say_layouts
from ucotron_ray.data.jsonl import Placed
from ucotron_ray.data.records import PreferenceRow
from ucotron_ray.data.stage import TRAIN, VAL, import_rows, rows_request
from ucotron_ray.models import base as base_models
from ucotron_ray.models import stage as models
from ucotron_ray.models.stage import prompt_identity

VAL_SHARE = 0.1
"""Of the prompts of a file of pairs that has no validation file."""


def data_of(
    run: Run,
    reference: str,
    val: Path | None = None,
    *,
    layout: str | None = None,
    drop_overlap: bool = False,
) -> Artifact:
    """What `--data` names: a dataset of the store, or a file, imported under its hash."""
    path = Path(reference)
    if not path.is_file():
        return run.store.get("dataset", path.name, accept_rejected=run.accept_rejected)
    if isinstance(jsonl.placed_rows(path, layout)[0].row, PreferenceRow):
        return _import_pairs(run, path, layout)
    return import_rows(run, path, val, layout=layout, drop_overlap=drop_overlap)


def check(run: Run, reference: str) -> None:
    """Raise MissingArtifact or InputError if `--data` names neither a dataset nor a file of rows of one kind."""
    path = Path(reference)
    if path.is_file():
        # As they are read once it is their turn.
        read = (
            jsonl.read_preferences if isinstance(jsonl.read_rows(path)[0], PreferenceRow) else jsonl.read_training_rows
        )
        read(path)
    else:
        run.store.get("dataset", Path(reference).name, accept_rejected=run.accept_rejected)


def pairs_only(run: Run, reference: str) -> Artifact:
    """The same, refusing relation rows. Raises InputError with the first row that is no pair."""
    path = Path(reference)
    if path.is_file():
        jsonl.read_preferences(path)
    data = data_of(run, reference)
    jsonl.read_preferences(data.path / TRAIN)
    return data


def is_pairs(data: Artifact) -> bool:
    """Whether a dataset holds preference pairs; from relation rows they are made first."""
    return isinstance(jsonl.read_rows(data.path / TRAIN)[0], PreferenceRow)


def pairs_of(run: Run, data: Artifact, base: base_models.BaseModel, adapter: Artifact) -> Artifact:
    """The dataset itself if it holds pairs; else pairs of its relation rows and the adapter's own wrong answers."""
    if is_pairs(data):
        jsonl.read_preferences(data.path / TRAIN)
        return data
    return _on_policy(run, data, models.merge(run, base, adapter, name=f"{adapter.manifest.name}-merged"))


def import_request(run: Run, path: Path) -> Request:
    """What importing a file of pairs, or of relation rows, would make."""
    if not isinstance(jsonl.read_rows(path)[0], PreferenceRow):
        return rows_request(path, None)
    return _pairs_request(run, path, jsonl.preferences(path), None)


def _pairs_request(run: Run, path: Path, rows: Sequence[Placed[PreferenceRow]], layout: str | None) -> Request:
    fields: dict[str, Any] = {"file": file_hash(path), "seed": run.config.recipe.dpo.seed}
    reading = {name for row in rows for name in row.honoured} | ({f"format {layout}"} if layout else set())
    fields |= {"read": sorted(reading)} if reading else {}
    return Request("dataset", f"pairs-{Request('dataset', 'pairs', fields).recipe[:12]}", fields)


def _import_pairs(run: Run, path: Path, layout: str | None) -> Artifact:
    placed = jsonl.preferences(path, layout)
    say_layouts(path, placed)
    rows = [pair.row for pair in placed]
    seed = run.config.recipe.dpo.seed

    def build(build: Build) -> BuildResult:
        # By the prompt: two pairs of one text stay on one side.
        is_val = {row.prompt: random.Random(f"{seed}/{row.prompt}").random() < VAL_SHARE for row in rows}
        train = [row for row in rows if not is_val[row.prompt]] or rows
        val = [row for row in rows if is_val[row.prompt]] if len(train) < len(rows) else []
        jsonl.write_rows(build.path / TRAIN, train)
        jsonl.write_rows(build.path / VAL, val)
        return BuildResult({}, {"train": len(train), "val": len(val)}, [f"from {path}"])

    return run.make("import-pairs", _pairs_request(run, path, placed, layout), build)


def _on_policy(run: Run, data: Artifact, merged: Artifact) -> Artifact:
    """Pairs of a model's own wrong answers to a seeded sample of the rows → `dataset/on-policy-…`."""
    settings, workers = run.config.recipe.dpo, run.config.place.workers
    names = {"max_rows", "eval_rows", "seed", "on_policy", "quantize"}
    fields = {"on_policy": settings.model_dump(include=names), "prompt": prompt_identity()}
    inputs = (data.as_input("data"), merged.as_input("base"))
    name = f"on-policy-{Request('dataset', 'on-policy', fields, inputs).recipe[:12]}"

    def build(build: Build) -> BuildResult:
        run.connect()
        from ucotron_ray.core import session
        from ucotron_ray.training.on_ray import sample_on_ray

        for split, wanted in ((TRAIN, settings.max_rows), (VAL, settings.eval_rows)):
            rows = jsonl.relations_among(data.path / split) if (data.path / split).stat().st_size else []
            drawn = random.Random(settings.seed).sample(rows, min(len(rows), wanted or len(rows)))
            jsonl.write_rows(build.path / f"rows-{split}", drawn)
        splits = [split for split in (TRAIN, VAL) if (build.path / f"rows-{split}").stat().st_size]
        job = {
            "base": str(merged.path),
            "files": tuple((str(build.path / f"rows-{split}"), str(build.path / split)) for split in splits),
            "settings": settings.on_policy.model_dump(),
            "dtype": workers.dtype,
            "quantize": settings.quantize,
            "batch_size": workers.eval_batch,
            "num_threads": session.worker_resources(workers).threads,
            "seed": settings.seed,
        }
        counts = sample_on_ray(job, workers, run.log_file)
        if not counts["pairs"]:
            raise StageFailed(
                "the model gave no wrong answer: there is nothing to prefer",
                where=data.manifest.name,
                found=f"{counts['always_right']} rows answered rightly every time",
                next_step="raise training.dpo.<tier>.on_policy.temperature, or give rows that the model does not know",
            )
        return BuildResult({}, counts, [f"answers of {merged.manifest.name} to rows of {data.manifest.name}"])

    return run.make("sample-pairs", Request("dataset", name, fields, inputs), build)
