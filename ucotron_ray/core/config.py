"""Reads a recipe and a place: `defaults.yaml`, then the recipe, the place and `--set`, each over the ones before."""

import difflib
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ucotron_ray.core import generators, sections, strict_yaml
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.place import Place
from ucotron_ray.core.recipe import Recipe
from ucotron_ray.core.sections import Section

WHERE_SECTIONS = ("api", "output", "polling", "tracking")
"""Sections that may stand in a recipe (existing files have them there) or in a place, and are never hashed."""

MAY_HOLD_A_KEY = ("api.headers", "api.query", "api.extra_body", "api.proxy")
"""Settings whose wrong values are not shown."""

RENAMED = {("workers", "tokens_per_step"): "max_tokens_per_microbatch"}
"""Section and old name of a setting → its name now."""


class Config(Section):
    """A run: a recipe at a place."""

    recipe: Recipe
    place: Place


def load(
    *,
    recipe: Path | None = None,
    place: Path | None = None,
    overrides: Iterable[tuple[str, Any]] = (),
    overlays: Iterable[Path] = (),
) -> Config:
    """Read and check everything; `overlays` are further recipes, each over the ones before.

    Raises ConfigError that names the key, what was expected and what was found.
    """
    merged = read_yaml(Path(__file__).parent / "defaults.yaml")
    for file in (*filter(None, (recipe,)), *overlays):
        merged = sections.merged(merged, _checked_file(file, forbidden=PLACE_ONLY, home="a place file"))
    if place is not None:
        merged = sections.merged(merged, _checked_file(place, forbidden=RECIPE_ONLY, home="a recipe file"))
    for key, value in overrides:
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        nested = _with_new_names(nested)
        _check_keys(nested, where=f"--set {key}")
        merged = sections.merged(merged, nested)
    return _validated(merged)


def with_overlay(config: Config, overlay: Mapping[str, Any]) -> Config:
    """The same configuration with some recipe settings over it, checked like a file's."""
    _check_keys(overlay, where="the overlay")
    return _validated(sections.merged({**config.recipe.model_dump(), **config.place.model_dump()}, overlay))


def parse_override(text: str) -> tuple[str, Any]:
    """`section.key=value`, the value read as YAML. `2e-4` is a number here, as it is for everybody but YAML 1.1."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(
            f"--set {text} cannot be read",
            expected="--set section.key=value, for example --set training.sft.slm.epochs=1",
            found=text,
        )
    try:
        return key.strip(), strict_yaml.read(value) if value.strip() else None
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key} has a value that is no YAML", found=value) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises ConfigError with the line if it cannot be read."""
    try:
        data = strict_yaml.read(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError("the file does not exist", where=str(path), next_step="check the path") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError("the file is no readable YAML", where=str(path), found=str(error)) from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(
            "the file holds no sections",
            where=str(path),
            expected="a mapping of sections, such as `training:`",
            found=type(data).__name__,
        )
    return data


PLACE_ONLY = tuple(name for name in Place.model_fields if name not in WHERE_SECTIONS)
RECIPE_ONLY = tuple(Recipe.model_fields)


def _checked_file(path: Path, *, forbidden: tuple[str, ...], home: str) -> dict[str, Any]:
    data = _with_new_names(read_yaml(path))
    misplaced = [key for key in data if key in forbidden]
    if misplaced:
        raise ConfigError(
            f"`{misplaced[0]}` does not belong into this file",
            where=str(path),
            expected=f"`{misplaced[0]}` in {home}: a recipe says what is made, a place says where",
            next_step=f"move `{misplaced[0]}` into {home}",
        )
    _check_keys(data, where=str(path))
    return data


def _with_new_names(data: dict[str, Any]) -> dict[str, Any]:
    """The same with settings that were renamed under their new names: places that people have go on working."""
    made = dict(data)
    for (section, old), new in RENAMED.items():
        values = made.get(section)
        if isinstance(values, dict) and old in values and new not in values:
            made[section] = {new if key == old else key: value for key, value in values.items()}
    return made


def _validated(merged: Mapping[str, Any]) -> Config:
    data = {
        "recipe": {key: merged[key] for key in Recipe.model_fields},
        "place": {key: merged[key] for key in Place.model_fields},
    }
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"][1:])
        raise ConfigError(
            f"`{key}` has a value that cannot be used",
            expected=first["msg"].removeprefix("Value error, "),
            found="something else; it is not shown, since it may be a key"
            if key.endswith("key_variable") or key.startswith(MAY_HOLD_A_KEY)
            else repr(first["input"]),
            next_step=f"correct `{key}` in the recipe, the place or --set"
            + (f"; {len(error.errors()) - 1} more value(s) are wrong too" if len(error.errors()) > 1 else ""),
        ) from error


def _check_keys(data: object, *, where: str, model: type[BaseModel] | None = None, prefix: str = "") -> None:
    """Refuse unknown keys, with the nearest known name. `model` None = the top level (recipe and place together)."""
    if not isinstance(data, dict):
        return
    fields = {**Recipe.model_fields, **Place.model_fields} if model is None else _fields(model)
    for key, value in data.items():
        _refuse_unknown(key, fields, where=where, prefix=prefix)
        inner = _section_of(fields[key].annotation)
        if f"{prefix}{key}" == "generation.tasks":
            _check_generators(value, where=where)
        elif inner is not None:
            _check_keys(value, where=where, model=inner, prefix=f"{prefix}{key}.")


def _check_generators(data: object, *, where: str) -> None:
    """The same for the sections of generators, which their own files declare."""
    prefix = "generation.tasks."
    for name, settings in data.items() if isinstance(data, dict) else ():
        _refuse_unknown(name, generators.NAMES, where=where, prefix=prefix)
        _check_keys(settings, where=where, model=generators.module_of(name).Settings, prefix=f"{prefix}{name}.")


def _refuse_unknown(key: object, known: Collection[str], *, where: str, prefix: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(str(key), known, n=1)
        raise ConfigError(
            f"`{prefix}{key}` is no known setting",
            where=where,
            expected=f"one of: {', '.join(sorted(known))}",
            next_step=f"did you mean `{prefix}{near[0]}`?" if near else None,
        )


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(filter(None, map(_section_of, typing.get_args(annotation))), None)
    return None


def _fields(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The settings of a section, as files name them."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def field_of(key: str) -> FieldInfo:
    """The declaration of a setting of recipe or place, by its key. Raises KeyError for one that does not exist."""
    fields = {**Recipe.model_fields, **Place.model_fields}
    *above, last = key.split(".")
    for part in above:
        inner = _section_of(fields[part].annotation)
        fields = _fields(inner) if inner is not None else {}
    return fields[last]
