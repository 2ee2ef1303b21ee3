"""Recipes that nobody would write by hand: each is taken, or refused as a user's mistake that names its key."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from ucotron_ray.core import config
from ucotron_ray.core.errors import ConfigError

RECIPE = Path(__file__).parents[3] / "jobs/recipes/demo.yaml"
HOSTILE = (
    None, "", " ", "x" * 10_000, "\u0000", "null", -1, 0, 2**70, -0.5, float("nan"), float("inf"), True, [], [None], {},
    {"a": {"b": 1}}, {1: 2}, {"": ""}, [[["deep"]]], "2024-01-01", b"bytes", "${HOME}", "../../etc/passwd",
)  # fmt: skip


def places_in(node: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every section and every value."""
    inner = (
        [place for key, value in node.items() for place in places_in(value, (*at, key))]
        if isinstance(node, dict)
        else []
    )
    return [at, *inner] if at else inner


def judged(text: str, path: Path) -> ConfigError | None:
    path.write_text(text, encoding="utf-8")
    try:
        config.load(recipe=path)
    except ConfigError as error:
        return error
    return None


@pytest.mark.parametrize("seed", range(8))
def test_a_value_of_any_kind_anywhere_is_taken_or_refused_by_its_key(tmp_path, seed):
    rng = random.Random(seed)
    refused = 0
    for _ in range(12):
        data = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
        *above, last = rng.choice(places_in(data))
        node = data
        for key in above:
            node = node[key]
        name = rng.choice([last, last, last, f"{last}x", 7, None])
        node.pop(last)
        node[name] = rng.choice(HOSTILE)
        error = judged(yaml.safe_dump(data, sort_keys=False), tmp_path / "recipe.yaml")
        refused += error is not None
        assert error is None or all(str(part) in str(error) for part in (*above, name)), (above, name, str(error))
    assert refused


@pytest.mark.parametrize("seed", range(4))
def test_text_that_was_damaged_is_taken_or_refused(tmp_path, seed):
    rng = random.Random(seed)
    text = RECIPE.read_text(encoding="utf-8")
    for _ in range(12):
        at = rng.randrange(len(text))
        change = rng.choice(
            ["", ":", "- ", "{", "[", '"', "\t", "\n", "&a ", "*a ", "!!python/object:os.system ", "\ufeff", "? "]
        )
        judged(text[:at] + change + text[at + rng.randrange(6) :], tmp_path / "recipe.yaml")
