"""What travels to the workers of a training stage. Light: every actor of Ray Train imports it."""

from dataclasses import dataclass
from typing import Any

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
    dtype: str
    """`auto`, `bfloat16` or `float32`; `auto` is decided by the worker's own processor."""
    per_device_batch: int | None
    tokens_per_step: int
    num_threads: int | None
    tokens: str | None = None
    """Directory of the tokenized rows (`tokens.py`); None = the worker tokenizes the files itself."""
    gradient_checkpointing: bool = False
    attention: str = "auto"
    shard_base: bool = False
    compile: bool = False
    liger: bool = False


@dataclass(frozen=True, kw_only=True)
class SftJob(TrainingJob):
    """Supervised fine-tuning on relation and chat rows."""


@dataclass(frozen=True, kw_only=True)
class DpoJob(TrainingJob):
    """Preference training. `reference` is the directory that `dpo.write_reference` left, for the same files."""

    reference: str
