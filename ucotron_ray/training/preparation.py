"""What is done for a training before a worker starts: its mistakes found, its rows tokenized, its plan made."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request
from ucotron_ray.core.errors import ConfigError, InputError, ResourceError
from ucotron_ray.core.hyperparameters import LoraSettings
from ucotron_ray.core.requirements import require_packages
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl
from ucotron_ray.data.importing import row_key
from ucotron_ray.data.stage import TRAIN, VAL
from ucotron_ray.models import base as base_models
from ucotron_ray.models import inspection
from ucotron_ray.models.shape import Shape, shape_of
from ucotron_ray.models.stage import loadable_base, prompt_identity
from ucotron_ray.training import plan as plans
from ucotron_ray.training.device import device_of, is_remote, refuse_shared_gpus
from ucotron_ray.training.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ucotron_ray.training.tokens import Tokens

log = logging.getLogger(__name__)

Stage = Literal["sft", "dpo"]

CHECKPOINTS_ON_DISK = 3
"""Two that are kept and one that is being written."""


@dataclass(frozen=True)
class Preparation:
    """What a training needs: the base as workers load it, its tokens, and its plan (None for unknown layers)."""

    loadable: str
    tokens: Artifact
    plan: Plan | None


def settings_of(run: Run, stage: Stage) -> LoraSettings:
    """The settings of a stage for the run's tier."""
    return run.config.recipe.sft if stage == "sft" else run.config.recipe.dpo


def check(run: Run, stage: Stage, base: base_models.Located) -> None:
    """Mistakes in the model, and in settings that its layers or the installed packages show. Starts nothing."""
    inspection.check(base)
    refuse_shared_gpus(run.config.place.workers)
    settings, workers = settings_of(run, stage), run.config.place.workers
    shape = shape_of(base)
    wanted = settings.target_modules
    if shape is not None and wanted != "all-linear":
        unknown = [
            name for name in ([wanted] if isinstance(wanted, str) else wanted) if not _known(shape, name, wanted)
        ]
        if unknown:
            raise ConfigError(
                "the LoRA target modules do not exist in this model",
                where=f"training.{stage}.{run.config.recipe.tier}.target_modules",
                expected="all-linear, or names of: " + ", ".join(name.partition(".")[2] for name in shape.linears),
                found=", ".join(unknown),
            )
    if settings.quantize == "nf4":
        require_packages("bitsandbytes")
        if workers.shard_base:
            raise ConfigError(
                "weights in 4 bits cannot be spread over the workers",
                where=f"workers.shard_base, training.{stage}.{run.config.recipe.tier}.quantize",
                expected="one of the two: either makes a large base fit a small GPU",
                found="shard_base: true, quantize: nf4",
            )
    if workers.liger:
        require_packages("liger_kernel")
    if workers.attention == "flash_attention_2":
        require_packages("flash_attn")
        refuse_flat_rows(base)


def refuse_flat_rows(base: base_models.Located) -> None:
    """Raise ConfigError where rows cannot follow one another: recurrent layers would read on from the one before."""
    directory = base_models.settings_of(base)
    if directory is not None and '"linear_attention"' in (directory / "config.json").read_text(encoding="utf-8"):
        raise ConfigError(
            "rows without padding are for attention alone, and this model has recurrent layers",
            where="workers.attention",
            expected="auto or sdpa for this model",
            found="flash_attention_2",
        )


def check_batch(run: Run, stage: Stage) -> None:
    """Refuse a global batch that the place's workers cannot share, before there are rows."""
    workers = run.config.place.workers
    plans.per_device_batch(
        settings_of(run, stage),
        longest=1,
        world=workers.num_workers,
        wanted=workers.per_device_batch,
        max_tokens_per_microbatch=workers.max_tokens_per_microbatch,
    )


