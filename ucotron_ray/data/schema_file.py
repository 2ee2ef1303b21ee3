"""The file of a schema: YAML that a person edits. Which key means what: docs/schema.md."""

import difflib
import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ucotron_ray.core import strict_yaml
from ucotron_ray.core.errors import InputError
from ucotron_ray.data.schema import Example, Misfit, Predicate, Schema

log = logging.getLogger(__name__)

MAX_CHARACTERS = 8 * 1024**2
"""A thousand predicates with three examples of a page each."""
MAX_VALUES = 1_000_000
"""A domain of an ontology can have hundreds of types."""

PROPOSALS = "proposals"
"""A key that this program writes and that reading passes over: what a person may want to change."""

HEADER = """\
# A schema: the types of entities and the predicates that rows are made with. Edit it freely; `ucotron-ray schema FILE`
# checks it. A predicate can have:
#   description   one sentence, which stands in prompts
#   domain, range types of its subjects and objects, as under `types:`; [] = any
#   symmetric     true: A p B says B p A
#   inverse       another predicate, which is written instead of this one, with the ends exchanged
#   aliases       other names of the same
#   examples      subject, object and, if there is one, a text that names both
#   count         how often the source says it
"""
_PROPOSALS_HEADER = """\
# What looks alike. Nothing follows from this list: it is not read. Say `aliases`, `inverse` or `symmetric` above.
"""


def read(path: Path) -> Schema:
    """The schema of a file. Raises InputError with the line of what is wrong and what to do about it."""
    try:
        text = path.read_text(encoding="utf-8")
        document = strict_yaml.read(text, max_characters=MAX_CHARACTERS, max_values=MAX_VALUES)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        found = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise InputError(
            "the schema is no readable YAML file",
            where=str(path),
            found=found,
            next_step="correct the path or the line",
        ) from error
    if not isinstance(document, dict) or not isinstance(document.get("predicates"), dict):
        raise InputError(
            "the file holds no schema",
            where=str(path),
            expected="a mapping with `types:` and `predicates:`, each a mapping by name",
            found=", ".join(map(str, document))[:200] if isinstance(document, dict) else type(document).__name__,
            next_step="`ucotron-ray schema GRAPH --output FILE.yaml` writes one",
        )
    proposals = document.pop(PROPOSALS, None)
    if proposals:
        count = len(proposals) if isinstance(proposals, list) else 1
        log.info("%s: %d entries of `%s:` are not read: nothing follows from them", path, count, PROPOSALS)
    return _schema(document, text, path)


def write(schema: Schema, proposals: Sequence[dict[str, Any]] = ()) -> str:
    """The text of a schema's file. Reading it and writing it again gives the same text, but for the proposals."""
    predicates = {predicate.name: _entry(predicate) for predicate in schema.predicates}
    types = {kind.name: kind.description for kind in schema.types}
    parts = [HEADER, _yaml({"types": types}), _yaml({"predicates": predicates})]
    if proposals:
        parts += [_PROPOSALS_HEADER, _yaml({PROPOSALS: list(proposals)})]
    return "".join(parts)


@lru_cache(maxsize=1)
def default() -> Schema:
    """The built-in schema: the twenty relations and the six types of the generator (reference §3.1)."""
    return read(Path(__file__).with_name("default_schema.yaml"))


class _Inline(list[Any]):
    """A list on one line: [a, b]."""


class _Dumper(yaml.SafeDumper):
    """Block style, but for what is `_Inline`; no anchors, which nobody would know how to edit."""

    def represent_data(self, data: Any) -> yaml.Node:
        if isinstance(data, _Inline):
            return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
        return super().represent_data(data)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(value: dict[str, Any]) -> str:
    # One value a line: who compares two versions sees what changed.
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31)


