"""Fine-tuning stages."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request
from ucotron_ray.core.files import write_json, write_text
from ucotron_ray.core.rows_use import RowsUse
from ucotron_ray.core.run import Run
from ucotron_ray.core.spool import Spool
from ucotron_ray.data import stage as datasets
from ucotron_ray.data import uses
from ucotron_ray.data.stage import TRAIN, VAL
from ucotron_ray.models import base as base_models
from ucotron_ray.models import stage as models
from ucotron_ray.models.stage import prompt_identity
from ucotron_ray.training import preferences, preparation
from ucotron_ray.training.job import BEST_STEPS, CHECKPOINTS, LAST_STEP
from ucotron_ray.training.preparation import Preparation

if TYPE_CHECKING:
    from ucotron_ray.training.job import TrainingJob


def sft_request(run: Run, dataset: Artifact, base: base_models.BaseModel) -> Request:
    """What supervised fine-tuning would make."""
    fields = {
        "sft": run.config.recipe.sft.identity(),
        "base": models.base_fields(base),
        "prompt": prompt_identity(),
    }
    return Request("adapter", run.name, fields, (dataset.as_input("data"),))


def job_fields(run: Run, base: str, data: Artifact, directory: Path, prepared: Preparation) -> dict[str, Any]:
    """What every training job is told."""
    from ucotron_ray.core import session

    workers, val = run.config.place.workers, data.path / VAL
    recompute = bool(prepared.plan and prepared.plan.gradient_checkpointing)
    return {
        "base": base,
        "train_file": str(data.path / TRAIN),
        "val_file": str(val) if val.is_file() and val.stat().st_size else None,
        "directory": str(directory),
        "tokens": str(prepared.tokens.path),
        "workers": workers.model_copy(update={"gradient_checkpointing": recompute}).model_dump(),
        "num_threads": session.worker_resources(workers).threads,
    }


def sft(run: Run, dataset: Artifact, base: base_models.BaseModel) -> Artifact:
    """Supervised fine-tuning → `adapter/<name>`."""
    request = sft_request(run, dataset, base)
    run.store.refuse_other_recipe(request, replace=run.replace)
    # A run that reuses what is there prepares nothing; a mistake is found before the artifact is begun.
    prepared = None if run.store.plan(request) == "reuse" else preparation.prepare(run, "sft", dataset, base)

    def build(build: Build) -> BuildResult:
        assert prepared is not None
        from ucotron_ray.training.job import SftJob

        fields = job_fields(run, prepared.loadable, dataset, build.path, prepared)
        spool = run.spool.child("sft")
        spool.dataset(dataset, "training")
        job = SftJob(**fields, settings=run.config.recipe.sft.model_dump())
        made = _trained(run, job, prepared, spool, build, f"base {base.reference}", base=base)
        return replace(made, rows=_rows_used(run, dataset, build.path))

    return run.make("sft", request, build)


def _trained(
    run: Run,
    job: "TrainingJob",
    prepared: Preparation,
    spool: Spool,
    build: Build,
    note: str,
    *,
    base: base_models.BaseModel,
) -> BuildResult:
    """Train on Ray; keep adapter, record, report and plan. `base` is what the adapter calls its base."""
    from ucotron_ray.training import report
    from ucotron_ray.training.on_ray import train_on_ray

    if prepared.plan is not None:
        write_json(build.path / "plan.json", prepared.plan.as_dict())
    tokens = run.config.recipe.evaluation.max_new_tokens
    metrics = train_on_ray(job, run.config.place, spool, build, run.log_file, answer_tokens=tokens)
    record = json.loads((build.path / "training.json").read_text(encoding="utf-8"))
    # By name: workers know the base as a path of the machine that they ran on.
    record["base"] = note
    write_json(build.path / "training.json", record)
    write_text(build.path / "report.html", report.page(record))
    # In this order: with checkpoints and without the best adapter a killed run would go on, and keep the last one.
    for directory in (CHECKPOINTS, BEST_STEPS):
        shutil.rmtree(build.path / directory, ignore_errors=True)
    name_base(build.path / "adapter" / "adapter_config.json", base.reference, base.revision)
    for file in ("training.json", "report.html"):
        spool.file(build.path / file)
    return BuildResult(metrics, record["counts"], [note])


def _rows_used(run: Run, data: Artifact, directory: Path) -> list[RowsUse]:
    """What was trained on, and by which rows the step and the settings were chosen."""
    record = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    chose_step = len(record["adapter"]["scores"]) > 1 and record["adapter"]["because"] != LAST_STEP
    made = [uses.used("training", "weights", data, TRAIN)]
    if chose_step or record["settings"]["patience"]:
        made += uses.validation("the step", data)
    tuned = run.config.recipe.tuned
    return made + uses.of_sweep(run.store, tuned.sweep if tuned else None)


def dpo_request(run: Run, name: str, pairs: Artifact, merged: Artifact) -> Request:
    """What preference training would make. `merged` is the model that it starts from, and its reference."""
    fields = {"dpo": run.config.recipe.dpo.identity(), "prompt": prompt_identity()}
    base = models.merged_base(merged)
    fields["base"] = models.base_fields(base)
    return Request("adapter", name, fields, (pairs.as_input("data"), merged.as_input("base")))


def dpo(run: Run, name: str, pairs: Artifact, base: base_models.BaseModel, adapter: Artifact) -> Artifact:
    """Preference training of a fresh adapter on an adapter merged into its base → `adapter/<name>`."""
    settings = run.config.recipe.dpo.model_dump()
    prepared: Preparation | None = None
    there = run.store.find("model", f"{adapter.manifest.name}-merged")
    if there is not None:
        run.store.refuse_other_recipe(dpo_request(run, name, pairs, there), replace=run.replace)
    if there is None or run.store.plan(dpo_request(run, name, pairs, there)) != "reuse":
        # The merged model has the base's tokenizer and shape: mistakes are found before it is made.
        prepared = preparation.prepare(run, "dpo", pairs, base)
    merged = models.merge(run, base, adapter, name=f"{adapter.manifest.name}-merged")
    if prepared is None and run.store.plan(dpo_request(run, name, pairs, merged)) != "reuse":
        # What was there had been merged from another adapter.
        prepared = preparation.prepare(run, "dpo", pairs, base)

    def build(build: Build) -> BuildResult:
        assert prepared is not None
        from ucotron_ray.training.job import DpoJob

        kept = reference_of(run, pairs, merged, prepared)
        fields = job_fields(run, str(merged.path), pairs, build.path, prepared)
        spool = run.spool.child("dpo")
        spool.dataset(pairs, "training")
        spool.model(merged, "input")
        job = DpoJob(**fields, settings=settings, reference=str(kept.path))
        note = f"base {merged.manifest.name}, merged"
        made = _trained(run, job, prepared, spool, build, note, base=models.merged_base(merged))
        return replace(made, rows=_rows_used(run, pairs, build.path))

    return run.make("dpo", dpo_request(run, name, pairs, merged), build)


def reference_of(run: Run, pairs: Artifact, merged: Artifact, prepared: Preparation) -> Artifact:
    """The base's log-probabilities of the pairs, made once for every run on the same model, pairs and context."""
    settings = run.config.recipe.dpo
    names = {"max_context_length", "max_rows", "eval_rows", "max_longer_share", "seed", "quantize"}
    fields = settings.model_dump(include=names)
    fields |= {"reference": "answer log-probabilities", "prompt": prompt_identity()}
    # Of the place, but log-probabilities in bfloat16 are other ones.
    fields |= {"dtype": run.config.place.workers.dtype}
    inputs = (pairs.as_input("data"), merged.as_input("base"))
    name = f"reference-{Request('cache', 'reference', fields, inputs).recipe[:12]}"

    def build(build: Build) -> BuildResult:
        from ucotron_ray.training.job import TrainingJob
        from ucotron_ray.training.on_ray import reference_on_ray

        fields_of_job = job_fields(run, str(merged.path), pairs, build.path, prepared)
        job = TrainingJob(**fields_of_job, settings=settings.model_dump())
        reference_on_ray(job, run.config.place.workers, run.log_file)
        return BuildResult({}, {}, [f"{merged.manifest.name} on {pairs.manifest.name}"])

    return run.make("reference", Request("cache", name, fields, inputs), build)


