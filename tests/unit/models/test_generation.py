"""A model answers by its logits alone, whatever generation config it brings."""

import torch
from transformers import GenerationConfig

from ucotron_ray.models import base as base_models
from ucotron_ray.models.generation import generate, until

PROMPTS = [[5, 6, 7, 8, 9], [11, 12]]
TOKENS = 12


def by_hand(model, prompt: list[int]) -> list[int]:
    """The most likely next token, over and over, without `model.generate`."""
    ids = list(prompt)
    for _ in range(TOKENS):
        with torch.inference_mode():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_the_models_own_generation_config_changes_no_token(tiny_model):
    model = base_models.load_model(base_models.resolve(str(tiny_model)), "float32").eval()
    expected = [by_hand(model, prompt) for prompt in PROMPTS]
    eos = next(token for token in range(model.config.vocab_size) if all(token not in answer for answer in expected))
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=3.0,
        repetition_penalty=5.0,
        no_repeat_ngram_size=1,
        suppress_tokens=[expected[0][0]],
        max_length=3,
        eos_token_id=expected[0][0],
        pad_token_id=0,
        transformers_version="4.57.6",
    )
    assert generate(model, PROMPTS, max_new_tokens=TOKENS, eos=eos, pad=eos) == expected
    # And the end token is the one that was named.
    first = expected[0][2]
    (ended,) = generate(model, PROMPTS[:1], max_new_tokens=TOKENS, eos=first, pad=first)
    assert until(first, ended) == until(first, expected[0])


def test_drawn_answers_come_from_the_whole_vocabulary(tiny_model):
    model = base_models.load_model(base_models.resolve(str(tiny_model)), "float32").eval()
    torch.manual_seed(0)
    vocabulary = model.config.vocab_size
    drawn = generate(model, PROMPTS[:1], max_new_tokens=1, eos=vocabulary, pad=0, temperature=100.0, samples=400)
    assert len(drawn) == 400
    # As good as uniform: the fifty most likely tokens alone, transformers' default, would be fifty.
    assert len({tokens[0] for tokens in drawn}) > 100
