"""One trial: the stage's own training function, with hooks that score, keep the best adapter and tell. No Ray in it.

What a trial leaves in its directory: what its training leaves, `best/` (the adapter of its best score) and
`outcome.json`, which is written last and says how it ended. Run again it goes on from its newest checkpoint; with an
outcome it is not run again.
"""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ucotron_ray.core.errors import LossNotFinite, Stopped, UcotronRayError
from ucotron_ray.core.files import write_json
from ucotron_ray.core.spool import Spool
from ucotron_ray.evaluation.scoring import RowScore, summary
from ucotron_ray.projection.job import FitJob
from ucotron_ray.training.hooks import Hooks
from ucotron_ray.training.job import DpoJob, SftJob
from ucotron_ray.tuning.job import BEST, OUTCOME, STOP, TrialJob
from ucotron_ray.tuning.record import rank_of_f1

log = logging.getLogger(__name__)

Tell = Callable[[Mapping[str, Any]], None]
"""Given step, value, low, high, loss, answer_seconds, seconds, at and began of each score. May never return."""


def run(job: TrialJob, tell: Tell, *, rank: int = 0, world: int = 1) -> dict[str, Any]:
    """Train, and return the outcome: `state` (finished, interrupted or failed), `cause` and `metrics`.

    On several workers it is called on each of them, with torch's process group set up. Any error is an outcome, so that
    the sweep goes on; but on several workers an error that one of them may have alone is raised, for Ray to try again.
    """
    directory = Path(job.directory)
    kept = outcome_of(directory)
    if kept is not None:
        return kept
    log.info("trial %s, worker %d of %d, pid %d", job.trial, rank, world, os.getpid())
    outcome: dict[str, Any]
    try:
        outcome = {"state": "finished", "cause": None, "metrics": _train(job, tell, rank)}
    except Stopped:
        # No outcome is written: the next run goes on from the checkpoint.
        return {"state": "interrupted", "cause": "the sweep was stopped", "metrics": {}}
    except Exception as error:
        # A loss that is no number is one on all workers; a missing file or a full disk may be one worker's alone, and
        # the others would wait for it in a collective call.
        if world > 1 and not isinstance(error, LossNotFinite):
            raise
        log.warning("tune: %s failed", job.trial, exc_info=None if isinstance(error, UcotronRayError) else error)
        outcome = {"state": "failed", "cause": cause_of(error), "metrics": {}}
    if rank == 0:
        write_json(directory / OUTCOME, outcome)
    return outcome


