"""Runs the projection's stages on Ray: encoders as actors of Ray Data, training in its workers, the rest as tasks."""

import json
import logging
import math
import resource
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.train
import ray.train.torch
from ray.data import ActorPoolStrategy, DataContext
from ray.train.torch import TorchTrainer

from ucotron_ray.core import run_log, session, signals
from ucotron_ray.core.artifacts import Build
from ucotron_ray.core.errors import StageFailed, UcotronRayError
from ucotron_ray.core.files import write_json
from ucotron_ray.core.place import Place, Workers
from ucotron_ray.core.spool import Spool
from ucotron_ray.projection.job import EncodeJob, EvaluateJob, ExportJob, FitJob, Shard

log = logging.getLogger(__name__)

RECORDS = "records"
"""What each shard took; gone once the artifact is complete, since it is not the same twice."""


class Encoder:
    """One encoding process: a shard at a time, written whole."""

    def __init__(self, job: EncodeJob) -> None:
        run_log.set_up_worker(job.log_file)
        self._job = job
        # An error here would be raised as the death of an actor, and Ray would try again without end.
        self._broken: UcotronRayError | None = None
        try:
            self._encoders, self._dtype = _load_encoders(job)
        except UcotronRayError as error:
            self._broken = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._broken:
            raise self._broken
        for number, offset, rows in zip(batch["number"], batch["offset"], batch["rows"], strict=True):
            self._encode(Shard(int(number), int(offset), int(rows)))
        return {"number": batch["number"], "rows": batch["rows"]}

    def _encode(self, shard: Shard) -> None:
        from ucotron_ray.projection import descriptions, pairs  # noqa: PLC0415 - pyarrow, in the actor only

        began = time.monotonic()
        rows = descriptions.read_shard(Path(self._job.descriptions), shard)
        clip, minilm, num_cut = self._encoders.encode([row.description for row in rows], [row.image for row in rows])
        directory = Path(self._job.directory)
        record = {
            "rows": len(rows),
            "seconds": time.monotonic() - began,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "bfloat16": self._dtype == "bfloat16",
        }
        write_json(directory / RECORDS / f"{shard.number:05d}.json", record)
        pairs.write_shard(pairs.shard_path(directory, shard.number), rows, clip, minilm, num_cut=num_cut)


def encode_on_ray(job: EncodeJob, shards: Sequence[Shard], workers: Workers) -> dict[str, float]:
    """Encode the shards that are not there yet; return what was measured, over all attempts."""
    directory = Path(job.directory)
    (directory / RECORDS).mkdir(exist_ok=True)
    left = [shard for shard in shards if not (directory / f"shard-{shard.number:05d}.parquet").exists()]
    log.info("projection: %d of %d shards to encode", len(left), len(shards))
    if left:
        with run_log.following(job.log_file):
            _guarded(lambda: _encode_shards(job, left, workers))
    records = [json.loads(path.read_text(encoding="utf-8")) for path in (directory / RECORDS).glob("*.json")]
    shutil.rmtree(directory / RECORDS)
    for scrap in directory.glob(".shard-*"):
        scrap.unlink()
    if not records:
        return {}
    busy = sum(record["seconds"] for record in records)
    return {
        "rows_per_second_of_one_encoder": sum(record["rows"] for record in records) / max(busy, 1e-9),
        "seconds_encoding": busy,
        "encoder_peak_mb": max(record["peak_mb"] for record in records),
        "bfloat16_share": sum(record["bfloat16"] for record in records) / len(records),
    }


def fit_on_ray(job: FitJob, place: Place, spool: Spool, build: Build, log_file: str) -> dict[str, float]:
    """Train on the place's workers, restarting them after failures; return the figures.

    Ray keeps no checkpoints of its own here: `fit` resumes from the one in the artifact's directory, whether the
    worker, the driver or the whole cluster was lost.
    """
    config = {"job": asdict(job), "spool": str(spool.directory), "run": spool.run, "log_file": log_file}
    if session.needs_group(place):
        with run_log.following(log_file):
            figures = _guarded(lambda: _fit_in_group(config, place.workers, build))
    else:
        figures = _task(_fit_alone, config, place.workers, log_file, needs_gpu=True)
    if not isinstance(figures, dict):
        raise StageFailed("the workers ended without a result", where=str(build.path))
    return {str(key): float(value) for key, value in figures.items()}


def _fit_in_group(config: dict[str, Any], workers: Workers, build: Build) -> Any:
    """What the first worker of a group of Ray Train returns."""
    resources = session.worker_resources(workers)
    # Ray resumes from what it finds there: nothing of another attempt may be left.
    scratch = build.path / "ray"
    shutil.rmtree(scratch, ignore_errors=True)
    trainer = TorchTrainer(
        _fit_member,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=resources.gpus > 0,
            resources_per_worker=resources.as_ray(),
        ),
        run_config=ray.train.RunConfig(
            name=build.request.name,
            storage_path=str(scratch),
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
        ),
    )
    try:
        return signals.aside(trainer.fit).return_value
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def evaluate_on_ray(job: EvaluateJob, workers: Workers, log_file: str) -> dict[str, Any]:
    """The scores of `retrieval.evaluate`, in one task."""
    scores: dict[str, Any] = _task(_evaluate, asdict(job), workers, log_file)
    return scores


