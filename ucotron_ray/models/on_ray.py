"""Converts a GGUF base model in a Ray task, so that the driver loads no torch."""

from pathlib import Path

import ray

from ucotron_ray.core import session


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
    from ucotron_ray.models import base  # noqa: PLC0415 - the driver, which imports this file, resolves nothing here

    base.convert(base.resolve(reference), Path(directory))
