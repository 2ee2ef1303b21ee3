"""What a plan says is what training then does: parameters, batches, arithmetic; and what does not fit is refused."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny_models import save_tiny
from tests.unit import test_cli
from tests.unit.test_cli import _no_ray  # noqa: F401 - the fixture is used by being there
from ucotron_ray.core import config
from ucotron_ray.core.errors import ConfigError, InputError, ResourceError
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl
from ucotron_ray.models import base as base_models
from ucotron_ray.models import lora, precision
from ucotron_ray.models.shape import KNOWN, shape_of
from ucotron_ray.simulators import demo_world
from ucotron_ray.training import batching, device, peak, plan, tokens
from ucotron_ray.training.data import IGNORED, epoch_order

ROWS = list(demo_world.rows(demo_world.graph_world(1), 24, seed=1))
SETTINGS = config.load().recipe.sft.model_copy(update={"batch_size": 8, "lora_rank": 4})


def call(tmp_path, capsys, *arguments: str) -> tuple[int, dict, str]:
    """Without MLflow: making its database takes ten seconds."""
    return test_cli.call(tmp_path, capsys, *arguments, "--set", "tracking.mlflow_uri=none")


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    jsonl.write_rows(path, ROWS)
    return path


@pytest.fixture(scope="module")
def made(rows_file, tiny_model) -> tokens.Tokens:
    tokenizer = base_models.load_tokenizer(base_models.resolve(str(tiny_model)))
    return tokens.of_rows(rows_file, rows_file, tokenizer, SETTINGS)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_shape_read_from_the_configuration_has_the_models_parameters(tmp_path, family):
    base = base_models.resolve(str(save_tiny(tmp_path / family, family)))
    shape, model = shape_of(base), base_models.load_model(base, "float32")
    assert shape is not None
    # Qwen3 norms queries and keys; those few weights are in no layer that a plan is about.
    own = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if "q_norm" not in name and "k_norm" not in name
    )
    assert shape.total == own
    adapted = lora.attach(model, SETTINGS)
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert shape.lora(SETTINGS.lora_rank, "all-linear") == trained


def test_the_guides_tiers_are_known_without_a_hub():
    sizes = {name: round(shape.total / 1e9, 2) for name, shape in KNOWN.items()}
    assert list(sizes.values()) == [0.49, 1.54, 7.62]
    shape = shape_of(base_models.located("Qwen/Qwen2.5-7B-Instruct"))
    assert shape is not None
    assert shape.targets(["q_proj", "down_proj"]) == ["self_attn.q_proj", "mlp.down_proj"]
    assert shape.targets(r".*\.(q|v)_proj") == ["self_attn.q_proj", "self_attn.v_proj"]
    assert shape.targets(["query"]) == []


def test_the_work_of_an_epoch_is_that_of_the_batches_that_training_sees(made):
    lengths, labels = tokens.lengths(made.train)
    work = plan.work_of(lengths, labels, global_batch=8, per_device=4, seed=7)
    order = epoch_order(lengths, global_batch=8, seed=7, epoch=0)
    batches = [
        batching.collate([vars(made.train[index]) for index in order[start : start + 4]], pad=0)
        for start in range(0, len(order), 4)
    ]
    assert work.padded_tokens == sum(batch["input_ids"].numel() for batch in batches)
    assert work.tokens == sum(int(batch["attention_mask"].sum()) for batch in batches)
    columns = [int((batch["labels"][:, 1:] != IGNORED).any(dim=0).sum()) for batch in batches]
    assert work.label_slots == sum(4 * count for count in columns)
    assert work.step_tokens == max(batch["input_ids"].numel() for batch in batches)
    assert (work.steps, work.rows) == (3, 24)


def test_flops_are_those_that_torch_counts_in_a_step(made, tiny_model):
    base = base_models.resolve(str(tiny_model))
    shape = shape_of(base)
    model = lora.attach(base_models.load_model(base, "float32"), SETTINGS)
    row = made.train[0]
    batch = batching.collate([vars(row)], pad=0)
    positions = (batch["labels"][0, 1:] != IGNORED).nonzero().squeeze(-1)
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=batch["input_ids"], logits_to_keep=positions, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits[0], batch["labels"][0, 1:][positions]).backward()
    lengths, labels = tokens.lengths([row])
    work = plan.work_of(lengths, labels, global_batch=1, per_device=1, seed=1)
    # The first layer's input needs no gradient, and torch does not count attention on a processor: a few per cent of a
    # model of two layers, next to nothing of a real one.
    predicted = plan.flops_4n(shape, SETTINGS, work, padded=True)
    attention = 3.5 * 2 * lengths[0] ** 2 * shape.heads * shape.head_dim * shape.layers
    assert predicted - attention == pytest.approx(counter.get_total_flops(), rel=0.15)


def test_tokens_are_read_back_as_they_were_written(made, tmp_path):
    tokens.write(tmp_path, made)
    assert tokens.read(tmp_path) == made
    empty = tokens.Tokens(made.train, [], made.counts)
    tokens.write(tmp_path, empty)
    assert tokens.read(tmp_path).val == []


def test_a_training_that_does_not_fit_is_refused_with_what_would_help(made):
    shape = KNOWN["Qwen/Qwen2.5-7B-Instruct"]
    lengths, labels = tokens.lengths(made.train)
    work = plan.work_of(lengths, labels, global_batch=8, per_device=8, seed=1)

    def planned(*, available: float | None, checkpointing: bool, quantize: str = "none", workers: int = 1) -> plan.Plan:
        settings = SETTINGS.model_copy(update={"quantize": quantize})
        sizes = {"bytes_per_value": 2, "gradient_checkpointing": checkpointing, "on_gpu": True}
        memory = plan.memory_of(shape, settings, work, **sizes)
        return plan.Plan(
            "sft",
            work,
            {},
            1,
            workers,
            8,
            1,
            "bfloat16",
            checkpointing,
            False,
            memory,
            available,
            1.0,
            None,
            (24, (1, 2)),
        )

    with pytest.raises(ResourceError, match="too little memory") as caught:
        plan.check_memory(planned(available=12e9, checkpointing=False), SETTINGS)
    assert caught.value.exit_code == 2
    assert "QLoRA" in str(caught.value)
    assert "gradient_checkpointing" in str(caught.value)
    assert "shard_base" not in str(caught.value)
    with pytest.raises(ResourceError, match="shard_base"):
        plan.check_memory(planned(available=12e9, checkpointing=False, workers=8), SETTINGS)
    plan.check_memory(planned(available=80e9, checkpointing=False), SETTINGS)
    plan.check_memory(planned(available=None, checkpointing=False), SETTINGS)
    full, recomputed = (planned(available=None, checkpointing=flag).memory_total for flag in (False, True))
    quantized = planned(available=None, checkpointing=True, quantize="nf4").memory_total
    assert full > recomputed > quantized
    sizes = {"bytes_per_value": 2, "gradient_checkpointing": True, "on_gpu": True}
    whole, spread = (plan.memory_of(shape, SETTINGS, work, **sizes, shares=shares) for shares in (1, 8))
    # An eighth of 15.2 GB, beside the embedding and the head (1.1e9 weights) and two of 28 blocks.
    assert 4.5e9 < spread.pop("base weights") < 5.5e9 < whole.pop("base weights")
    assert spread == whole
    # Of the 7.6e9 weights only the blocks' are in 4 bits; embedding and head are in float32.
    assert 7e9 < planned(available=None, checkpointing=True, quantize="nf4").memory["base weights"] < 8e9


@pytest.mark.parametrize(
    ("base", "rows", "settings", "peak"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", 1, {}, 15.51e9),
        ("Qwen/Qwen2.5-1.5B-Instruct", 2, {}, 27.63e9),
        ("Qwen/Qwen2.5-1.5B-Instruct", 4, {}, 51.88e9),
        ("Qwen/Qwen2.5-7B-Instruct", 1, {}, 41.03e9),
        ("Qwen/Qwen2.5-7B-Instruct", 2, {"quantize": "nf4"}, 15.73e9),
    ],
)
def test_the_plan_has_the_memory_that_an_h100_showed(base, rows, settings, peak):
    """Rows of 4,094 tokens with 512 labels, `torch.cuda.max_memory_allocated` (results/training_gpu.json)."""
    work = plan.work_of([4094] * rows, [512] * rows, global_batch=rows, per_device=rows, seed=1)
    recipe = SETTINGS.model_copy(update={"lora_rank": 16, "target_modules": "all-linear", **settings})
    sizes = {"bytes_per_value": 2, "gradient_checkpointing": bool(settings), "on_gpu": True}
    assert sum(plan.memory_of(KNOWN[base], recipe, work, **sizes).values()) == pytest.approx(peak, rel=0.05)


def gpus(monkeypatch, name: str, free: float, *, bfloat16: bool) -> None:
    """This process sees one GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (int(free), 2 * int(free)))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    # What torch says of a T4: its emulation counts, unless it is told not to.
    native = bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("Some other card", None),
    ],
)
def test_a_gpu_is_known_by_its_whole_name_and_its_memory_by_itself(monkeypatch, name, flops):
    gpus(monkeypatch, name, 4.75e9, bfloat16=True)
    assert peak.visible_gpu() == peak.Gpu(name, 4.75e9, True)
    assert peak.visible_gpu().flops == flops
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert peak.visible_gpu() is None


