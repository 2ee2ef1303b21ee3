"""Token ids and labels: the loss sees the answer only, whatever the model family and the layout."""

from types import SimpleNamespace

import pytest

from tests.tiny_models import tokenizer_of
from ucotron_ray.core import config
from ucotron_ray.core.artifacts import Input
from ucotron_ray.core.errors import InputError
from ucotron_ray.data import wire
from ucotron_ray.data.records import ChatRow
from ucotron_ray.models.base import BaseModel
from ucotron_ray.models.prompts import prompt_ids, server_row
from ucotron_ray.simulators import demo_world
from ucotron_ray.training import preparation
from ucotron_ray.training.data import IGNORED, epoch_order, example, examples, model_rows

ROWS = list(demo_world.rows(demo_world.graph_world(1), 40, seed=1))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("layout", ["chat", "raw"])
def test_labels_are_the_answer_and_the_end_token_and_nothing_else(family, layout):
    tokenizer = tokenizer_of(family)
    for row in ROWS[:10]:
        made = example(server_row(row, layout), tokenizer)
        assert len(made.input_ids) == len(made.labels)
        learned = [label for label in made.labels if label != IGNORED]
        assert tokenizer.decode(learned) == wire.format_answer(row.expected_relations) + "<|im_end|>"
        num_prompt = len(made.labels) - len(learned)
        assert made.labels[:num_prompt] == [IGNORED] * num_prompt
        assert made.input_ids[num_prompt:] == learned
        # What training conditions on is what evaluation and serving send.
        assert made.input_ids[:num_prompt] == prompt_ids(server_row(row, layout), tokenizer)


def test_chat_prompt_is_the_servers_messages_through_the_template_with_thinking_off():
    row = ROWS[0]
    text = tokenizer_of("qwen3").decode(prompt_ids(server_row(row, "chat"), tokenizer_of("qwen3")))
    assert text == (
        f"<|im_start|>system\n{wire.CHAT_SYSTEM}<|im_end|>\n"
        f"<|im_start|>user\n{wire.user_prompt(row.text, row.entities)}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_raw_prompt_is_the_user_prompt_alone_after_bos_where_there_is_one():
    row = server_row(ROWS[0], "raw")
    for family, head in (("qwen2", ""), ("llama", "<|im_start|>")):
        tokenizer = tokenizer_of(family)
        assert tokenizer.decode(prompt_ids(row, tokenizer)) == head + wire.user_prompt(ROWS[0].text, ROWS[0].entities)


def test_the_raw_share_is_met_and_is_stable_when_rows_are_added():
    many = list(demo_world.rows(demo_world.graph_world(2), 400, seed=2))
    made, counts = model_rows(many, raw_share=0.2, seed=7)
    assert 0.13 < counts["raw"] / 400 < 0.27
    fewer, _ = model_rows(many[:100], raw_share=0.2, seed=7)
    assert made[:100] == fewer
    assert model_rows(many, raw_share=0.0, seed=7)[1] == {"chat": 400}


def test_a_chat_row_that_cannot_be_read_back_trains_as_it_is_and_is_counted():
    foreign = ChatRow.model_validate(
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}
    )
    made, counts = model_rows([foreign, ROWS[0]], raw_share=0.0, seed=1)
    assert counts == {"as_is": 1, "chat": 1}
    assert (made[0].prompt[0].content, made[0].completion) == ("Hi", "Yes")


def test_rows_longer_than_the_context_are_dropped_and_counted_and_never_cut():
    settings = config.load().recipe.sft
    tokenizer = tokenizer_of("qwen2")
    kept, counts = examples(ROWS, tokenizer, settings)
    middle = sorted(len(entry.input_ids) for entry in kept)[20]
    some, some_counts = examples(ROWS, tokenizer, settings.model_copy(update={"max_context_length": middle}))
    assert some_counts["too_long"] == counts["rows"] - len(some) > 0
    assert all(entry in kept for entry in some)
    with pytest.raises(InputError, match="no row fits"):
        examples(ROWS, tokenizer, settings.model_copy(update={"max_context_length": 128}))


def test_epoch_order_sees_every_row_in_full_batches_of_like_lengths():
    lengths = [(index * 37) % 100 + 10 for index in range(101)]
    order = epoch_order(lengths, global_batch=8, seed=1, epoch=0)
    assert len(order) == 104
    assert set(order) == set(range(101))
    assert order != epoch_order(lengths, global_batch=8, seed=1, epoch=1)
    assert order == epoch_order(lengths, global_batch=8, seed=1, epoch=0)
    spreads = [
        max(batch) - min(batch) for at in range(0, 104, 8) if (batch := [lengths[i] for i in order[at : at + 8]])
    ]
    assert sum(spreads) / len(spreads) < 30


def tokens_name(*, base: str = "a", rows: str = "1", stage: str = "sft", **settings: object) -> str:
    """Where tokens of such rows for such a model are looked for."""
    overrides = [(f"training.sft.slm.{key}", value) for key, value in settings.items()]
    run = SimpleNamespace(config=config.load(overrides=overrides), make=lambda verb, request, build: request.name)
    data = SimpleNamespace(as_input=lambda role: Input(role=role, kind="dataset", name="d", content=rows))
    return preparation._tokenized(run, stage, data, BaseModel("m", "directory", None, base), "m")


def test_tokens_are_found_again_by_everything_that_they_are_made_of(monkeypatch):
    changes = (
        {},
        {"base": "b"},
        {"rows": "2"},
        {"stage": "dpo"},
        {"max_context_length": 512},
        {"max_rows": 7},
        {"seed": 7},
    )
    names = [tokens_name(**change) for change in changes]
    monkeypatch.setattr(preparation, "prompt_identity", lambda: "another prompt")
    assert len({*names, tokens_name()}) == len(changes) + 1
    monkeypatch.undo()
    # What does not change them does not make them anew.
    assert tokens_name(learning_rate=1e-3) == names[0]


def test_every_answer_of_a_conversation_is_learned_behind_what_was_said_and_one_of_weight_0_never():
    tokenizer = tokenizer_of("qwen2")
    turns = [("user", "Ann met Bo."), ("assistant", "noted"), ("user", "Who met Bo?"), ("assistant", "Ann")]

    def learned(weights: dict[int, int]) -> list[str]:
        messages = [
            {"role": role, "content": content, **({"weight": weights[n]} if n in weights else {})}
            for n, (role, content) in enumerate(turns)
        ]
        kept, _ = examples([ChatRow.model_validate({"messages": messages})], tokenizer, config.load().recipe.sft)
        assert all(row.labels[-1] == tokenizer.eos_token_id for row in kept)
        if len(kept) == 2:
            # The second answer is asked for with the first one in sight.
            assert "noted" in tokenizer.decode(
                [t for t, label in zip(kept[1].input_ids, kept[1].labels, strict=True) if label == IGNORED]
            )
        return [tokenizer.decode([label for label in row.labels if label != IGNORED][:-1]) for row in kept]

    assert learned({}) == ["noted", "Ann"]
    assert learned({1: 0}) == ["Ann"]
