"""The verb `pipeline`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucotron_ray.core import flags
from ucotron_ray.core.errors import AuthError, ConfigError, Stopped

if TYPE_CHECKING:
    from ucotron_ray.core.run import Run
    from ucotron_ray.core.steps import Made, Step
    from ucotron_ray.pipeline import Options


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
    flags.add_setting(parser, "--max-samples", "graph.max_samples")
    flags.add_setting(parser, "--max-usd", "api.max_usd")
    flags.add_training_settings(parser)


def _pipeline(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray import pipeline
    from ucotron_ray.core import steps as engine
    from ucotron_ray.planning import forecast, rates

    _refuse_contradictions(args)
    names = ("skip_generate", "skip_train", "skip_dpo", "skip_export", "data_dir", "output_dir", "tune", "remote")
    options = pipeline.Options(**{name: getattr(args, name) for name in names})
    with flags.run_of(args) as run:
        pipeline.check(run, options)
        pipeline.check_servers(run, options, ask=not (args.dry_run or args.remote))
        steps = pipeline.chain(run, options)
        if args.dry_run:
            return _planned(run, engine.planned(run, steps))
        known = rates.measured(run.store)
        expected = forecast.before(run, steps, known)
        made = _made(steps, options)
        result = _remote_summary(made) if options.remote else _summary(run, options, made)
        result["estimate"] = forecast.shown(forecast.settle(run, expected, known))
    return {**result, "mlflow_run": run.mlflow_run()}


def _made(steps: "Sequence[Step]", options: "Options") -> "Made":
    """Make the chain. At the vendor a key that is refused in the middle is no mistake of this command's: Stopped."""
    from ucotron_ray.core import steps as engine

    try:
        return engine.make(steps)
    except AuthError as error:
        if not options.remote:
            raise
        raise Stopped(
            f"stopped: {error.problem}",
            where=error.where,
            found=error.found,
            next_step=f"{error.next_step}; then run the same command again: nothing is made twice",
        ) from error


def _summary(run: "Run", options: "Options", made: "Made") -> dict[str, Any]:
    """The last line of a chain that trained here. Copies what was exported to `--output-dir`."""
    from ucotron_ray import pipeline
    from ucotron_ray.core import outputs
    from ucotron_ray.evaluation import stage as scoring

    adapter, tuned = made["adapter"], made["scores"]
    result: dict[str, Any] = {}
    if "sweep" in made:
        result["sweep"] = str(made["sweep"].path)
    if "aligned-scores" in made:
        aligned, after = made["aligned"], made["aligned-scores"]
        choice, aligned_choice = made["choice"], made["aligned-choice"]
        kept = pipeline.keeps_dpo(run, choice, aligned_choice)
        f1 = {"sft_f1": scoring.f1_of(tuned), "f1": scoring.f1_of(after)}
        f1 |= {"sft_choice_f1": scoring.f1_of(choice), "choice_f1": scoring.f1_of(aligned_choice)}
        result["dpo"] = {**f1, "kept": kept, **aligned.manifest.metrics}
        adapter, tuned = (aligned, after) if kept else (adapter, tuned)
    result |= {"adapter": str(adapter.path), "artifact": str(adapter.path)}
    result |= {"base_f1": None, **scoring.headline(scoring.scores_of(tuned))}
    shown = ("f1", "f1_low", "f1_high", "valid_answers")
    for name, scores in (("base", made.get("base-scores")), ("tuned", tuned)):
        if scores is not None:
            result[name] = {key: scoring.scores_of(scores)["overall"][key] for key in shown}
    if "base-scores" in made:
        result["base_f1"] = scoring.headline(scoring.scores_of(made["base-scores"]))["tuned_f1"]
    result |= {"parity": None, "bundle": None}
    if "bundle" in made:
        bundle = made["bundle"]
        parity = json.loads((bundle.path / "parity.json").read_text(encoding="utf-8"))
        result |= {"parity": not parity["missed"], "bundle": str(bundle.path), "artifact": str(bundle.path)}
        result["max_logit_difference"] = parity["figures"]["max_logit_difference"]
        if options.output_dir is not None:
            for directory, kind in pipeline.copies(options.output_dir).items():
                outputs.copy_out(bundle if kind == "bundle" else run.store.get(kind, run.name), directory)
    return result


def _remote_summary(made: "Made") -> dict[str, Any]:
    """The last line of a chain that trained at the vendor."""
    from ucotron_ray.evaluation import stage as scoring
    from ucotron_ray.fireworks import pipeline as remote
    from ucotron_ray.fireworks import stage as vendor

    trained = remote.trained(made)
    result: dict[str, Any] = {"artifact": str(trained.path), "model": vendor.remote_model(trained), "base_f1": None}
    result |= scoring.headline(scoring.scores_of(made["scores"]))
    if "base-scores" in made:
        result["base_f1"] = scoring.headline(scoring.scores_of(made["base-scores"]))["tuned_f1"]
    jobs = [made[key] for key in ("remote-sft", "remote-dpo") if key in made]
    result["cost_usd"] = sum(job.manifest.metrics.get("cost_usd", 0.0) for job in jobs)
    return {**result, "parity": None, "bundle": None}


def _refuse_contradictions(args: argparse.Namespace) -> None:
    """Raise ConfigError for flags that cannot stand together."""
    if args.output_dir is not None and args.skip_export:
        raise ConfigError("--output-dir is for what is exported", found="--skip-export")
    if args.tune and (args.remote or args.skip_train):
        raise ConfigError("--tune is for training here", found="--remote" if args.remote else "--skip-train")
    if args.remote and (args.skip_train or args.output_dir is not None):
        flag = "--skip-train" if args.skip_train else "--output-dir"
        raise ConfigError(
            f"{flag} is for training here", found="--remote", expected="without it: the model stays at the vendor"
        )


def _planned(run: "Run", steps: list[dict[str, str]]) -> dict[str, Any]:
    for step in steps:
        print(f"{step['stage']:<16} {step['action']:<9} {step['artifact']}")
    conflicts = any(step["action"] == "conflict" for step in steps)
    ends = {"status": "conflict", "exit_code": 3} if conflicts else {"status": "planned"}
    config = {"recipe": run.config.recipe.whole(), "place": run.config.place.model_dump()}
    return {**ends, "plan": steps, "config": config}
