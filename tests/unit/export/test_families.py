"""Families of models, as the hub has them: loaded as what they are, saved as text models, exported with the same numbers.

What takes longer, of every family: `tests/e2e/test_families.py`; what was seen: `docs/families.md`.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.families import CONFIGS, FAMILIES, SIZES, TRAINED_LENGTH, graph_differences, save_family, sees, whole_logits
from ucotron_ray.core import config
from ucotron_ray.core.errors import InputError
from ucotron_ray.core.run import Run
from ucotron_ray.export import exporter, gguf, gguf_families, gguf_parity, parity
from ucotron_ray.export import stage as export_stage
from ucotron_ray.models import base as base_models
from ucotron_ray.models import lora
from ucotron_ray.models.merge import write_merged
from ucotron_ray.models.shape import shape_of
from ucotron_ray.training import batching

# Tracing warns about every branch of the model's code that it fixes.
pytestmark = pytest.mark.filterwarnings("ignore::Warning")

IDS = torch.randint(3, 800, (150,), generator=torch.Generator().manual_seed(1)).tolist()
EXPORTED = ("gemma3", "granite", "ministral3")
"""What no other quick test exports: windows shorter than the prompt, scaled logits, queries that grow with positions."""

OF_SHAPE = ("qwen2", "qwen3", "llama3", "gemma3", "smollm3", "granite", "ministral3", "olmo2")


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request, tmp_path_factory) -> tuple[str, Path]:
    return request.param, save_family(tmp_path_factory.mktemp(request.param) / "base", request.param)


def logits(model: transformers.PreTrainedModel) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([IDS])).logits[0]


def test_it_is_loaded_and_saved_as_the_text_model_that_it_is(saved, tmp_path):
    _, directory = saved
    expected = whole_logits(directory, IDS)
    base = base_models.located(str(directory))
    assert torch.equal(logits(base_models.load_model(base, "float32").eval()), expected)
    write_merged(base, None, tmp_path / "merged")
    names = load_file(tmp_path / "merged" / "model.safetensors").keys()
    assert {name.partition(".")[0] for name in names} <= {"model", "lm_head"}
    assert not [name for name in names if "vision" in name or "language_model" in name or "projector" in name]
    assert not sees(transformers.AutoConfig.from_pretrained(tmp_path / "merged"))
    # By transformers alone, as anybody would.
    again, found = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", dtype=torch.float32, output_loading_info=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert torch.equal(logits(again.eval()), expected)


def test_a_file_without_one_of_the_weights_is_refused(saved, tmp_path):
    _, directory = saved
    shutil.copytree(directory, tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    tensors = load_file(file)
    gone = next(name for name in sorted(tensors) if name.endswith("layers.1.mlp.down_proj.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"weights of the model are missing") as refused:
        base_models.load_model(base_models.located(str(tmp_path / "base")), "float32")
    assert refused.value.found == "1 that no file has, model.layers.1.mlp.down_proj.weight for one"


def test_padding_in_front_changes_nothing(saved):
    """As batches of training and of scoring have it, up to the length that positions were trained for."""
    _, directory = saved
    model = base_models.load_model(base_models.located(str(directory)), "float32").eval()
    rows = [IDS[:TRAINED_LENGTH], IDS[TRAINED_LENGTH : TRAINED_LENGTH + 37]]
    columns = [{"input_ids": ids, "labels": ids} for ids in rows]
    batch = batching.collate(columns, pad=model.config.pad_token_id)
    with torch.inference_mode():
        padded = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        for ids, found in zip(rows, padded, strict=True):
            assert torch.allclose(found[-len(ids) :], model(input_ids=torch.tensor([ids])).logits[0], atol=1e-4)


def test_weights_in_eight_bits_are_loaded_with_their_scales_or_refused(tmp_path):
    """As mistralai/Ministral-3-3B-Instruct-2512 has them; its -BF16 is the one to train on."""
    directory = save_family(tmp_path / "base", "ministral3")
    base = base_models.located(str(directory))
    whole = logits(base_models.load_model(base, "float32").eval())
    settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    settings["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
    (directory / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    file = directory / "model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if "language_model" in name and name.endswith("_proj.weight")]:
        scale = tensors[name].abs().max() / torch.finfo(torch.float8_e4m3fn).max
        tensors[name] = (tensors[name] / scale).to(torch.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = scale
    save_file(tensors, file, metadata={"format": "pt"})
    try:
        rounded = logits(base_models.load_model(base, "float32").eval())
    except InputError:
        return
    assert torch.corrcoef(torch.stack([whole.flatten(), rounded.flatten()]))[0, 1] > 0.9


def test_its_shape_is_known_where_its_layers_are_the_usual_seven(saved):
    family, directory = saved
    base = base_models.located(str(directory))
    shape = shape_of(base)
    assert (shape is not None) == (family in OF_SHAPE)
    if shape is None:
        return
    model = base_models.load_model(base, "float32")
    # Norms of queries and keys, and Qwen2's biases, are in no layer that a plan is about.
    of_heads = ("q_norm.weight", "k_norm.weight", "proj.bias")
    parameters = model.named_parameters()
    assert shape.total == sum(values.numel() for name, values in parameters if not name.endswith(of_heads))
    settings = config.load().recipe.sft.model_copy(update={"lora_rank": 4, "target_modules": "all-linear"})
    trained = [values.numel() for values in lora.attach(model, settings).parameters() if values.requires_grad]
    assert shape.lora(4, "all-linear") == sum(trained)
    assert shape.targets(["q_proj", "down_proj"]) == ["self_attn.q_proj", "mlp.down_proj"]


def test_a_file_that_leaves_out_the_classes_defaults_has_the_shape_of_the_class(tmp_path):
    """As that of google/gemma-3-4b-it, which has no heads and no words, and does not say that its head is tied."""
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "text_config": text}), encoding="utf-8")
    save_file({}, tmp_path / "model.safetensors")
    shape = shape_of(base_models.located(str(tmp_path)))
    assert shape is not None
    assert (shape.heads, shape.kv_heads, shape.head_dim, shape.vocab, shape.tied) == (8, 4, 256, 262_208, True)
    assert round(shape.total / 1e9, 2) == 3.88


def test_a_gguf_file_holds_the_very_weights_of_the_text_model(saved, tmp_path):
    """Whatever llama.cpp's layout does to them. That it computes the same: `tests/e2e/test_families.py`."""
    family, directory = saved
    write_merged(base_models.located(str(directory)), None, tmp_path / "merged")
    file = gguf.path_of(tmp_path, family, "f16")
    gguf.write(tmp_path / "merged", file, kind="f16", name=family)
    own, read = (base_models.load_tokenizer(base_models.located(str(path))) for path in (directory, file))
    assert read.encode("He's 12  of\n<|im_end|>") == own.encode("He's 12  of\n<|im_end|>")
    again = gguf_parity.loaded(file, tmp_path / "merged").state_dict()
    for name, values in parity.load(tmp_path / "merged").state_dict().items():
        assert torch.allclose(again[name], values, rtol=1e-3, atol=1e-4), name


