"""What a training job is told about the place, in tests: float32 on one thread, so that bytes can be compared."""

from dataclasses import replace
from typing import Any, TypeVar

from ucotron_ray.core import config
from ucotron_ray.core.place import Workers
from ucotron_ray.training.job import TrainingJob

Job = TypeVar("Job", bound=TrainingJob)


def workers(**levers: object) -> dict[str, Any]:
    """The section `workers` with these levers pulled."""
    usual = {"dtype": "float32", "per_device_batch": 2, "max_tokens_per_microbatch": 4096}
    return config.load().place.workers.model_copy(update={**usual, **levers}).model_dump()


def changed(job: Job, **changes: Any) -> Job:
    """A job with other fields or other levers."""
    levers = {name: changes.pop(name) for name in list(changes) if name in Workers.model_fields}
    return replace(job, workers={**job.workers, **levers}, **changes)