def export_on_ray(job: ExportJob, workers: Workers, log_file: str) -> dict[str, float]:
    """Write the bundle's files, in one task; return the parity figures."""
    figures: dict[str, float] = _task(_export, asdict(job), workers, log_file)
    return figures


def _load_encoders(job: EncodeJob) -> tuple[Any, str]:
    import torch  # noqa: PLC0415 - torch and transformers, in the actor only

    from ucotron_ray.models import precision  # noqa: PLC0415
    from ucotron_ray.projection import encoders  # noqa: PLC0415

    if job.num_threads:
        torch.set_num_threads(job.num_threads)
    dtype = precision.compute_dtype(job.dtype)
    return encoders.load(job, dtype), dtype


def _encode_shards(job: EncodeJob, shards: Sequence[Shard], workers: Workers) -> None:
    resources = session.worker_resources(workers)
    # What an encoder raises is said by us, in its own words: Ray Data would print it with two tracebacks.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = DataContext.get_current()
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = False
    context.enable_progress_bars = False
    # A shard of a large encoder on a slow machine is no hang.
    context.execution_no_progress_timeout_s = -1
    done = ray.data.from_items([asdict(shard) for shard in shards], override_num_blocks=len(shards)).map_batches(
        Encoder,
        fn_constructor_args=(job,),
        batch_size=1,
        num_cpus=resources.cpus,
        num_gpus=resources.gpus or None,
        compute=ActorPoolStrategy(size=min(workers.num_workers, len(shards)), max_tasks_in_flight_per_actor=2),
    )
    began, rows, every = time.monotonic(), 0, max(1, math.ceil(len(shards) / 20))
    total = sum(shard.rows for shard in shards)
    for number, batch in enumerate(done.iter_batches(batch_size=None, prefetch_batches=0), 1):
        rows += int(sum(batch["rows"]))
        if number % every == 0 or rows == total:
            rate = rows / (time.monotonic() - began)
            log.info("projection: %d/%d pairs  %.0f/s  %.0f s left", rows, total, rate, (total - rows) / rate)


def _fit_member(config: dict[str, Any]) -> dict[str, float]:
    """What every worker of a group runs."""
    rank = ray.train.get_context().get_world_rank()
    figures = _fit(config, rank=rank, device=str(ray.train.torch.get_device()))
    # One report at the end: Ray counts a run without any as unfinished in its dashboard.
    ray.train.report(figures)
    return figures


def _fit_alone(config: dict[str, Any]) -> dict[str, float]:
    """What the only worker runs."""
    return _fit(config, rank=0, device="cuda:0" if ray.get_gpu_ids() else "cpu")


def _fit(config: dict[str, Any], *, rank: int, device: str) -> dict[str, float]:
    from ucotron_ray.projection.fit import fit  # noqa: PLC0415

    run_log.set_up_worker(config["log_file"])
    spool = Spool(Path(config["spool"]), config["run"])

    def report(metrics: Mapping[str, float]) -> None:
        if rank == 0:
            spool.metrics({key: value for key, value in metrics.items() if key != "step"}, step=int(metrics["step"]))

    return fit(FitJob(**config["job"]), report, device=device)


def _evaluate(fields: dict[str, Any]) -> dict[str, Any]:
    import torch  # noqa: PLC0415

    from ucotron_ray.projection import model, pairs, retrieval  # noqa: PLC0415

    job = EvaluateJob(**fields)
    if job.num_threads:
        torch.set_num_threads(job.num_threads)
    layer, config = model.load(Path(job.checkpoint))

    def project(rows: pairs.Floats) -> pairs.Floats:
        with torch.inference_mode():
            projected: pairs.Floats = layer(torch.from_numpy(rows)).numpy()
        return projected

    divided = config.split or {key: job.settings[f"{key}_split"] for key in ("val", "test")} | {
        "seed": job.settings["seed"]
    }
    return retrieval.evaluate(pairs.load(Path(job.pairs)), project, divided, job.settings["target"])


def _export(fields: dict[str, Any]) -> dict[str, float]:
    from ucotron_ray.projection import model, onnx  # noqa: PLC0415

    job = ExportJob(**fields)
    layer, config = model.load(Path(job.checkpoint))
    graph = onnx.export(layer, Path(job.directory), opset=job.opset)
    figures = onnx.compare(layer, graph)
    onnx.write_contracts(Path(job.directory), job.name, config, figures, job.facts)
    return {**figures, "onnx_bytes": float(graph.stat().st_size)}


def _task(
    function: Callable[[dict[str, Any]], Any],
    fields: dict[str, Any],
    workers: Workers,
    log_file: str,
    *,
    needs_gpu: bool = False,
) -> Any:
    """Run it in a process of its own with a worker's resources, which ends with it."""
    resources = session.worker_resources(workers)
    if not needs_gpu:
        resources = replace(resources, gpus=0.0)
    with run_log.following(log_file):
        return _guarded(
            lambda: session.in_worker(function, fields, resources, max_failures=workers.max_failures),
            lost_is_stop=False,
        )


def _guarded(work: Callable[[], Any], *, lost_is_stop: bool = True) -> Any:
    try:
        return work()
    except (ray.exceptions.RayError, ray.train.TrainingFailedError) as error:
        next_step = "what is done is kept; correct the cause and run the same command again"
        raise session.cause_of(
            error, "the projection failed on the workers", next_step=next_step, lost_is_stop=lost_is_stop
        ) from error
