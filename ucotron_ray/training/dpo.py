"""LoRA preference training (DPO). Plain Python, like `sft.py`, and through files alone.

The reference is the model that DPO starts from, which is the base of the fresh adapter. Its log-probabilities are
computed once for all runs on the same model and pairs (`write_reference`), so that a step costs one forward pass.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import PreTrainedTokenizerBase, PrinterCallback, TrainingArguments

from ucotron_ray.core.errors import InputError
from ucotron_ray.core.files import write_json
from ucotron_ray.core.hyperparameters import DpoSettings
from ucotron_ray.models import base as base_models
from ucotron_ray.models import precision, quantization
from ucotron_ray.training import batching, setup, tokens
from ucotron_ray.training.arguments import trainer_arguments
from ucotron_ray.training.best import BestAdapter
from ucotron_ray.training.checkpoints import Checkpoints
from ucotron_ray.training.data import IGNORED
from ucotron_ray.training.heap import HeapTrim
from ucotron_ray.training.hooks import NO_HOOKS, Hooks, Report
from ucotron_ray.training.job import DpoJob, TrainingJob
from ucotron_ray.training.outcome import final_metrics, save_adapter
from ucotron_ray.training.pairs import Pair
from ucotron_ray.training.progress import Progress
from ucotron_ray.training.trainer import CorrectedTrainer, train_to_end
from ucotron_ray.training.workers import over_workers

log = logging.getLogger(__name__)

TRAIN_REFERENCE, VAL_REFERENCE = "train.jsonl", "val.jsonl"

TELLING_SHARE = 0.6
"""Of pairs whose chosen answer is the longer one (or the shorter one), from which on lengths tell too much."""


def train(job: DpoJob, report: Report, hooks: Hooks = NO_HOOKS) -> dict[str, float]:
    """Train from the newest good checkpoint in the directory, or from the start; leave `adapter/` and `training.json`.

    At the first step the policy is the reference, and the loss ln 2.
    """
    settings = DpoSettings.model_validate(job.settings)
    directory = Path(job.directory)
    # In another type than the reference's the first loss would not be ln 2, and every margin be off by the difference.
    worker = setup.begin("dpo", job, settings, like=Path(job.reference))
    made = read_tokens(job, worker.tokenizer, settings)
    if not made.val:
        job = replace(job, val_file=None)
    train_pairs, val_pairs = tokens.as_pairs(made.train), tokens.as_pairs(made.val)
    batch = setup.batches(job, settings, *tokens.pair_lengths(made.train), worker, sequences=2)
    progress = Progress("dpo", directory, batch.work, report, worker.rank, worker.world)
    best = BestAdapter(settings, directory, worker.rank)
    checkpoints = Checkpoints("dpo", directory, worker.rank, worker.world, hooks.preempted, best)
    pad = cast(int, worker.tokenizer.pad_token_id)
    arguments = trainer_arguments(job, settings, dtype=worker.dtype, per_device=batch.per_device, world=worker.world)
    trainer = PairTrainer(
        model=setup.adapted(worker, job, settings),
        args=TrainingArguments(**arguments),
        train_dataset=_dataset(train_pairs, Path(job.reference) / TRAIN_REFERENCE),
        eval_dataset=_dataset(val_pairs, Path(job.reference) / VAL_REFERENCE) if val_pairs else None,
        processing_class=worker.tokenizer,
        data_collator=partial(collate, pad=pad),
        callbacks=[checkpoints, HeapTrim(), progress],
        order_seed=settings.seed,
        global_batch=settings.global_batch,
        beta=settings.beta,
    )
    trainer.hooks, trainer.best = hooks, best
    trainer.remove_callback(PrinterCallback)
    train_to_end(trainer, "dpo", directory, worker.rank, checkpoints)
    metrics = final_metrics(trainer, made.counts, progress, best) | last_preferences(trainer.state.log_history)
    metrics |= longer_shares(made.counts)
    if worker.rank == 0:
        _say(metrics)
        save_adapter(trainer, worker.tokenizer, directory, job, made.counts, metrics, batch.work, best)
    return metrics


def longer_shares(counts: Mapping[str, int]) -> dict[str, float]:
    """How often «the longer answer is the better one» would be right: what an accuracy has to be compared with."""
    shares = {"longer_wins": counts.get("chosen_longer", 0) / counts["rows"]}
    if counts.get("val_rows"):
        shares["eval_longer_wins"] = counts["val_chosen_longer"] / counts["val_rows"]
    return shares


def _say(metrics: Mapping[str, float]) -> None:
    """The accuracy, and beside it what lengths alone would reach."""
    for prefix, what in (("", "training"), ("eval_", "held-out")):
        accuracy, longer = metrics.get(f"{prefix}accuracy"), metrics.get(f"{prefix}longer_wins")
        if accuracy is not None and longer is not None:
            log.info(
                "dpo: %s pairs: %.0f %% preferred rightly; the longer answer is the chosen one in %.0f %%",
                what,
                100 * accuracy,
                100 * longer,
            )
    if max(metrics["longer_wins"], 1 - metrics["longer_wins"]) > TELLING_SHARE:
        log.warning(
            "dpo: the length alone tells most chosen answers from rejected ones, and the model may have learned that: "
            "set training.dpo.<tier>.max_longer_share=%.1f, or give relation rows as --data",
            TELLING_SHARE,
        )


def read_tokens(job: TrainingJob, tokenizer: PreTrainedTokenizerBase, settings: DpoSettings) -> tokens.Tokens:
    """The pairs of a job: from its cache, or tokenized here."""
    if job.tokens is not None:
        return tokens.read(Path(job.tokens))
    return tokens.of_pairs(Path(job.train_file), Path(job.val_file) if job.val_file else None, tokenizer, settings)


def write_reference(job: TrainingJob) -> None:
    """Log-probabilities of both answers of every pair under the base → one JSON array a line, into the directory."""
    settings = DpoSettings.model_validate(job.settings)
    if job.num_threads:
        torch.set_num_threads(job.num_threads)
    base = base_models.located(job.base)
    tokenizer = base_models.load_tokenizer(base)
    dtype = precision.compute_dtype(job.place.dtype)
    write_json(Path(job.directory) / setup.COMPUTE_DTYPE, dtype)
    model = quantization.for_answers(base, dtype, quantize=settings.quantize)
    pairs = read_tokens(job, tokenizer, settings)
    for rows, target in ((pairs.train, TRAIN_REFERENCE), (pairs.val, VAL_REFERENCE)):
        made = tokens.as_pairs(rows)
        size = max(1, job.place.max_tokens_per_microbatch // max(tokens.pair_lengths(rows)[0], default=1))
        # As the training computes on a GPU.
        with torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available() and dtype == "bfloat16"):
            values = reference_log_probs(model, made, size=size, pad=cast(int, tokenizer.pad_token_id))
        lines = [json.dumps(value) + "\n" for value in values]
        (Path(job.directory) / target).write_text("".join(lines), encoding="utf-8")
        log.info("dpo: reference of %d pairs", len(made))


def reference_log_probs(model: Any, made: Sequence[Pair], *, size: int, pad: int) -> list[list[float]]:
    """[chosen, rejected] for every pair, `size` pairs at a time; nothing is learned."""
    order = sorted(range(len(made)), key=lambda index: _length(made[index]))
    values: dict[int, list[float]] = {}
    for start in range(0, len(order), size):
        part = order[start : start + size]
        batch = collate([_columns(made[index], [0.0, 0.0]) for index in part], pad=pad)
        with torch.no_grad():
            log_probs_2P = answer_log_probs(model, batch)
        for index, chosen, rejected in zip(part, *log_probs_2P.view(2, -1).tolist(), strict=True):
            values[index] = [chosen, rejected]
    return [values[index] for index in range(len(made))]


def answer_log_probs(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Sum of the answer tokens' log-probabilities, for each row. Logits are computed where a row has a label only."""
    labels_BT = inputs["labels"].to(model.device)
    positions_K = (labels_BT[:, 1:] != IGNORED).any(dim=0).nonzero().squeeze(-1)
    outputs = model(
        input_ids=inputs["input_ids"].to(model.device),
        attention_mask=inputs["attention_mask"].to(model.device),
        logits_to_keep=positions_K,
        use_cache=False,
    )
    targets_BK = labels_BT[:, 1:][:, positions_K]
    # Cross entropy of an ignored position is 0: it adds nothing to the sum.
    losses_BK = F.cross_entropy(
        outputs.logits.float().transpose(1, 2), targets_BK, ignore_index=IGNORED, reduction="none"
    )
    return -losses_BK.sum(dim=1)


