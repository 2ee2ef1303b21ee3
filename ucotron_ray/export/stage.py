"""Bundles: what a server needs to answer as the tuned model does."""

import json
from collections import Counter
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request, State
from ucotron_ray.core.errors import GateFailed
from ucotron_ray.core.rows_use import RowsUse
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl, schema_file, uses
from ucotron_ray.data.stage import SCHEMA, TRAIN, data_of, rows_file
from ucotron_ray.models import base as base_models
from ucotron_ray.models import inspection
from ucotron_ray.models import shape as shapes
from ucotron_ray.models.stage import base_fields, loadable_base, merge_request, prompt_identity

if TYPE_CHECKING:
    from ucotron_ray.export.job import ExportJob
    from ucotron_ray.export.plan import Plan


def bundle_request(run: Run, base: base_models.BaseModel, adapter: Artifact | None, data: Artifact | None) -> Request:
    """What exporting would make; gates and decoding are judged on `data`, so that it is part of what a bundle is."""
    made_of = {"adapter": adapter, "data": data}
    inputs = tuple(artifact.as_input(role) for role, artifact in made_of.items() if artifact)
    fields = {"export": run.config.recipe.export.model_dump(), "base": base_fields(base), "prompt": prompt_identity()}
    return Request("bundle", run.name, fields, inputs)


def check_formats(run: Run, base: base_models.BaseModel) -> None:
    """Refuse a base on this machine that no graph, or no GGUF file, can be made of: after hours it is too late."""
    inspection.check(base)
    directory = base_models.settings_of(base)
    if directory is None:
        return
    from ucotron_ray.export import families

    families.check(directory)
    if run.config.recipe.export.gguf:
        from ucotron_ray.export import gguf

        check = gguf.check if (directory / "tokenizer.json").is_file() else gguf.check_architecture
        check(directory)


def plan(run: Run, base: base_models.Located) -> "Plan | None":
    """What the export takes; None for a family whose sizes are not known."""
    from ucotron_ray.export import plan as plans

    shape = shapes.shape_of(base)
    return plans.plan(shape, run.config.recipe.export) if shape else None


def export(run: Run, base: base_models.BaseModel, adapter: Artifact | None, data: Artifact | None) -> Artifact:
    """Merge → `model/<name>`, export and compare → `bundle/<name>`. Raises GateFailed if it misses a threshold."""
    model_request = merge_request(run, base, adapter)
    spool = run.spool.child("export")
    reported: list[str] = []

    def build_bundle(bundle: Build) -> BuildResult:
        needed = plan(run, base)
        job = _job(run, base, adapter)
        run.connect()
        _check_memory(run, needed)
        from ucotron_ray.export.on_ray import export_on_ray

        if adapter:
            spool.model(adapter, "input")
        with run.store.building(model_request, replace=run.replace) as model:
            job = replace(
                job,
                model_directory=str(model.path),
                merge=not model.reused,
                bundle_directory=str(bundle.path),
                rows_file=str(rows_file(data)) if data else None,
                calibration_file=_training_rows(run, adapter),
                predicates=predicates(run, adapter),
                facts=_facts(base, adapter),
                spool=str(spool.directory),
                run=spool.run,
                destination=asdict(run.destination) if run.destination else None,
            )
            figures = export_on_ray(job, run.config.place.workers, memory=needed.memory if needed else None)
            if not model.reused:
                model.publish(BuildResult({}, {}, [f"base {base.reference}, float32"]))
        from ucotron_ray.export.bundle import REPORTED

        reported.extend(REPORTED)
        report = json.loads((bundle.path / "parity.json").read_text(encoding="utf-8"))
        notes = [f"not published: {reason}" for reasons in report["withheld"].values() for reason in reasons]
        state: State = "failed" if report["missed"] else "ok"
        return BuildResult(figures, {}, [*report["missed"], *notes], state=state, rows=_rows_used(run, adapter, data))

    bundle = run.make("export", bundle_request(run, base, adapter, data), build_bundle)
    for file in reported:
        # Only now: until it is published its files lie under a name that goes away, maybe before they are sent.
        spool.file(bundle.path / file)
    if bundle.manifest.state != "ok":
        raise GateFailed(
            "the bundle misses a gate",
            where=str(bundle.path),
            found="; ".join(bundle.manifest.notes),
            next_step="it is kept for inspection, marked failed, and cannot be promoted; see parity.json in it",
        )
    return bundle


def _rows_used(run: Run, adapter: Artifact | None, data: Artifact | None) -> list[RowsUse]:
    """By which rows decoding and variants were chosen, and which four bits were rounded for."""
    learned = data_of(run, adapter)
    made = [uses.used("choice", "decoding and gates", data, rows_file(data).name)] if data else []
    if learned is not None and _training_rows(run, adapter):
        made.append(uses.used("training", "four bits", learned, TRAIN))
    return made


def predicates(run: Run, adapter: Artifact | None) -> tuple[str, ...]:
    """What the decoding `vocabulary` allows: the recipe's list, else those of the training rows by their number.

    Of rows in a schema it is all predicates of the schema, and no others; those that no row has come last.
    """
    wanted = run.config.recipe.export.predicates
    if wanted is not None:
        return tuple(wanted)
    dataset = data_of(run, adapter)
    if dataset is None or not (dataset.path / TRAIN).is_file():
        return ()
    rows = jsonl.relations_among(dataset.path / TRAIN)
    counts = Counter(relation.predicate for row in rows for relation in row.expected_relations)
    if (dataset.path / SCHEMA).is_file():
        counts = Counter({name: counts[name] for name in schema_file.read(dataset.path / SCHEMA).vocabulary})
    return tuple(sorted(counts, key=lambda name: (-counts[name], name)))


def _training_rows(run: Run, adapter: Artifact | None) -> str | None:
    """The rows that the adapter learned from, which four bits are rounded for; None where the store has them not."""
    dataset = data_of(run, adapter)
    file = dataset.path / TRAIN if dataset is not None else None
    return str(file) if file is not None and file.is_file() else None


def _job(run: Run, base: base_models.BaseModel, adapter: Artifact | None) -> "ExportJob":
    """A merge, to be made into more."""
    from ucotron_ray.export.job import ExportJob

    return ExportJob(
        name=run.name,
        base=loadable_base(run, base),
        base_label=base.reference,
        adapter=str(adapter.path / "adapter") if adapter else None,
        model_directory="",
        merge=True,
        bundle_directory="",
        rows_file=None,
        calibration_file=None,
        predicates=(),
        settings=run.config.recipe.export.model_dump(),
        facts={},
        spool=str(run.spool.directory),
        run="",
        destination=None,
        log_file=run.log_file,
    )


def _check_memory(run: Run, needed: "Plan | None") -> None:
    from ucotron_ray.core import session
    from ucotron_ray.export import plan as plans

    workers = run.config.place.workers
    asked = workers.memory_gb * plans.GB if workers.memory_gb is not None else None
    plans.check_memory(needed, asked if asked is not None else session.task_memory(workers))


def _facts(base: base_models.BaseModel, adapter: Artifact | None) -> dict[str, str]:
    facts = {"base": base.reference, "base identity": base.identity, "prompt": prompt_identity()}
    if adapter:
        manifest = adapter.manifest
        facts |= {"adapter content": manifest.content, "training rows": str(manifest.counts.get("rows", "?"))}
        facts |= {f"data ({entry.role})": f"{entry.name}, {entry.content[:16]}" for entry in manifest.inputs}
    return facts
