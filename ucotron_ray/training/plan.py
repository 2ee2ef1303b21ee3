"""What a training would cost, before it starts: rows, tokens, steps, memory, arithmetic, hours. Plain arithmetic.

Formulas of memory and FLOPs: a frozen base needs no gradient of its weights, so a token costs 4 FLOPs per parameter of
the blocks (forward 2, gradient of the input 2), not 6; `4N` in the names below says so.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ucotron_ray.core.errors import InputError, ResourceError
from ucotron_ray.core.hyperparameters import LoraSettings
from ucotron_ray.core.recipe import Tier
from ucotron_ray.models.shape import Shape
from ucotron_ray.training.data import epoch_order

GB = 1e9
GUIDE = {"slm": (8, (20, 40)), "small": (16, (60, 120)), "medium": (24, (240, 480))}
"""The guide's figures of a tier: GB of GPU memory, and minutes for 10,000 rows in 3 epochs."""
GUIDE_ROWS = 30_000

MFU_EXPECTED = (0.30, 0.45)
"""Shares of a GPU's peak that a plan counts with: a good result of this stack, and an excellent one."""
CPU_SHARES = (0.45, 0.75)
"""The same for a processor, of the speed of a product that is timed on it."""
HEAP = 1.3
"""What the heap takes for a block's activations, of their size: on a processor freed pieces stay between those that are
kept (tests/benchmarks, arm `memory`). On a GPU torch's allocator keeps none (arm `gpu`)."""
NF4_BYTES = 0.5 + 4 / 64 / 4 + 4 / 64 / 256
"""Of a weight in 4 bits: NF4 with one 8-bit scale for 64 weights, and a second scale for 256 of those."""


@dataclass(frozen=True)
class Work:
    """What one epoch has to compute. `padded_tokens` and `label_slots` count what padding adds."""

    rows: int
    steps: int
    tokens: int
    label_tokens: int
    padded_tokens: int
    label_slots: int
    longest: int
    step_tokens: int
    """Of the largest forward pass of one worker, padding included."""
    step_label_slots: int
    seen_rows: int
    """Rows of an epoch with those that fill up the last batch."""


