"""What the training functions share: order of rows, checkpoints with a record of their bytes, progress, arguments."""

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ucotron_ray.artifacts import file_hash, list_files, write_json
from ucotron_ray.config import LoraSettings
from ucotron_ray.errors import InputError, StageFailed
from ucotron_ray.models import base as base_models
from ucotron_ray.training.data import IGNORED, epoch_order
from ucotron_ray.training.job import TrainingJob

log = logging.getLogger(__name__)

Report = Callable[[Mapping[str, float]], None]

CHECKPOINTS = "checkpoints"
CHECKPOINT_RECORD = "checkpoint.json"
KEPT_CHECKPOINTS = 2


def rank_and_world() -> tuple[int, int]:
    """This worker's number, and how many there are."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def run(trainer: Trainer, stage: str, directory: Path, rank: int) -> None:
    """Train from the newest good checkpoint, or from the start. Raises StageFailed if the loss is not finite."""
    checkpoint = newest_checkpoint(directory / CHECKPOINTS, remove_bad=rank == 0)
    if checkpoint is not None:
        log.info("%s: going on from %s", stage, checkpoint.name)
    outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not math.isfinite(outcome.training_loss):
        raise StageFailed(
            "the training loss is not finite",
            found=str(outcome.training_loss),
            next_step=f"halve training.{stage}.<tier>.learning_rate and start again with --replace",
        )


def agreed_dtype(job: TrainingJob, directory: Path, rank: int, world: int) -> base_models.Dtype:
    """The type that worker 0 computes in, for all workers and all attempts: what is resumed must go on the same."""
    record = directory / "compute_dtype.json"
    agreed: list[Any] = [None]
    if rank == 0:
        if not record.is_file():
            directory.mkdir(parents=True, exist_ok=True)
            write_json(record, base_models.compute_dtype(job.dtype))
        agreed = [json.loads(record.read_text(encoding="utf-8"))]
    if world > 1:
        torch.distributed.broadcast_object_list(agreed, src=0)
    dtype: base_models.Dtype = agreed[0]
    return dtype


def per_device_batch(job: TrainingJob, settings: LoraSettings, *, longest: int, world: int) -> int:
    """Rows of one forward pass of one worker: the largest divisor of its share that fits `tokens_per_step`.

    Raises InputError if the global batch cannot be shared evenly, since the place must not change the result.
    """
    share, rest = divmod(settings.global_batch, world)
    if rest or (job.per_device_batch and share % job.per_device_batch):
        raise InputError(
            "the global batch cannot be shared evenly",
            where="training.<stage>.<tier>.batch_size, workers.num_workers, workers.per_device_batch",
            expected="batch_size = num_workers x per_device_batch x a whole number",
            found=f"{settings.global_batch} rows, {world} workers, {job.per_device_batch or 'any'} rows a device",
        )
    if job.per_device_batch:
        return job.per_device_batch
    fitting = [size for size in range(1, share + 1) if share % size == 0 and size * longest <= job.tokens_per_step]
    return max(fitting, default=1)


def newest_checkpoint(directory: Path, *, remove_bad: bool = False) -> Path | None:
    """The newest checkpoint whose bytes are those of its record. Half-written and damaged ones are passed over."""
    found = sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in found:
        if _is_whole(path):
            return path
        log.warning("training: %s is not whole and is passed over", path)
        if remove_bad:
            shutil.rmtree(path, ignore_errors=True)
    return None


def _is_whole(path: Path) -> bool:
    try:
        record = json.loads((path / CHECKPOINT_RECORD).read_text(encoding="utf-8"))
        return all(file_hash(path / name) == digest for name, digest in record["files"].items())
    except (OSError, ValueError, KeyError):
        return False


def collate(rows: Sequence[Mapping[str, list[int]]], *, pad: int) -> dict[str, torch.Tensor]:
    """A left-padded batch: `input_ids`, `labels`, `attention_mask`, each [rows, longest].

    Answers then end in the same column, and the columns that have a label in any row are few. Positions are relative
    (RoPE), so padding in front changes nothing.
    """
    longest = max(len(row["input_ids"]) for row in rows)

    def left(values: list[int], filler: int) -> list[int]:
        return [filler] * (longest - len(values)) + list(values)

    return {
        "input_ids": torch.tensor([left(row["input_ids"], pad) for row in rows]),
        "labels": torch.tensor([left(row["labels"], IGNORED) for row in rows]),
        "attention_mask": torch.tensor([left([1] * len(row["input_ids"]), 0) for row in rows]),
    }


class EpochOrder(Sampler[int]):
    """Gives the rows in `epoch_order`; accelerate calls `set_epoch`."""

    def __init__(self, lengths: list[int], global_batch: int, seed: int) -> None:
        self._lengths, self._global_batch, self._seed, self._epoch = lengths, global_batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self._lengths, global_batch=self._global_batch, seed=self._seed, epoch=self._epoch))

    def __len__(self) -> int:
        return math.ceil(len(self._lengths) / self._global_batch) * self._global_batch


class Records(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Reports metrics, says a line of progress, and completes every checkpoint with a record of its bytes."""

    def __init__(
        self, stage: str, directory: Path, counts: dict[str, int], report: Report, rank: int, world: int
    ) -> None:
        self._stage, self._directory, self._counts, self._report = stage, directory, counts, report
        self._rank, self._world = rank, world
        self._began: tuple[float, int] | None = None
        self._losses: list[float] = []

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._began is None:
            self._began = (time.monotonic(), state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        metrics = {key: float(value) for key, value in (logs or {}).items() if isinstance(value, (int, float))}
        metrics.pop("epoch", None)
        if "loss" in metrics and self._began is not None:
            seconds, steps = time.monotonic() - self._began[0], state.global_step - self._began[1]
            tokens = self._counts["tokens"] / max(1, state.max_steps / args.num_train_epochs)
            metrics["tokens_per_second"] = tokens * steps / max(seconds, 1e-9)
            left = (state.max_steps - state.global_step) * seconds / max(1, steps)
            if self._rank == 0:
                log.info(
                    "%s: step %d/%d  loss %.3f  %.0f tokens/s  %.0f s left",
                    self._stage,
                    state.global_step,
                    state.max_steps,
                    metrics["loss"],
                    metrics["tokens_per_second"],
                    left,
                )
            self._warn_if_flat(metrics["loss"])
        self._report({**metrics, "step": float(state.global_step)})

    def _warn_if_flat(self, loss: float) -> None:
        self._losses.append(loss)
        window = 5
        if len(self._losses) == 4 * window and self._rank == 0:
            first, last = sum(self._losses[:window]) / window, sum(self._losses[-window:]) / window
            if last > 0.98 * first:
                log.warning(
                    "%s: the training loss does not fall (%.3f, then %.3f): halve the learning rate, raise the LoRA "
                    "rank, or check that the rows state what their answers say",
                    self._stage,
                    first,
                    last,
                )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Every rank has written its random state; only then is the checkpoint whole.
        if self._world > 1:
            torch.distributed.barrier()
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._rank == 0:
            files = {entry.path: entry.sha256 for entry in list_files(path) if entry.path != CHECKPOINT_RECORD}
            write_json(path / CHECKPOINT_RECORD, {"step": state.global_step, "files": files})


def arguments(
    job: TrainingJob, settings: LoraSettings, *, dtype: base_models.Dtype, per_device: int, world: int
) -> dict[str, Any]:
    """The arguments of transformers' trainer that follow from recipe and place."""
    on_gpu = torch.cuda.is_available()
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
        # The memory for activations is bounded by tokens_per_step instead; recomputing costs a third of the time.
        "gradient_checkpointing": False,
        "bf16": dtype == "bfloat16",
        "use_cpu": not on_gpu,
        "ddp_find_unused_parameters": False,
        "dataloader_pin_memory": on_gpu,
        "logging_steps": max(1, settings.save_steps // 5),
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": settings.save_steps,
        "save_total_limit": KEPT_CHECKPOINTS,
        "eval_strategy": "epoch" if job.val_file and settings.eval_rows else "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": settings.seed,
        "data_seed": settings.seed,
    }


def final_metrics(trainer: Trainer, counts: dict[str, int]) -> dict[str, float]:
    """Steps, first and last loss, tokens, and the last validation loss."""
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    evaluated = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    metrics = {
        "steps": float(trainer.state.global_step),
        "train_loss_first": float(losses[0]),
        "train_loss_last": float(losses[-1]),
        "train_tokens": float(counts["tokens"] * trainer.args.num_train_epochs),
    }
    if evaluated:
        metrics["eval_loss"] = float(evaluated[-1])
    return metrics


def save_adapter(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    job: TrainingJob,
    counts: dict[str, int],
    metrics: dict[str, float],
) -> None:
    """Leave `adapter/` and `training.json`."""
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
        "history": trainer.state.log_history,
    }
    write_json(directory / "training.json", record)