def test_a_gpu_that_only_emulates_bfloat16_computes_in_float32_and_says_so(monkeypatch, caplog):
    gpus(monkeypatch, "Tesla T4", 15e9, bfloat16=False)
    with caplog.at_level("WARNING"):
        assert precision.compute_dtype("auto") == "float32"
    assert "Tesla T4 has no bfloat16: computing in float32" in caplog.text
    assert precision.compute_dtype("float32") == "float32"
    with pytest.raises(ResourceError, match="in emulation only"):
        precision.compute_dtype("bfloat16")
    gpus(monkeypatch, "NVIDIA L4", 22e9, bfloat16=True)
    assert precision.compute_dtype("auto") == precision.compute_dtype("bfloat16") == "bfloat16"


@pytest.mark.parametrize(("share", "bfloat16"), [(1.0, True), (0.5, True), (1.0, False)])
def test_the_plan_counts_with_the_memory_that_the_gpu_has_free(monkeypatch, tmp_path, share, bfloat16):
    gpus(monkeypatch, "NVIDIA L40", 44e9, bfloat16=bfloat16)
    monkeypatch.setattr(device, "gpu_of_this_machine", peak.visible_gpu)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    settings = config.load(overrides=[("store", str(tmp_path)), ("workers.gpus_per_worker", share)])
    seen = device.device_of(Run(settings, verb="sft", name="x"))
    assert (seen.on_gpu, seen.memory, seen.flops) == (True, 44e9 * share, 181e12)
    assert seen.dtype == ("bfloat16" if bfloat16 else "float32")
    if not bfloat16:
        asked = config.load(overrides=[("store", str(tmp_path)), ("workers.dtype", "bfloat16")])
        with pytest.raises(ResourceError, match="in emulation only"):
            device.device_of(Run(asked, verb="sft", name="x"))


