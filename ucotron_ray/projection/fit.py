"""Trains the projection layer on encoded pairs: one process, or several that each take their share of every batch.

Loss: 1 - mean cosine of projection and MiniLM vector. AdamW; learning rate with linear warm-up and half a cosine down
to zero (Loshchilov & Hutter, arXiv:1608.03983); the epoch with the lowest validation loss is kept. After every epoch a
checkpoint holds all that the next one depends on, so that a run that goes on is bit-equal to one that was not stopped.
"""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cosine_similarity, normalize

from ucotron_ray.core.errors import InputError, StageFailed
from ucotron_ray.core.files import write_json
from ucotron_ray.core.recipe import Projection
from ucotron_ray.projection import model, pairs, retrieval
from ucotron_ray.projection.job import FitJob

log = logging.getLogger(__name__)

Report = Callable[[Mapping[str, float]], None]

CHECKPOINT, RECORD = "checkpoint.safetensors", "training.json"
EVALUATION_ROWS = 8192
SHRINKAGE = 1.0
"""Added to every eigenvalue when vectors are whitened, as a share of their mean: the strong directions are evened out,
and those in which the vectors hardly differ are not blown up. 4,000 stand-in pairs, 10 epochs at 1e-3: validation loss
0.151; with 0.001 it is 0.181, with 10 0.168, without whitening 0.406."""


@dataclass
class Progress:
    """Where a training stands. All of it is in the checkpoint."""

    epoch: int = 0
    step: int = 0
    best_loss: float = math.inf
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Data:
    """Vectors on the device: CLIP [N, 512] as they come, MiniLM [N, 384], for training and validation.

    The layer trains on (x - mean) @ whitening.
    """

    x_train: torch.Tensor
    y_train: torch.Tensor
    x_val: torch.Tensor
    y_val: torch.Tensor
    mean: torch.Tensor
    whitening: torch.Tensor


def fit(job: FitJob, report: Report, *, device: str = "cpu") -> dict[str, float]:
    """Train, leave `model.safetensors`, `config.json` and `training.json` in the directory, return the figures.

    Raises InputError where pairs and settings do not go together, StageFailed where the loss is not finite.
    """
    settings = Projection.model_validate(job.settings)
    if device != "cpu":
        torch.cuda.set_device(device)  # collectives of plain objects go through the current device
    elif job.num_threads:
        torch.set_num_threads(job.num_threads)
    rank, world = _rank_and_world()
    if settings.batch_size % world:
        raise InputError(
            "the batch cannot be shared evenly",
            where="projection.batch_size, workers.num_workers",
            expected="batch_size = num_workers x a whole number",
            found=f"{settings.batch_size} pairs, {world} workers",
        )
    data, counts = _load(job, settings, device)
    directory = Path(job.directory)
    torch.manual_seed(settings.seed)
    layer = model.build(settings.hidden_dim, settings.dropout).to(device)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    progress, best = _resume(directory / CHECKPOINT, layer, optimizer)
    wrapped = nn.parallel.DistributedDataParallel(layer) if world > 1 else layer
    while progress.epoch < settings.epochs and not _is_over(progress, settings.patience):
        began = time.monotonic()
        train_loss = _epoch(wrapped, optimizer, data, settings, progress, rank, world)
        val_loss = _agreed(_loss(layer, data), world)
        if not math.isfinite(train_loss + val_loss):
            raise StageFailed(
                "the loss is not finite",
                found=f"training {train_loss}, validation {val_loss}",
                next_step="lower projection.learning_rate and start again with --replace",
            )
        if val_loss < progress.best_loss:
            progress.best_loss, progress.best_epoch = val_loss, progress.epoch
            best = {name: tensor.detach().clone() for name, tensor in layer.state_dict().items()}
            if rank == 0:
                # A trial of a sweep that is stopped comes to no end, and may be the best all the same.
                _save_layer(job, settings, data, best)
        progress.epoch += 1
        figures = {"train_loss": train_loss, "val_loss": val_loss, "epoch": float(progress.epoch)}
        progress.history.append({**figures, "seconds": time.monotonic() - began})
        if rank == 0:
            _save_checkpoint(directory / CHECKPOINT, layer, optimizer, progress, best)
            log.info(
                "projection: epoch %d/%d  loss %.4f  validation %.4f",
                progress.epoch,
                settings.epochs,
                train_loss,
                val_loss,
            )
        report({**figures, "step": float(progress.step)})
    if rank == 0:
        _save_layer(job, settings, data, best)
        write_json(directory / RECORD, {"settings": job.settings, "counts": counts, **asdict(progress)})
    return _figures(progress, settings)