@dataclass(frozen=True)
class Plan:
    """What is known before a run. Bytes, FLOPs and hours are predictions."""

    stage: str
    work: Work
    dropped: dict[str, int]
    epochs: int
    workers: int
    per_device: int
    accumulation: int
    dtype: str
    gradient_checkpointing: bool
    shard_base: bool
    memory: dict[str, float]
    """Bytes per worker, by what takes them."""
    available: float | None
    """Bytes that one worker has; None if nobody knows."""
    flops: float
    hours: tuple[float, float] | None
    """From the faster to the slower guess."""
    guide: tuple[int, tuple[float, float]]
    """GB of GPU memory and, for this many rows, minutes, as the guide has them for the tier."""

    @property
    def memory_total(self) -> float:
        """Bytes per worker."""
        return sum(self.memory.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for `--json` and training.json."""
        return {**asdict(self), "memory_total": self.memory_total}


def per_device_batch(
    settings: LoraSettings, *, longest: int, world: int, wanted: int | None, max_tokens_per_microbatch: int
) -> int:
    """Rows of one forward pass of one worker: the largest divisor of its share that fits `max_tokens_per_microbatch`.

    Raises InputError if the global batch cannot be shared evenly, since the place must not change the result.
    """
    share, rest = divmod(settings.global_batch, world)
    if rest or (wanted and share % wanted):
        raise InputError(
            "the global batch cannot be shared evenly",
            where="training.<stage>.<tier>.batch_size, workers.num_workers, workers.per_device_batch",
            expected="batch_size = num_workers x per_device_batch x a whole number",
            found=f"{settings.global_batch} rows, {world} workers, {wanted or 'any'} rows a device",
        )
    if wanted:
        return wanted
    fitting = [
        size for size in range(1, share + 1) if share % size == 0 and size * longest <= max_tokens_per_microbatch
    ]
    return max(fitting, default=1)


def work_of(
    lengths: Sequence[int], label_lengths: Sequence[int], *, global_batch: int, per_device: int, seed: int
) -> Work:
    """One epoch's work, in the very batches that training will see."""
    order = epoch_order(lengths, global_batch=global_batch, seed=seed, epoch=0)
    batches = [order[start : start + per_device] for start in range(0, len(order), per_device)]
    padded = [len(batch) * max(lengths[index] for index in batch) for batch in batches]
    # Answers end in the same column (left padding): the longest one sets how many columns have logits.
    slots = [len(batch) * max(label_lengths[index] for index in batch) for batch in batches]
    return Work(
        rows=len(lengths),
        steps=len(order) // global_batch,
        tokens=sum(lengths[index] for index in order),
        label_tokens=sum(label_lengths[index] for index in order),
        padded_tokens=sum(padded),
        label_slots=sum(slots),
        longest=max(lengths),
        step_tokens=max(padded),
        step_label_slots=max(slots),
        seen_rows=len(order),
    )


def flops_4n(shape: Shape, settings: LoraSettings, work: Work, *, padded: bool, sequences: int = 1) -> float:
    """FLOPs of an epoch with a frozen base and without recomputation: the convention `4N`.

    Blocks 4 a parameter and token; adapter 6; causal attention 3.5 x 2 x S x Q a layer and token at the mean length S;
    head 4 a parameter and label (it is frozen too). With `padded` padding counts as work, as it does for the processor.
    A row of DPO is two sequences.
    """
    tokens = work.padded_tokens if padded else work.tokens
    labels = work.label_slots if padded else work.label_tokens
    mean_length = work.tokens / work.seen_rows / sequences
    attention = 3.5 * 2 * mean_length * shape.heads * shape.head_dim * shape.layers
    lora = 6 * shape.lora(settings.lora_rank, settings.target_modules)
    return tokens * (4 * shape.body + lora + attention) + labels * 4 * shape.head


def memory_of(
    shape: Shape,
    settings: LoraSettings,
    work: Work,
    *,
    bytes_per_value: int,
    gradient_checkpointing: bool,
    on_gpu: bool,
    shares: int = 1,
) -> dict[str, float]:
    """Bytes of one worker at its peak, by what takes them.

    What a block keeps for the backward pass, in values a token (counted with torch's saved-tensor hooks): the
    residual stream twice, in float32 (2 h), and normed (2 h); queries, keys and values repeated to all heads, and the
    output of attention (4 Q); gate, its activation, up, and their product (4 i); on a processor a row of the mask.
    Logits stand in float32, twice, with their gradient. Beside 4-bit blocks all that is not quantized is in float32,
    and with the embedding the residual stream (peft's `prepare_model_for_kbit_training`). A base in `shares` is whole
    for one block at a time, and for the next one that is fetched meanwhile; the root of it (embedding and head) is
    whole all the while.
    """
    lora = shape.lora(settings.lora_rank, settings.target_modules)
    quantized = settings.quantize == "nf4"
    base = shape.body * NF4_BYTES + (shape.total - shape.body) * 4 if quantized else shape.total * bytes_per_value
    if shares > 1:
        whole = (shape.total - shape.body) + 2 * shape.body / shape.layers
        base = shape.total * bytes_per_value / shares + whole * bytes_per_value
    attention = shape.heads * shape.head_dim
    values = 2 * shape.hidden + 4 * attention + 4 * shape.mlp + (0 if on_gpu else work.longest)
    heap = 1.0 if on_gpu else HEAP
    block = work.step_tokens * (values * bytes_per_value + 2 * shape.hidden * 4) * heap
    kept = work.step_tokens * shape.hidden * (4 if quantized else bytes_per_value) * shape.layers * heap
    return {
        "base weights": base,
        "adapter, gradients, optimizer": 16.0 * lora,
        "activations": kept + block if gradient_checkpointing else block * shape.layers,
        "logits of labels": 3.0 * work.step_label_slots * shape.vocab * 4,
    }


def check_memory(plan: Plan, settings: LoraSettings) -> None:
    """Raise ResourceError with what would help, if a worker has less memory than the plan needs."""
    if plan.available is None or plan.memory_total <= plan.available:
        return
    parts = ", ".join(f"{name} {size / GB:.1f}" for name, size in plan.memory.items())
    steps = [f"lower workers.max_tokens_per_microbatch (a forward pass has {plan.work.step_tokens:,} tokens now)"]
    if not plan.gradient_checkpointing:
        steps.append("set workers.gradient_checkpointing=true (a third more arithmetic)")
    if plan.workers > 1 and not plan.shard_base:
        steps.append(f"set workers.shard_base=true (the frozen base spread over {plan.workers} workers)")
    if settings.quantize == "none":
        steps.append(f"QLoRA: --set training.{plan.stage}.<tier>.quantize=nf4 (base in 4 bits; needs a GPU)")
    raise ResourceError(
        "a worker has too little memory for this training",
        where="workers.memory_gb, workers.max_tokens_per_microbatch",
        expected=f"{plan.memory_total / GB:.1f} GB ({parts})",
        found=f"{plan.available / GB:.1f} GB a worker",
        next_step="; or ".join(steps),
    )


def guide_figures(tier: Tier, rows: int, epochs: int) -> tuple[int, tuple[float, float]]:
    """The guide's GB and, scaled from its 10,000 rows in 3 epochs to this many, its minutes."""
    gigabytes, (low, high) = GUIDE[tier]
    share = rows * epochs / GUIDE_ROWS
    return gigabytes, (low * share, high * share)


def lines(plan: Plan) -> list[str]:
    """The plan in words."""
    work = plan.work
    dropped = ", ".join(f"{number} {name}" for name, number in plan.dropped.items() if number) or "none"
    shown = [
        f"rows        {work.rows:,} train; dropped: {dropped}; cut: none (a row that does not fit is dropped)",
        f"tokens      {work.tokens:,} an epoch, {work.label_tokens:,} of them labels "
        f"({work.label_tokens / work.tokens:.0%}); padding adds {work.padded_tokens / work.tokens - 1:.0%}",
        f"steps       {work.steps * plan.epochs:,} in {plan.epochs} epoch(s): {plan.workers} worker(s) x "
        f"{plan.per_device} rows x {plan.accumulation} accumulated",
        f"memory      {plan.memory_total / GB:.1f} GB a worker in {plan.dtype}"
        + (f" of {plan.available / GB:.1f}" if plan.available else "")
        + f": {', '.join(f'{name} {size / GB:.2f}' for name, size in plan.memory.items())}",
        f"arithmetic  {plan.flops:.2e} FLOPs (4N: frozen base)",
    ]
    if plan.hours:
        shown.append(f"time        {_duration(plan.hours[0])} to {_duration(plan.hours[1])}, predicted")
    gigabytes, (low, high) = plan.guide
    shown.append(
        f"guide       {gigabytes} GB of GPU memory; {_duration(low / 60)} to {_duration(high / 60)} "
        "for this many rows on its GPU"
    )
    return shown


def _duration(hours: float) -> str:
    return f"{hours * 60:.1f} min" if hours < 2 else f"{hours:.1f} h"