def name_base(path: Path, reference: str, revision: str | None = None) -> None:
    """An adapter names its base by reference and commit, not by a path of the machine that it was trained on."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**settings, "base_model_name_or_path": reference, "revision": revision})


def aligned_before(run: Run, name: str, adapter: Artifact) -> Artifact | None:
    """What DPO made of this very adapter under a name, if the store has it."""
    found = run.store.find("adapter", name)
    start = datasets.started_from(run, found) if found is not None else None
    if found is None or start is None or start.manifest.content != adapter.manifest.content:
        return None
    return run.store.get("adapter", name, accept_rejected=run.accept_rejected)


def align(run: Run, name: str, data: Artifact, base: base_models.BaseModel, adapter: Artifact) -> Artifact:
    """DPO on pairs, or on pairs of relation rows and the adapter's own wrong answers to them → `adapter/<name>`."""
    return dpo(run, name, preferences.pairs_of(run, data, base, adapter), base, adapter)


def align_request(run: Run, name: str, data: Artifact, adapter: Artifact) -> Request | None:
    """What aligning would make; None until its pairs and the merged model that it starts from are there."""
    merged = run.store.find("model", f"{adapter.manifest.name}-merged")
    return dpo_request(run, name, data, merged) if merged is not None and preferences.is_pairs(data) else None
