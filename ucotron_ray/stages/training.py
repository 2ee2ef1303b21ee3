"""Fine-tuning stages."""

import json
import shutil
from pathlib import Path

from ucotron_ray import artifacts
from ucotron_ray.artifacts import Artifact, Build, Request, Result
from ucotron_ray.models import base as base_models
from ucotron_ray.run import Run
from ucotron_ray.stages.datasets import TRAIN, VAL
from ucotron_ray.stages.models import loadable_base, prompt_identity


def sft_request(run: Run, dataset: Artifact, base: base_models.BaseModel) -> Request:
    """What supervised fine-tuning would make."""
    fields = {
        "sft": run.config.recipe.sft.model_dump(),
        "base": {"reference": base.reference, "identity": base.identity},
        "prompt": prompt_identity(),
    }
    return Request("adapter", run.name, fields, (dataset.as_input("data"),))


def sft(run: Run, dataset: Artifact, base: base_models.BaseModel) -> Artifact:
    """Supervised fine-tuning → `adapter/<name>`."""
    workers = run.config.place.workers

    def build(build: Build) -> Result:
        loadable = loadable_base(run, base)
        run.connect()
        from ucotron_ray import session
        from ucotron_ray.training.job import SftJob
        from ucotron_ray.training.on_ray import train_on_ray

        val = dataset.path / VAL
        job = SftJob(
            base=loadable,
            train_file=str(dataset.path / TRAIN),
            val_file=str(val) if val.stat().st_size else None,
            directory=str(build.path),
            settings=run.config.recipe.sft.model_dump(),
            dtype=workers.dtype,
            per_device_batch=workers.per_device_batch,
            tokens_per_step=workers.tokens_per_step,
            num_threads=session.worker_resources(workers).threads,
        )
        spool = run.spool.child("sft")
        spool.dataset(dataset, "training")
        metrics = train_on_ray(job, workers, spool, build, run.log_file)
        record = json.loads((build.path / "training.json").read_text(encoding="utf-8"))
        shutil.rmtree(build.path / "checkpoints", ignore_errors=True)
        _name_base(build.path / "adapter" / "adapter_config.json", base.reference)
        spool.file(build.path / "training.json")
        return Result(metrics, record["counts"], [f"base {base.reference}"])

    return run.make("sft", sft_request(run, dataset, base), build)


def _name_base(path: Path, reference: str) -> None:
    """An adapter names its base by reference, not by a path of the machine that it was trained on."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    artifacts.write_json(path, {**settings, "base_model_name_or_path": reference})