def prepare(run: Run, stage: Stage, data: Artifact, base: base_models.BaseModel) -> Preparation:
    """Check everything, tokenize the rows once (kept in the cache), make the plan and print it.

    Raises UserError of some kind before a worker is started.
    """
    check(run, stage, base)
    refuse_overlap(data, stage)
    _check_disk(run, settings_of(run, stage), shape_of(base))
    loadable = loadable_base(run, base)
    tokens = _tokenized(run, stage, data, base, loadable)
    plan = _checked_plan(run, stage, tokens, base)
    run.connect()
    if is_remote(run):
        # Now the cluster can be asked what it has.
        plan = _checked_plan(run, stage, tokens, base)
    for line in plans.lines(plan) if plan else []:
        log.info("%s: %s", stage, line)
    return Preparation(loadable, tokens, plan)


def _checked_plan(run: Run, stage: Stage, tokens: Artifact, base: base_models.Located) -> Plan | None:
    plan = plan_of(run, stage, tokens.path, base, counts=tokens.manifest.counts)
    if plan is not None:
        plans.check_memory(plan, settings_of(run, stage))
    return plan


def dry_run(run: Run, stage: Stage, data: Artifact, base: base_models.Located) -> Plan | None:
    """The plan alone: nothing is written, nothing is started."""
    check(run, stage, base)
    refuse_overlap(data, stage)
    try:
        made = _made(run, stage, data, base)
    except InputError:
        if base.kind != "hub" or stage != "sft":
            raise
        from ucotron_ray.training import tokens

        log.warning("%s: the model is not on this machine: tokens are guessed from the rows' characters", stage)
        made = tokens.guessed(data.path / TRAIN, run.config.recipe.sft)
    plan = plan_of(run, stage, made, base, counts=made.counts)
    if plan is not None:
        plans.check_memory(plan, settings_of(run, stage))
    return plan


def refuse_overlap(data: Artifact, stage: Stage) -> None:
    """Raise InputError if a validation row is a training row too."""
    val = data.path / VAL
    if not val.is_file() or not val.stat().st_size:
        return
    read = jsonl.read_training_rows if stage == "sft" else jsonl.read_preferences
    common = {row_key(row) for row in read(data.path / TRAIN)} & {row_key(row) for row in read(val)}
    if common:
        raise InputError(
            f"{len(common)} validation row(s) are training rows too",
            where=str(data.path),
            expected="validation rows that training does not see",
            found=sorted(common)[0][:120],
            next_step="remove them from the validation rows, or import the files again with --drop-overlap",
        )


def plan_of(
    run: Run, stage: Stage, source: "Path | Tokens", base: base_models.Located, *, counts: Mapping[str, int]
) -> Plan | None:
    """The plan of a training on tokenized rows; None for a model whose layers are not known.

    Raises InputError if the global batch cannot be shared. Asks the cluster for its memory if the run is connected.
    """
    from ucotron_ray.training import tokens

    shape = shape_of(base)
    if shape is None:
        return None
    settings, workers = settings_of(run, stage), run.config.place.workers
    rows = tokens.read(source).train if isinstance(source, Path) else source.train
    lengths, labels = tokens.pair_lengths(rows) if stage == "dpo" else tokens.lengths(rows)
    per_device = plans.per_device_batch(
        settings,
        longest=max(lengths),
        world=workers.num_workers,
        wanted=workers.per_device_batch,
        max_tokens_per_microbatch=workers.max_tokens_per_microbatch,
    )
    work = plans.work_of(lengths, labels, global_batch=settings.global_batch, per_device=per_device, seed=settings.seed)
    device = device_of(run)
    memory_of = partial(
        plans.memory_of,
        shape,
        settings,
        work,
        bytes_per_value=2 if device.dtype == "bfloat16" else 4,
        on_gpu=device.on_gpu,
        shares=workers.num_workers if workers.shard_base else 1,
    )
    recompute = workers.gradient_checkpointing
    if recompute is None:
        needed = sum(memory_of(gradient_checkpointing=False).values())
        recompute = device.memory is not None and needed > device.memory
    sequences = 2 if stage == "dpo" else 1
    flops = plans.flops_4n(shape, settings, work, padded=True, sequences=sequences) * settings.epochs
    speed = [share * device.flops * workers.num_workers for share in device.shares] if device.flops else None
    return Plan(
        stage=stage,
        work=work,
        dropped={name: counts.get(name, 0) for name in ("too_long", "equal", "for_balance")},
        epochs=settings.epochs,
        workers=workers.num_workers,
        per_device=per_device,
        accumulation=settings.global_batch // (per_device * workers.num_workers),
        dtype=device.dtype,
        gradient_checkpointing=recompute,
        shard_base=workers.shard_base,
        memory=memory_of(gradient_checkpointing=recompute),
        available=device.memory,
        flops=flops,
        hours=(flops / speed[1] / 3600, flops / speed[0] / 3600) if speed else None,
        guide=plans.guide_figures(run.config.recipe.tier, len(lengths), settings.epochs),
    )


