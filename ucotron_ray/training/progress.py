"""What is measured while a model trains, and who is told: the caller, the log, TensorBoard, the report."""

import logging
import math
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ucotron_ray.training.checkpoints import not_finite
from ucotron_ray.training.hooks import Report

log = logging.getLogger(__name__)

TENSORBOARD = "tensorboard"


class StepClock:
    """Times of steps and of the waits for their rows, by the host's clock. Evaluation and checkpoints do not count."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.waits: list[float] = []
        self._free: float | None = None
        self._began = 0.0

    def begin(self, now: float) -> None:
        """The rows are there, the step begins. The first step has no wait: it would be the start of everything."""
        self.waits.append(now - self._free if self._free is not None else 0.0)
        self._began = now

    def end(self, now: float) -> None:
        """The step is done."""
        self.steps.append(now - self._began)
        self._free = now

    def resume(self, now: float) -> None:
        """Something that is no training is done: what comes next is waiting for rows again."""
        if self._free is not None:
            self._free = now

    def figures(self) -> dict[str, float]:
        """Seconds a step (median, 95th percentile) and the share of the time that was spent waiting for rows.

        Without the first two steps if there are enough others: they also set the libraries up.
        """
        skipped = min(2, len(self.steps) // 4)
        steps, waits = np.array(self.steps[skipped:]), np.array(self.waits[skipped : len(self.steps)])
        every = float(steps.sum() + waits.sum())
        return {
            "step_p50": float(np.median(steps)),
            "step_p95": float(np.quantile(steps, 0.95)),
            "data_wait_share": float(waits.sum()) / max(every, 1e-9),
            "seconds_per_step": every / len(steps),
        }


class Work:
    """Mean tokens and FLOPs of one optimizer step over all workers, and the FLOP/s that could be had.

    `peak` is of one worker: (FLOP/s, what they are), or None where nobody knows.
    """

    def __init__(
        self, *, tokens: float, padded: float, labels: float, flops: float | None, peak: tuple[float, str] | None
    ) -> None:
        self.tokens, self.padded, self.labels, self.flops, self.peak = tokens, padded, labels, flops, peak

    def rates(self, seconds_per_step: float, world: int) -> dict[str, float]:
        """Tokens a second (without padding, with it, labels), and MFU in the convention 4N."""
        made = {
            "tokens_per_second": self.tokens / seconds_per_step,
            "padded_tokens_per_second": self.padded / seconds_per_step,
            "label_tokens_per_second": self.labels / seconds_per_step,
        }
        if self.flops and self.peak:
            made["mfu_4n"] = self.flops / seconds_per_step / (self.peak[0] * world)
        return made


class Progress(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Adds rates to every log, reports it, says a line, and stops a training whose loss is no number."""

    def __init__(self, stage: str, directory: Path, work: Work, report: Report, rank: int, world: int) -> None:
        self._stage, self._directory, self._work, self._report = stage, directory, work, report
        self._rank, self._world = rank, world
        self._clock = StepClock()
        self._losses: list[float] = []
        self._board: Any = None
        self.memory_before = resident_bytes()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        self._clock.begin(time.monotonic())

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # A GPU's work is only ordered here. What follows waits for it, and that time would be counted as none of
        # training's. (Between two such moments the queue is short against a step: the steps' sum is right.)
        if torch.cuda.is_available() and (control.should_log or control.should_evaluate or control.should_save):
            torch.cuda.synchronize()
        self._clock.end(time.monotonic())

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
        if "loss" in metrics:
            if not math.isfinite(metrics["loss"]):
                raise not_finite(self._stage, state.global_step, self._directory, f"a loss of {metrics['loss']}")
            metrics |= self.figures()
            if state.log_history and state.log_history[-1].get("step") == state.global_step:
                # The history, from which the curves of the report are drawn.
                state.log_history[-1].update(metrics)
            self._say(metrics, state)
        self._report({**metrics, "step": float(state.global_step)})
        self._draw(metrics, state.global_step)
        self._clock.resume(time.monotonic())

    def on_save(self, *args: Any, **kwargs: Any) -> None:
        self._clock.resume(time.monotonic())

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        self._clock.resume(time.monotonic())

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        if self._board is not None:
            self._board.close()

    def figures(self) -> dict[str, float]:
        """Everything measured so far in this process."""
        if not self._clock.steps:
            return {}
        timed = self._clock.figures()
        rates = self._work.rates(timed.pop("seconds_per_step"), self._world)
        # Linux counts resident pages per processor and adds them up late: a worker that needed nothing may seem to
        # have had its peak some pages below where it began (4,096 bytes, seen once).
        needed = max(0.0, peak_bytes() - self.memory_before)
        return {**timed, **rates, "memory_peak_gb": needed / 1e9}

    def _say(self, metrics: Mapping[str, float], state: TrainerState) -> None:
        self._losses.append(metrics["loss"])
        if self._rank != 0:
            return
        left = (state.max_steps - state.global_step) * self._work.tokens / metrics["tokens_per_second"]
        log.info(
            "%s: step %d/%d  loss %.3f  %.0f tokens/s  %.0f s left",
            self._stage,
            state.global_step,
            state.max_steps,
            metrics["loss"],
            metrics["tokens_per_second"],
            left,
        )
        window = 5
        if len(self._losses) == 4 * window:
            first, last = sum(self._losses[:window]) / window, sum(self._losses[-window:]) / window
            if last > 0.98 * first:
                log.warning(
                    "%s: the training loss does not fall (%.3f, then %.3f): halve the learning rate, raise the LoRA "
                    "rank, or check that the rows state what their answers say",
                    self._stage,
                    first,
                    last,
                )

    def _draw(self, metrics: Mapping[str, float], step: int) -> None:
        if self._rank != 0:
            return
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - a second, in workers only

            self._board = SummaryWriter(str(self._directory / TENSORBOARD))
        for name, value in metrics.items():
            group = "evaluation" if name.startswith("eval_") else "training"
            self._board.add_scalar(f"{group}/{name}", value, step)


def resident_bytes() -> float:
    """Memory of this process now; on a GPU that of the device that torch has allocated."""
    if torch.cuda.is_available():
        return float(torch.cuda.memory_allocated())
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return float(pages * resource.getpagesize())


def peak_bytes() -> float:
    """The most that `resident_bytes` ever was in this process."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
