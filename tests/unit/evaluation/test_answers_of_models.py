"""Answers of a model of transformers: what is noted of them, and that they are those that are served."""

import pytest
import torch

from ucotron_ray.core import config
from ucotron_ray.data.wire import parse_answer, user_prompt
from ucotron_ray.evaluation.decoded import prediction
from ucotron_ray.evaluation.generate import RowDecoder
from ucotron_ray.models import base as base_models
from ucotron_ray.models import lora
from ucotron_ray.models.prompts import prompt_ids, server_row
from ucotron_ray.serving.torch_model import TorchStepper
from ucotron_ray.simulators import demo_world

ROWS = list(demo_world.rows(demo_world.graph_world(1), 3, seed=1))


@pytest.fixture(scope="module")
def loaded(tiny_model):
    base = base_models.resolve(str(tiny_model))
    return lora.load_for_inference(base, None, "float32"), base_models.load_tokenizer(base)


def test_noted_log_probabilities_are_those_of_a_full_pass(loaded):
    model, tokenizer = loaded
    decoder = RowDecoder(model, tokenizer, 12, "free")
    layouts = ("chat", "raw", "chat")
    # Different lengths: the shorter ones are padded on the left.
    answers = [decoder.answer(row, layout) for row, layout in zip(ROWS, layouts, strict=True)]
    decoder.run(answers)
    for row, layout, answer in zip(ROWS, layouts, answers, strict=True):
        assert len(answer.logprobs) == len(answer.tokens)
        with torch.inference_mode():
            ids = prompt_ids(server_row(row, layout), tokenizer)
            for token, logprob in zip(answer.tokens, answer.logprobs, strict=True):
                logits_V = model(input_ids=torch.tensor([ids])).logits[0, -1].float()
                best = logits_V.log_softmax(-1).max(-1)
                assert (int(best.indices), float(best.values)) == (token, pytest.approx(logprob, abs=1e-3))
                ids = [*ids, token]


@pytest.mark.parametrize("decoding", ["free", "entities"])
def test_what_is_scored_is_what_is_served(loaded, decoding):
    """The batch of `generate`, a token a row at a time, against the steps of serving, which feed forced tokens whole."""
    model, tokenizer = loaded
    decoder = RowDecoder(model, tokenizer, 60, decoding)
    scored = [decoder.answer(row, "chat") for row in ROWS]
    decoder.run(scored)
    stepper = TorchStepper(model)
    for row, found in zip(ROWS, scored, strict=True):
        constraint = decoder.speech.constraint(user_prompt(row.text, row.entities), decoding)
        ids = prompt_ids(server_row(row, "chat"), tokenizer)
        served = decoder.speech.answer(ids, max_new_tokens=60, constraint=constraint, to_array_end=True)
        batch = stepper.prefill([served.prompt])
        while fed := served.advance(stepper.logits(batch)[0]):
            batch = stepper.step(batch, [fed])
        assert (found.tokens, found.reason) == (served.tokens, served.reason)
        said = prediction(decoder.speech, (0, "chat"), found)
        if decoding == "entities":
            names = {entity.text for entity in row.entities}
            relations = parse_answer(said.answer)
            assert relations is not None
            assert {name for relation in relations for name in (relation.subject, relation.object)} <= names


def test_an_adapter_beside_its_base_answers_as_merged_into_it(loaded, tiny_model, tmp_path):
    settings = config.load().recipe.sft.model_copy(update={"lora_rank": 4})
    base = base_models.resolve(str(tiny_model))
    adapted = lora.attach(base_models.load_model(base, "float32"), settings)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(1))
    adapted.save_pretrained(str(tmp_path))
    said = []
    for spread in (False, True):
        model = lora.load_for_inference(base, tmp_path, "float32", spread=spread)
        decoder = RowDecoder(model, loaded[1], 24, "free")
        answers = [decoder.answer(row, "chat") for row in ROWS]
        decoder.run(answers)
        said.append([answer.tokens for answer in answers])
    assert said[0] == said[1]
    plain = RowDecoder(loaded[0], loaded[1], 24, "free")
    unadapted = [plain.answer(row, "chat") for row in ROWS]
    plain.run(unadapted)
    assert [answer.tokens for answer in unadapted] != said[0]
