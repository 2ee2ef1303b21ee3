"""LoRA supervised fine-tuning with TRL. Plain Python: runs in this process, under torchrun or in a Ray worker alike.

`on_ray.py` runs `train` in Ray Train workers; tests call it directly. Everything goes through files: rows are read
from the dataset's directory, checkpoints and the adapter are written into the directory that is given.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase, PrinterCallback
from trl import SFTConfig, SFTTrainer

from ucotron_ray.core.hyperparameters import SftSettings
from ucotron_ray.training import batching, setup, tokens
from ucotron_ray.training.arguments import trainer_arguments
from ucotron_ray.training.best import BestAdapter
from ucotron_ray.training.checkpoints import Checkpoints
from ucotron_ray.training.data import IGNORED, Example
from ucotron_ray.training.heap import HeapTrim
from ucotron_ray.training.hooks import NO_HOOKS, Hooks, Report
from ucotron_ray.training.job import SftJob
from ucotron_ray.training.outcome import final_metrics, save_adapter
from ucotron_ray.training.progress import Progress
from ucotron_ray.training.trainer import CorrectedTrainer, train_to_end


def train(job: SftJob, report: Report, hooks: Hooks = NO_HOOKS) -> dict[str, float]:
    """Train from the newest good checkpoint in the directory, or from the start; leave `adapter/` and `training.json`.

    Args:
        job: what to train and where.
        report: called on every worker with the metrics of each logged step and of each evaluation.
        hooks: what Ray Train and Ray Tune add.

    Returns:
        The final metrics (rank 0's).
    """
    settings = SftSettings.model_validate(job.settings)
    directory = Path(job.directory)
    worker = setup.begin("sft", job, settings)
    rows = _tokens(job, worker.tokenizer, settings)
    lengths, labels = tokens.lengths(rows.train)
    batch = setup.batches(job, settings, lengths, labels, worker)
    progress = Progress("sft", directory, batch.work, report, worker.rank, worker.world)
    best = BestAdapter(settings, directory, worker.rank)
    checkpoints = Checkpoints("sft", directory, worker.rank, worker.world, hooks.preempted, best)
    trainer = LabelOnlyTrainer(
        model=setup.adapted(worker, job, settings),
        args=SFTConfig(
            **trainer_arguments(job, settings, dtype=worker.dtype, per_device=batch.per_device, world=worker.world),
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=_dataset(rows.train),
        eval_dataset=_dataset(rows.val) if rows.val else None,
        processing_class=worker.tokenizer,
        data_collator=_collator(job, worker),
        callbacks=[checkpoints, HeapTrim(), progress],
        order_seed=settings.seed,
        global_batch=settings.global_batch,
    )
    trainer.hooks, trainer.best = hooks, best
    trainer.remove_callback(PrinterCallback)
    train_to_end(trainer, "sft", directory, worker.rank, checkpoints)
    metrics = final_metrics(trainer, rows.counts, progress, best)
    if worker.rank == 0:
        save_adapter(trainer, worker.tokenizer, directory, job, rows.counts, metrics, batch.work, best)
    return metrics


class LabelOnlyTrainer(CorrectedTrainer, SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """TRL's trainer with an order of rows of our own, and with logits at the positions that have a label only.

    On a CPU TRL's fused head scores every position; here a sixth of them has a label, and the vocabulary is the most
    expensive layer of a small model.
    """

    def __init__(self, *args: Any, order_seed: int, global_batch: int, **kwargs: Any) -> None:
        self._order_seed = order_seed
        self._global_batch = global_batch
        super().__init__(*args, **kwargs)
        # TRL casts the adapter of a base in 4 bits to bfloat16, where most late updates are lost: at 1e-4 a step is
        # below half a bit of a weight. `lora.attach` made it in float32.
        for weight in self.model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        lengths = [len(ids) for ids in (train_dataset or self.train_dataset)["input_ids"]]
        return batching.EpochOrder(lengths, self._global_batch, self._order_seed)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL would write a card into every directory of checkpoints; ours is written at the export."""

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sum of the label tokens' cross entropy over their number in the whole global batch (all workers).

        In an evaluation the mean over rows of each row's mean: the trainer weighs batches by their rows, and a mean
        over a batch's labels would depend on how many rows a batch has, which is the place's business.
        """
        labels_BT = inputs["labels"]
        # Position t predicts the label of t + 1.
        positions_K = (labels_BT[:, 1:] != IGNORED).any(dim=0).nonzero().squeeze(-1)
        outputs = model(
            input_ids=inputs["input_ids"],
            **{name: inputs[name] for name in ("attention_mask", "position_ids") if name in inputs},
            logits_to_keep=positions_K,
            use_cache=False,
        )
        targets_BK = labels_BT[:, 1:][:, positions_K]
        if num_items_in_batch is None:
            losses_BK = F.cross_entropy(
                outputs.logits.float().transpose(1, 2), targets_BK, ignore_index=IGNORED, reduction="none"
            )
            row_BK = _rows_of(inputs, positions_K)
            sums_R = torch.zeros(int(row_BK.max()) + 1, device=losses_BK.device)
            counts_R = sums_R.index_add(0, row_BK.flatten(), (targets_BK != IGNORED).flatten().float())
            sums_R = sums_R.index_add(0, row_BK.flatten(), losses_BK.flatten())
            mean: torch.Tensor = (sums_R / counts_R.clamp(min=1)).mean()
            return mean
        total = F.cross_entropy(
            outputs.logits.float().flatten(0, 1), targets_BK.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        # The count is over all workers, and DDP averages the gradients over them.
        loss: torch.Tensor = total / num_items_in_batch * self.accelerator.num_processes
        return loss


def _rows_of(inputs: dict[str, torch.Tensor], positions_K: torch.Tensor) -> torch.Tensor:
    """The number of the row that each scored position belongs to, [B, K]: several may follow one another as one."""
    if "position_ids" in inputs:
        return (inputs["position_ids"] == 0).cumsum(dim=1)[:, positions_K] - 1
    rows_B = torch.arange(len(inputs["input_ids"]), device=positions_K.device)
    return rows_B[:, None].expand(-1, len(positions_K))


def _collator(job: SftJob, worker: setup.Worker) -> Callable[[Sequence[Any]], dict[str, torch.Tensor]]:
    if job.place.attention == "flash_attention_2":
        return batching.collate_flat
    return partial(batching.collate, pad=cast(int, worker.tokenizer.pad_token_id))


def _tokens(job: SftJob, tokenizer: PreTrainedTokenizerBase, settings: SftSettings) -> tokens.Tokens:
    if job.tokens is not None:
        return tokens.read(Path(job.tokens))
    return tokens.of_rows(Path(job.train_file), Path(job.val_file) if job.val_file else None, tokenizer, settings)


def _dataset(rows: list[Example]) -> Dataset:
    return Dataset.from_dict({"input_ids": [row.input_ids for row in rows], "labels": [row.labels for row in rows]})