def learning_rate(step: int, total: int, settings: Projection) -> float:
    """The rate of step 0 … total - 1."""
    if settings.lr_scheduler == "constant":
        return settings.learning_rate
    warmup = math.ceil(settings.warmup_ratio * total)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def _load(job: FitJob, settings: Projection, device: str) -> tuple[Data, dict[str, int]]:
    loaded = pairs.load(Path(job.pairs))
    parts = pairs.split(loaded.keys, seed=settings.seed, val=settings.val_split, test=settings.test_split)
    counts = pairs.counts(parts)
    if not counts["train"]:
        raise InputError(
            "there are no pairs to train on",
            where=job.pairs,
            expected="pairs for training, validation and test",
            found=f"{counts['val']} for validation, {counts['test']} for test",
            next_step="encode more descriptions, or lower projection.val_split and projection.test_split",
        )
    retrieval.refuse_empty(counts, job.pairs)
    x = torch.from_numpy(loaded.clip[parts["train"]])
    mean, whitening = (
        whitened(x, settings.noise) if settings.whiten else (torch.zeros(pairs.CLIP_DIM), torch.eye(pairs.CLIP_DIM))
    )
    y, x_val, y_val = (
        torch.from_numpy(part)
        for part in (loaded.minilm[parts["train"]], loaded.clip[parts["val"]], loaded.minilm[parts["val"]])
    )
    return Data(*(tensor.to(device) for tensor in (x, y, x_val, y_val, mean, whitening))), counts


