"""The log-probabilities noted while a batch answers are those of one full pass over each answer."""

import torch

from ucotron_ray.evaluation import generate
from ucotron_ray.models import base as base_models
from ucotron_ray.models import lora
from ucotron_ray.models.prompts import prompt_ids, server_row
from ucotron_ray.simulators import demo_world


def test_noted_log_probabilities_are_those_of_a_full_pass_and_pieces_make_up_the_answer(tiny_model, monkeypatch):
    base = base_models.resolve(str(tiny_model))
    tokenizer = base_models.load_tokenizer(base)
    model = lora.load_for_inference(base, None, "float32")
    rows = list(demo_world.rows(demo_world.graph_world(1), 3, seed=1))
    # Different lengths: the shorter ones are padded on the left.
    prompts = [
        prompt_ids(server_row(row, layout), tokenizer)
        for row, layout in zip(rows, ("chat", "raw", "chat"), strict=True)
    ]
    noted: list[tuple[str, list[str], list[float]]] = []

    def note(answer, pieces, logprobs):
        noted.append((answer, pieces, logprobs))

    monkeypatch.setattr(generate, "token_confidence", note)
    sure: list[list[float] | None] = []
    answers = generate.greedy(model, tokenizer, prompts, max_new_tokens=12, sure=sure)
    assert answers == generate.greedy(model, tokenizer, prompts, max_new_tokens=12)
    assert len(sure) == len(prompts)
    for prompt, (answer, count, _), (said, pieces, logprobs) in zip(prompts, answers, noted, strict=True):
        assert said == answer
        assert len(logprobs) == count
        if "\ufffd" not in answer:
            assert "".join(pieces) == answer
        with torch.inference_mode():
            ids = list(prompt)
            for logprob in logprobs:
                logits_V = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
                best = logits_V.log_softmax(-1).max(-1)
                assert abs(float(best.values) - logprob) < 1e-3
                ids.append(int(best.indices))