@pytest.mark.parametrize(("num_workers", "gpus"), [(2, 0.5), (8, 0.25)])
def test_workers_of_a_group_do_not_share_a_gpu(num_workers, gpus):
    place = config.load(overrides=[("workers.num_workers", num_workers), ("workers.gpus_per_worker", gpus)]).place
    with pytest.raises(ConfigError, match="cannot share a GPU"):
        device.refuse_shared_gpus(place.workers)
    for changes in ({"num_workers": 1}, {"gpus_per_worker": 1.0}, {"gpus_per_worker": 0.0}, {"gpus_per_worker": None}):
        device.refuse_shared_gpus(place.workers.model_copy(update=changes))


def test_the_gpu_of_this_machine_is_asked_by_a_process_that_ends():
    assert (peak.gpu_of_this_machine() is None) == (not torch.cuda.is_available())


def test_a_dry_run_prints_the_plan_and_makes_neither_adapter_nor_cache(tmp_path, capsys, rows_file, tiny_model):
    arguments = [
        "sft",
        "--dry-run",
        "--train-data",
        str(rows_file),
        "--model-name",
        str(tiny_model),
        "--batch-size",
        "8",
    ]
    code, result, _ = call(tmp_path, capsys, *arguments)
    assert code == 0
    assert result["status"] == "planned"
    assert (result["plan"]["work"]["rows"], result["plan"]["work"]["steps"], result["plan"]["epochs"]) == (24, 3, 3)
    assert result["plan"]["guide"][0] == 8
    assert result["plan"]["memory_total"] == pytest.approx(sum(result["plan"]["memory"].values()))
    assert not (tmp_path / "store" / "adapter").exists()
    assert not (tmp_path / "store" / "cache").exists()


