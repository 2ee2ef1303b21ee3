"""The search space: what may vary, the same trials every time, and mistakes that name their place."""

import itertools

import pytest

from ucotron_ray.core import config
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.recipe import Tuning
from ucotron_ray.tuning import space

SFT = config.load().recipe.sft


def tuning(**overrides: object) -> Tuning:
    """The defaults with other values of the section `tuning`."""
    given = [(f"tuning.{key}", value) for key, value in overrides.items()]
    return config.load(overrides=given).recipe.tuning


def test_a_grid_is_every_combination_once_with_the_types_of_the_setting():
    wanted = {"search": "grid", "space.sft": {"learning_rate": ["2e-4", 1e-3], "lora_rank": [8.0, 16, 32]}}
    made = space.planned(tuning(scheduler="none", **wanted), "sft", SFT)
    every = [{"learning_rate": rate, "lora_rank": rank} for rate, rank in itertools.product([2e-4, 1e-3], [8, 16, 32])]
    assert made == every
    assert {type(params["lora_rank"]) for params in made} == {int}
    # Under halving in an order of the seed, which no value comes first in.
    halved = space.planned(tuning(scheduler="asha", **wanted), "sft", SFT)
    assert halved == space.planned(tuning(scheduler="asha", **wanted), "sft", SFT)
    assert halved != every
    assert sorted(map(str, halved)) == sorted(map(str, every))


def test_random_draws_follow_the_seed_stay_in_bounds_and_never_repeat():
    first = space.planned(tuning(trials=20), "sft", SFT)
    assert first == space.planned(tuning(trials=20), "sft", SFT)
    # More trials of the same seed begin with the same ones.
    assert space.planned(tuning(trials=30), "sft", SFT)[:20] == first
    assert first != space.planned(tuning(trials=20, seed=7), "sft", SFT)
    rates = [params["learning_rate"] for params in first]
    assert all(5e-5 <= rate <= 2e-3 for rate in rates)
    # Log-uniform: half of the draws lie below the middle of the logarithms, 3.2e-4; of plain ones a seventh would.
    assert 5 <= sum(rate < 3.2e-4 for rate in rates) <= 15
    assert all(float(f"{rate:.3g}") == rate for rate in rates)
    few = space.planned(tuning(trials=20, **{"space.sft": {"learning_rate": [1e-3], "lora_rank": [8, 16]}}), "sft", SFT)
    assert len(few) == 2


def test_whole_numbers_between_bounds_stay_whole():
    wanted = tuning(trials=8, **{"space.sft": {"learning_rate": [], "lora_rank": {"low": 4, "high": 64}}})
    made = space.planned(wanted, "sft", SFT)
    assert all(type(params["lora_rank"]) is int and 4 <= params["lora_rank"] <= 64 for params in made)
    assert all(set(params) == {"lora_rank"} for params in made)


@pytest.mark.parametrize(
    ("stage", "values", "search", "said"),
    [
        ("sft", {"learning_rat": [1e-3]}, "random", "did you mean `learning_rate`?"),
        ("sft", {"seed": [1, 2]}, "random", "the same for all trials"),
        ("sft", {"max_context_length": [512]}, "random", "the same for all trials"),
        ("sft", {"beta": [0.1]}, "random", "`beta` cannot be searched"),
        ("sft", {"lora_rank": [0]}, "random", "greater than or equal to 1"),
        ("sft", {"learning_rate": [], "lora_rank": [8, 2.5]}, "grid", "valid integer"),
        ("sft", {"learning_rate": {"low": 1e-3, "high": 1e-4}}, "random", "the wrong way round"),
        ("sft", {"learning_rate": {"low": 1e-4, "high": 1e-3}}, "grid", "a grid needs values"),
        ("sft", {"learning_rate": [], "lora_rank": []}, "random", "nothing is searched"),
        ("dpo", {"beta": [-1.0]}, "random", "greater than 0"),
        ("projection", {"dropout": [1.5]}, "random", "less than 1"),
    ],
)
def test_what_cannot_be_searched_is_refused_where_it_stands(stage, values, search, said):
    loaded = config.load().recipe
    settings = {"sft": loaded.sft, "dpo": loaded.dpo, "projection": loaded.projection}[stage]
    wanted = tuning(search=search, **{f"space.{stage}": values})
    with pytest.raises(ConfigError) as caught:
        space.planned(wanted, stage, settings)
    assert said in str(caught.value)
    assert f"tuning.space.{stage}" in str(caught.value)


def test_one_bound_over_the_default_ones_is_enough_and_an_empty_list_takes_a_setting_out():
    made = space.planned(tuning(**{"space.sft": {"learning_rate": {"low": 1e-3}, "lora_rank": []}}), "sft", SFT)
    assert all(set(params) == {"learning_rate"} and params["learning_rate"] >= 1e-3 for params in made)


def test_a_scheduler_that_would_need_more_than_stopping_is_refused():
    with pytest.raises(ConfigError, match="'asha' or 'none'"):
        tuning(scheduler="pbt")


def test_optuna_proposes_the_same_again_from_the_same_past_and_learns_from_it():
    pytest.importorskip("optuna")
    wanted = tuning(search="optuna", trials=30)
    assert space.planned(wanted, "sft", SFT) == []
    past: list = []
    for number in range(30):
        params = space.suggested(wanted, "sft", SFT, number, past)
        assert params == space.suggested(wanted, "sft", SFT, number, past)
        assert 5e-5 <= params["learning_rate"] <= 2e-3
        past.append((params, -abs(params["learning_rate"] - 1e-3)))
    # The last proposals lie nearer to the best rate than the first ones, which are drawn at random.
    misses = [abs(params["learning_rate"] - 1e-3) for params, _ in past]
    assert sum(misses[-10:]) < 0.7 * sum(misses[:10])


def test_the_values_that_a_trial_may_have_are_those_listed_planned_or_between_optunas_bounds():
    between = {"batch_size": {"low": 4, "high": 6}, "learning_rate": [1e-3]}
    for search, known, values in (("random", [{"batch_size": 5}], [5]), ("optuna", [], [4, 5, 6])):
        wanted = tuning(search=search, **{"space.sft": between})
        assert space.candidates(wanted, "sft", SFT, "batch_size", known) == (values, True)
    listed = tuning(**{"space.sft": {"batch_size": ["8", 16.0]}})
    assert space.candidates(listed, "sft", SFT, "batch_size", []) == ([8, 16], True)
    assert space.candidates(listed, "sft", SFT, "epochs", []) == ([SFT.epochs], False)
