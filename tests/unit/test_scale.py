"""The model of larger clusters: its arithmetic, where its constants come from, and that the text has its figures."""

import dataclasses
from pathlib import Path

import pytest

from tests.benchmarks import scale

ROOT = Path(__file__).parents[2]
MEASURED = scale.Measured(
    sender_requests_per_second=1000.0,
    exchange_us={8: 50.0, 64: 100.0, 512: 500.0},
    request_us=10.0,
    record_bytes=500.0,
    driver_mb_per_million_requests=400.0,
    train_fixed_seconds=18.0,
)


def test_the_accounts_limit_ends_first_and_without_it_the_limiters_one_core():
    for nodes in scale.NODES:
        made = scale.synthesis(nodes, MEASURED, scale.Assumed(), 6000)
        assert made.first == "the account's limit"
        assert made.journal_mb == pytest.approx(100 * 500 / 1e6)
        assert made.journal_syncs <= 100
    few, _, many = (scale.synthesis(nodes, MEASURED, scale.Assumed(), None) for nodes in scale.NODES)
    assert few.first == "the senders' processors"
    assert many.first == "the limiter's core"
    assert many.limiter_limit < few.limiter_limit


def test_a_slower_limiter_is_never_faster_in_the_model():
    slower = dataclasses.replace(MEASURED, request_us=100.0)
    for nodes in scale.NODES:
        fast = scale.synthesis(nodes, MEASURED, scale.Assumed(), None)
        slow = scale.synthesis(nodes, slower, scale.Assumed(), None)
        assert slow.limiter_limit < fast.limiter_limit
        assert slow.journal_mb <= fast.journal_mb


def test_parameters_of_an_adapter_are_those_of_peft():
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = scale.Shape(hidden=32, inner=48, kv=16, layers=2, base_gb=0.0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=50,
        )
    )  # fmt: skip
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert scale.adapter_parameters(shape, 4) == trained


def test_one_training_takes_no_more_workers_than_its_batch_has_rows_and_the_rest_are_trials():
    shape = scale.SHAPES["slm"]
    few, some, many = (scale.training(n, shape, 8, 16, 1.0, MEASURED, scale.Assumed()) for n in scale.NODES)
    assert (few.workers_of_one, some.workers_of_one, many.workers_of_one) == (8, 16, 16)
    assert (few.at_once, some.at_once, many.at_once) == (1, 4, 32)
    assert many.first == "the recipe's global batch"
    assert few.first != "the recipe's global batch"
    assert many.base_read_seconds == 64 * few.base_read_seconds


def test_the_text_has_the_figures_of_the_model():
    text = (ROOT / "cluster/SCALE.md").read_text(encoding="utf-8")
    assert scale.synthesis_table() in text
    assert scale.training_table() in text
