"""The step whose adapter is kept: the one with the best validation score. And when to stop waiting for a better one.

A score is F1 where rows are answered in training (`eval_f1_rows`; of equal F1 the lower loss), else the loss. What is
best is read off the trainer's history, which every checkpoint has: a resumed run decides as the straight one.
"""

import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.core.hyperparameters import LoraSettings
from ucotron_ray.training.job import BEST_STEPS, LAST_STEP

log = logging.getLogger(__name__)

KEEP_BEST = "best"


@dataclass(frozen=True)
class Score:
    """One evaluation on the validation rows. `f1` is None where no row was answered."""

    step: int
    loss: float
    f1: float | None = None

    @property
    def rank(self) -> tuple[float, float]:
        """Greater is better."""
        return (self.f1 if self.f1 is not None else 0.0, -self.loss if math.isfinite(self.loss) else -math.inf)

    def __str__(self) -> str:
        return f"validation F1 {self.f1:.3f}" if self.f1 is not None else f"validation loss {self.loss:.4f}"

    def figures(self) -> dict[str, float]:
        """The score as metrics of the training."""
        named = {"eval_loss": self.loss, "eval_f1": self.f1, "kept_step": float(self.step)}
        return {name: value for name, value in named.items() if value is not None}


def scores(history: Sequence[Mapping[str, Any]]) -> list[Score]:
    """The evaluations of a history, in their order; one that was made again after a resume counts once."""
    found: dict[int, Score] = {}
    for entry in history:
        step = int(entry.get("step", 0))
        if "eval_loss" in entry:
            found[step] = Score(step, float(entry["eval_loss"]))
        elif "eval_f1" in entry and step in found:
            found[step] = Score(step, found[step].loss, float(entry["eval_f1"]))
    return [found[step] for step in sorted(found)]


def best(found: Sequence[Score]) -> Score | None:
    """The best score, of equal ones the first; None where there is none."""
    return max(found, key=lambda score: (score.rank, -score.step), default=None)


def without_gain(found: Sequence[Score]) -> int:
    """How many evaluations there were since the best one."""
    top = best(found)
    return 0 if top is None else sum(score.step > top.step for score in found)


class BestAdapter:
    """Keeps the adapter of every new best score in the directory of a training, as `settings` say.

    Args:
        settings: `keep` and `patience`.
        directory: of the training.
        rank: of this worker; the first one writes.
    """

    def __init__(self, settings: LoraSettings, directory: Path, rank: int) -> None:
        self._settings, self._directory, self._rank = settings, directory / BEST_STEPS, rank

    def seen(self, history: Sequence[Mapping[str, Any]], model: Any) -> bool:
        """After an evaluation: keep the adapter if it is the best so far. Returns whether training is to stop."""
        found = scores(history)
        if not found:
            return False
        if self._settings.keep == KEEP_BEST and self._rank == 0:
            others = best([score for score in found[:-1] if self._path(score).is_dir()])
            if others is None or found[-1].rank > others.rank:
                self._write(found[-1], model)
        waited = without_gain(found)
        stops = 0 < self._settings.patience <= waited
        if stops and self._rank == 0:
            log.info("training: stopped at step %d: %d evaluations without a better one", found[-1].step, waited)
        return stops

    def saved(self, history: Sequence[Mapping[str, Any]], step: int) -> None:
        """After a checkpoint: remove what is not the best of its history, which is what a resumed run starts from."""
        top = best([score for score in scores(history) if self._path(score).is_dir()])
        for path in self._directory.glob("step-*"):
            number = int(path.name.removeprefix("step-"))
            if self._rank == 0 and number <= step and (top is None or number != top.step):
                shutil.rmtree(path, ignore_errors=True)

    def kept(self, history: Sequence[Mapping[str, Any]]) -> tuple[Path, Score] | None:
        """The adapter to publish and its score; None where it is that of the last step, whatever its score."""
        top = best([score for score in scores(history) if self._path(score).is_dir()])
        return (self._path(top), top) if top is not None else None

    def _path(self, score: Score) -> Path:
        return self._directory / f"step-{score.step}"

    def _write(self, score: Score, model: Any) -> None:
        aside, target = self._directory / "partial", self._path(score)
        shutil.rmtree(aside, ignore_errors=True)
        model.save_pretrained(str(aside), safe_serialization=True)
        # A killed attempt may have left an adapter of this very step.
        shutil.rmtree(target, ignore_errors=True)
        os.replace(aside, target)


def described(kept: Score | None, history: Sequence[Mapping[str, Any]], last_step: int) -> dict[str, Any]:
    """Which step the adapter is, for `training.json`: the step, why, and the scores that it was chosen among."""
    found = scores(history)
    reason = LAST_STEP if kept is None else f"the best {'F1' if kept.f1 is not None else 'loss'} on validation rows"
    return {
        "step": kept.step if kept is not None else last_step,
        "of": last_step,
        "because": reason,
        "scores": [asdict(score) for score in found],
    }