def dpo_loss(log_probs_2P: torch.Tensor, reference_P2: torch.Tensor, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean of -log sigmoid(beta x margin), and the margins (Rafailov et al. 2023, eq. 7; arxiv.org/abs/2305.18290)."""
    chosen_P, rejected_P = log_probs_2P.chunk(2)
    margins_P = (chosen_P - reference_P2[:, 0]) - (rejected_P - reference_P2[:, 1])
    return -F.logsigmoid(beta * margins_P).mean(), margins_P.detach()


def collate(rows: Sequence[Mapping[str, Any]], *, pad: int) -> dict[str, torch.Tensor]:
    """Chosen answers of all pairs, then rejected ones, left-padded to one length [2 x pairs, longest]; `reference`."""
    sides = [
        {"input_ids": row[f"{side}_ids"], "labels": row[f"{side}_labels"]}
        for side in ("chosen", "rejected")
        for row in rows
    ]
    return {**batching.collate(sides, pad=pad), "reference": torch.tensor([row["reference"] for row in rows])}


def last_preferences(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Margin and accuracy as last logged, in training and, if there was any, in validation."""
    names = ("margin", "accuracy", "eval_margin", "eval_accuracy")
    found: dict[str, float] = {}
    for entry in history:
        found |= {name: float(entry[name]) for name in names if name in entry}
    return found


class PairTrainer(CorrectedTrainer):
    """transformers' trainer with the DPO loss, an order of pairs of our own, and margins in its log."""

    def __init__(self, *args: Any, order_seed: int, global_batch: int, beta: float, **kwargs: Any) -> None:
        self._order_seed, self._global_batch, self._beta = order_seed, global_batch, beta
        self._seen: dict[str, list[float]] = defaultdict(list)
        super().__init__(*args, **kwargs)
        # The loss is a mean over pairs: the trainer divides it by the accumulated batches.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        data = train_dataset or self.train_dataset
        lengths = [max(len(c), len(r)) for c, r in zip(data["chosen_ids"], data["rejected_ids"], strict=True)]
        return batching.EpochOrder(lengths, self._global_batch, self._order_seed)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The DPO loss of a batch."""
        reference_P2 = inputs["reference"]
        loss, margins_P = dpo_loss(answer_log_probs(model, inputs), reference_P2, self._beta)
        prefix = "" if model.training else "eval_"
        self._seen[f"{prefix}margin"] += margins_P.tolist()
        self._seen[f"{prefix}accuracy"] += (margins_P > 0).float().tolist()
        return loss

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[torch.Tensor, None, None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        is_eval = any(key.startswith("eval_") for key in logs)
        for name in [f"{'eval_' if is_eval else ''}{figure}" for figure in ("margin", "accuracy")]:
            values = self._seen.pop(name, [])
            total, count = over_workers([sum(values), len(values)], self.args.device)
            if count:
                logs[name] = total / count
        super().log(logs, *args, **kwargs)


def _dataset(made: Sequence[Pair], reference: Path) -> Dataset:
    values = [json.loads(line) for line in reference.read_text(encoding="utf-8").splitlines()]
    if len(values) != len(made):
        raise InputError(
            "the reference does not belong to these pairs",
            where=str(reference),
            expected=f"{len(made)} lines",
            found=f"{len(values)} lines",
            next_step="delete the cache artifact that holds it, and run the same command again",
        )
    return Dataset.from_list([_columns(pair, value) for pair, value in zip(made, values, strict=True)])


def _columns(pair: Pair, reference: list[float]) -> dict[str, Any]:
    return {
        "chosen_ids": pair.chosen.input_ids,
        "chosen_labels": pair.chosen.labels,
        "rejected_ids": pair.rejected.input_ids,
        "rejected_labels": pair.rejected.labels,
        "reference": reference,
    }


def _length(pair: Pair) -> int:
    return max(len(pair.chosen.input_ids), len(pair.rejected.input_ids))
