"""Model directories as people have them: what is odd loads, what is damaged is refused in words before anything starts."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny_models import CHATML, save_tiny
from ucotron_ray import cli
from ucotron_ray.core import session
from ucotron_ray.core.errors import InputError
from ucotron_ray.data import jsonl
from ucotron_ray.models import base as base_models
from ucotron_ray.models import inspection, prompts
from ucotron_ray.models.merge import write_merged
from ucotron_ray.simulators import demo_world

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 988097824\n"
PLAIN = CHATML.replace("THINK", "")
TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS
ONLY_IN_TURNS = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant in turns') }}{% endif %}[{{ m['content'] }}]{% endfor %}"
)
SYSTEM_ASSERTED = (
    "{% if messages | selectattr('role', 'equalto', 'system') | list %}{{ raise_exception('x') }}{% endif %}" + TURNS
)
DATED = (
    "{%- set today = strftime_now('%d %B %Y') -%}<|im_start|>system\nToday: {{ today }}\n{{ messages[0].content }}\n"
    "{%- for m in messages[1:] -%}{%- if m.role == 'assistant' -%}{% generation %}{{ m.content }}{% endgeneration %}"
    "{%- else -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{%- endif -%}{%- endfor -%}"
)
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("whole")
    return {family: save_tiny(directory / family, family) for family in ("qwen2", "llama")}


@pytest.fixture
def model(whole, tmp_path) -> Path:
    return shutil.copytree(whole["qwen2"], tmp_path / "model")


def edited(path: Path, **values: Any) -> None:
    """A JSON file with other values, None for those that go."""
    found = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}), encoding="utf-8")


def with_template(model: Path, text: str) -> None:
    (model / "chat_template.jinja").write_text(text, encoding="utf-8")
    edited(model / "tokenizer_config.json", chat_template=None)


def with_tokens(model: Path, first: int, *texts: str) -> None:
    """Further special tokens from an id on."""
    found = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    found["added_tokens"] += [{"id": first + at, "content": text, **flags} for at, text in enumerate(texts)]
    (model / "tokenizer.json").write_text(json.dumps(found), encoding="utf-8")


def words(model: Path) -> int:
    return int(json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_tensor(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})


def sharded(model: Path, files: tuple[str, str] = ("a.safetensors", "b.safetensors")) -> None:
    """Two shards of which the second is missing."""
    names = list(load_file(model / "model.safetensors"))
    (model / "model.safetensors").rename(model / files[0])
    listed = {name: files[at % 2] for at, name in enumerate(names)}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}), encoding="utf-8")


def index_of_more(model: Path) -> None:
    """An index that lists a tensor which its only file has not."""
    (model / "model.safetensors").rename(model / "a.safetensors")
    listed = {"model.norm.weight": "a.safetensors", "model.layers.9.mlp.up_proj.weight": "a.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}), encoding="utf-8")


def end_token_beyond(model: Path) -> None:
    with_tokens(model, words(model), "<eot>")
    edited(model / "tokenizer_config.json", eos_token="<eot>")


def template_beyond(model: Path) -> None:
    with_tokens(model, words(model), "<|tool|>")
    with_template(model, f"<|tool|>{PLAIN}")


def adapter_beside(model: Path) -> None:
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "org/elsewhere"}', encoding="utf-8")


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pointer": (lambda model: (model / "model.safetensors").write_text(POINTER), "never fetched"),
    "pointer of the tokenizer": (lambda model: (model / "tokenizer.json").write_text(POINTER), "never fetched"),
    "pointer of the configuration": (lambda model: (model / "config.json").write_text(POINTER), "never fetched"),
    "cut off": (lambda model: cut(model / "model.safetensors"), "damaged"),
    "empty": (lambda model: (model / "model.safetensors").write_bytes(b""), "damaged"),
    "pickle by another name": (lambda model: (model / "model.safetensors").write_bytes(b"PK\3\4" * 9), "damaged"),
    "shard missing": (sharded, "part of the model's weights is missing"),
    "shards without an index": (
        lambda model: (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors"),
        "which of the safetensors files",
    ),
    "tensor in no shard": (index_of_more, "part of the model's weights is missing"),
    "layer missing": (without_tensor, "weights of the model are missing"),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "knows no words"),
    "tokenizer cut off": (lambda model: cut(model / "tokenizer.json"), "tokenizer cannot be read"),
    "end token beyond": (end_token_beyond, "end token lies beyond"),
    "template's token beyond": (template_beyond, "token lies beyond"),
    "configuration of more words": (
        lambda model: edited(model / "config.json", vocab_size=words(model) + 64),
        "describes another model",
    ),
    "configuration that is a list": (lambda model: (model / "config.json").write_text("[]"), "holds no settings"),
    "unknown family": (lambda model: edited(model / "config.json", model_type="nosuch"), "configuration cannot be"),
    "an encoder": (
        lambda model: edited(model / "config.json", model_type="bert", architectures=["BertModel"]),
        "no language model",
    ),
    "adapter beside": (adapter_beside, "LoRA adapter beside"),
    "template of no text": (lambda model: with_template(model, "hello"), "leaves the text out"),
    "template that refuses all": (
        lambda model: with_template(model, "{{ raise_exception('no chat') }}"),
        "refuses the messages",
    ),
    "template cut off": (lambda model: with_template(model, "{% for m in messages %}"), "cannot be read"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_work_is_known_from_files_and_headers(kind, model):
    damage, said = REFUSED[kind]
    damage(model)
    with pytest.raises(InputError, match=said) as refused:
        inspection.check(base_models.located(str(model)))
    assert refused.value.exit_code == 2


@pytest.mark.parametrize("kind", ["pointer", "shard missing", "layer missing", "tokenizer cut off", "end token beyond"])
@pytest.mark.parametrize("command", ["sft", "sft --dry-run", "export", "export --dry-run"])
def test_every_verb_says_so_before_ray_is_started(kind, command, model, tmp_path, monkeypatch, capsys):
    def connected(*args: object, **options: object) -> None:
        pytest.fail("Ray was started")

    monkeypatch.setattr(session, "connected", connected)
    damage, said = REFUSED[kind]
    damage(model)
    rows = tmp_path / "rows.jsonl"
    jsonl.write_rows(rows, demo_world.rows(demo_world.graph_world(1), 4, seed=1))
    verb, *flags = command.split()
    own = ["--train-data", str(rows), "--model-name", str(model)] if verb == "sft" else [str(model)]
    settings = ["--set", f"store={tmp_path / 'store'}", "--set", "tracking.mlflow_uri=none"]
    assert cli.main([verb, *own, *flags, *settings]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", [NO_SYSTEM, ONLY_IN_TURNS, SYSTEM_ASSERTED])
def test_a_template_that_refuses_the_system_role_gets_its_text_in_the_users_turn(text, model):
    with_template(model, text)
    base = base_models.located(str(model))
    assert inspection.check(base) == inspection.AS_TRANSFORMERS
    assert "Be brief.\n\nWho?" in prompts.chat_text(MESSAGES, base_models.load_tokenizer(base))


@pytest.mark.parametrize(
    "values",
    [
        {"tokenizer_class": "TokenizersBackend"},
        {"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]},
        {"tokenizer_class": "NoSuchTokenizerFast"},
        {"chat_template": [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": "x"}]},
    ],
    ids=["backend", "list of extras", "unknown class", "named templates"],
)
def test_a_tokenizer_that_says_odd_things_of_itself_splits_as_its_file_has_it(values, model, whole):
    expected = base_models.load_tokenizer(base_models.located(str(whole["qwen2"])))
    (model / "chat_template.jinja").unlink(missing_ok=True)
    edited(model / "tokenizer_config.json", **{"chat_template": PLAIN, **values})
    base = base_models.located(str(model))
    assert inspection.check(base) == inspection.AS_TRANSFORMERS
    found = base_models.load_tokenizer(base)
    assert prompts.chat_ids(MESSAGES, found) == prompts.chat_ids(MESSAGES, expected)
    assert (found.eos_token_id, found.pad_token_id) == (expected.eos_token_id, expected.pad_token_id)


@pytest.mark.parametrize("version", ["5.2.0", "4.57.0"])
def test_the_base_of_rotations_is_that_of_the_file_whichever_transformers_wrote_it(version, whole, tmp_path):
    model = shutil.copytree(whole["llama"], tmp_path / "model")
    rope = {"rope_theta": 1e6, "rope_type": "default"}
    new = version.startswith("5")
    values = {"rope_parameters": rope, "rope_theta": None} if new else {"rope_parameters": None, "rope_theta": 1e6}
    edited(model / "config.json", transformers_version=version, rope_scaling=None, **values)
    base = base_models.located(str(model))
    inspection.check(base)
    loaded = base_models.load_model(base, "float32")
    assert loaded.config.rope_parameters["rope_theta"] == 1e6
    expected = 1e6 ** -(torch.arange(0, 12, 2) / 12)
    assert torch.allclose(loaded.model.rotary_emb.inv_freq, expected)


def test_a_template_with_marks_and_a_date_asks_the_same_on_every_day(model):
    with_template(model, DATED)
    base = base_models.located(str(model))
    assert inspection.check(base) == inspection.AS_TRANSFORMERS
    assert "Today: 26 July 2024" in prompts.chat_text(MESSAGES, base_models.load_tokenizer(base))


@pytest.mark.parametrize("at", ["tokenizer", "configuration"])
def test_a_pad_token_beyond_the_embedding_is_another_one(at, whole, tmp_path):
    model = shutil.copytree(whole["llama"], tmp_path / "model")
    rows = words(model)
    if at == "tokenizer":
        with_tokens(model, rows, "[PAD]")
        edited(model / "tokenizer_config.json", pad_token="[PAD]")
    edited(model / "config.json", pad_token_id=None if at == "tokenizer" else rows + 5)
    base = base_models.located(str(model))
    inspection.check(base)
    tokenizer, loaded = base_models.load_tokenizer(base), base_models.load_model(base, "float32")
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    loaded(input_ids=torch.tensor([[tokenizer.pad_token_id, 5]]))


def test_tokens_beyond_the_embedding_are_named_and_rows_with_one_refused(model, caplog):
    with_tokens(model, words(model), "<|tool|>", "<|image|>")
    base = base_models.located(str(model))
    with caplog.at_level("WARNING"):
        inspection.check(base)
    assert "2 token(s) that the model has no embedding for (<|tool|>, <|image|>)" in caplog.text
    inspection.check_ids(words(model) - 1, base)
    with pytest.raises(InputError, match="beyond the model's embedding"):
        inspection.check_ids(words(model), base)


def test_sampling_flags_that_contradict_each_other_do_not_end_a_merge(model, tmp_path):
    flags = {"do_sample": False, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [2, 0]}
    (model / "generation_config.json").write_text(json.dumps(flags), encoding="utf-8")
    base = base_models.located(str(model))
    inspection.check(base)
    write_merged(base, None, tmp_path / "merged")
    saved = json.loads((tmp_path / "merged" / "generation_config.json").read_text(encoding="utf-8"))
    assert saved["eos_token_id"] == [2, 0]


@pytest.mark.parametrize("text", [b"GGUF" + bytes(40), POINTER.encode(), b"<html>404</html>"])
def test_a_gguf_file_that_is_none_or_not_whole_is_refused(text, tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(text)
    with pytest.raises(InputError, match=r"GGUF|never fetched"):
        inspection.check(base_models.located(str(file)))
