"""What a worker has before its first step: its number, its compute type, the base with a fresh adapter, its batches."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from ucotron_ray.core.files import write_json
from ucotron_ray.core.hyperparameters import LoraSettings
from ucotron_ray.models import base as base_models
from ucotron_ray.models import lora, precision, quantization
from ucotron_ray.models.shape import shape_of
from ucotron_ray.training import plan, sharding
from ucotron_ray.training.job import CHECKPOINTS, TrainingJob
from ucotron_ray.training.peak import peak_flops
from ucotron_ray.training.progress import Work
from ucotron_ray.training.workers import rank_and_world

log = logging.getLogger(__name__)

COMPUTE_DTYPE = "compute_dtype.json"
"""Beside checkpoints, and beside the reference of DPO: the type that they were computed in."""


@dataclass(frozen=True)
class Worker:
    """What a worker is and has: its number, how many there are, the base and what it computes in."""

    rank: int
    world: int
    base: base_models.Located
    tokenizer: PreTrainedTokenizerBase
    dtype: precision.Dtype


@dataclass(frozen=True)
class Batches:
    """How rows go through the model: so many a forward pass, and what a step of all workers computes."""

    per_device: int
    work: Work


def begin(stage: str, job: TrainingJob, settings: LoraSettings, *, like: Path | None = None) -> Worker:
    """Set this process up for a job, which computes in the type of what lies in `like`, if that is given."""
    rank, world = rank_and_world()
    log.info("%s: worker %d of %d, pid %d", stage, rank, world, os.getpid())
    if job.num_threads:
        torch.set_num_threads(job.num_threads)
    torch.manual_seed(settings.seed)
    base = base_models.located(job.base)
    dtype = agreed_dtype(job, Path(job.directory) / CHECKPOINTS, rank, world, like=like)
    return Worker(rank, world, base, base_models.load_tokenizer(base), dtype)


def batches(
    job: TrainingJob,
    settings: LoraSettings,
    lengths: Sequence[int],
    label_lengths: Sequence[int],
    worker: Worker,
    *,
    sequences: int = 1,
) -> Batches:
    """Rows of a forward pass, and the work of a step. A row of DPO is two `sequences`; its lengths are their sums."""
    per_device = plan.per_device_batch(
        settings,
        longest=max(lengths),
        world=worker.world,
        wanted=job.place.per_device_batch,
        max_tokens_per_microbatch=job.place.max_tokens_per_microbatch,
    )
    epoch = plan.work_of(
        lengths, label_lengths, global_batch=settings.global_batch, per_device=per_device, seed=settings.seed
    )
    shape = shape_of(worker.base)
    flops = plan.flops_4n(shape, settings, epoch, padded=False, sequences=sequences) / epoch.steps if shape else None
    work = Work(
        tokens=epoch.tokens / epoch.steps,
        padded=epoch.padded_tokens / epoch.steps,
        labels=epoch.label_tokens / epoch.steps,
        flops=flops,
        peak=peak_flops(worker.dtype) if worker.rank == 0 else None,
    )
    return Batches(per_device, work)


def adapted(worker: Worker, job: TrainingJob, settings: LoraSettings) -> Any:
    """The base with a fresh adapter, which is the same on every worker and in every run."""
    model = quantization.load(worker.base, worker.dtype, quantize=settings.quantize, attention=job.place.attention)
    torch.manual_seed(settings.seed)
    adapted = lora.attach(model, settings)
    if job.place.shard_base and worker.world > 1:
        sharding.spread(adapted)
    return adapted


def agreed_dtype(
    job: TrainingJob, directory: Path, rank: int, world: int, *, like: Path | None = None
) -> precision.Dtype:
    """The type that worker 0 computes in, for all workers and all attempts: what is resumed must go on the same."""
    record = directory / COMPUTE_DTYPE
    agreed: list[Any] = [None]
    if rank == 0:
        if not record.is_file():
            directory.mkdir(parents=True, exist_ok=True)
            known = like / COMPUTE_DTYPE if like is not None else record
            there = json.loads(known.read_text(encoding="utf-8")) if known.is_file() else None
            write_json(record, there or precision.compute_dtype(job.place.dtype))
        agreed = [json.loads(record.read_text(encoding="utf-8"))]
    if world > 1:
        torch.distributed.broadcast_object_list(agreed, src=0)
    dtype: precision.Dtype = agreed[0]
    return dtype
