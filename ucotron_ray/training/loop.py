"""What the training functions share: order of rows, the trainer's own habits corrected, arguments, what is left."""

import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase, Trainer

from ucotron_ray.core.errors import StageFailed, Stopped
from ucotron_ray.core.files import write_json, write_text
from ucotron_ray.core.hyperparameters import LoraSettings
from ucotron_ray.models import base as base_models
from ucotron_ray.models import lora
from ucotron_ray.models.shape import shape_of
from ucotron_ray.training import levers, plan, report
from ucotron_ray.training.checkpoints import CHECKPOINTS, KEPT_CHECKPOINTS, Checkpoints, newest_checkpoint, not_finite
from ucotron_ray.training.hooks import NO_HOOKS, Hooks
from ucotron_ray.training.job import TrainingJob
from ucotron_ray.training.peak import peak_flops
from ucotron_ray.training.progress import Progress, Work

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """What a worker is and has: its number, how many there are, the base and what it computes in."""

    rank: int
    world: int
    base: base_models.BaseModel
    tokenizer: PreTrainedTokenizerBase
    dtype: base_models.Dtype


@dataclass(frozen=True)
class Batches:
    """How rows go through the model: so many a forward pass, and what a step of all workers computes."""

    per_device: int
    work: Work


def begin(stage: str, job: TrainingJob, settings: LoraSettings) -> Worker:
    """Set this process up for a job."""
    rank, world = rank_and_world()
    log.info("%s: worker %d of %d, pid %d", stage, rank, world, os.getpid())
    if job.num_threads:
        torch.set_num_threads(job.num_threads)
    torch.manual_seed(settings.seed)
    base = base_models.resolve(job.base)
    dtype = agreed_dtype(job, Path(job.directory) / CHECKPOINTS, rank, world)
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
    model = levers.load(worker.base, worker.dtype, quantize=settings.quantize, attention=job.place.attention)
    torch.manual_seed(settings.seed)
    adapted = lora.attach(model, settings)
    if job.place.shard_base and worker.world > 1:
        levers.spread(adapted)
    return adapted