def test_every_family_may_be_asked_for_gguf_files(saved, tmp_path):
    _, directory = saved
    run = Run(config.load(overrides=[("store", str(tmp_path))]), verb="pipeline", name="x")
    assert run.config.recipe.export.gguf
    export_stage.check_formats(run, base_models.resolve(str(directory)))


UNLIKE_LLAMA_CPP = {
    "rope type": ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}),
    "no_rope_layers": ("smollm3", {"no_rope_layers": [0, 1, 1, 1]}),
    "layer_types": ("gemma3", {"layer_types": ["full_attention", "sliding_attention"]}),
    "query_pre_attn_scalar": ("gemma3", {"query_pre_attn_scalar": 64}),
    "rope_parameters": ("ministral3", {"rope_parameters": {"mscale": 0.5}}),
    "tie_word_embeddings": ("olmo2", {"tie_word_embeddings": True}),
    "linear_key_head_dim": ("qwen3_5", {"linear_value_head_dim": 32}),
}
"""What is found of a model that llama.cpp would compute in another way: its family, and what differs from it."""


@pytest.mark.parametrize("found", UNLIKE_LLAMA_CPP)
def test_gguf_files_are_refused_in_words_before_any_work_where_llama_cpp_would_answer_otherwise(found, tmp_path):
    family, changes = UNLIKE_LLAMA_CPP[found]
    settings = CONFIGS[family](**SIZES, vocab_size=900).get_text_config().to_dict()
    for name, value in changes.items():
        settings[name] = {**settings[name], **value} if isinstance(value, dict) else value
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(InputError, match="no GGUF can be written for this model") as refused:
        gguf.check_architecture(tmp_path)
    assert found in str(refused.value.found)
    assert refused.value.next_step == "export without GGUF: --set export.gguf=[]"


def test_gguf_files_are_refused_where_the_family_is_not_known(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt_neox"}), encoding="utf-8")
    with pytest.raises(InputError, match="no GGUF can be written for this model") as refused:
        gguf.check_architecture(tmp_path)
    assert refused.value.found == "gpt_neox, rope type default"


ROPE_LLAMA = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
ROPE_LLAMA["original_max_position_embeddings"] = TRAINED_LENGTH
FILES = {
    "llama": (
        {"rope_theta": 5e5, "rope_scaling": ROPE_LLAMA},
        {"rope_parameters": {**ROPE_LLAMA, "rope_theta": 5e5}},
    ),
    "gemma3_text": (
        {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ),
    "qwen2": ({"rope_theta": 1e6}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
}
"""How transformers 4 and 5 write into a file how positions turn."""


@pytest.mark.parametrize("kind", FILES)
def test_positions_turn_alike_whichever_transformers_wrote_the_file(kind, tmp_path):
    found = []
    for at, written in enumerate(FILES[kind]):
        (tmp_path / str(at)).mkdir()
        settings = {"model_type": kind, **written}
        (tmp_path / str(at) / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        _, config_of = gguf_families.of(tmp_path / str(at))
        factors = {name: values.tolist() for name, values in gguf_families.factors(config_of).items()}
        found.append((gguf_families.ropes(config_of), factors))
    assert found[0] == found[1]


def test_a_window_that_llama_cpp_does_not_heed_is_told(tmp_path, caplog):
    """Mistral 7B 0.1 has one, Phi-4-mini's is longer than what it reads, and Qwen2 has one only where it says so."""
    told = {}
    for kind, changes in {
        "mistral": {"sliding_window": 4096},
        "phi3": {"sliding_window": 262_144},
        "qwen2": {"sliding_window": 4096},
    }.items():
        settings = {"model_type": kind, "max_position_embeddings": 32_768, **changes}
        (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        caplog.clear()
        gguf.check_architecture(tmp_path)
        told[kind] = caplog.text
    assert "beyond 4096 tokens" in told["mistral"]
    assert not told["phi3"]
    assert not told["qwen2"]


@pytest.mark.parametrize("family", EXPORTED)
def test_the_graph_computes_what_pytorch_computes(family, tmp_path):
    directory = save_family(tmp_path / "base", family)
    write_merged(base_models.located(str(directory)), None, tmp_path / "merged")
    graph = exporter.export(tmp_path / "merged", tmp_path / "bundle", opset=18)
    found = graph_differences(tmp_path / "merged", graph)
    assert max(found.values()) < 1e-4, found
