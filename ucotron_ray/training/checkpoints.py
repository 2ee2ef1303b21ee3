"""Checkpoints: whole or not, the newest good one, and when one is asked for out of turn."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ucotron_ray.core.errors import LossNotFinite
from ucotron_ray.core.files import file_hash, list_files, write_json
from ucotron_ray.training.best import BestAdapter
from ucotron_ray.training.job import CHECKPOINTS, STOP

log = logging.getLogger(__name__)

CHECKPOINT_RECORD = "checkpoint.json"
KEPT_CHECKPOINTS = 2


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


def not_finite(stage: str, step: int, directory: Path, found: str) -> LossNotFinite:
    """The error for a training that has left the numbers."""
    kept = newest_checkpoint(directory / CHECKPOINTS)
    return LossNotFinite(
        "the training loss is not finite",
        where=f"{stage}, step {step}",
        found=found,
        next_step=f"halve training.{stage}.<tier>.learning_rate and start again with --replace; the last good "
        f"checkpoint is kept: {kept or 'none was written yet'}",
    )


class Checkpoints(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Completes every checkpoint with a record of its bytes, and saves and stops when it is asked to.

    Args:
        stage: for messages.
        directory: of the job; the file `STOP` in it asks to stop.
        rank: of this worker.
        world: how many there are.
        preempted: whether the machine is about to be taken away; asked on all workers at every log.
        best: what keeps the best adapter, which is tidied with every checkpoint.
    """

    def __init__(
        self, stage: str, directory: Path, rank: int, world: int, preempted: Callable[[], bool], best: BestAdapter
    ) -> None:
        self._best = best
        self._stage, self._directory, self._rank, self._world = stage, directory, rank, world
        self._preempted, self._saved_for_preemption = preempted, False
        # On processors whatever the training uses: asking must not wait for a GPU.
        self._group = torch.distributed.new_group(backend="gloo") if world > 1 else None
        self.stopped = self._waits = False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # A checkpoint comes after the evaluation of its step: resumed, the trainer would not make up for it, and the
        # best step could be another one than without the interruption.
        self._waits = control.should_save and args.eval_strategy == "epoch" and float(state.epoch or 0).is_integer()
        if self._waits:
            control.should_save = False
        if self._stop_asked() and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.stopped:
            # The checkpoint is written; who asked to stop does not want to wait for scores.
            control.should_evaluate = control.should_save = False
        elif self._waits:
            control.should_save = True

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._preempted() and not self._saved_for_preemption:
            log.warning("%s: this machine is about to be taken away; saving a checkpoint now", self._stage)
            self._saved_for_preemption = control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        trained = [parameter for parameter in kwargs["model"].parameters() if parameter.requires_grad]
        if not all(bool(torch.isfinite(parameter).all()) for parameter in trained):
            # Without a record it is no checkpoint: the one before stays the newest good one.
            raise not_finite(self._stage, state.global_step, self._directory, "a weight that is no number")
        # Every rank has written its random state; only then is the checkpoint whole.
        if self._world > 1:
            torch.distributed.barrier()
        path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if self._rank == 0:
            files = {entry.path: entry.sha256 for entry in list_files(path) if entry.path != CHECKPOINT_RECORD}
            write_json(path / CHECKPOINT_RECORD, {"step": state.global_step, "files": files})
        self._best.saved(state.log_history, state.global_step)

    def _stop_asked(self) -> bool:
        asked = torch.tensor([self._rank == 0 and (self._directory / STOP).exists()], dtype=torch.int32)
        if self._group is not None:
            # Workers must agree on the step, or one would wait for the other's gradients.
            torch.distributed.broadcast(asked, src=0, group=self._group)
        return bool(asked.item())


def _is_whole(path: Path) -> bool:
    try:
        record = json.loads((path / CHECKPOINT_RECORD).read_text(encoding="utf-8"))
        return all(file_hash(path / name) == digest for name, digest in record["files"].items())
    except (OSError, ValueError, KeyError):
        return False