def _entry(predicate: Predicate) -> dict[str, Any]:
    """A predicate as it stands in the file: what a person fills in always, the rest where it says something."""
    entry: dict[str, Any] = {
        "description": predicate.description,
        "domain": _Inline(predicate.domain),
        "range": _Inline(predicate.range),
    }
    if predicate.symmetric:
        entry["symmetric"] = True
    if predicate.inverse is not None:
        entry["inverse"] = predicate.inverse
    if predicate.aliases:
        entry["aliases"] = _Inline(predicate.aliases)
    if predicate.examples:
        entry["examples"] = [example.model_dump(exclude_none=True) for example in predicate.examples]
    if predicate.count is not None:
        entry["count"] = predicate.count
    return entry


def _schema(document: dict[Any, Any], text: str, path: Path) -> Schema:
    """The checked schema of a document whose predicates are a mapping."""
    wrong = next(_wrong_keys(document), None)
    if wrong is not None:
        raise _error(wrong, text, path)
    types, predicates = document.get("types") or {}, document["predicates"]
    data = {
        "types": [{"name": name, "description": "" if said is None else said} for name, said in types.items()],
        # What is no mapping is left for the model to refuse.
        "predicates": [
            {**(body or {}), "name": name} if isinstance(body, dict | None) else body
            for name, body in predicates.items()
        ],
    }
    try:
        return Schema.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        misfit = first.get("ctx", {}).get("error")
        if not isinstance(misfit, Misfit):
            misfit = _wrong_value(first["loc"], first["msg"], {"types": list(types), "predicates": list(predicates)})
        raise _error(misfit, text, path, None if first["loc"] == () else repr(first["input"])[:200]) from error


def _wrong_keys(document: dict[Any, Any]) -> Iterator[Misfit]:
    """Keys that nobody reads, and names that are no text to YAML."""
    yield from _unknown(document, ("types", "predicates", PROPOSALS), ())
    for section in ("types", "predicates"):
        entries = document.get(section) or {}
        if not isinstance(entries, dict):
            yield Misfit(
                f"`{section}` is no mapping",
                (section,),
                expected=f"under `{section}:` a line a name",
                next_step="write `NAME:` instead of `- NAME`",
            )
            return
        for name in entries:
            if not isinstance(name, str):
                yield Misfit(
                    f"`{name}` is no name to YAML, but a {type(name).__name__}",
                    (section,),
                    expected="names of types and predicates as text",
                    next_step='put it into quotes: "no":',
                )
    known = [name for name in Predicate.model_fields if name != "name"]
    for name, body in document["predicates"].items():
        if isinstance(body, dict):
            yield from _unknown(body, known, ("predicates", name))
            examples = body.get("examples")
            for index, example in enumerate(examples if isinstance(examples, list) else ()):
                if isinstance(example, dict):
                    yield from _unknown(example, list(Example.model_fields), ("predicates", name, "examples", index))


def _unknown(entry: dict[Any, Any], known: Sequence[str], path: strict_yaml.KeyPath) -> Iterator[Misfit]:
    for key in entry:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            yield Misfit(
                f"`{'.'.join(map(str, (*path, key)))}` is no known key",
                (*path, str(key)),
                expected=f"one of: {', '.join(known)}",
                next_step=f"did you mean `{near[0]}`?" if near else "remove it",
            )


def _wrong_value(loc: Sequence[int | str], message: str, names: dict[str, list[str]]) -> Misfit:
    """A value of the wrong type. `loc` has the indices of the model's lists; the file has names there."""
    section, *rest = loc
    if rest:
        rest[0] = names[str(section)][int(rest[0])]
    key = ".".join(map(str, (section, *rest)))
    return Misfit(
        f"`{key}` has a value that cannot be used", (section, *rest), expected=message, next_step=f"correct `{key}`"
    )


def _error(misfit: Misfit, text: str, file: Path, found: str | None = None) -> InputError:
    """The misfit with the line of the file, or of the nearest thing around it that has one."""
    lines, path = strict_yaml.lines(text, max_values=MAX_VALUES), misfit.path
    while path and path not in lines:
        path = path[:-1]
    where = f"{file}, line {lines[path]}" if path else str(file)
    return InputError(misfit.problem, where=where, expected=misfit.expected, found=found, next_step=misfit.next_step)
