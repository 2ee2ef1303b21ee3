"""The demo's real model comes out of its GGUF file with a tokenizer that does not spoil names."""

import pytest

from ucotron_ray.core import config
from ucotron_ray.models import base as base_models
from ucotron_ray.models.prompts import prompt_ids, server_row
from ucotron_ray.simulators import demo_world

RECIPE = "jobs/recipes/demo.yaml"


@pytest.fixture(scope="module")
def tokenizer(request):
    recipe = config.load(recipe=request.config.rootpath / RECIPE).recipe
    return base_models.load_tokenizer(base_models.resolve(recipe.tier_model.local_model))


def test_special_tokens_are_those_of_the_file(tokenizer):
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token_id not in (tokenizer.eos_token_id, None)
    assert tokenizer.padding_side == "left"


def test_it_gives_what_generate_takes(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    for either in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert set(either("Ana lives in Lyon.")) == {"input_ids", "attention_mask"}


def test_text_survives_encoding_and_decoding_unchanged(tokenizer):
    texts = [
        "Zoë Q. Ellison-Ruiz  owns 12 kites.",
        '[{"subject":"Port Averill","confidence":0.25}]',
        " a , b .",
        "don 't",
        "北京 → São",
    ]
    texts += [row.text for row in demo_world.rows(demo_world.graph_world(1), 50, seed=1)]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == text
        # No BOS in front: the chat template writes what is needed.
        assert tokenizer.encode(text) == ids


def test_chat_prompt_begins_and_ends_as_the_template_says(tokenizer):
    row = next(demo_world.rows(demo_world.graph_world(1), 1, seed=1))
    text = tokenizer.decode(prompt_ids(server_row(row, "chat"), tokenizer))
    assert text.startswith("<|im_start|>system\nYou are a relation extraction model.")
    assert text.endswith("JSON output:<|im_end|>\n<|im_start|>assistant\n")
