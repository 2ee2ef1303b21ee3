"""Recipe and place: what loads, what is refused and in which words."""

import textwrap

import pytest

from ucotron_ray.core import config, variables
from ucotron_ray.core.errors import ConfigError

EXISTING_FILE = """
api:
  fine_tuning_base_url: "https://api.fireworks.ai/v1"
  inference_base_url: "https://api.fireworks.ai/inference/v1"
  timeout: 120.0
  max_retries: 3
  retry_delay: 2.0
models:
  generation:
    model_id: "accounts/fireworks/models/glm-4-plus"
    display_name: "GLM-4 Plus"
    use_case: "Synthetic data generation"
  fine_tuning:
    slm: {model_id: "accounts/fireworks/models/qwen2p5-0.5b-instruct", display_name: "Qwen 2.5 0.5B", use_case: edge}
    small: {model_id: "accounts/fireworks/models/qwen2p5-1.5b-instruct", display_name: "Qwen 2.5 1.5B", use_case: mid}
    medium: {model_id: "accounts/fireworks/models/qwen2p5-7b-instruct", display_name: "Qwen 2.5 7B", use_case: cloud}
training:
  sft:
    slm: {epochs: 3, learning_rate: 2e-4, lora_rank: 8, max_context_length: 2048, batch_size: null}
    small: {epochs: 3, learning_rate: 2.0e-4, lora_rank: 16, max_context_length: 2048, batch_size: null}
    medium: {epochs: 2, learning_rate: 0.0001, lora_rank: 16, max_context_length: 4096, batch_size: null}
  dpo:
    slm: {epochs: 2, learning_rate: 5e-5, lora_rank: 8, max_context_length: 2048, batch_size: null}
    small: {epochs: 2, learning_rate: 5e-5, lora_rank: 16, max_context_length: 2048, batch_size: null}
    medium: {epochs: 1, learning_rate: 3e-5, lora_rank: 16, max_context_length: 4096, batch_size: null}
generation:
  defaults: {max_tokens: 2048, temperature: 0.7, top_p: 0.9}
  tasks:
    relation_extraction: {temperature: 0.7, max_tokens: 2048, target_samples: 10000}
    preference:
      chosen: {temperature: 0.0, max_tokens: 300}
      rejected: {temperature: 0.7, max_tokens: 150}
      target_samples: 5000
    contradiction: {temperature: 0.7, max_tokens: 1024, target_samples: 3000}
    entity_resolution: {temperature: 0.8, max_tokens: 512, target_samples: 2000}
tracking: {enabled: false, wandb_project: "ucotron-finetune"}
polling: {interval: 30, timeout: 0, verbose: true}
output: {data_dir: data/training, model_dir: models/fine_tuned, model_name_template: "ucotron-{task}-{model_tier}"}
"""


def test_existing_fireworks_config_loads_unmodified_and_means_the_guides_numbers(tmp_path):
    path = tmp_path / "fireworks_config.yaml"
    path.write_text(EXISTING_FILE, encoding="utf-8")
    loaded = config.load(recipe=path)
    # The file says nothing that the defaults do not say.
    assert loaded.recipe.training == config.load().recipe.training
    sft, dpo = loaded.recipe.training.sft, loaded.recipe.training.dpo
    numbers = lambda tier: (tier.epochs, tier.learning_rate, tier.lora_rank, tier.max_context_length)  # noqa: E731
    assert [numbers(tier) for tier in (sft.slm, sft.small, sft.medium)] == [
        (3, 2e-4, 8, 2048),
        (3, 2e-4, 16, 2048),
        (2, 1e-4, 16, 4096),
    ]
    assert [numbers(tier) for tier in (dpo.slm, dpo.small, dpo.medium)] == [
        (2, 5e-5, 8, 2048),
        (2, 5e-5, 16, 2048),
        (1, 3e-5, 16, 4096),
    ]
    assert loaded.recipe.sft.global_batch == 16


