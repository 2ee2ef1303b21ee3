"""LoRA supervised fine-tuning with TRL. Plain Python: runs in this process, under torchrun or in a Ray worker alike.

`on_ray.py` runs `train` in Ray Train workers; tests call it directly. Everything goes through files: rows are read
from the dataset's directory, checkpoints and the adapter are written into the directory that is given.
"""

import logging
import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import (
    PreTrainedTokenizerBase,
    PrinterCallback,
)
from trl import SFTConfig, SFTTrainer

from ucotron_ray.config import SftSettings
from ucotron_ray.jsonl import read_training_rows
from ucotron_ray.models import base as base_models
from ucotron_ray.models import lora
from ucotron_ray.training import loop
from ucotron_ray.training.data import IGNORED, Example, examples
from ucotron_ray.training.job import SftJob

log = logging.getLogger(__name__)


def train(job: SftJob, report: loop.Report) -> dict[str, float]:
    """Train from the newest good checkpoint in the directory, or from the start; leave `adapter/` and `training.json`.

    Args:
        job: what to train and where.
        report: called on every worker with the metrics of each logged step and of each evaluation.

    Returns:
        The final metrics (rank 0's).
    """
    settings = SftSettings.model_validate(job.settings)
    directory = Path(job.directory)
    rank, world = loop.rank_and_world()
    log.info("sft: worker %d of %d, pid %d", rank, world, os.getpid())
    if job.num_threads:
        torch.set_num_threads(job.num_threads)
    torch.manual_seed(settings.seed)
    base = base_models.resolve(job.base)
    tokenizer = base_models.load_tokenizer(base)
    rows = read_training_rows(Path(job.train_file))[: settings.max_rows]
    train_rows, counts = examples(rows, tokenizer, settings)
    val_rows = _validation(job, tokenizer, settings)
    per_device = loop.per_device_batch(job, settings, longest=counts["longest"], world=world)
    dtype = loop.agreed_dtype(job, directory / loop.CHECKPOINTS, rank, world)
    model = base_models.load_model(base, dtype)
    # The step-0 adapter must be the same on every worker and in every run.
    torch.manual_seed(settings.seed)
    trainer = LabelOnlyTrainer(
        model=lora.attach(model, settings),
        args=SFTConfig(
            **loop.arguments(job, settings, dtype=dtype, per_device=per_device, world=world),
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=_dataset(train_rows),
        eval_dataset=_dataset(val_rows) if val_rows else None,
        processing_class=tokenizer,
        data_collator=partial(loop.collate, pad=tokenizer.pad_token_id),
        callbacks=[loop.Records("sft", directory, counts, report, rank, world)],
        order_seed=settings.seed,
        global_batch=settings.global_batch,
    )
    trainer.remove_callback(PrinterCallback)
    loop.run(trainer, "sft", directory, rank)
    metrics = loop.final_metrics(trainer, counts)
    if rank == 0:
        loop.save_adapter(trainer, tokenizer, directory, job, counts, metrics)
    return metrics


class LabelOnlyTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """TRL's trainer with an order of rows of our own, and with logits at the positions that have a label only.

    On a CPU TRL's fused head scores every position; here a sixth of them has a label, and the vocabulary is the most
    expensive layer of a small model.
    """

    def __init__(self, *args: Any, order_seed: int, global_batch: int, **kwargs: Any) -> None:
        self._order_seed = order_seed
        self._global_batch = global_batch
        super().__init__(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        lengths = [len(ids) for ids in (train_dataset or self.train_dataset)["input_ids"]]
        return loop.EpochOrder(lengths, self._global_batch, self._order_seed)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL would write a card into every directory of checkpoints; ours is written at the export."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sum of the label tokens' cross entropy over their number in the whole global batch (all workers)."""
        labels_BT = inputs["labels"]
        # Position t predicts the label of t + 1.
        positions_K = (labels_BT[:, 1:] != IGNORED).any(dim=0).nonzero().squeeze(-1)
        outputs = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            logits_to_keep=positions_K,
            use_cache=False,
        )
        targets_BK = labels_BT[:, 1:][:, positions_K]
        total = F.cross_entropy(
            outputs.logits.float().flatten(0, 1), targets_BK.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        if num_items_in_batch is None:
            return total / (targets_BK != IGNORED).sum().clamp(min=1)
        # The count is over all workers, and DDP averages the gradients over them.
        loss: torch.Tensor = total / num_items_in_batch * self.accelerator.num_processes
        return loss


def _validation(job: SftJob, tokenizer: PreTrainedTokenizerBase, settings: SftSettings) -> list[Example]:
    if job.val_file is None or settings.eval_rows == 0:
        return []
    rows = read_training_rows(Path(job.val_file))[: settings.eval_rows]
    return examples(rows, tokenizer, settings)[0]


def _dataset(rows: list[Example]) -> Dataset:
    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]})
