"""Converts a GGUF base model, and merges an adapter into its base, in Ray tasks: the driver loads no torch."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import ray

from ucotron_ray.core import run_log, session
from ucotron_ray.core.place import Workers


def convert_on_ray(reference: str, directory: Path) -> None:
    """Write the referenced GGUF model as safetensors into the directory."""
    try:
        ray.get(ray.remote(num_cpus=1, max_calls=1)(_convert).remote(reference, str(directory)))
    except ray.exceptions.RayError as error:
        next_step = "run the same command again"
        raise session.cause_of(
            error, "the base model could not be converted", where=reference, next_step=next_step
        ) from error


def _convert(reference: str, directory: str) -> None:
    from ucotron_ray.models import base  # noqa: PLC0415 - the driver, which imports this file, loads nothing

    base.convert(base.located(reference), Path(directory))


def merge_on_ray(base: str, adapter: Path, directory: Path, workers: Workers, log_file: str) -> None:
    """Write the model that is the loadable base with the adapter added to it."""
    # Adding in float32 is work of a processor, and a GPU could be too small for it.
    resources = replace(session.worker_resources(workers), gpus=0.0)
    job = {"base": base, "adapter": str(adapter), "directory": str(directory), "log_file": log_file}
    try:
        with run_log.following(log_file):
            session.in_worker(_merge, job, resources, max_failures=workers.max_failures)
    except ray.exceptions.RayError as error:
        next_step = "if it ran out of memory, merge on a larger machine; the same command goes on from here"
        raise session.cause_of(error, "the merge failed", next_step=next_step) from error


def _merge(job: Mapping[str, str]) -> None:
    from ucotron_ray.models import base, merge  # noqa: PLC0415 - torch, in the task only

    run_log.set_up_worker(job["log_file"])
    merge.write_merged(base.located(job["base"]), Path(job["adapter"]), Path(job["directory"]))
