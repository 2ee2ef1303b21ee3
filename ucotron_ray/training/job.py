"""What travels to the workers of a training stage. Light: every actor of Ray Train imports it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ucotron_ray.core.place import Workers

CHECKPOINTS, BEST_STEPS = "checkpoints", "best-steps"
"""Directories of a training: its checkpoints, and the adapters that were the best so far, one a step."""

LAST_STEP = "the last step"
"""Why an adapter is kept that is not the best one."""

STOP = "stop"
"""The file in a job's directory that asks its workers to stop after their step, with a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """All that a worker needs to know. Plain data, so that it can travel to another machine."""

    base: str
    train_file: str
    val_file: str | None
    directory: str
    settings: dict[str, Any]
    workers: dict[str, Any]
    """The section `workers` of the place, with what the plan settled of it."""
    num_threads: int | None
    tokens: str | None = None
    """Directory of the tokenized rows (`tokens.py`); None = the worker tokenizes the files itself."""

    @property
    def place(self) -> "Workers":
        """The levers of the place, typed."""
        from ucotron_ray.core.place import Workers  # noqa: PLC0415 - pydantic, which not every actor needs

        return Workers.model_validate(self.workers)


@dataclass(frozen=True, kw_only=True)
class SftJob(TrainingJob):
    """Supervised fine-tuning on relation and chat rows."""


@dataclass(frozen=True, kw_only=True)
class DpoJob(TrainingJob):
    """Preference training. `reference` is the directory that `dpo.write_reference` left, for the same files."""

    reference: str