def _epoch(
    layer: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Data,
    settings: Projection,
    progress: Progress,
    rank: int,
    world: int,
) -> float:
    """One pass in a seeded order; returns the mean loss. The last batch is filled up from the order's beginning."""
    layer.train()
    num_rows, batch, share = len(data.x_train), settings.batch_size, settings.batch_size // world
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(settings.seed * 1009 + progress.epoch))
    num_steps = math.ceil(num_rows / batch)
    order = order.repeat(math.ceil(num_steps * batch / num_rows))[: num_steps * batch]
    # Dropout and noise of an epoch follow from seed, epoch and rank: nothing else has to be kept for a resume.
    torch.manual_seed((settings.seed * 1009 + progress.epoch) * 257 + rank)
    total = torch.zeros((), device=data.mean.device)
    for start in range(rank * share, len(order), batch):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(progress.step, num_steps * settings.epochs, settings)
        rows = order[start : start + share].to(data.mean.device)
        x = _prepared(_noisy(data.x_train[rows], settings.noise), data)
        loss = 1 - cosine_similarity(layer(x), data.y_train[rows], dim=-1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it
        if settings.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(layer.parameters(), settings.max_grad_norm)
        optimizer.step()
        progress.step += 1
        total += loss.detach()
    if world > 1:
        torch.distributed.all_reduce(total)
    return float(total) / num_steps / world


def _noisy(x: torch.Tensor, noise: float) -> torch.Tensor:
    """Text vectors moved by a random vector of expected length `noise`, then back to length 1.

    Images lie beside texts in CLIP's space, not among them: noise in training makes the layer take what lies near a
    text for it (CapDec, arXiv:2211.00575).
    """
    return normalize(x + torch.randn_like(x) * (noise / x.shape[-1] ** 0.5), dim=-1) if noise else x


def whitened(x: torch.Tensor, noise: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [512] and symmetric matrix [512, 512] that bring noisy x [N, 512] to mean 0 and a covariance near 1.

    CLIP's vectors lie in a narrow cone, in which a few directions hold most of the variance: gradient descent on the
    vectors as they come learns the others slowly.
    """
    mean = x.double().mean(0)
    centred = x.double() - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    values = values.clamp(min=0)
    variances = values + SHRINKAGE * values.mean() + noise**2 / x.shape[-1]
    scale = variances.clamp(min=1e-12).rsqrt()
    return mean.float(), (vectors * scale @ vectors.T).float()


def _prepared(x: torch.Tensor, data: Data) -> torch.Tensor:
    return (x - data.mean) @ data.whitening


@torch.no_grad()
def _loss(layer: nn.Module, data: Data) -> float:
    """The cosine loss of the validation rows, over all rows and not over batch means."""
    layer.eval()
    total = 0.0
    for start in range(0, len(data.x_val), EVALUATION_ROWS):
        part = slice(start, start + EVALUATION_ROWS)
        projected = layer(_prepared(data.x_val[part], data))
        total += float(cosine_similarity(projected, data.y_val[part], dim=-1).double().sum())
    return 1 - total / len(data.x_val)


def _is_over(progress: Progress, patience: int) -> bool:
    return patience > 0 and progress.epoch - 1 - progress.best_epoch >= patience


def _agreed(loss: float, world: int) -> float:
    """Worker 0's value on all of them: they must stop in the same epoch."""
    if world == 1:
        return loss
    agreed: list[Any] = [loss]
    torch.distributed.broadcast_object_list(agreed, src=0)
    return float(agreed[0])


def _rank_and_world() -> tuple[int, int]:
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def _save_checkpoint(
    path: Path, layer: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, best: model.Tensors
) -> None:
    """Layer, best layer and the optimizer's moments in one file, renamed into place."""
    tensors = {f"layer.{name}": tensor for name, tensor in layer.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{name}": tensor for name, tensor in moments.items()}
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, aside, metadata={"progress": json.dumps(asdict(progress))})
    os.replace(aside, path)


def _resume(path: Path, layer: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Put a checkpoint back where there is a whole one. Returns where the training stands and its best layer."""
    if not path.is_file():
        return Progress(), {}
    parts: dict[str, dict[str, torch.Tensor]] = {"layer": {}, "best": {}, "adam": {}}
    try:
        with safe_open(path, framework="pt") as opened:
            progress = Progress(**json.loads(opened.metadata()["progress"]))
            for name in opened.keys():  # noqa: SIM118 - no mapping
                part, _, rest = name.partition(".")
                parts[part][rest] = opened.get_tensor(name)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        log.warning("projection: %s is not whole and is passed over", path)
        return Progress(), {}
    layer.load_state_dict(parts["layer"])
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in parts["adam"].items():
        number, _, key = name.partition(".")
        moments.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    log.info("projection: going on after epoch %d", progress.epoch)
    return progress, parts["best"]


def _save_layer(job: FitJob, settings: Projection, data: Data, best: model.Tensors) -> None:
    config = model.LayerConfig(
        hidden_dim=settings.hidden_dim,
        dropout=settings.dropout,
        split={"seed": settings.seed, "val": settings.val_split, "test": settings.test_split},
        encoders=job.encoders,
    )
    model.save(Path(job.directory), model.fold(best, data.mean.cpu(), data.whitening.cpu()), config)


def _figures(progress: Progress, settings: Projection) -> dict[str, float]:
    return {
        "best_val_loss": progress.best_loss,
        "best_epoch": float(progress.best_epoch + 1),
        "epochs": float(progress.epoch),
        "steps": float(progress.step),
        "train_loss_first": progress.history[0]["train_loss"],
        "train_loss_last": progress.history[-1]["train_loss"],
        "seconds_training": sum(entry["seconds"] for entry in progress.history),
        "target": settings.target,
    }
