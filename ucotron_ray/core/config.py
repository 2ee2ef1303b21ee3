"""Reads a recipe and a place: `defaults.yaml`, then the recipe, the place and `--set`, each over the ones before."""

import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from ucotron_ray.core import strict_yaml
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.place import Place
from ucotron_ray.core.recipe import Recipe
from ucotron_ray.core.sections import Section

WHERE_SECTIONS = ("api", "output", "polling", "tracking")
"""Sections that may stand in a recipe (existing files have them there) or in a place, and are never hashed."""


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
        merged = _merge(merged, _checked_file(file, forbidden=PLACE_ONLY, home="a place file"))
    if place is not None:
        merged = _merge(merged, _checked_file(place, forbidden=RECIPE_ONLY, home="a recipe file"))
    for key, value in overrides:
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _check_keys(nested, where=f"--set {key}")
        merged = _merge(merged, nested)
    return _validated(merged)


def with_overlay(config: Config, overlay: Mapping[str, Any]) -> Config:
    """The same configuration with some recipe settings over it, checked like a file's."""
    _check_keys(overlay, where="the overlay")
    return _validated(_merge({**config.recipe.model_dump(), **config.place.model_dump()}, overlay))


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
    data = read_yaml(path)
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


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        # `polling:` with nothing below it leaves the section as it is.
        if isinstance(old, dict) and value is None:
            continue
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


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
            expected=first["msg"],
            found="something else; it is not shown, since it may be a key"
            if key.endswith("key_variable")
            else repr(first["input"]),
            next_step=f"correct `{key}` in the recipe, the place or --set"
            + (f"; {len(error.errors()) - 1} more value(s) are wrong too" if len(error.errors()) > 1 else ""),
        ) from error


def _check_keys(data: object, *, where: str, model: type[BaseModel] | None = None, prefix: str = "") -> None:
    """Refuse unknown keys, with the nearest known name. `model` None = the top level (recipe and place together)."""
    if not isinstance(data, dict):
        return
    fields = {**Recipe.model_fields, **Place.model_fields} if model is None else model.model_fields
    for key, value in data.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            raise ConfigError(
                f"`{prefix}{key}` is no known setting",
                where=where,
                expected=f"one of: {', '.join(sorted(fields))}",
                next_step=f"did you mean `{prefix}{near[0]}`?" if near else None,
            )
        inner = _section_of(fields[key].annotation)
        if inner is not None:
            _check_keys(value, where=where, model=inner, prefix=f"{prefix}{key}.")


def _section_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(filter(None, map(_section_of, typing.get_args(annotation))), None)
    return None