def outcome_of(directory: Path) -> dict[str, Any] | None:
    """How a trial ended; None if it did not."""
    try:
        outcome: dict[str, Any] = json.loads((directory / OUTCOME).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return outcome


def best_of(directory: Path) -> dict[str, Any] | None:
    """The score whose adapter lies in `best/`; None if none does."""
    try:
        score: dict[str, Any] = json.loads((directory / BEST / "score.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return score


def cause_of(error: BaseException) -> str:
    """An error in one line: what, and what was found."""
    if isinstance(error, UcotronRayError):
        return (
            error.problem + (f": {error.found}" if error.found else "") + (f" ({error.where})" if error.where else "")
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'without a message'}"[:400]


class Scores:
    """Scores a model in training, keeps what is best, and tells.

    Args:
        job: the trial.
        tell: told of every score, on worker 0.
        rank: of this worker.
    """

    def __init__(self, job: TrialJob, tell: Tell, rank: int) -> None:
        from ucotron_ray.evaluation.generate import triples_of  # noqa: PLC0415 - torch, in the worker only

        self._job, self._tell, self._rank = job, tell, rank
        self._rows: list[RowScore] = []
        self._model: Any = None
        self._answer_seconds = self._scoring_seconds = 0.0
        self._began: float | None = None
        self._score = triples_of(
            Path(job.training["val_file"]),
            job.f1_rows,
            max_new_tokens=job.max_new_tokens,
            batch_size=job.eval_batch,
            each=self._rows.append,
        )

    def score(self, model: Any, tokenizer: Any, rank: int, world: int) -> tuple[int, int, int]:
        """The counts of this worker's share of the rows."""
        self._rows.clear()
        self._model = model
        started = time.monotonic()
        counts = self._score(model, tokenizer, rank, world)
        self._scoring_seconds = time.monotonic() - started
        self._answer_seconds = self._scoring_seconds / max(1, len(self._rows))
        if world > 1:
            self._rows[:] = _gathered(self._rows)
        return counts

    def logged(self, metrics: Mapping[str, float]) -> None:
        """A log of the training."""
        if self._began is None and "loss" in metrics:
            self._began = time.time()

    def evaluated(self, metrics: Mapping[str, float]) -> None:
        """A score: what all workers' rows gave."""
        if self._rank != 0:
            return
        made = summary(self._rows)
        loss = metrics.get("eval_loss")
        score = {
            "step": int(metrics["step"]),
            "value": metrics["eval_f1"],
            "low": made["f1_low"],
            "high": made["f1_high"],
            "loss": loss if loss is not None and math.isfinite(loss) else None,
            "answer_seconds": self._answer_seconds,
            "seconds": self._scoring_seconds,
        }
        self._keep_best(score)
        self._tell({**score, "at": time.time(), "began": self._began})

    def _keep_best(self, score: Mapping[str, Any]) -> None:
        directory = Path(self._job.directory)
        best = best_of(directory)
        # By the very rule by which the record names a step: else best.yaml would name one and hold another's weights.
        if best is not None and rank_of_f1(best["value"], best["loss"]) >= rank_of_f1(score["value"], score["loss"]):
            return
        aside, target = directory / f"{BEST}.partial", directory / BEST
        shutil.rmtree(aside, ignore_errors=True)
        self._model.save_pretrained(str(aside), safe_serialization=True)
        (aside / "README.md").unlink(missing_ok=True)
        write_json(aside / "score.json", dict(score))
        shutil.rmtree(target, ignore_errors=True)
        os.replace(aside, target)


def _train(job: TrialJob, tell: Tell, rank: int) -> dict[str, float]:
    spool = Spool(Path(job.spool), job.run)

    def spooled(metrics: Mapping[str, float]) -> None:
        if rank == 0:
            step = int(metrics["step"])
            spool.metrics({key: value for key, value in metrics.items() if key != "step"}, step=step)

    if job.stage == "projection":
        return _fit(job, tell, spooled)
    scores = Scores(job, tell, rank)

    def report(metrics: Mapping[str, float]) -> None:
        scores.logged(metrics)
        spooled(metrics)

    hooks = Hooks(evaluated=scores.evaluated, score=scores.score)
    # `Scores` keeps the best adapter itself, with the interval of its score.
    training = {**job.training, "settings": {**job.training["settings"], "keep": "last"}}
    if job.stage == "dpo":
        from ucotron_ray.training import dpo  # noqa: PLC0415 - torch, in the worker only

        return dpo.train(DpoJob(**training), report, hooks)
    from ucotron_ray.training import sft  # noqa: PLC0415

    return sft.train(SftJob(**training), report, hooks)


def _fit(job: TrialJob, tell: Tell, spooled: Callable[[Mapping[str, float]], None]) -> dict[str, float]:
    """The projection has no F1: it is judged by the cosine loss of its validation pairs, once an epoch."""
    import torch  # noqa: PLC0415

    from ucotron_ray.projection.fit import fit  # noqa: PLC0415

    stop, entered = Path(job.directory) / STOP, time.time()

    def report(metrics: Mapping[str, float]) -> None:
        spooled(metrics)
        tell({"step": int(metrics["step"]), "value": metrics["val_loss"], "at": time.time(), "began": entered})
        if stop.exists():
            # The checkpoint of this epoch is written.
            raise Stopped("the sweep was stopped")

    return fit(FitJob(**job.training), report, device="cuda:0" if torch.cuda.is_available() else "cpu")


def _gathered(rows: list[RowScore]) -> list[RowScore]:
    """The rows of all workers, on each of them. Only counts and labels travel."""
    import torch  # noqa: PLC0415

    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, rows)
    return [row for share in shares for row in share]
