"""Which generators of rows there are: a line here registers one, its file declares the rest.

A recipe may have a section for each generator, whose settings are declared in the generator's own file. So this is the
one place where the core looks up: it knows those files by name, and imports one when somebody asks for its settings.
"""

import importlib
from collections.abc import Mapping
from types import ModuleType

from pydantic import ValidationError
from pydantic_core import InitErrorDetails

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


def settings_of(value: object) -> object:
    """The section `generation.tasks` of a recipe: of each generator that it names the settings, whole and typed.

    Only those are imported: a recipe that says nothing of generators is read without them. Raises ValidationError.
    """
    if not isinstance(value, Mapping):
        return value
    made, wrong = {}, []
    for name, given in value.items():
        try:
            made[name] = given if isinstance(given, Section) else _settings(name, given)
        except ValidationError as error:
            # Under the generator's name: a validator of the whole section is not told of its parts.
            wrong += [
                InitErrorDetails(type=e["type"], loc=(name, *e["loc"]), input=e["input"], ctx=e.get("ctx", {}))
                for e in error.errors()
            ]
    if wrong:
        raise ValidationError.from_exception_data("generation.tasks", wrong)
    return made


def _settings(name: str, given: object) -> Section:
    """A generator's settings: what is given over the defaults of its file."""
    kind: type[Section] = module_of(name).Settings
    defaults = kind().model_dump()
    if isinstance(given, Mapping):
        return kind.model_validate(merged(defaults, given))
    return kind.model_validate(defaults if given is None else given)
