"""Chat templates as transformers 5.24 renders them, by jinja2 alone: a node that serves has no transformers.

Training, export and serving all render here, and not through `apply_chat_template`. That one tells a template that asks
for the date (Llama 3.2, SmolLM3) the day on which it is called, and there is no argument that says otherwise: a model
would be asked on every day something else than what it learned. Beside the date, the prompts are the very same, which
tests hold and `export --dry-run` says of a model.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ucotron_ray.core.errors import InputError

DATE = datetime(2024, 7, 26)
"""The day on which every prompt is written. Templates of Llama 3 fall back to it where nobody tells them the date.
Another day is another prompt: adapters and bundles that people have would be asked what they did not learn."""

DEFAULT = "default"
"""The template that answers without tools, of a model that has several."""

Messages = Sequence[Mapping[str, str]]

_WHERE = "the tokenizer's chat template"


def default_of(templates: object) -> str:
    """The text of the template to use, of what a tokenizer has or its `tokenizer_config.json` says.

    That is one text, or several by name, in old files as a list of `name` and `template`. Raises InputError where none
    is called `default`.
    """
    if isinstance(templates, str):
        return templates
    named: dict[str, str] = {}
    if isinstance(templates, Mapping):
        named = dict(templates)
    elif isinstance(templates, Sequence):
        named = {entry["name"]: entry["template"] for entry in templates}
    if DEFAULT not in named:
        raise InputError(
            "it is not known which chat template to use",
            where=_WHERE,
            expected=f"one template, or several with one that is called '{DEFAULT}'",
            found=", ".join(sorted(named)) or "none",
            next_step="use an instruct model: it has chat_template.jinja beside its tokenizer",
        )
    return named[DEFAULT]


@lru_cache(maxsize=8)
def template(text: str) -> jinja2.Template:
    """A chat template in a sandbox, with the settings and helpers that transformers gives it."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "dict": _Dict(), "namespace": _Namespace}
    try:
        return environment.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise InputError(
            "the chat template cannot be read",
            where=f"{_WHERE}, line {error.lineno}",
            expected="a template that jinja2 reads",
            found=error.message,
            next_step="use a model whose template transformers can render",
        ) from error


def render(template: jinja2.Template, messages: Messages, special: Mapping[str, str], *, now: datetime = DATE) -> str:
    """The conversation as text, up to where the model begins to answer. `special` = `bos_token` and so on.

    The server's prompt begins with a system message. A template that refuses it (Gemma 2, the first Mistral) gets its
    text at the beginning of the user's message. Raises InputError for messages that it refuses either way.
    """
    merged = without_system(messages)
    try:
        try:
            return _rendered(template, messages, special, now)
        except _RefusedError:
            if merged is messages:
                raise
            return _rendered(template, merged, special, now)
    except jinja2.TemplateError as error:
        raise InputError(
            "the chat template refuses the messages",
            where=_WHERE,
            expected="turns that this model knows, in an order that it knows",
            found=error.message or type(error).__name__,
            next_step="send a system message (or none), then user and assistant in turns",
        ) from error


def without_system(messages: Messages) -> Messages:
    """The conversation with the text of its system message before the user's; itself where it does not begin so."""
    if [message["role"] for message in messages[:2]] != ["system", "user"]:
        return messages
    system, user = messages[:2]
    return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *messages[2:]]


def _rendered(template: jinja2.Template, messages: Messages, special: Mapping[str, str], now: datetime) -> str:
    given: dict[str, Any] = {
        **special,
        "messages": [dict(message) for message in messages],
        # None, and not undefined, as transformers has it: templates ask both ways.
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
        # Templates that know a thinking mode get it switched off: the server never asks for it.
        "enable_thinking": False,
        "strftime_now": now.strftime,
    }
    return template.render(given)


class _RefusedError(jinja2.TemplateError):
    """What the template itself says is wrong with the messages."""


def _refuse(message: str) -> NoReturn:
    raise _RefusedError(message)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja's own it leaves `<`, `>`, `&` and `'` as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Generation(Extension):
    """`{% generation %}` marks what the assistant said, for masks. It is rendered as if the marks were not there.

    Its body is called as transformers calls it, and not put in place: names that are set in it end with it.
    """

    tags = {"generation"}  # noqa: RUF012 - as jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller: Macro) -> str:
        return caller()


class _Dict:
    """`dict` without its methods: called on the class they would change what the sandbox keeps from being changed."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(jinja2.utils.Namespace):
    """`namespace` without names that begin with an underscore: they reach into the interpreter."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # Without `self`: that is a name which a template may give.
        own, *given = args
        names = dict(*given, **kwargs)
        for name in names:
            _check_name(name)
        jinja2.utils.Namespace.__init__(own, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no name that begins with an underscore: {name}")
