"""The verb `synthesize`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ucotron_ray.core import flags, generators
from ucotron_ray.core.errors import ConfigError


def add_synthesize(verbs: Any) -> None:
    """`synthesize`: rows from a teacher."""
    parser = flags.verb(
        verbs, "synthesize", "Let a teacher model write training rows. Nothing is paid twice.", _synthesize
    )
    parser.add_argument("task", choices=(*generators.NAMES, "all"), metavar="TASK", help="%(choices)s")
    parser.add_argument("--count", type=int, help="accepted rows wanted (default: the task's target_samples)")
    parser.add_argument(
        "--input", metavar="NAME|FILE", help="relation rows to build on (preference); a graph (path_reward)"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, metavar="SHARE", help="with `all`: this share of every target_samples"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="also write the rows as the guide's JSONL; with `all`: DIR"
    )
    flags.add_setting(parser, "--max-usd", "api.max_usd")
    flags.add_setting(parser, "--max-rounds", "api.max_rounds")
    flags.add_setting(parser, "--seed", "generation.seed")
    parser.add_argument("--dry-run", action="store_true", help="print the plan with tokens and dollars; send nothing")


def _synthesize(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import outputs, requirements
    from ucotron_ray.data import stage as datasets
    from ucotron_ray.synthesis import dispatch

    requirements.require_packages("aiohttp", "datasketch", "json_repair", "pyarrow", *([] if args.dry_run else ["ray"]))
    if args.task == "all":
        return _synthesize_all(args)
    if args.output:
        outputs.check_file(args.output)
    with flags.run_of(args, name=None if args.name or args.recipe else args.task) as run:
        wanted = dispatch.wanted(run, args.task, args.count, args.input)
        if args.dry_run:
            estimate = dispatch.estimate(run, wanted)
            _print(estimate)
            return estimate
        outcome = dispatch.make(run, wanted)
        assert outcome.artifact is not None
        if args.output:
            datasets.copy_file(outcome.artifact.path / f"{args.task}.jsonl", args.output)
    result = outcome.figures()
    if outcome.is_ok:
        return {**result, "status": "ok"}
    _say_rejected(outcome)
    return {**result, "exit_code": 1}


def _synthesize_all(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import outputs
    from ucotron_ray.data import stage as datasets
    from ucotron_ray.synthesis import dispatch

    if args.output:
        outputs.check_directory(args.output)
    if args.count is not None or args.input is not None:
        raise ConfigError(
            "`synthesize all` takes its counts from the recipe",
            where="--count, --input",
            expected="generation.tasks.<task>.target_samples, and --scale for a share of them",
        )
    if not 0 < args.scale <= 1:
        raise ConfigError("--scale is a share", expected="more than 0, at most 1", found=str(args.scale))
    prefix = args.name or (args.recipe.stem if args.recipe else None)
    with flags.run_of(args, name="all") as run:
        if args.dry_run:
            estimate = dispatch.estimate_all(run, share=args.scale, prefix=prefix)
            _print(estimate)
            return estimate
        outcomes = dispatch.make_all(run, share=args.scale, prefix=prefix)
        for outcome in outcomes:
            if args.output and outcome.artifact is not None:
                name = f"{outcome.task}.jsonl"
                datasets.copy_file(outcome.artifact.path / name, args.output / name)
    tasks = {outcome.task: outcome.figures() for outcome in outcomes}
    sums = {key: sum(entry.get(key, 0) for entry in tasks.values()) for key in ("accepted", "requests", "cost_usd")}
    for outcome in outcomes:
        _say_rejected(outcome)
    failed = not all(outcome.is_ok for outcome in outcomes)
    return {**sums, "tasks": tasks, **({"status": "rejected", "exit_code": 1} if failed else {})}


def _print(estimate: dict[str, Any]) -> None:
    for key, value in estimate.items():
        if isinstance(value, dict):
            print(f"{key}:", file=sys.stderr)
            _print(value)
        else:
            print(f"{key:<24} {value}", file=sys.stderr)


def _say_rejected(outcome: Any) -> None:
    if outcome.is_ok:
        return
    figures = outcome.figures()
    reasons = figures.get("failures") or [figures.get("error")]
    print(f"{outcome.task}: rejected, and no input without --accept-rejected", file=sys.stderr)
    for reason in reasons:
        print(f"  {reason}", file=sys.stderr)
    if "artifact" in figures:
        print(f"  see {figures['artifact']}/report.html", file=sys.stderr)
