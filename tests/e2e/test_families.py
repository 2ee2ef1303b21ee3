"""Each family of models, as the hub has it, from training to answers. `docs/families.md` has what was seen.

Without Ray: the functions that its workers call. Minutes, most of them for Qwen3.5's graph.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.families import (
    FAMILIES,
    SIZES,
    WINDOW,
    family_tokenizer,
    graph_differences,
    likelihood_difference,
    save_family,
    save_random,
)
from tests.llama_cpp import llama_cpp
from tests.training_jobs import workers
from ucotron_ray.core import config
from ucotron_ray.core.files import file_hash
from ucotron_ray.data import jsonl, wire
from ucotron_ray.data.records import PreferenceRow
from ucotron_ray.export import bundle, exporter, gguf, parity
from ucotron_ray.models import base as base_models
from ucotron_ray.models import served
from ucotron_ray.models.merge import write_merged
from ucotron_ray.models.prompts import prompt_ids, server_row
from ucotron_ray.simulators import demo_world
from ucotron_ray.training import dpo, sft
from ucotron_ray.training.job import DpoJob, SftJob, TrainingJob

# Tracing warns about every branch of the model's code that it fixes.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::Warning")]

ROWS = [row for row in demo_world.rows(demo_world.graph_world(1), 40, seed=1) if row.expected_relations][:8]
CHANGES = {"learning_rate": 1e-2, "batch_size": 4, "save_steps": 2, "eval_rows": 4, "lora_rank": 4}
SFT = config.load().recipe.sft.model_copy(update={**CHANGES, "epochs": 2, "target_modules": "all-linear"})
DPO = config.load().recipe.dpo.model_copy(
    update={**CHANGES, "epochs": 1, "target_modules": "all-linear", "warmup_ratio": 0.0}
)
EXPORT = config.load().recipe.export.model_copy(update={"parity_new_tokens": 8})
WEIGHTS = "adapter/adapter_model.safetensors"

NUM_LINEARS = {"gemma4": 4 * 9 - 2 * 2 + 1, "qwen3_5": 2 * 3 + 4 + 5, "phi4": 2 * 4, "smollm3": 4 * 7}
"""Linear layers of a text model; where it is not listed, two blocks of seven. Gemma 4 has two more a block for the
embedding of the layer and one for all of these, and its last two blocks have no keys and values of their own."""

CONTEXTS = {"phi4": 1024}
"""llama.cpp takes Phi's factors for long texts as soon as its context is longer than the trained length, and PyTorch as
soon as a text is."""

LARGEST_DIFFERENCE = 0.05
"""Of logarithms of probabilities, of f16 weights and f16 keys and values: 0.017 was the largest seen, of Gemma 4. A
scale, window or rotation that llama.cpp is not told of makes 0.07 to 5."""

Made = Callable[[str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """For a family a directory with `base`, the straight run `sft`, and `merged`, made once."""

    @cache
    def of(family: str) -> Path:
        directory = tmp_path_factory.mktemp(family)
        save_family(directory / "base", family)
        jsonl.write_rows(directory / "rows.jsonl", ROWS)
        sft.train(sft_job(directory, directory / "sft"), lambda _: None)
        base = base_models.located(str(directory / "base"))
        write_merged(base, directory / "sft" / "adapter", directory / "merged")
        return directory

    return of


@pytest.fixture(scope="module")
def exported(made) -> Made:
    """For a family its bundle with the float32 graph, made once."""

    @cache
    def of(family: str) -> Path:
        merged = made(family) / "merged"
        graph = exporter.export(merged, merged.with_name("bundle"), opset=18)
        tokenizer = base_models.load_tokenizer(base_models.located(str(merged)))
        tokenizer.save_pretrained(graph.parent)
        io = exporter.io_contract(graph, graph.parent / "config.json", eos=[tokenizer.eos_token_id])
        bundle.write_contracts(graph.parent, tokenizer=tokenizer, io=io, name=family, predicates=["works_at"])
        return graph.parent

    return of


def sft_job(directory: Path, into: Path) -> SftJob:
    into.mkdir(parents=True, exist_ok=True)
    rows = str(directory / "rows.jsonl")
    return SftJob(
        base=str(directory / "base"),
        train_file=rows,
        val_file=rows,
        directory=str(into),
        settings=SFT.model_dump(),
        workers=workers(),
        num_threads=1,
    )


def asked(merged: Path, layout: str) -> tuple[list[list[int]], int]:
    """The prompts of a few rows, and what ends an answer."""
    tokenizer = base_models.load_tokenizer(base_models.located(str(merged)))
    return [prompt_ids(server_row(row, layout), tokenizer) for row in ROWS[:3]], int(tokenizer.eos_token_id)


@pytest.mark.parametrize("family", FAMILIES)
def test_sft_adapts_every_linear_layer_of_the_text_model_and_learns(made, family):
    run = made(family) / "sft"
    metrics = json.loads((run / "training.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["steps"] == 4
    assert metrics["train_loss_last"] < metrics["train_loss_first"]
    adapted = {name.rpartition(".lora_")[0] for name in load_file(run / WEIGHTS)}
    assert len(adapted) == NUM_LINEARS.get(family, 14)
    assert not [name for name in adapted if "vision" in name or "lm_head" in name]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_run_gives_the_bytes_of_the_straight_run(made, tmp_path, family):
    directory = made(family)
    shutil.copytree(directory / "sft" / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "checkpoint-4")
    steps: list[float] = []
    report = lambda values: steps.append(values["step"]) if "loss" in values else None  # noqa: E731
    sft.train(sft_job(directory, tmp_path), report)
    assert steps == [3, 4]
    assert file_hash(tmp_path / WEIGHTS) == file_hash(directory / "sft" / WEIGHTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_dpo_goes_on_from_the_merged_model(made, tmp_path, family):
    rows = [
        PreferenceRow(
            prompt=wire.user_prompt(row.text, row.entities),
            chosen=wire.format_answer(row.expected_relations),
            rejected="[]",
        )
        for row in ROWS
    ]
    jsonl.write_rows(tmp_path / "pairs.jsonl", rows)
    for name in ("reference", "run"):
        (tmp_path / name).mkdir()
    common = TrainingJob(
        base=str(made(family) / "merged"),
        train_file=str(tmp_path / "pairs.jsonl"),
        val_file=None,
        directory=str(tmp_path / "reference"),
        settings=DPO.model_dump(),
        workers=workers(per_device_batch=None),
        num_threads=1,
    )
    dpo.write_reference(common)
    reports: list[dict[str, float]] = []
    job = DpoJob(**{**asdict(common), "directory": str(tmp_path / "run")}, reference=common.directory)
    metrics = dpo.train(job, lambda values: reports.append(dict(values)))
    assert metrics["steps"] == 2
    # The policy is the reference.
    assert reports[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert metrics["train_loss_last"] < math.log(2)
    assert load_file(tmp_path / "run" / WEIGHTS).keys() == load_file(made(family) / "sft" / WEIGHTS).keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_merged_model_is_base_and_adapter(made, family):
    from peft import PeftModel

    directory = made(family)
    base = base_models.load_model(base_models.located(str(directory / "base")), "float32")
    adapted = PeftModel.from_pretrained(base, str(directory / "sft" / "adapter")).eval()
    merged = transformers.AutoModelForCausalLM.from_pretrained(directory / "merged", dtype=torch.float32).eval()
    ids = torch.tensor([asked(directory / "merged", "chat")[0][0]])
    with torch.inference_mode():
        expected = adapted(input_ids=ids).logits
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-4)
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(input_ids=ids).logits, expected, atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_graph_computes_what_the_merged_model_does(made, exported, family):
    merged, graph = made(family) / "merged", exported(family) / exporter.GRAPH
    found = graph_differences(merged, graph)
    assert max(found.values()) < 1e-4, found
    prompts, eos = asked(merged, "chat")
    figures = parity.compare(merged, graph, prompts, EXPORT, eos=eos, num_threads=1)
    assert parity.failures(figures | {"prompt_ids_match": 1.0}, EXPORT) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_a_served_bundle_asks_and_answers_as_pytorch_does(made, exported, family):
    merged = made(family) / "merged"
    prompts, eos = asked(merged, "chat")
    expected = parity.greedy(parity.load(merged), prompts, max_new_tokens=12, eos=eos)
    model = served.load(exported(family), num_threads=1)
    assert [model.chat_ids(wire.chat_messages(row.text, row.entities)) for row in ROWS[:3]] == prompts
    assert model.generate(prompts, max_new_tokens=12, to_array_end=False) == expected
    alone = [model.generate([ids], max_new_tokens=12, to_array_end=False)[0] for ids in prompts]
    assert alone == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_answers_from_the_gguf_file_as_pytorch_does(made, tmp_path, family):
    merged = made(family) / "merged"
    gguf.check(merged)
    file = gguf.path_of(tmp_path, family, "f16")
    gguf.write(merged, file, kind="f16", name=family)
    prompts, eos = asked(merged, "raw")
    expected = parity.greedy(parity.load(merged), prompts, max_new_tokens=6, eos=eos)
    texts = [wire.user_prompt(row.text, row.entities) for row in ROWS[:3]]
    found = llama_cpp(file, texts, max_new_tokens=6, context=CONTEXTS.get(family, 2048), likeliest=50)
    assert [answer["ids"] for answer in found] == prompts
    assert [answer["tokens"] for answer in found] == expected
    assert likelihood_difference(merged, found) < LARGEST_DIFFERENCE


@pytest.mark.parametrize("kind", [transformers.MistralConfig, transformers.Phi3Config])
def test_windows_of_a_family_whose_layers_are_all_alike(tmp_path, kind):
    """Mistral 7B and Phi-3-mini name a window and no kinds of layers."""
    words = len(family_tokenizer("qwen2"))
    settings = kind(**SIZES, vocab_size=words, sliding_window=WINDOW, eos_token_id=2, pad_token_id=0, bos_token_id=None)
    save_random(settings, tmp_path / "model")
    graph = exporter.export(tmp_path / "model", tmp_path / "bundle", opset=18)
    found = graph_differences(tmp_path / "model", graph)
    assert max(found[name] for name in ("alone", "batch", "stepwise")) < 1e-4, found
    assert found["ragged"] < 1e-4, found
