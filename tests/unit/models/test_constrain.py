"""A constrained answer parses, names only the request's entities byte for byte, and is reached by tokens of the model."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.tiny_models import tokenizer_of
from ucotron_ray.data.records import Entity, Relation
from ucotron_ray.data.wire import format_answer, parse_answer, user_prompt
from ucotron_ray.models import decoding
from ucotron_ray.models.constrain import Grammars
from ucotron_ray.models.decoding import Answer, ArrayEnd, answered, closed

NAMES = ["Ana María", 'O"Hara\\x', "x\ty\nz", "東京 🎉", "TU Berlin", "  spaced  ", "]}", "{name}"]
TEXT = "Ana María met O'Hara."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    tokenizer = tokenizer_of("qwen2")
    directory = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(directory)
    tokenizer.file = directory / "tokenizer.json"
    return tokenizer


def grammars(tokenizer, *predicates: str) -> Grammars:
    return Grammars(
        Path(tokenizer.file), num_words=len(tokenizer) + 7, eos=[tokenizer.eos_token_id], predicates=predicates
    )


@pytest.mark.parametrize("missing", [0, 2])
def test_a_tokenizer_may_have_tokens_that_the_model_has_not(tokenizer, tmp_path, missing):
    """Two more than the embedding's rows, or as many; fewer is what the other tests have."""
    more = tokenizer_of("qwen2")
    # Not special: the grammar spells names with them, and they are forced where both names begin alike.
    more.add_tokens(["Ana ", "Roe"])
    more.save_pretrained(tmp_path)
    num_words = len(more) - missing
    made = Grammars(tmp_path / "tokenizer.json", num_words=num_words, eos=[more.eos_token_id])
    constraint = made.of_entities(entities(["Ana Roe x", "Ana Roe y"]))
    answer = Answer([1], max_new_tokens=600, eos=[more.eos_token_id], piece=more.decode, constraint=constraint)
    random = np.random.default_rng(0)
    while answer.reason is None:
        answer.advance(random.standard_normal(num_words).astype(np.float32))
    assert answer.reason == "array"
    relations = parse_answer(more.decode(answer.tokens))
    assert relations
    assert all({one.subject, one.object} <= {"Ana Roe x", "Ana Roe y"} for one in relations)
    assert max(answer.tokens) < num_words
    assert ({len(more) - 2, len(more) - 1} <= set(answer.tokens)) == (missing == 0)


def entities(names: list[str]) -> list[Entity]:
    return [Entity(text=name, label="person") for name in names]


def walk(tokenizer, constraint, seed: int, *, max_new_tokens: int = 600) -> Answer:
    """An answer by a model that says nothing but noise."""
    random = np.random.default_rng(seed)
    answer = Answer(
        [1],
        max_new_tokens=max_new_tokens,
        eos=[tokenizer.eos_token_id],
        piece=lambda token: tokenizer.decode([token]),
        constraint=constraint,
    )
    while answer.reason is None:
        answer.advance(random.standard_normal(len(tokenizer) + 7).astype(np.float32))
    return answer


@pytest.mark.parametrize("seed", range(5))
def test_noise_comes_out_as_relations_between_the_entities(tokenizer, seed):
    constraint = grammars(tokenizer, "works_at", 'said "no"').of_entities(entities(NAMES))
    answer = walk(tokenizer, constraint, seed)
    text = tokenizer.decode(answer.tokens)
    assert answer.reason == "array"
    relations = parse_answer(text)
    assert relations is not None
    assert len(relations) == len(json.loads(text)) <= 56
    for relation in relations:
        assert {relation.subject, relation.object} <= set(NAMES)
        assert relation.predicate in ("works_at", 'said "no"')
        assert 0 <= relation.confidence <= 1


