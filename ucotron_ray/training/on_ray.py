"""Runs `sft.train` and `dpo.train` in Ray Train workers, and the reference of DPO as a task. Nothing else.

Every actor of Ray Train imports this file, six of them for one worker: it must stay light.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchTrainer

from ucotron_ray import session
from ucotron_ray.artifacts import Build
from ucotron_ray.config import Workers
from ucotron_ray.errors import StageFailed, UcotronRayError
from ucotron_ray.tracking import Spool
from ucotron_ray.training.job import DpoJob, SftJob, TrainingJob


def train_on_ray(job: TrainingJob, workers: Workers, spool: Spool, build: Build, log_file: str) -> dict[str, float]:
    """Train on the place's workers, restarting them after failures; return the final metrics.

    Ray keeps no checkpoints of its own here: the training function resumes from those in the artifact's directory,
    whether the worker, the driver or the whole cluster was lost.
    """
    resources = session.worker_resources(workers)
    # Ray's own bookkeeping of this attempt. Ray resumes from what it finds there: nothing of another may be left.
    scratch = build.path / "ray"
    shutil.rmtree(scratch, ignore_errors=True)
    trainer = TorchTrainer(
        _loop,
        train_loop_config={
            "stage": "dpo" if isinstance(job, DpoJob) else "sft",
            "job": asdict(job),
            "spool": str(spool.directory),
            "run": spool.run,
            "log_file": log_file,
        },
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
        with session.following(log_file):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    metrics = result.return_value
    if not isinstance(metrics, dict):
        raise StageFailed("the workers ended without a result", where=str(build.path))
    return {str(key): float(value) for key, value in metrics.items()}


def _loop(config: dict[str, Any]) -> dict[str, float]:
    """What every worker runs. Heavy imports happen here, in the worker."""
    session.set_up_worker(config["log_file"])
    context = ray.train.get_context()
    spool = Spool(Path(config["spool"]), config["run"])

    def report(metrics: Mapping[str, float]) -> None:
        if context.get_world_rank() == 0:
            step = int(metrics["step"])
            spool.metrics({key: value for key, value in metrics.items() if key != "step"}, step=step)

    metrics = _train(config["stage"], config["job"], report)
    # One report at the end: Ray counts a run without any as unfinished in its dashboard.
    ray.train.report({**metrics, "pid": os.getpid()})
    return metrics


def reference_on_ray(job: TrainingJob, workers: Workers, log_file: str) -> None:
    """Write the reference of DPO into the job's directory, in one task with the resources of a worker."""
    resources = session.worker_resources(workers)
    task = ray.remote(_write_reference).options(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=2)
    try:
        with session.following(log_file):
            ray.get(task.remote(asdict(job), log_file))
    except ray.exceptions.RayError as error:
        raise _cause(error) from error


def _write_reference(job: dict[str, Any], log_file: str) -> None:
    from ucotron_ray.training import dpo  # noqa: PLC0415 - transformers, in the task only

    session.set_up_worker(log_file)
    dpo.write_reference(TrainingJob(**job))


def _train(stage: str, job: dict[str, Any], report: Any) -> dict[str, float]:
    # 8 s of imports that the driver does not pay for.
    if stage == "dpo":
        from ucotron_ray.training import dpo  # noqa: PLC0415

        return dpo.train(DpoJob(**job), report)
    from ucotron_ray.training import sft  # noqa: PLC0415

    return sft.train(SftJob(**job), report)


def _cause(error: Exception) -> UcotronRayError:
    """Our own error inside Ray's wrapping, if there is one; else what the worker said."""
    failures = getattr(error, "worker_failures", None) or {0: error}
    for failure in failures.values():
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, UcotronRayError):
                return cause
            cause = getattr(cause, "cause", None) or cause.__cause__
    logging.getLogger(__name__).debug("training failed", exc_info=error)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return StageFailed(
        "training failed on the workers",
        found=lines[-1] if lines else type(error).__name__,
        next_step="the checkpoints are kept; correct the cause and run the same command again",
    )
