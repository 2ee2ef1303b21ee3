"""transformers' trainer with what has to be different here, from the newest checkpoint to the end."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase, Trainer

from ucotron_ray.core.errors import StageFailed, Stopped
from ucotron_ray.training import sharding
from ucotron_ray.training.best import BestAdapter
from ucotron_ray.training.checkpoints import Checkpoints, newest_checkpoint, not_finite
from ucotron_ray.training.hooks import NO_HOOKS, Hooks
from ucotron_ray.training.job import CHECKPOINTS
from ucotron_ray.training.workers import over_workers, rank_and_world

log = logging.getLogger(__name__)


class CorrectedTrainer(Trainer):  # type: ignore[misc]  # transformers has no types
    """transformers' trainer, with the batches of this run and with F1 at each evaluation. A mix-in."""

    hooks = NO_HOOKS
    best: BestAdapter | None = None

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        # accelerate refuses a base that is spread over GPUs (`prepare_model`: «DTensor … incompatible»), though
        # DDP does not touch what it is told to ignore.
        if training and model is self.model and sharding.is_spread(model):
            return sharding.averaged(model)
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
        if self.best is not None and self.best.seen(self.state.log_history, self.accelerator.unwrap_model(self.model)):
            self.control.should_training_stop = True
            # From a checkpoint of this step a run would go on; from the one before it stops here again.
            self.control.should_save = False
        return metrics


def train_to_end(trainer: Trainer, stage: str, directory: Path, rank: int, checkpoints: Checkpoints) -> None:
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
        trainer.args.eval_strategy != "no"
        and not checkpoints.stopped
        and not any("eval_loss" in entry for entry in at_end)
    ):
        # The last step is to be compared with the best one. With an evaluation an epoch it was scored, but for a
        # worker that was lost meanwhile: its checkpoint is of the last step, and no epoch is left.
        trainer.evaluate()
    if checkpoints.stopped:
        raise Stopped(
            f"{stage} was asked to stop and did, after step {trainer.state.global_step} of {trainer.state.max_steps}",
            where=str(directory / CHECKPOINTS / f"checkpoint-{trainer.state.global_step}"),
            next_step="run the same command again: it goes on from this checkpoint",
        )
    if not math.isfinite(outcome.training_loss):
        raise not_finite(stage, trainer.state.global_step, directory, f"a mean loss of {outcome.training_loss}")


def _f1(hooks: Hooks, model: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
    """Micro F1 over all workers' shares."""
    assert hooks.score is not None
    # The passes of a spread model are collective, and shares of rows would need different numbers of them.
    rank, world = (0, 1) if sharding.is_spread(model) else rank_and_world()
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
