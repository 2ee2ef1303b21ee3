"""What a training leaves: figures, adapter, record and report."""

import logging
import shutil
from pathlib import Path

from transformers import PreTrainedTokenizerBase, Trainer

from ucotron_ray.core.files import write_json, write_text
from ucotron_ray.training import report
from ucotron_ray.training.best import BestAdapter, Score, described, scores
from ucotron_ray.training.job import TrainingJob
from ucotron_ray.training.progress import Progress, Work

log = logging.getLogger(__name__)


def final_metrics(trainer: Trainer, counts: dict[str, int], progress: Progress, best: BestAdapter) -> dict[str, float]:
    """Steps, first and last loss, tokens, rates and memory, and step, validation loss and F1 of the adapter."""
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    metrics = {
        "steps": float(trainer.state.global_step),
        "train_loss_first": float(losses[0]),
        "train_loss_last": float(losses[-1]),
        "train_tokens": float(counts["tokens"] * trainer.args.num_train_epochs),
    }
    kept = best.kept(history)
    of_adapter = kept[1] if kept else _at(trainer, trainer.state.global_step)
    metrics |= of_adapter.figures() if of_adapter else {}
    return metrics | progress.figures()


def save_adapter(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    job: TrainingJob,
    counts: dict[str, int],
    metrics: dict[str, float],
    work: Work,
    best: BestAdapter,
) -> None:
    """Leave `adapter/`, which is the best step's or the last one's, `training.json` and `report.html`."""
    adapter, history = directory / "adapter", trainer.state.log_history
    kept = best.kept(history)
    if kept is None:
        model = trainer.accelerator.unwrap_model(trainer.model)
        model.save_pretrained(str(adapter), safe_serialization=True)
    else:
        shutil.copytree(kept[0], adapter, dirs_exist_ok=True)
        log.info("training: the adapter is that of step %d of %d: %s", kept[1].step, trainer.state.global_step, kept[1])
    (adapter / "README.md").unlink(missing_ok=True)
    tokenizer.save_pretrained(adapter)
    record = {
        "base": job.base,
        "settings": job.settings,
        "counts": counts,
        "metrics": metrics,
        "adapter": described(kept[1] if kept else None, history, trainer.state.global_step),
        "peak": f"{work.peak[0] / 1e12:.2f} TFLOP/s a worker ({work.peak[1]})" if work.peak else None,
        "history": history,
    }
    write_json(directory / "training.json", record)
    write_text(directory / "report.html", report.page(record))


def _at(trainer: Trainer, step: int) -> Score | None:
    """The evaluation at a step, if there was one."""
    return next((score for score in scores(trainer.state.log_history) if score.step == step), None)
