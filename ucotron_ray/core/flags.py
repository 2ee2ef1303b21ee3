"""What all verbs share: common options, flags that are another way to say --set, and the run that they give."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ucotron_ray.core import config

Handler = Callable[[argparse.Namespace], dict[str, Any]]

SHORTHANDS = {
    "model_name": "models.fine_tuning.{tier}.local_model",
    "epochs": "training.sft.{tier}.epochs",
    "batch_size": "training.sft.{tier}.batch_size",
    "learning_rate": "training.sft.{tier}.learning_rate",
    "max_seq_length": "training.sft.{tier}.max_context_length",
    "max_samples": "graph.max_samples",
    "train_ratio": "graph.train_ratio",
    "min_relations": "graph.min_relations",
    "max_text_length": "graph.max_text_length",
    "graph_seed": "graph.seed",
    "namespace": "graph.namespace",
    "graph_kind": "graph.kind",
    "data": "evaluation.data",
    "dpo_epochs": "training.dpo.{tier}.epochs",
    "dpo_learning_rate": "training.dpo.{tier}.learning_rate",
    "dpo_batch_size": "training.dpo.{tier}.batch_size",
    "dpo_lora_rank": "training.dpo.{tier}.lora_rank",
    "dpo_max_seq_length": "training.dpo.{tier}.max_context_length",
    "dpo_beta": "training.dpo.{tier}.beta",
    "lora_rank": "training.sft.{tier}.lora_rank",
    "poll_interval": "polling.interval",
    "poll_timeout": "polling.timeout",
    "wandb_project": "tracking.wandb_project",
    "max_usd": "api.max_usd",
    "max_rounds": "api.max_rounds",
    "generation_seed": "generation.seed",
    "max_rows": "evaluation.max_rows",
    "registry_uri": "tracking.registry_uri",
    "registered_model": "tracking.registered_model",
    "search": "tuning.search",
    "trials": "tuning.trials",
    "projection_epochs": "projection.epochs",
    "projection_batch_size": "projection.batch_size",
    "projection_learning_rate": "projection.learning_rate",
    "projection_dropout": "projection.dropout",
    "projection_hidden_dim": "projection.hidden_dim",
    "projection_val_split": "projection.val_split",
    "projection_patience": "projection.patience",
    "projection_seed": "projection.seed",
    "projection_opset": "projection.opset",
    "serve_host": "serving.host",
    "serve_port": "serving.port",
    "serve_replicas": "serving.num_replicas",
    "serve_variant": "serving.variant",
    "serve_key": "serving.key_variable",
}
"""Flags of the guide that are another way to say --set KEY=VALUE."""


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


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """The guide's flags of a training."""
    flags = parser.add_argument_group("the guide's flags (each is another way to say --set)")
    flags.add_argument("--tier", choices=("slm", "small", "medium"), help="model tier: 0.5B, 1.5B, 7B")
    flags.add_argument(
        "--model-name", metavar="MODEL", help="hub name, directory, .gguf file or package://NAME/FILE.gguf"
    )
    flags.add_argument("--epochs", type=int)
    flags.add_argument("--batch-size", type=int, help="rows per optimizer step over all workers")
    flags.add_argument("--learning-rate", type=float)
    flags.add_argument("--max-seq-length", type=int, metavar="TOKENS")


def config_of(args: argparse.Namespace) -> config.Config:
    """Recipe and place of an invocation, its flags over its files. Raises ConfigError."""
    overrides = [config.parse_override(text) for text in args.overrides]
    tier = getattr(args, "tier", None)
    if tier:
        overrides.append(("tier", tier))
    files = {"recipe": args.recipe, "place": args.place, "overlays": args.overlay}
    loaded = config.load(**files, overrides=overrides)
    for flag, key in SHORTHANDS.items():
        value = getattr(args, flag, None)
        if value is not None:
            overrides.append((key.format(tier=loaded.recipe.tier), value))
    if getattr(args, "wandb_project", None):
        overrides.append(("tracking.enabled", True))
    if getattr(args, "all_namespaces", False):
        overrides.append(("graph.all_namespaces", True))
    if getattr(args, "tiers", None):
        overrides.append(("tuning.tiers", args.tiers.split(",")))
    if getattr(args, "no_base", False):
        overrides.append(("evaluation.base", False))
    return config.load(**files, overrides=overrides)


def run_of(args: argparse.Namespace, *, name: str | None = None) -> Any:
    """The invocation as a `Run`, not yet entered; `name` where neither --name nor --recipe gives one."""
    from ucotron_ray.core.run import Run

    chosen = args.name or name or (args.recipe.stem if args.recipe else "default")
    return Run(config_of(args), verb=args.verb, name=chosen, replace=args.replace, accept_rejected=args.accept_rejected)
