"""The verb `tune`: a sweep over the settings of a training stage."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucotron_ray.core import flags
from ucotron_ray.core.errors import ConfigError

if TYPE_CHECKING:
    from ucotron_ray.core.run import Run
    from ucotron_ray.tuning.targets import TuningTarget

STAGES = ("sft", "dpo", "projection")


def add_tune(verbs: Any) -> None:
    """`tune STAGE`: many trainings, the best of which is promoted."""
    parser = flags.verb(
        verbs,
        "tune",
        "Find the best learning rate, LoRA rank and what else `tuning.space` names; leaves a page and best.yaml.",
        _tune,
    )
    parser.add_argument("stage", choices=STAGES, metavar="STAGE", help="sft, dpo or projection")
    parser.add_argument(
        "--train-data", metavar="NAME|FILE", help="sft: dataset or JSONL (default: the dataset of this --name)"
    )
    parser.add_argument("--val-data", type=Path, metavar="FILE", help="sft: validation JSONL, with a --train-data file")
    parser.add_argument("--data", dest="pairs", metavar="NAME|FILE", help="dpo: preference pairs, or relation rows")
    parser.add_argument("--from", dest="start", metavar="ADAPTER", help="dpo: adapter of sft to start from")
    parser.add_argument("--input", metavar="NAME|PATH", help="projection: descriptions or encoded pairs")
    flags.add_setting(parser, "--tiers", "tuning.tiers", metavar="TIER,…")
    flags.add_setting(parser, "--search", "tuning.search")
    flags.add_setting(parser, "--trials", "tuning.trials")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write best.yaml there")
    parser.add_argument("--dry-run", action="store_true", help="the trials and what one costs; nothing is trained")
    flags.add_training_settings(parser)


def _tune(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import outputs, requirements
    from ucotron_ray.tuning import stage as tuning

    if args.output:
        outputs.check_file(args.output)
    packages = (
        ("torch",) if args.stage == "projection" else ("torch", "transformers", "trl", "peft", "datasets", "gguf")
    )
    requirements.require_packages("ray", "matplotlib", *packages)
    with flags.run_of(args, name=_name(args)) as run:
        target = _target(run, args)
        if args.dry_run:
            return _planned(run, target)
        made = tuning.tune(run, target)
        return _result(made.path, args.output) | {"artifact": str(made.path), "mlflow_run": run.mlflow_run()}


def _name(args: argparse.Namespace) -> str | None:
    if args.stage == "dpo" and args.start:
        return f"{Path(args.start).name}-dpo"
    return "projection" if args.stage == "projection" else None


def _target(run: "Run", args: argparse.Namespace) -> "TuningTarget":
    from ucotron_ray.data import stage as datasets
    from ucotron_ray.models import stage as models
    from ucotron_ray.projection import embeddings
    from ucotron_ray.training import preferences
    from ucotron_ray.tuning import targets

    _refuse_foreign(args)
    if args.stage == "sft":
        return targets.sft_target(run, datasets.training_data(run, args.train_data, args.val_data))
    if args.stage == "projection":
        return targets.projection_target(run, embeddings.pairs_of(run, args.input or "projection"))
    base, adapter = models.model(run, args.start)
    if adapter is None:
        raise ConfigError(
            "DPO starts from an adapter", where="--from", expected="an adapter of the store", found=args.start
        )
    data = preferences.data_of(run, args.pairs)
    return targets.dpo_target(run, preferences.pairs_of(run, data, base, adapter), base, adapter)


def _refuse_foreign(args: argparse.Namespace) -> None:
    """Flags of another stage would be passed over in silence, and what a stage needs must be there."""
    trained = "training.sft.{tier}"
    settings = {"tiers": "tuning.tiers", "max_seq_length": f"{trained}.max_context_length"}
    settings |= {name: f"{trained}.{name}" for name in ("epochs", "batch_size", "learning_rate")}
    # The guide's flags are those of sft.
    own = {"sft": ("train_data", "val_data", *settings), "dpo": ("pairs", "start"), "projection": ("input",)}
    names = {"pairs": "--data", "start": "--from"}
    for stage, flags_of in own.items():
        for flag in flags_of:
            value = flags.given(args, settings[flag]) if flag in settings else getattr(args, flag)
            shown = names.get(flag, f"--{flag.replace('_', '-')}")
            if value is not None and stage != args.stage:
                raise ConfigError(f"{shown} belongs to `tune {stage}`", where=f"tune {args.stage}", found=shown)
            if stage == args.stage == "dpo" and value is None:
                raise ConfigError(f"`tune dpo` needs {shown}", where="tune dpo", expected="--data PAIRS --from ADAPTER")


def _planned(run: "Run", target: "TuningTarget") -> dict[str, Any]:
    from ucotron_ray.training import preparation
    from ucotron_ray.tuning import stage as tuning
    from ucotron_ray.tuning import targets

    trials = tuning.check(run, target)
    for trial in trials:
        print(f"{trial.id:<18} " + ", ".join(f"{name} {value}" for name, value in trial.params.items()))
    if not trials:
        print(f"{run.config.recipe.tuning.trials} trials of each tier, which Optuna proposes one after the other")
    plans = {}
    if target.stage == "sft":
        from ucotron_ray.models import stage as models
        from ucotron_ray.training.plan import lines

        for tier in target.settings:
            with targets.at_tier(run, tier):
                base = models.named_base(target.identity[tier], run.store)
                plan = preparation.dry_run(run, "sft", target.data, base)
            print(f"one trial of {tier}:")
            for line in lines(plan) if plan else ["the layers of this model are not known: no plan"]:
                print(f"  {line}")
            plans[tier] = plan.as_dict() if plan else None
    return {"status": "planned", "trials": [trial.model_dump() for trial in trials], "plans": plans}


def _result(path: Path, output: Path | None) -> dict[str, Any]:
    """The figures of the last line; a table of winners for people."""
    import json

    from ucotron_ray.data import stage as datasets
    from ucotron_ray.tuning import overlay, report

    summary = json.loads((path / report.SUMMARY).read_text(encoding="utf-8"))
    for tier, won in summary["winners"].items():
        interval = f" ({won['low']:.3f} to {won['high']:.3f})" if won["low"] is not None else ""
        chosen = ", ".join(f"{name} {value}" for name, value in won["params"].items())
        print(
            f"{tier:<11} {summary['metric']} {won['value']:.3f}{interval}  {chosen}  ({won['trial']})", file=sys.stderr
        )
    if output is not None:
        datasets.copy_file(path / overlay.FILE, output)
    names = ("winners", "states", "trials", "steps_run", "steps_full", "steps_saved", "fixed_seconds_median", "metric")
    return {
        **{name: summary[name] for name in names},
        "best": str(path / overlay.FILE),
        "page": str(path / report.FILE),
    }
