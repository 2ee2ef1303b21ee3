"""Tiny random language models with tokenizers trained on the tests' own text. They speak no language."""

import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen3Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from ucotron_ray.core.artifacts import BuildResult, Request, Store
from ucotron_ray.core.files import write_json
from ucotron_ray.data import wire
from ucotron_ray.export import bundle, exporter
from ucotron_ray.models import base as base_models
from ucotron_ray.models.merge import write_merged
from ucotron_ray.simulators import demo_world

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}THINK{% endif %}{% endif %}"
)
SIZES = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def save_tiny(directory: Path, family: str) -> Path:
    """A random model of the family (`qwen2`, `qwen3` with a head_dim of its own, `llama`) as transformers saves it."""
    tokenizer = tokenizer_of(family)
    common = {
        **SIZES,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 4096,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = {
        "qwen2": lambda: Qwen2Config(**common, tie_word_embeddings=True),
        "qwen3": lambda: Qwen3Config(**common, head_dim=20, tie_word_embeddings=False),
        "llama": lambda: LlamaConfig(**common, tie_word_embeddings=False),
    }[family]()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_tiny_bundle(directory: Path, family: str) -> Path:
    """A bundle with the float32 graph of a random model; `merged` beside it is the model itself. It has no manifest."""
    base = base_models.resolve(str(save_tiny(directory / "base", family)))
    write_merged(base, None, directory / "merged")
    graph = exporter.export(directory / "merged", directory / "bundle", opset=18)
    tokenizer = base_models.load_tokenizer(base_models.resolve(str(directory / "merged")))
    tokenizer.save_pretrained(graph.parent)
    io = exporter.io_contract(graph, graph.parent / "config.json", eos=[tokenizer.eos_token_id])
    bundle.write_contracts(graph.parent, tokenizer=tokenizer, io=io, name="tiny", predicates=["works_at", "lives_in"])
    return graph.parent


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE over prompts of the demo's world; only `qwen3` knows a thinking mode."""
    rows = list(demo_world.rows(demo_world.graph_world(1), 60, seed=1))
    texts = [wire.user_prompt(row.text, row.entities) + wire.format_answer(row.expected_relations) for row in rows]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    thinking = "<think>\n\n</think>\n\n" if family == "qwen3" else ""
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>" if family == "llama" else None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML.replace("THINK", thinking),
        clean_up_tokenization_spaces=False,
    )


def publish_bundle(store: Path, name: str, files: Path, note: str, *, decoding: str = "entities") -> Path:
    """A bundle with these files under a name; another note makes it another one."""
    with Store(store).building(Request("bundle", name, {"note": note}), replace=True) as build:
        if build.artifact is None:
            shutil.copytree(files, build.path, dirs_exist_ok=True)
            write_json(build.path / "decoding.json", {"default": decoding})
            (build.path / "note.txt").write_text(note, encoding="utf-8")
            build.publish(BuildResult({}, {}, ["a random model, for tests"]))
    return store / "bundle" / name
