"""What all verbs share: common options, flags that are another way to say --set, and the run that they give."""

import argparse
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from ucotron_ray.core import config

Handler = Callable[[argparse.Namespace], dict[str, Any]]

Parser = argparse._ActionsContainer
"""A parser, or a group of one."""

TIERS = ("slm", "small", "medium")
SETTING = "setting:"
"""Before the key of a setting, in the names that argparse keeps values under."""

METAVARS = {int: "N", float: "X", str: "TEXT"}


def verb(verbs: Any, name: str, help_text: str, handler: Handler) -> argparse.ArgumentParser:
    """A verb with the options that all verbs share."""
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=help_text, description=help_text)
    parser.set_defaults(handler=handler)
    common = parser.add_argument_group("common options")
    common.add_argument(
        "--recipe", type=Path, metavar="FILE", help="what to make (YAML); an existing fireworks_config.yaml fits"
    )
    common.add_argument(
        "--overlay",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a recipe over the recipe, such as the best.yaml of a sweep (repeatable)",
    )
    common.add_argument("--place", type=Path, metavar="FILE", help="where to make it (YAML)")
    common.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="one setting of recipe or place",
    )
    common.add_argument("--name", help="name of the artifacts (default: the recipe file's name, else `default`)")
    common.add_argument("--replace", action="store_true", help="throw away what another recipe made under this name")
    common.add_argument("--accept-rejected", action="store_true", help="take inputs that a gate rejected")
    common.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
    return parser


def add_setting(
    parser: Parser,
    flag: str,
    key: str,
    *,
    alias: str | None = None,
    metavar: str | None = None,
    const: object = None,
    text: str | None = None,
) -> None:
    """A flag that is another way to say --set KEY=VALUE; `{tier}` in the key stands for the run's tier.

    Type, choices and help are those of the setting in its typed model. `alias`: another name of the flag. `const`: the
    value that the flag alone stands for, with a `text` of its own, since it says one value and not what the setting is.
    """
    names = [flag, *([alias] if alias else [])]
    field = config.field_of(key.format(tier=TIERS[0]))
    kind = _kind_of(field.annotation)
    said = " ".join((text or field.description or "").split()).replace("null =", "default:")
    shown = key.format(tier="TIER") + ("" if const is None else f"={str(const).lower()}")
    help_text = f"{said} [{shown}]".strip().replace("%", "%%")
    shared: dict[str, Any] = {"dest": f"{SETTING}{key}", "default": None, "help": help_text}
    if const is not None:
        parser.add_argument(*names, action="store_const", const=const, **shared)
    elif typing.get_origin(kind) is Literal:
        parser.add_argument(*names, choices=typing.get_args(kind), **shared)
    else:
        take = str if typing.get_origin(kind) is list else kind
        parser.add_argument(*names, type=take, metavar=metavar or METAVARS.get(take, "VALUE"), **shared)


LAYOUTS = (
    "own", "prompt-completion", "dpo-turns", "sharegpt", "dpo-vendor", "spert", "triplets", "head-tail",
    "triple-columns", "conll04",
)  # fmt: skip
"""Of rows in files: `data/layouts.py` has their readers."""


def add_reading(parser: Parser) -> None:
    """The flag of verbs that read files of rows."""
    parser.add_argument(
        "--format",
        choices=LAYOUTS,
        dest="layout",
        help="the layout of the rows in the files (default: told by their keys, and said)",
    )


def add_training_settings(parser: argparse.ArgumentParser) -> None:
    """The guide's flags of a training."""
    group = settings_group(parser)
    add_setting(group, "--tier", "tier")
    add_setting(group, "--model-name", "models.fine_tuning.{tier}.local_model", metavar="MODEL")
    add_setting(group, "--revision", "models.fine_tuning.{tier}.revision", metavar="REV")
    add_setting(group, "--epochs", "training.sft.{tier}.epochs")
    add_setting(group, "--batch-size", "training.sft.{tier}.batch_size")
    add_setting(group, "--learning-rate", "training.sft.{tier}.learning_rate")
    add_setting(group, "--max-seq-length", "training.sft.{tier}.max_context_length", metavar="TOKENS")


def settings_group(parser: argparse.ArgumentParser) -> Parser:
    """Where --help lists the flags that are settings."""
    return parser.add_argument_group("the guide's flags (each is another way to say --set [key])")


def given(args: argparse.Namespace, key: str) -> Any:
    """What a flag says of a setting; None where it is not given."""
    return getattr(args, f"{SETTING}{key}", None)


def config_of(args: argparse.Namespace) -> config.Config:
    """Recipe and place of an invocation, its flags over its files. Raises ConfigError."""
    overrides = [config.parse_override(text) for text in args.overrides]
    files = {"recipe": args.recipe, "place": args.place, "overlays": args.overlay}
    tier = given(args, "tier")
    tiers: list[tuple[str, Any]] = [("tier", tier)] if tier else []
    chosen = config.load(**files, overrides=[*overrides, *tiers]).recipe.tier
    for name, value in vars(args).items():
        if name.startswith(SETTING) and value is not None:
            key = name.removeprefix(SETTING).format(tier=chosen)
            is_list = typing.get_origin(_kind_of(config.field_of(key).annotation)) is list
            overrides.append((key, [part for part in value.split(",") if part] or None if is_list else value))
    if given(args, "tracking.wandb_project"):
        overrides.append(("tracking.enabled", True))
    return config.load(**files, overrides=overrides)


def _kind_of(annotation: Any) -> Any:
    """The type that a flag's text is read as: what is left of an annotation without `| None` and its bounds."""
    if typing.get_origin(annotation) is Annotated:
        return _kind_of(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return _kind_of(next(kind for kind in typing.get_args(annotation) if kind is not type(None)))
    return annotation


def run_of(args: argparse.Namespace, *, name: str | None = None) -> Any:
    """The invocation as a `Run`, not yet entered; `name` where neither --name nor --recipe gives one."""
    from ucotron_ray.core.run import Run

    chosen = args.name or name or (args.recipe.stem if args.recipe else "default")
    return Run(config_of(args), verb=args.verb, name=chosen, replace=args.replace, accept_rejected=args.accept_rejected)