def _check_disk(run: Run, settings: LoraSettings, shape: Shape | None) -> None:
    # Weights in float32 and Adam's two moments; the tokenizer and the records are small beside them.
    lora = shape.lora(settings.lora_rank, settings.target_modules) if shape else 0
    needed = CHECKPOINTS_ON_DISK * 12 * lora
    free = shutil.disk_usage(run.store.root).free
    if needed > free:
        raise ResourceError(
            "the disk of the store has too little space for the checkpoints",
            where=str(run.store.root),
            expected=f"{needed / 1e9:.2f} GB",
            found=f"{free / 1e9:.2f} GB free",
            next_step="free some space, or choose another store",
        )


def _tokenized(run: Run, stage: Stage, data: Artifact, base: base_models.BaseModel, loadable: str) -> Artifact:
    """The rows tokenized, once for every run on the same rows, model and context: `cache/tokens-…`."""
    names = {"max_context_length", "max_rows", "eval_rows", "raw_share", "max_longer_share", "seed"}
    fields = settings_of(run, stage).model_dump(include=names)
    fields |= {"tokens": stage, "base": base.identity, "prompt": prompt_identity()}
    inputs = (data.as_input("data"),)
    name = f"tokens-{Request('cache', 'tokens', fields, inputs).recipe[:12]}"

    def build(build: Build) -> BuildResult:
        from ucotron_ray.training import tokens

        made = _made(run, stage, data, base_models.located(loadable))
        tokens.write(build.path, made)
        return BuildResult({}, made.counts, [f"{data.manifest.name} for {base.reference}"])

    return run.make("tokenize", Request("cache", name, fields, inputs), build)


def _tokenizer(base: base_models.Located) -> "PreTrainedTokenizerBase":
    """The base's tokenizer. Raises InputError if the hub does not give it."""
    try:
        return base_models.load_tokenizer(base)
    except OSError as error:
        raise InputError(
            "the model is not on this machine, and the hub does not give it",
            where=base.reference,
            expected="a model of the hub that may be fetched, or a directory, a .gguf file, package://NAME/FILE.gguf",
            found=str(error).splitlines()[0],
            next_step="check the name and the network, or fetch the model first and pass its directory as --model-name",
        ) from error


def _made(run: Run, stage: Stage, data: Artifact, base: base_models.Located) -> "Tokens":
    from ucotron_ray.training import tokens

    tokenizer = _tokenizer(base)
    train, val = data.path / TRAIN, data.path / VAL
    held_out = val if val.is_file() and val.stat().st_size else None
    if stage == "sft":
        made = tokens.of_rows(train, held_out, tokenizer, run.config.recipe.sft)
    else:
        made = tokens.of_pairs(train, held_out, tokenizer, run.config.recipe.dpo)
    inspection.check_ids(max(max(row.input_ids) for row in [*made.train, *made.val]), base)
    if made.counts.get("too_long"):
        log.warning("%s: %d row(s) are longer than the context and are dropped", stage, made.counts["too_long"])
    return made


def _known(shape: Shape, name: str, wanted: str | list[str]) -> bool:
    return bool(shape.targets(name if isinstance(wanted, str) else [name]))
