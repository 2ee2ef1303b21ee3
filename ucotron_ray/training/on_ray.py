"""Runs `sft.train` and `dpo.train` in Ray Train workers, and the reference of DPO as a task. Nothing else.

Every actor of Ray Train imports this file, six of them for one worker: it must stay light.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.train

from ucotron_ray import session
from ucotron_ray.artifacts import Build
from ucotron_ray.errors import LossNotFinite, StageFailed, Stopped, UcotronRayError
from ucotron_ray.place import Workers
from ucotron_ray.tracking import Spool
from ucotron_ray.training.job import STOP, DpoJob, SftJob, TrainingJob


def train_on_ray(
    job: TrainingJob, workers: Workers, spool: Spool, build: Build, log_file: str, *, answer_tokens: int
) -> dict[str, float]:
    """Train on the place's workers, restarting them after failures; return the final metrics.

    Ray keeps no checkpoints of its own here: the training function resumes from those in the artifact's directory,
    whether the worker, the driver or the whole cluster was lost. `answer_tokens` bounds an answer that is scored.
    """
    from ray.train.torch import TorchTrainer  # noqa: PLC0415 - torch, which not every actor that imports us needs

    resources = session.worker_resources(workers)
    # Ray's own bookkeeping of this attempt. Ray resumes from what it finds there: nothing of another may be left.
    scratch = build.path / "ray"
    shutil.rmtree(scratch, ignore_errors=True)
    stop = Path(job.directory) / STOP
    stop.unlink(missing_ok=True)
    trainer = TorchTrainer(
        _loop,
        train_loop_config={
            "stage": "dpo" if isinstance(job, DpoJob) else "sft",
            "job": asdict(job),
            "spool": str(spool.directory),
            "run": spool.run,
            "log_file": log_file,
            "score": {"max_new_tokens": answer_tokens, "batch_size": workers.eval_batch},
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
        with session.following(log_file), session.stopping(stop):
            result = session.aside(trainer.fit)
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        stop.unlink(missing_ok=True)
    metrics = result.return_value
    if not isinstance(metrics, dict):
        raise StageFailed("the workers ended without a result", where=str(build.path))
    if "error" in metrics:
        raise metrics["error"]
    return {str(key): float(value) for key, value in metrics.items()}


def _loop(config: dict[str, Any]) -> dict[str, Any]:
    """What every worker runs. Heavy imports happen here, in the worker."""
    session.set_up_worker(config["log_file"])
    context = ray.train.get_context()
    spool = Spool(Path(config["spool"]), config["run"])

    def report(metrics: Mapping[str, float]) -> None:
        if context.get_world_rank() == 0:
            step = int(metrics["step"])
            spool.metrics({key: value for key, value in metrics.items() if key != "step"}, step=step)

    try:
        metrics = _train(config["stage"], config["job"], config["score"], report)
    except UcotronRayError as error:
        # What we say ourselves is no failure of a worker: raised, Ray would start the same again. But returning is
        # right only where all workers return: of a full disk or a missing model one alone may know, and the others
        # would wait for it in a collective call, for half an hour.
        together = isinstance(error, (Stopped, LossNotFinite))
        if not together and context.get_world_size() > 1:
            raise
        return {"error": error}
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


def sample_on_ray(job: Mapping[str, Any], workers: Workers, log_file: str) -> dict[str, int]:
    """Write preference pairs of the model's own answers, in one task with the resources of a worker."""
    resources = session.worker_resources(workers)
    task = ray.remote(_sample).options(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=2)
    try:
        with session.following(log_file):
            counts: dict[str, int] = ray.get(task.remote(dict(job), log_file))
    except ray.exceptions.RayError as error:
        raise _cause(error) from error
    return counts


def _sample(job: dict[str, Any], log_file: str) -> dict[str, int]:
    from ucotron_ray.evaluation.scoring import f1_of  # noqa: PLC0415 - the rim knows both stages
    from ucotron_ray.training import on_policy  # noqa: PLC0415 - transformers, in the task only

    session.set_up_worker(log_file)
    return on_policy.write_pairs(on_policy.SampleJob(**job), f1_of)


def _write_reference(job: dict[str, Any], log_file: str) -> None:
    from ucotron_ray.training import dpo  # noqa: PLC0415 - transformers, in the task only

    session.set_up_worker(log_file)
    dpo.write_reference(TrainingJob(**job))


def _train(stage: str, job: dict[str, Any], score: dict[str, int], report: Any) -> dict[str, float]:
    # 8 s of imports that the driver does not pay for.
    from ucotron_ray.training.hooks import Hooks  # noqa: PLC0415

    hooks = Hooks(
        # A barrier that is answered once a poll (0.5 s): at evaluations only, never at a log.
        evaluated=lambda metrics: ray.train.report(dict(metrics)),
        score=_scorer(job, **score),
        preempted=lambda: ray.train.get_preemption_info() is not None,
    )
    if stage == "dpo":
        from ucotron_ray.training import dpo  # noqa: PLC0415

        return dpo.train(DpoJob(**job), report, hooks)
    from ucotron_ray.training import sft  # noqa: PLC0415

    return sft.train(SftJob(**job), report, hooks)


def _scorer(job: dict[str, Any], *, max_new_tokens: int, batch_size: int) -> Any:
    """Counts of the triples that a model answers on the first validation rows; None if none are wanted."""
    wanted = job["settings"]["eval_f1_rows"]
    if not wanted or not job["val_file"]:
        return None
    from ucotron_ray.evaluation.generate import triples_of  # noqa: PLC0415 - the rim knows both stages

    return triples_of(Path(job["val_file"]), wanted, max_new_tokens=max_new_tokens, batch_size=batch_size)


def _cause(error: Exception) -> UcotronRayError:
    next_step = "the checkpoints are kept; correct the cause and run the same command again"
    return session.cause_of(error, "training failed on the workers", next_step=next_step)
