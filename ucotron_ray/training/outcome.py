"""What a training leaves: figures, adapter, record and report."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase, Trainer

from ucotron_ray.core.files import write_json, write_text
from ucotron_ray.training import report
from ucotron_ray.training.job import TrainingJob
from ucotron_ray.training.progress import Progress, Work


def final_metrics(trainer: Trainer, counts: dict[str, int], progress: Progress) -> dict[str, float]:
    """Steps, first and last loss, tokens, rates and memory, and the last validation loss and F1."""
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    metrics = {
        "steps": float(trainer.state.global_step),
        "train_loss_first": float(losses[0]),
        "train_loss_last": float(losses[-1]),
        "train_tokens": float(counts["tokens"] * trainer.args.num_train_epochs),
    }
    for name in ("eval_loss", "eval_f1"):
        values = [entry[name] for entry in history if name in entry]
        metrics |= {name: float(values[-1])} if values else {}
    return metrics | progress.figures()


def save_adapter(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    job: TrainingJob,
    counts: dict[str, int],
    metrics: dict[str, float],
    work: Work,
) -> None:
    """Leave `adapter/`, `training.json` and `report.html`."""
    adapter = directory / "adapter"
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.save_pretrained(str(adapter), safe_serialization=True)
    (adapter / "README.md").unlink(missing_ok=True)
    tokenizer.save_pretrained(adapter)
    record = {
        "base": job.base,
        "settings": job.settings,
        "counts": counts,
        "metrics": metrics,
        "peak": f"{work.peak[0] / 1e12:.2f} TFLOP/s a worker ({work.peak[1]})" if work.peak else None,
        "history": trainer.state.log_history,
    }
    write_json(directory / "training.json", record)
    write_text(directory / "report.html", report.page(record))