@pytest.mark.parametrize(
    ("text", "problem", "hint"),
    [
        ("training: {sft: {slm: {epoch: 1}}}", "`training.sft.slm.epoch` is no known setting", "epochs"),
        ("trainin: {}", "`trainin` is no known setting", "training"),
        ("training: {sft: {slm: {epochs: many}}}", "`training.sft.slm.epochs`", "many"),
        ("training: {sft: {slm: {epochs: true}}}", "`training.sft.slm.epochs`", "True"),
        ("training: {sft: {slm: {learning_rate: 0}}}", "`training.sft.slm.learning_rate`", "greater than 0"),
        ("training: {sft: {slm: {lora_rank: 0}}}", "`training.sft.slm.lora_rank`", "greater than or equal to 1"),
        ("tier: huge", "`tier`", "'slm', 'small' or 'medium'"),
        ("store: /tmp/x", "`store` does not belong into this file", "a place file"),
        ("- a list", "holds no sections", "list"),
        ("a: [", "no readable YAML", "line 1"),
    ],
)
def test_a_wrong_recipe_is_refused_with_where_and_what(tmp_path, text, problem, hint):
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        config.load(recipe=path)
    assert problem in str(caught.value)
    assert hint in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_place_with_a_recipe_section_is_refused(tmp_path):
    path = tmp_path / "place.yaml"
    path.write_text("graph: {max_samples: 3}", encoding="utf-8")
    with pytest.raises(ConfigError, match="a recipe file"):
        config.load(place=path)


def test_place_overrides_the_where_sections_of_a_recipe_and_set_overrides_both(tmp_path):
    recipe, place = tmp_path / "r.yaml", tmp_path / "p.yaml"
    recipe.write_text("api: {timeout: 1}\noutput: {data_dir: a}\n", encoding="utf-8")
    place.write_text("api: {timeout: 2}\n", encoding="utf-8")
    loaded = config.load(recipe=recipe, place=place, overrides=[config.parse_override("output.data_dir=b")])
    assert (loaded.place.api.timeout, loaded.place.output.data_dir) == (2, "b")


def test_yaml_anchors_in_a_recipe_and_scientific_numbers_work(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        textwrap.dedent("""
        training:
          sft:
            slm: {learning_rate: 3e-4}
        """),
        encoding="utf-8",
    )
    assert config.load(recipe=path).recipe.sft.learning_rate == 3e-4


@pytest.mark.parametrize("text", ["no-equals", "=1"])
def test_set_without_key_or_value_is_refused(text):
    with pytest.raises(ConfigError, match="cannot be read"):
        config.parse_override(text)


def test_missing_variable_names_it_and_never_shows_a_value(monkeypatch):
    with pytest.raises(ConfigError, match="FIREWORKS_API_KEY"):
        variables.secret("FIREWORKS_API_KEY", None)
    monkeypatch.setenv("FIREWORKS_API_KEY", "fw-canary")
    assert variables.is_set("FIREWORKS_API_KEY")
    assert variables.value("UCOTRON_NAMESPACE") == "default"
    assert variables.value("UCOTRON_SERVER_URL") == "http://localhost:8420"


def test_a_setting_that_was_renamed_is_read_by_its_old_name_too(tmp_path):
    place = tmp_path / "place.yaml"
    place.write_text("workers: {tokens_per_step: 512}\n", encoding="utf-8")
    assert config.load(place=place).place.workers.max_tokens_per_microbatch == 512
    said = config.load(overrides=[("workers.tokens_per_step", 256)]).place.workers
    assert said.max_tokens_per_microbatch == 256


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("generation.tasks.preference.chosen.temperature", 9),
        ("generation.tasks.relation_extraction", 5),
        ("generation.tasks.contradiction.target_samples", "many"),
    ],
)
def test_a_wrong_setting_of_a_generator_is_named_whole(key, value):
    with pytest.raises(ConfigError, match=f"`{key}`"):
        config.load(overrides=[(key, value)])


def test_a_recipe_says_what_is_in_force_for_generators_that_it_does_not_name():
    recipe = config.load(overrides=[("generation.tasks.preference.margin", 0.3)]).recipe
    tasks = recipe.whole()["generation"]["tasks"]
    assert tasks["preference"]["margin"] == 0.3
    assert tasks["projection"]["target_samples"] == 50000
