"""Training on a GPU: it computes what the processor computes, and what only a GPU has works. Skipped without one."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tests.tiny_models import save_tiny
from tests.training_jobs import changed, workers
from ucotron_ray.core import config
from ucotron_ray.data import jsonl, wire
from ucotron_ray.data.records import PreferenceRow
from ucotron_ray.evaluation.generate import triples_of
from ucotron_ray.models import base as base_models
from ucotron_ray.models import lora
from ucotron_ray.simulators import demo_world
from ucotron_ray.training import dpo, progress, sft
from ucotron_ray.training.hooks import Hooks
from ucotron_ray.training.job import DpoJob, SftJob, TrainingJob

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]

ROWS = list(demo_world.rows(demo_world.graph_world(1), 32, seed=1))
CHANGES = {"epochs": 1, "learning_rate": 1e-2, "batch_size": 4, "save_steps": 4, "eval_rows": 0, "lora_rank": 4}
SETTINGS = config.load().recipe.sft.model_copy(update=CHANGES)


def job(directory: Path, model: Path, **changes: object) -> SftJob:
    directory.mkdir(parents=True)
    jsonl.write_rows(directory / "rows.jsonl", ROWS)
    made = SftJob(
        base=str(model),
        train_file=str(directory / "rows.jsonl"),
        val_file=None,
        directory=str(directory),
        settings=SETTINGS.model_dump(),
        workers=workers(per_device_batch=4),
        num_threads=1,
    )
    return changed(made, **changes)


def losses(directory: Path) -> list[float]:
    record = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    return [entry["loss"] for entry in record["history"] if "loss" in entry]


def trained(made: SftJob) -> list[float]:
    sft.train(made, lambda metrics: None)
    return losses(Path(made.directory))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "qwen2", "qwen2")


@pytest.fixture(scope="module")
def on_gpu(tmp_path_factory: pytest.TempPathFactory, model: Path) -> list[float]:
    return trained(job(tmp_path_factory.mktemp("gpu") / "run", model))


def test_the_losses_are_the_processors(tmp_path, model, on_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_processor = trained(job(tmp_path / "run", model))
    assert on_gpu[-1] < on_gpu[0]
    assert on_gpu == pytest.approx(on_processor, rel=2e-2)
    assert on_gpu[0] == pytest.approx(on_processor[0], rel=1e-3)


@pytest.mark.parametrize("lever", [{"liger": True}, {"compile": True}, {"gradient_checkpointing": True}])
def test_a_lever_changes_the_speed_and_not_the_losses(tmp_path, model, on_gpu, lever):
    if lever.get("liger"):
        pytest.importorskip("liger_kernel")
    assert trained(job(tmp_path / "run", model, **lever)) == pytest.approx(on_gpu, rel=2e-2)


def test_bfloat16_learns_as_float32_does(tmp_path, model, on_gpu):
    assert trained(job(tmp_path / "run", model, dtype="bfloat16")) == pytest.approx(on_gpu, rel=5e-2)


def test_4_bit_weights_learn_and_leave_an_adapter_alone(tmp_path, model, on_gpu):
    pytest.importorskip("bitsandbytes")
    settings = SETTINGS.model_copy(update={"quantize": "nf4"})
    made = trained(job(tmp_path / "run", model, settings=settings.model_dump(), dtype="bfloat16"))
    assert made[-1] < made[0] - 0.1
    assert made[0] == pytest.approx(on_gpu[0], rel=0.1)
    weights = (tmp_path / "run" / "adapter" / "adapter_model.safetensors").stat().st_size
    assert weights < (model / "model.safetensors").stat().st_size


@pytest.mark.parametrize(
    "changes",
    [{"quantize": "nf4"}, {"lora_dropout": 0.1}],
    ids=["4 bits beside layers in float32", "an adapter in float32 that is not fused"],
)
def test_answers_are_scored_while_it_trains(tmp_path, model, changes):
    """`generate` goes by the model's inner parts, where nobody but us sets the type that is computed in."""
    pytest.importorskip("bitsandbytes")
    settings = SETTINGS.model_copy(update={**changes, "eval_rows": 4, "eval_f1_rows": 2, "eval_steps": 4})
    made = job(tmp_path / "run", model, settings=settings.model_dump(), dtype="bfloat16")
    made = replace(made, val_file=made.train_file)
    scored: list[float] = []
    score = triples_of(Path(made.train_file), 2, max_new_tokens=4, batch_size=2)
    sft.train(made, lambda metrics: None, Hooks(lambda metrics: scored.append(metrics["eval_f1"]), score))
    assert len(scored) == 2


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_preference_training_begins_at_ln_2(tmp_path, model, quantize):
    if quantize == "nf4":
        pytest.importorskip("bitsandbytes")
    rows = [
        PreferenceRow(
            prompt=wire.user_prompt(row.text, row.entities),
            chosen=wire.format_answer(row.expected_relations),
            rejected="[]",
        )
        for row in ROWS
        if row.expected_relations
    ][:8]
    jsonl.write_rows(tmp_path / "pairs.jsonl", rows)
    for name in ("reference", "run"):
        (tmp_path / name).mkdir()
    settings = config.load().recipe.dpo.model_copy(update={**CHANGES, "learning_rate": 5e-3, "quantize": quantize})
    common = TrainingJob(
        base=str(model),
        train_file=str(tmp_path / "pairs.jsonl"),
        val_file=None,
        directory=str(tmp_path / "reference"),
        settings=settings.model_dump(),
        workers=workers(dtype="bfloat16", per_device_batch=None),
        num_threads=1,
    )
    dpo.write_reference(common)
    dpo.train(DpoJob(**{**asdict(common), "directory": str(tmp_path / "run")}, reference=common.directory), print)
    assert losses(tmp_path / "run")[0] == pytest.approx(math.log(2), abs=1e-3)


def test_a_step_is_timed_until_the_gpu_is_done_with_it(tmp_path):
    """Ordering a product takes microseconds, computing it far longer."""
    work = progress.Work(tokens=1.0, padded=1.0, labels=1.0, flops=None, peak=None)
    watched = progress.Progress("sft", tmp_path, work, lambda metrics: None, 1, 1)
    control = type("Control", (), {"should_log": True, "should_evaluate": False, "should_save": False})()
    x = torch.randn(8192, 8192, device="cuda")
    torch.cuda.synchronize()
    watched.on_step_begin()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(20):
        x = (x @ x).clamp(-1, 1)
    end.record()
    watched.on_step_end(None, None, control)
    end.synchronize()
    assert watched.figures()["step_p50"] > 0.8 * begin.elapsed_time(end) / 1000


def test_the_model_for_inference_lies_on_the_gpu_and_answers_as_on_the_processor(model, monkeypatch):
    base = base_models.resolve(str(model))
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])
    loaded = lora.load_for_inference(base, None, "float32")
    assert loaded.device.type == "cuda"
    with torch.no_grad():
        ours = loaded(ids.cuda()).logits.cpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with torch.no_grad():
        theirs = lora.load_for_inference(base, None, "float32")(ids).logits
    assert torch.allclose(ours, theirs, atol=2e-3)