def test_a_right_answer_in_the_layout_of_training_is_allowed_token_by_token(tokenizer):
    relations = [
        Relation(subject=a, predicate="knows", object=b, confidence=confidence)
        for a, b, confidence in zip(
            NAMES, [*NAMES[1:], NAMES[0]], [1.0, 0.0, 0.5, 0.95, 0.9, 0.1, 0.85, 0.3], strict=True
        )
    ]
    constraint = grammars(tokenizer).of_entities(entities(NAMES))
    for token in tokenizer.encode(format_answer(relations), add_special_tokens=False):
        assert constraint.allowed_V()[token]
        constraint.read([token])
    assert constraint.ended


def test_a_name_with_another_letter_is_not_allowed(tokenizer):
    constraint = grammars(tokenizer).of_entities(entities(["Ana María", "Berlin"]))
    tokens = tokenizer.encode('[{"subject":"Ana M', add_special_tokens=False)
    constraint.read(tokens)
    wrong = tokenizer.encode("x", add_special_tokens=False)[0]
    assert not constraint.allowed_V()[wrong]


def test_a_prompt_in_another_layout_or_without_entities_is_served_free(tokenizer):
    made = grammars(tokenizer)
    assert made.of_prompt("Tell me about Ana.") is None
    assert made.of_prompt(user_prompt(TEXT, [])) is None
    assert made.of_prompt(user_prompt(TEXT, entities(["Ana", "Bo"]))) is not None


def test_one_entity_has_no_relation(tokenizer):
    answer = walk(tokenizer, grammars(tokenizer).of_entities(entities(["Ana", "Ana"])), 0)
    assert tokenizer.decode(answer.tokens) == "[]"


def test_what_is_forced_costs_no_step_of_the_model(tokenizer):
    constraint = grammars(tokenizer, "works_at").of_entities(entities(["Ana", "Bo"]))
    answer = Answer([1], max_new_tokens=400, eos=[2], piece=lambda t: tokenizer.decode([t]), constraint=constraint)
    steps = 0
    open_brace = tokenizer.encode("[{", add_special_tokens=False)[-1]
    logits_V = np.zeros(len(tokenizer) + 7, dtype=np.float32)
    logits_V[open_brace] = 1
    while answer.reason is None and steps < 99:
        answer.advance(logits_V)
        steps += 1
    assert answer.reason == "array"
    assert steps < len(answer.tokens) / 2
    assert len(answer.logprobs) == len(answer.tokens)


def test_an_answer_cut_by_its_limit_keeps_its_whole_items():
    item = '{"subject":"A","predicate":"p","object":"B]","confidence":0.9}'
    assert closed(f"[{item},{item[:20]}") == f"[{item}]"
    assert closed(f"[{item}") == f"[{item}]"
    assert closed('[{"sub') == "[]"
    assert closed("nothing") == "nothing"


def test_the_array_ends_at_its_own_bracket():
    end = ArrayEnd()
    pieces = ["Sure: ", '[{"a', '":"]"', ',"b":[1', "]}", "\\", ',{"c":"\\"]"}', "]", " and more"]
    assert [end.closes(piece) for piece in pieces].index(True) == 7


class Counting:
    """A runner whose rows say their own number, then the end token 0, after so many steps as their number."""

    def prefill(self, prompts):
        return self.state([(ids[0], ids[0]) for ids in prompts])

    def step(self, state, tokens):
        assert len(tokens) == len(state.left)
        return self.state([(number, left - 1) for number, left in state.left])

    @staticmethod
    def state(rows):
        logits_BV = np.zeros((len(rows), 10), dtype=np.float32)
        for index, (number, left) in enumerate(rows):
            logits_BV[index, number if left > 0 else 0] = 1
        return SimpleNamespace(left=rows, logits_BV=logits_BV)


def test_a_batch_gives_each_answer_as_soon_as_it_is_over(monkeypatch):
    def pick(parts):
        return Counting.state([state.left[row] for state, rows in parts for row in rows])

    monkeypatch.setattr(decoding, "pick", pick)
    answers = [Answer([number], max_new_tokens=50, eos=[0], piece=None) for number in (5, 1, 3)]
    assert [answer.tokens[0] for answer in answered(Counting(), answers)] == [1, 3, 5]
    assert [len(answer.tokens) for answer in answers] == [5, 1, 3]
    assert {answer.reason for answer in answers} == {"end"}