def rank_and_world() -> tuple[int, int]:
    """This worker's number, and how many there are."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def over_workers(values: Sequence[float], device: torch.device) -> list[float]:
    """The sums over all workers. A collective call: each of them must make it."""
    sums = torch.tensor(values, dtype=torch.float64)
    if rank_and_world()[1] > 1:
        sums = sums.to(device)
        torch.distributed.all_reduce(sums)
    summed: list[float] = sums.tolist()
    return summed


class CorrectedTrainer(Trainer):  # type: ignore[misc]  # transformers has no types
    """transformers' trainer, with the batches of this run and with F1 at each evaluation. A mix-in."""

    hooks = NO_HOOKS

    def _inner_training_loop(self, batch_size: int | None = None, **kwargs: Any) -> Any:
        # transformers 4.57.6 takes the batch size of a checkpoint over that of the run (`Trainer.train`): on another
        # number of workers the global batch would be another one.
        return super()._inner_training_loop(batch_size=self.args.train_batch_size, **kwargs)

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        # accelerate refuses a base that is spread over GPUs (`prepare_model`: «DTensor … incompatible»), though
        # DDP does not touch what it is told to ignore.
        if training and model is self.model and levers.is_spread(model):
            return levers.averaged(model)
        return super()._wrap_model(model, training, dataloader)

    def compute_loss_context_manager(self) -> Any:
        """The compute type, for all that is computed within.

        On a GPU accelerate sets it in the prepared model's `forward` alone; `generate`, and a base that we wrap
        ourselves, do not come by there.
        """
        return self.accelerator.autocast() if torch.cuda.is_available() else super().compute_loss_context_manager()

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The validation loss and, if there is a scorer, F1 of the triples that the model answers."""
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        if self.hooks.score is not None:
            with self.compute_loss_context_manager():
                scored = _f1(self.hooks, self.accelerator.unwrap_model(self.model), self.processing_class)
            self.log(dict(scored))
            metrics |= scored
        self.hooks.evaluated({**_numbers(metrics), "step": float(self.state.global_step)})
        return metrics


def run(trainer: Trainer, stage: str, directory: Path, rank: int, checkpoints: Checkpoints) -> None:
    """Train from the newest good checkpoint, or from the start.

    Raises StageFailed if the loss is not finite or the disk is full, and Stopped if the run was asked to stop.
    """
    checkpoint = newest_checkpoint(directory / CHECKPOINTS, remove_bad=rank == 0)
    if checkpoint is not None:
        log.info("%s: going on from %s", stage, checkpoint.name)
    try:
        outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (OSError, RuntimeError, SafetensorError) as error:
        full = _disk_full(error, directory)
        if full is not None:
            raise full from error
        raise
    at_end = [entry for entry in trainer.state.log_history if entry["step"] == trainer.state.global_step]
    if (
        trainer.args.eval_strategy == "epoch"
        and not checkpoints.stopped
        and not any("eval_loss" in entry for entry in at_end)
    ):
        # A worker that was lost in the last evaluation: its checkpoint is of the last step, and no epoch is left.
        trainer.evaluate()
    if checkpoints.stopped:
        raise Stopped(
            f"{stage} was asked to stop and did, after step {trainer.state.global_step} of {trainer.state.max_steps}",
            where=str(directory / CHECKPOINTS / f"checkpoint-{trainer.state.global_step}"),
            next_step="run the same command again: it goes on from this checkpoint",
        )
    if not math.isfinite(outcome.training_loss):
        raise not_finite(stage, trainer.state.global_step, directory, f"a mean loss of {outcome.training_loss}")


def agreed_dtype(job: TrainingJob, directory: Path, rank: int, world: int) -> base_models.Dtype:
    """The type that worker 0 computes in, for all workers and all attempts: what is resumed must go on the same."""
    record = directory / "compute_dtype.json"
    agreed: list[Any] = [None]
    if rank == 0:
        if not record.is_file():
            directory.mkdir(parents=True, exist_ok=True)
            write_json(record, base_models.compute_dtype(job.place.dtype))
        agreed = [json.loads(record.read_text(encoding="utf-8"))]
    if world > 1:
        torch.distributed.broadcast_object_list(agreed, src=0)
    dtype: base_models.Dtype = agreed[0]
    return dtype


def arguments(
    job: TrainingJob, settings: LoraSettings, *, dtype: base_models.Dtype, per_device: int, world: int
) -> dict[str, Any]:
    """The arguments of transformers' trainer that follow from recipe and place."""
    on_gpu, place = torch.cuda.is_available(), job.place
    return {
        "output_dir": str(Path(job.directory) / CHECKPOINTS),
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler,
        "warmup_ratio": settings.warmup_ratio,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "per_device_train_batch_size": per_device,
        "per_device_eval_batch_size": per_device,
        "gradient_accumulation_steps": settings.global_batch // (per_device * world),
        "remove_unused_columns": False,
        # Recomputing costs a third of the time: the plan says whether the memory asks for it.
        "gradient_checkpointing": place.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "torch_compile": place.compile,
        "use_liger_kernel": place.liger,
        # Not Liger's fused loss: logits are computed where there is a label only, which saves more.
        "liger_kernel_config": {"cross_entropy": False, "fused_linear_cross_entropy": False} if place.liger else None,
        "bf16": dtype == "bfloat16",
        "use_cpu": not on_gpu,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": on_gpu,
        "logging_steps": max(1, settings.save_steps // 5),
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": KEPT_CHECKPOINTS,
        **_evaluation(job, settings),
        # The filter would hide a loss that is no number, and it makes the GPU wait at every step.
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": settings.seed,
        "data_seed": settings.seed,
    }


def _evaluation(job: TrainingJob, settings: LoraSettings) -> dict[str, Any]:
    if not (job.val_file and settings.eval_rows):
        return {"eval_strategy": "no"}
    if settings.eval_steps:
        return {"eval_strategy": "steps", "eval_steps": settings.eval_steps}
    return {"eval_strategy": "epoch"}


def final_metrics(trainer: Trainer, counts: dict[str, int], progress: Progress) -> dict[str, float]:
    """Steps, first and last loss, tokens, rates and memory, and the last validation loss and F1."""
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    metrics = {
        "steps": float(trainer.state.global_step),
        "train_loss_first": float(losses[0]),
        "train_loss_last": float(losses[-1]),
        "train_tokens": float(counts["tokens"] * trainer.args.num_train_epochs),
    }
    for name in ("eval_loss", "eval_f1"):
        values = [entry[name] for entry in history if name in entry]
        metrics |= {name: float(values[-1])} if values else {}
    return metrics | progress.figures()


def save_adapter(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    job: TrainingJob,
    counts: dict[str, int],
    metrics: dict[str, float],
    work: Work,
) -> None:
    """Leave `adapter/`, `training.json` and `report.html`."""
    adapter = directory / "adapter"
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.save_pretrained(str(adapter), safe_serialization=True)
    (adapter / "README.md").unlink(missing_ok=True)
    base_models.save_tokenizer(tokenizer, adapter)
    record = {
        "base": job.base,
        "settings": job.settings,
        "counts": counts,
        "metrics": metrics,
        "peak": f"{work.peak[0] / 1e12:.2f} TFLOP/s a worker ({work.peak[1]})" if work.peak else None,
        "history": trainer.state.log_history,
    }
    write_json(directory / "training.json", record)
    write_text(directory / "report.html", report.page(record))


def _f1(hooks: Hooks, model: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Micro F1 over all workers' shares."""
    assert hooks.score is not None
    # The passes of a spread model are collective, and shares of rows would need different numbers of them.
    rank, world = (0, 1) if levers.is_spread(model) else rank_and_world()
    model.eval()
    with torch.no_grad():
        counts = torch.tensor(hooks.score(model, tokenizer, rank, world), dtype=torch.float64)
    right, predicted, expected = over_workers(counts.tolist(), model.device) if world > 1 else counts.tolist()
    return {"eval_f1": 2 * right / (predicted + expected) if predicted + expected else 1.0}


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items() if isinstance(value, (int, float))}


def _disk_full(error: Exception, directory: Path) -> StageFailed | None:
    """Our own words for a write that found no space; None for any other error."""
    if "No space left" not in str(error) and "Disk quota exceeded" not in str(error):
        return None
    kept = newest_checkpoint(directory / CHECKPOINTS)
    return StageFailed(
        "the disk is full: a checkpoint could not be written",
        where=str(directory),
        found=str(error).splitlines()[0],
        next_step="free some space and run the same command again; it goes on from "
        + (kept.name if kept else "the start"),
    )
