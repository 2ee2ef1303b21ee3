"""Runs `sft.train` and `dpo.train` in Ray's workers, and what surrounds them as tasks. Nothing else.

Every actor of Ray Train imports this file, five of them beside one worker: it must stay light.
"""

import logging
import os
import shutil
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray

from ucotron_ray.core import failures, run_log, session, signals
from ucotron_ray.core.artifacts import Build
from ucotron_ray.core.errors import LossNotFinite, StageFailed, Stopped, UcotronRayError
from ucotron_ray.core.place import Place, Workers
from ucotron_ray.core.spool import Spool
from ucotron_ray.training import peak
from ucotron_ray.training.hooks import NO_HOOKS, Hooks, Report, Score
from ucotron_ray.training.job import STOP, DpoJob, SftJob, TrainingJob

log = logging.getLogger(__name__)

FAILED = "training failed on the workers"
NEXT_STEP = "the checkpoints are kept; correct the cause and run the same command again"

SCRATCH, REFUSAL = "ray", "refusal.json"
"""Ray's own bookkeeping in the directory of a training; and there what a worker met that no other attempt goes without.
"""


def train_on_ray(
    job: TrainingJob, place: Place, spool: Spool, build: Build, log_file: str, *, answer_tokens: int
) -> dict[str, float]:
    """Train on the place's workers, restarting them after failures; return the final metrics.

    Ray keeps no checkpoints of its own here: the training function resumes from those in the artifact's directory,
    whether the worker, the driver or the whole cluster was lost. `answer_tokens` bounds an answer that is scored.
    """
    workers = place.workers
    config = {
        "stage": "dpo" if isinstance(job, DpoJob) else "sft",
        "job": asdict(job),
        "spool": str(spool.directory),
        "run": spool.run,
        "log_file": log_file,
        "score": {"max_new_tokens": answer_tokens, "batch_size": workers.eval_batch},
    }
    stop = Path(job.directory) / STOP
    stop.unlink(missing_ok=True)
    try:
        with run_log.following(log_file), signals.stopping(stop):
            if session.needs_group(place):
                metrics = _in_group(config, workers, build)
            else:
                resources = session.worker_resources(workers)
                metrics = session.in_worker(
                    _alone, config, resources, max_failures=workers.max_failures, repeat_errors=True
                )
    except ray.exceptions.RayError as error:
        raise _cause(error) from error
    finally:
        stop.unlink(missing_ok=True)
    if not isinstance(metrics, dict):
        raise StageFailed("the workers ended without a result", where=str(build.path))
    return {str(key): float(value) for key, value in metrics.items()}


