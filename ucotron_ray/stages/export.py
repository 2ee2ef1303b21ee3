"""Merged models and bundles."""

import json
from dataclasses import asdict, replace

from ucotron_ray.artifacts import Artifact, Build, Input, Request, Result
from ucotron_ray.errors import GateFailed
from ucotron_ray.models import base as base_models
from ucotron_ray.run import Run
from ucotron_ray.stages.datasets import rows_file
from ucotron_ray.stages.models import loadable_base, prompt_identity


def merge(run: Run, base: base_models.BaseModel, adapter: Artifact, *, name: str | None = None) -> Artifact:
    """The adapter added to its base → `model/<name>` (the run's, if none is given), as transformers loads it."""

    def build(build: Build) -> Result:
        loadable = loadable_base(run, base)
        run.connect()
        from ucotron_ray.export.on_ray import ExportJob, export_on_ray

        job = ExportJob(
            name=run.name,
            base=loadable,
            base_label=base.reference,
            adapter=str(adapter.path / "adapter"),
            model_directory=str(build.path),
            merge=True,
            bundle_directory=None,
            rows_file=None,
            settings=run.config.recipe.export.model_dump(),
            facts={},
            spool=str(run.spool.directory),
            run=run.spool.child("merge").run,
            destination=None,
            log_file=run.log_file,
        )
        export_on_ray(job, run.config.place.workers)
        return Result({}, {}, [f"base {base.reference}, float32"])

    return run.make("merge", replace(export_requests(run, base, adapter)[0], name=name or run.name), build)


def export_requests(run: Run, base: base_models.BaseModel, adapter: Artifact | None) -> tuple[Request, Request]:
    """What merging and exporting would make."""
    fields = {"base": {"reference": base.reference, "identity": base.identity}, "prompt": prompt_identity()}
    inputs: tuple[Input, ...] = (adapter.as_input("adapter"),) if adapter else ()
    merged = Request("model", run.name, {"merge": "float32", **fields}, inputs)
    return merged, Request("bundle", run.name, {"export": run.config.recipe.export.model_dump(), **fields}, inputs)


def export(run: Run, base: base_models.BaseModel, adapter: Artifact | None, data: Artifact | None) -> Artifact:
    """Merge → `model/<name>`, export and compare → `bundle/<name>`. Raises GateFailed if parity misses a threshold."""
    model_request, bundle_request = export_requests(run, base, adapter)
    spool = run.spool.child("export")

    def build_bundle(bundle: Build) -> Result:
        loadable = loadable_base(run, base)
        run.connect()
        from ucotron_ray.export.on_ray import ExportJob, export_on_ray

        if adapter:
            spool.model(adapter, "input")
        with run.store.building(model_request, replace=run.replace) as model:
            job = ExportJob(
                name=run.name,
                base=loadable,
                base_label=base.reference,
                adapter=str(adapter.path / "adapter") if adapter else None,
                model_directory=str(model.path),
                merge=not model.reused,
                bundle_directory=str(bundle.path),
                rows_file=str(rows_file(data)) if data else None,
                settings=run.config.recipe.export.model_dump(),
                facts=_facts(base, adapter),
                spool=str(spool.directory),
                run=spool.run,
                destination=asdict(run.destination) if run.destination else None,
                log_file=run.log_file,
            )
            figures = export_on_ray(job, run.config.place.workers)
            if not model.reused:
                model.publish(Result({}, {}, [f"base {base.reference}, float32"]))
        missed = json.loads((bundle.path / "parity.json").read_text(encoding="utf-8"))["missed"]
        return Result(figures, {}, missed, state="failed" if missed else "ok")

    bundle = run.make("export", bundle_request, build_bundle)
    if bundle.manifest.state != "ok":
        raise GateFailed(
            "the exported model does not compute what PyTorch computes",
            where=str(bundle.path),
            found="; ".join(bundle.manifest.notes),
            next_step="the bundle is kept for inspection, marked failed; see parity.json in it",
        )
    return bundle


def _facts(base: base_models.BaseModel, adapter: Artifact | None) -> dict[str, str]:
    facts = {"base": base.reference, "base identity": base.identity, "prompt": prompt_identity()}
    if adapter:
        manifest = adapter.manifest
        facts |= {"adapter content": manifest.content, "training rows": str(manifest.counts.get("rows", "?"))}
        facts |= {f"data ({entry.role})": f"{entry.name}, {entry.content[:16]}" for entry in manifest.inputs}
    return facts
