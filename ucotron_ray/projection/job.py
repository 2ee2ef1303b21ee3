"""What travels to the workers of the projection's stages. Light: every actor of Ray Train imports it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shard:
    """One stretch of the descriptions: its number, the byte at which its first line begins, and how many lines."""

    number: int
    offset: int
    rows: int


@dataclass(frozen=True)
class EncodeJob:
    """All that an encoder needs to know. `clip` and `text` are what transformers loads: a directory or a hub name."""

    descriptions: str
    directory: str
    clip: str
    clip_is_stand_in: bool
    text: str
    dtype: str
    max_tokens_per_microbatch: int
    num_threads: int | None
    log_file: str


@dataclass(frozen=True)
class FitJob:
    """All that a training worker needs to know. `pairs` is the directory with the shards."""

    pairs: str
    directory: str
    settings: dict[str, Any]
    encoders: dict[str, str]
    """What made the pairs, for the projection's configuration."""
    num_threads: int | None


@dataclass(frozen=True)
class EvaluateJob:
    """All that an evaluation needs to know. `settings` splits the pairs where the checkpoint does not say how."""

    pairs: str
    checkpoint: str
    settings: dict[str, Any]
    num_threads: int | None


@dataclass(frozen=True)
class ExportJob:
    """All that an export needs to know."""

    name: str
    checkpoint: str
    directory: str
    opset: int
    facts: dict[str, str]