def _in_group(config: dict[str, Any], workers: Workers, build: Build) -> Any:
    """What the first worker of a group of Ray Train returns."""
    import ray.train  # noqa: PLC0415 - 1 s, and torch: not every process that imports us needs them
    from ray.train.torch import TorchTrainer  # noqa: PLC0415

    resources = session.worker_resources(workers)
    # Ray's own bookkeeping of this attempt. Ray resumes from what it finds there: nothing of another may be left.
    scratch = build.path / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    trainer = TorchTrainer(
        _member,
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
        metrics = signals.aside(trainer.fit).return_value
    except ray.train.TrainingFailedError as error:
        raise _cause(error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if isinstance(metrics, dict) and "error" in metrics:
        raise metrics["error"]
    return metrics


def _member(config: dict[str, Any]) -> dict[str, Any]:
    """What every worker of a group runs."""
    import ray.train  # noqa: PLC0415 - see above

    context = ray.train.get_context()
    hooks = Hooks(
        # A barrier that is answered once a poll (0.5 s): at evaluations only, never at a log.
        evaluated=lambda metrics: ray.train.report(dict(metrics)),
        preempted=lambda: ray.train.get_preemption_info() is not None,
    )
    world, refusal = context.get_world_size(), Path(config["job"]["directory"]) / SCRATCH / REFUSAL
    if refusal.is_file():
        # Of the attempt before: now all workers know.
        return {"error": failures.read(refusal)}
    try:
        metrics = _worker(config, hooks, rank=context.get_world_rank())
    except Exception as error:
        if failures.may_pass(error, peers=world > 1):
            raise
        # Raised, Ray would start the same again. But returning is right only where all workers return: of a full
        # disk or a missing model one alone may know, and the others would wait for it in a collective call, for half
        # an hour. So it is left for the next attempt, which ends with it.
        said = _said(error)
        if world > 1 and not isinstance(said, (Stopped, LossNotFinite)):
            failures.write(refusal, said)
            raise
        return {"error": said}
    # One report at the end: Ray counts a run without any as unfinished in its dashboard.
    ray.train.report({**metrics, "pid": os.getpid()})
    return metrics


def _said(error: Exception) -> UcotronRayError:
    """Our own error for what a worker raised; the traceback of any other goes into the log."""
    if isinstance(error, UcotronRayError):
        return error
    log.error("a worker ended", exc_info=error)
    found = traceback.format_exception_only(error)[-1].strip()
    return StageFailed(FAILED, found=found, next_step=NEXT_STEP)


def _alone(config: dict[str, Any]) -> dict[str, float]:
    """What the only worker runs."""
    return _worker(config, NO_HOOKS, rank=0)


def _worker(config: dict[str, Any], hooks: Hooks, *, rank: int) -> dict[str, float]:
    """What every worker does. Heavy imports happen here."""
    run_log.set_up_worker(config["log_file"])
    spool = Spool(Path(config["spool"]), config["run"])

    def report(metrics: Mapping[str, float]) -> None:
        if rank == 0:
            step = int(metrics["step"])
            spool.metrics({key: value for key, value in metrics.items() if key != "step"}, step=step)

    return _train(config["stage"], config["job"], report, replace(hooks, score=_scorer(config)))


def reference_on_ray(job: TrainingJob, workers: Workers, log_file: str) -> None:
    """Write the reference of DPO into the job's directory, in one process with the resources of a worker."""
    _beside(_write_reference, {"job": asdict(job), "log_file": log_file}, workers)


def gpu_on_ray(workers: Workers) -> peak.Gpu | None:
    """The GPU of one worker, as a process sees it that has a worker's resources."""
    found: peak.Gpu | None = session.in_worker(
        _gpu, None, session.worker_resources(workers), max_failures=workers.max_failures
    )
    return found


def _gpu(_: None) -> peak.Gpu | None:
    return peak.visible_gpu()


def sample_on_ray(job: Mapping[str, Any], workers: Workers, log_file: str) -> dict[str, int]:
    """Write preference pairs of the model's own answers, in one process with the resources of a worker."""
    counts: dict[str, int] = _beside(_sample, {"job": dict(job), "log_file": log_file}, workers)
    return counts


def _beside(function: Callable[[dict[str, Any]], Any], config: dict[str, Any], workers: Workers) -> Any:
    try:
        with run_log.following(config["log_file"]):
            return session.in_worker(
                function, config, session.worker_resources(workers), max_failures=workers.max_failures
            )
    except ray.exceptions.RayError as error:
        raise _cause(error) from error


def _sample(config: dict[str, Any]) -> dict[str, int]:
    from ucotron_ray.evaluation.scoring import f1_of  # noqa: PLC0415 - the rim knows both stages
    from ucotron_ray.training import on_policy  # noqa: PLC0415 - transformers, in the worker only

    run_log.set_up_worker(config["log_file"])
    return on_policy.write_pairs(on_policy.SampleJob(**config["job"]), f1_of)


def _write_reference(config: dict[str, Any]) -> None:
    from ucotron_ray.training import dpo  # noqa: PLC0415 - transformers, in the worker only

    run_log.set_up_worker(config["log_file"])
    dpo.write_reference(TrainingJob(**config["job"]))


def _train(stage: str, job: dict[str, Any], report: Report, hooks: Hooks) -> dict[str, float]:
    # 8 s of imports that the driver does not pay for.
    if stage == "dpo":
        from ucotron_ray.training import dpo  # noqa: PLC0415

        return dpo.train(DpoJob(**job), report, hooks)
    from ucotron_ray.training import sft  # noqa: PLC0415

    return sft.train(SftJob(**job), report, hooks)


def _scorer(config: dict[str, Any]) -> Score | None:
    """Counts of the triples that a model answers on the first validation rows; None if none are wanted."""
    job = config["job"]
    wanted = job["settings"]["eval_f1_rows"]
    if not wanted or not job["val_file"]:
        return None
    from ucotron_ray.evaluation.generate import triples_of  # noqa: PLC0415 - the rim knows both stages

    return triples_of(Path(job["val_file"]), wanted, **config["score"])


def _cause(error: Exception) -> UcotronRayError:
    return session.cause_of(error, FAILED, next_step=NEXT_STEP)
