"""Verbs that train: `sft`, `dpo`."""

import argparse
from pathlib import Path
from typing import Any

from ucotron_ray.core import flags
from ucotron_ray.core.errors import ConfigError


def add_sft(verbs: Any) -> None:
    """`sft`: LoRA on relation rows."""
    parser = flags.verb(verbs, "sft", "Fine-tune a model with LoRA on relation rows.", _sft)
    parser.add_argument(
        "--train-data",
        metavar="NAME|FILE",
        help="dataset, file of rows or directory of splits (default: the dataset of this --name)",
    )
    parser.add_argument("--val-data", type=Path, metavar="FILE", help="validation rows, with a --train-data file")
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="also write the merged model there")
    _add_common(parser)
    flags.add_training_settings(parser)


def add_dpo(verbs: Any) -> None:
    """`dpo`: LoRA on preference pairs."""
    parser = flags.verb(verbs, "dpo", "Teach an adapter's model which of two answers is better.", _dpo)
    parser.add_argument("--data", required=True, metavar="NAME|FILE", help="preference pairs, or relation rows")
    parser.add_argument("--from", required=True, dest="start", metavar="ADAPTER", help="adapter of sft to start from")
    flags.add_setting(parser, "--epochs", "training.dpo.{tier}.epochs")
    flags.add_setting(parser, "--learning-rate", "training.dpo.{tier}.learning_rate")
    _add_common(parser)


def _add_common(parser: argparse.ArgumentParser) -> None:
    flags.add_reading(parser)
    parser.add_argument(
        "--drop-overlap",
        action="store_true",
        help="leave validation rows out that are training rows too, and rows of either that are test rows",
    )
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help="also upload the adapter to a private repository")
    parser.add_argument("--dry-run", action="store_true", help="rows, steps, memory, hours; nothing is trained")


def _planned(run: Any, stage: Any, data: Any, base: Any) -> dict[str, Any]:
    """The plan, printed, and as the result."""
    from ucotron_ray.training import preparation
    from ucotron_ray.training.plan import lines

    plan = preparation.dry_run(run, stage, data, base)
    for line in lines(plan) if plan else ["the layers of this model are not known: no plan"]:
        print(line)
    return {"status": "planned", "plan": plan.as_dict() if plan else None}


def _to_sample(run: Any, data: Any) -> dict[str, Any]:
    settings = run.config.recipe.dpo.on_policy
    print(
        f"{data.manifest.name} holds relation rows: {settings.samples} answers a row are sampled from the model first"
    )
    return {"status": "planned", "plan": None}


def _sft(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import outputs, requirements
    from ucotron_ray.data import stage as datasets
    from ucotron_ray.models import base as base_models
    from ucotron_ray.models import stage as models
    from ucotron_ray.training import hub
    from ucotron_ray.training import stage as training

    requirements.require_packages("ray", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "gguf")
    with flags.run_of(args) as run:
        if args.output_dir:
            outputs.refuse_mixing(args.output_dir, run.store.root, "model")
        model = run.config.recipe.tier_model
        # A plan asks no hub which commit it is of.
        planned = base_models.located(model.local_model, model.revision)
        dataset = datasets.training_data(
            run, args.train_data, args.val_data, layout=args.layout, drop_overlap=args.drop_overlap
        )
        if args.dry_run:
            return _planned(run, "sft", dataset, planned)
        hub.check(run, args.push_to_hub)
        base = models.tier_base(run)
        adapter = training.sft(run, dataset, base)
        result = {"artifact": str(adapter.path), **adapter.manifest.metrics, "counts": adapter.manifest.counts}
        if args.push_to_hub:
            result["hub"] = hub.push(adapter, args.push_to_hub)
        if args.output_dir:
            merged = models.merge(run, base, adapter)
            outputs.copy_out(merged, args.output_dir)
            result["output_dir"] = str(args.output_dir)
    return result


def _dpo(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import requirements
    from ucotron_ray.models import stage as models
    from ucotron_ray.training import hub, preferences
    from ucotron_ray.training import stage as training

    requirements.require_packages("ray", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "gguf")
    with flags.run_of(args, name=f"{Path(args.start).name}-dpo") as run:
        base, adapter = models.model(run, args.start)
        if adapter is None:
            raise ConfigError(
                "DPO starts from an adapter", where="--from", expected="an adapter of the store", found=args.start
            )
        data = preferences.data_of(run, args.data, layout=args.layout, drop_overlap=args.drop_overlap)
        if args.dry_run:
            return _planned(run, "dpo", data, base) if preferences.is_pairs(data) else _to_sample(run, data)
        hub.check(run, args.push_to_hub)
        made = training.dpo(run, run.name, preferences.pairs_of(run, data, base, adapter), base, adapter)
        result = {"artifact": str(made.path), **made.manifest.metrics, "counts": made.manifest.counts}
        if args.push_to_hub:
            result["hub"] = hub.push(made, args.push_to_hub)
    return result