def test_a_hub_model_that_is_not_here_is_planned_by_characters_and_trained_never(tmp_path, capsys, caplog, rows_file):
    common = ["sft", "--train-data", str(rows_file), "--tier", "small", "--model-name", "Qwen/Qwen2.5-1.5B-Instruct"]
    code, result, _ = call(tmp_path, capsys, *common, "--dry-run", "--set", "workers.memory_gb=80")
    assert (code, "guessed" in caplog.text) == (0, True)
    assert result["plan"]["memory"]["base weights"] in (2 * 1543656960, 4 * 1543656960)
    assert result["plan"]["work"]["rows"] == 24
    code, _, err = call(tmp_path, capsys, *common)
    assert code == 2
    assert "not known which commit" in err
    code, _, err = call(tmp_path, capsys, *common, "--revision", "a" * 40)
    assert code == 2
    assert "the hub does not give it" in err


def test_too_little_memory_and_uneven_batches_end_before_ray_starts(tmp_path, capsys, rows_file, tiny_model):
    common = ["sft", "--train-data", str(rows_file), "--model-name", str(tiny_model)]
    code, _, err = call(tmp_path, capsys, *common, "--set", "workers.memory_gb=0.0001")
    assert (code, "QLoRA" in err) == (2, True)
    code, _, err = call(tmp_path, capsys, *common, "--batch-size", "8", "--set", "workers.num_workers=3")
    assert (code, "8 rows, 3 workers" in err) == (2, True)
    assert not (tmp_path / "store" / "adapter").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["training.sft.slm.lora_rank=0"], "training.sft.slm.lora_rank"),
        (["training.sft.slm.learning_rate=0"], "training.sft.slm.learning_rate"),
        (["training.sft.slm.learning_rate=-1e-4"], "training.sft.slm.learning_rate"),
        (["training.sft.slm.target_modules=[q_proj, query]"], "query"),
        (["training.sft.slm.max_context_length=128"], "no row fits"),
        (["training.sft.slm.quantize=nf4"], "bitsandbytes"),
        (["workers.liger=true"], "liger"),
        (["workers.attention=flash_attention_2"], "flash"),
    ],
)
def test_mistakes_in_settings_end_before_a_worker_starts(tmp_path, capsys, rows_file, tiny_model, settings, said):
    arguments = ["sft", "--train-data", str(rows_file), "--model-name", str(tiny_model)]
    arguments += [part for text in settings for part in ("--set", text)]
    code, _, err = call(tmp_path, capsys, *arguments)
    assert code == 2
    assert said in err
    assert err.count("error:") == 1


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([{"role": "user", "content": "Hi"}, {"role": "user", "content": "You there?"}], "not the assistant's"),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}], "no answer to learn"),
    ],
)
def test_rows_without_an_answer_end_before_a_worker_starts(tmp_path, capsys, tiny_model, turns, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    code, _, err = call(tmp_path, capsys, "sft", "--train-data", str(path), "--model-name", str(tiny_model))
    assert code == 2
    assert said in err


def test_a_dataset_whose_validation_rows_are_training_rows_is_refused(tmp_path):
    from ucotron_ray.core.artifacts import BuildResult, Request, Store
    from ucotron_ray.training.preparation import refuse_overlap

    with Store(tmp_path).building(Request("dataset", "d", {})) as build:
        jsonl.write_rows(build.path / "train.jsonl", ROWS[:4])
        jsonl.write_rows(build.path / "val.jsonl", ROWS[3:6])
        artifact = build.publish(BuildResult({}, {}, []))
    with pytest.raises(InputError, match="1 validation row"):
        refuse_overlap(artifact, "sft")
