"""The verb `pipeline`."""

import argparse
from pathlib import Path
from typing import Any

from ucotron_ray.core import flags
from ucotron_ray.core.errors import ConfigError


def add_pipeline(verbs: Any) -> None:
    """`pipeline`: the whole chain."""
    parser = flags.verb(
        verbs,
        "pipeline",
        "The whole chain: rows, training, scores, export. A second run reuses what is done.",
        _pipeline,
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything and print the plan; train and pay nothing (exit 3 if a step would overwrite something)",
    )
    parser.add_argument("--skip-generate", action="store_true", help="take the rows that are there")
    parser.add_argument("--skip-train", action="store_true", help="take the adapter that is there")
    parser.add_argument("--skip-dpo", action="store_true", help="do not align with preferences, whatever is at hand")
    parser.add_argument("--skip-export", action="store_true", help="end after the scores")
    parser.add_argument(
        "--tune",
        action="store_true",
        help="sweep the settings of sft first (recipe section tuning), train with the best",
    )
    parser.add_argument(
        "--remote", action="store_true", help="train at Fireworks.ai instead of here (FIREWORKS_ACCOUNT_ID)"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="DIR",
        help="directory with train_sft.jsonl and val_sft.jsonl, and train_dpo.jsonl if there is one",
    )
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="also write the merged model to DIR and the bundle to DIR-onnx"
    )
    parser.add_argument("--max-samples", type=int)
    parser.add_argument("--max-usd", type=float, help="hard budget in dollars for what a teacher is asked")
    flags.add_training_flags(parser)


def _pipeline(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray import pipeline, pipeline_plan
    from ucotron_ray.fireworks import pipeline as remote_pipeline
    from ucotron_ray.planning import forecast

    options = pipeline.Options(
        args.skip_generate,
        args.skip_train,
        args.skip_dpo,
        args.skip_export,
        args.data_dir,
        args.output_dir,
        tune=args.tune,
    )
    if args.output_dir is not None and args.skip_export:
        raise ConfigError("--output-dir is for what is exported", found="--skip-export")
    if args.tune and (args.remote or args.skip_train):
        raise ConfigError("--tune is for training here", found="--remote" if args.remote else "--skip-train")
    with flags.run_of(args) as run:
        if args.dry_run:
            steps = (remote_pipeline if args.remote else pipeline_plan).plan(run, options)
            for step in steps:
                print(f"{step['stage']:<14} {step['action']:<9} {step['artifact']}")
            conflicts = any(step["action"] == "conflict" for step in steps)
            ends = {"status": "conflict", "exit_code": 3} if conflicts else {"status": "planned"}
            return {**ends, "plan": steps, "config": run.config.model_dump()}
        if args.remote:
            result = remote_pipeline.execute(run, options)
        else:
            expected = forecast.before(run, skip_train=args.skip_train, skip_export=args.skip_export)
            result = pipeline.execute(run, options)
            result["estimate"] = forecast.shown(forecast.settle(run, expected))
    return {**result, "mlflow_run": run.mlflow_run()}
