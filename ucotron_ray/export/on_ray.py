"""Runs merge, export and gates as one Ray task in a process of its own, which ends with it."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray

from ucotron_ray.core import destination as destinations
from ucotron_ray.core import run_log, session, tracking
from ucotron_ray.core import spool as spools
from ucotron_ray.core.place import Workers
from ucotron_ray.export.job import ExportJob


def export_on_ray(job: ExportJob, workers: Workers, *, memory: float | None) -> dict[str, float]:
    """Run the task; return its figures, sizes in bytes and seconds.

    `memory` is what the task needs in bytes: Ray then starts it where a node has that much left.
    """
    resources = session.worker_resources(workers)
    job = replace(job, num_threads=resources.threads)
    # A process of its own: torch's tracer and onnxruntime keep the memory that they once had.
    processors = replace(resources, gpus=0.0)
    try:
        with run_log.following(job.log_file):
            measured: dict[str, float] = session.in_worker(
                _export, asdict(job), processors, max_failures=workers.max_failures, memory=memory
            )
    except ray.exceptions.RayError as error:
        next_step = "if it ran out of memory, export on a larger machine; the same command goes on from here"
        raise session.cause_of(error, "the export task failed", next_step=next_step) from error
    return measured


def _export(fields: Mapping[str, Any]) -> dict[str, float]:
    from ucotron_ray.export import job as steps  # noqa: PLC0415 - in the task only

    job = ExportJob(**fields)
    run_log.set_up_worker(job.log_file)
    spool = spools.Spool(Path(job.spool), job.run)
    if job.merge:
        steps.merge(job)
    figures = steps.bundle(job)
    spool.metrics(figures)
    if job.destination is not None:
        # The last task of a run leaves nothing unsent, also where the driver's own sender is gone.
        tracking.send_pending(spool.directory, destinations.Destination(**job.destination))
    return figures
