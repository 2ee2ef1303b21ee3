"""What recipe and place say to transformers' trainer."""

from pathlib import Path
from typing import Any

import torch

from ucotron_ray.core.hyperparameters import LoraSettings
from ucotron_ray.models import precision
from ucotron_ray.training.checkpoints import KEPT_CHECKPOINTS
from ucotron_ray.training.job import CHECKPOINTS, TrainingJob

_ALMOST_ALL = 1 - 1e-9


def trainer_arguments(
    job: TrainingJob, settings: LoraSettings, *, dtype: precision.Dtype, per_device: int, world: int
) -> dict[str, Any]:
    """The arguments of transformers' trainer that follow from recipe and place."""
    on_gpu, place = torch.cuda.is_available(), job.place
    return {
        "output_dir": str(Path(job.directory) / CHECKPOINTS),
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.lr_scheduler,
        # Below 1 it is a share of all steps, from 1 on a number of steps (`TrainingArguments.get_warmup_steps`).
        "warmup_steps": min(settings.warmup_ratio, _ALMOST_ALL),
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "per_device_train_batch_size": per_device,
        "per_device_eval_batch_size": per_device,
        "gradient_accumulation_steps": settings.global_batch // (per_device * world),
        "remove_unused_columns": False,
        # Recomputing costs a third of the time: the plan says whether the memory asks for it.
        "activation_checkpointing": place.gradient_checkpointing,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
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
