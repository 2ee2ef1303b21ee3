"""Which generators of rows there are: a line here registers one, its file declares the rest.

A recipe has a section for each generator, and its settings are declared in the generator's own file. So the core looks
up here, in one place and by name, when a recipe is read; it imports nothing above it.
"""

import importlib
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

from pydantic import create_model

from ucotron_ray.core.sections import Section, merged

ASKED = {
    "relation_extraction": "ucotron_ray.synthesis.tasks.relation_extraction",
    "preference": "ucotron_ray.synthesis.tasks.preference",
    "contradiction": "ucotron_ray.synthesis.tasks.contradiction",
    "entity_resolution": "ucotron_ray.synthesis.tasks.entity_resolution",
    "projection": "ucotron_ray.synthesis.tasks.projection",
}
"""Generators whose requests a teacher answers, in the order in which `all` runs them: rows come first."""

COMPUTED = {"path_reward": "ucotron_ray.synthesis.tasks.path_reward"}
"""Generators that ask nobody."""

NAMES = (*ASKED, *COMPUTED)
"""All of them, in the order of `all`."""


def module_of(name: str) -> ModuleType:
    """The file of a generator; what stands in it says `synthesis/generator.py`."""
    return importlib.import_module({**ASKED, **COMPUTED}[name])


@cache
def settings_model() -> type[Section]:
    """The section `generation.tasks` of a recipe: a field for each generator, of the class that it declares."""
    fields: dict[str, Any] = {name: (module_of(name).Settings, ...) for name in NAMES}
    return create_model("Tasks", __base__=Section, **fields)


def settings_of(value: object) -> object:
    """The section `generation.tasks`, what it leaves out as the generators' files have it. Raises ValidationError."""
    if isinstance(value, Mapping):
        defaults = {name: module_of(name).Settings().model_dump() for name in NAMES}
        return settings_model().model_validate(merged(defaults, value))
    return value
