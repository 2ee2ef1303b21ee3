"""The verbs `promote`, `rollback` and `pull`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ucotron_ray.core import flags
from ucotron_ray.core.errors import GateFailed


def add_promote(verbs: Any) -> None:
    """`promote`: the alias `champion`, behind gates."""
    parser = _verb(
        verbs,
        "promote",
        "Verify a bundle, compare it with its base and with the champion, and move the alias champion to it.",
        _promote,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's name or directory")
    flags.add_setting(parser, "--data", "evaluation.data", metavar="NAME|FILE")
    flags.add_setting(parser, "--max-rows", "evaluation.max_rows")
    parser.add_argument("--upload", action="store_true", help="log the files at MLflow (a server gets them anyway)")


def add_rollback(verbs: Any) -> None:
    """`rollback`: back to the previous champion."""
    _verb(verbs, "rollback", "Let the aliases champion and previous change places.", _rollback)


def add_pull(verbs: Any) -> None:
    """`pull`: a verified copy of what an alias points to."""
    parser = _verb(verbs, "pull", "Fetch what an alias points to, verify every byte, put it into place.", _pull)
    parser.add_argument("directory", nargs="?", type=Path, metavar="DIR", help="default: the store, by its own name")
    parser.add_argument("--alias", default="champion", help="default: champion")


def _verb(verbs: Any, name: str, text: str, handler: flags.Handler) -> argparse.ArgumentParser:
    parser = flags.verb(verbs, name, text, handler)
    flags.add_setting(parser, "--registry", "tracking.registry_uri", metavar="URI")
    flags.add_setting(parser, "--registered-model", "tracking.registered_model", metavar="NAME")
    return parser


def _promote(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import requirements
    from ucotron_ray.registry import stage as promotion

    requirements.require_packages("mlflow", "ray", "torch", "transformers", "peft", "onnxruntime", "llguidance")
    promoted = promotion.promote(flags.run_of(args, name="promote"), args.bundle, upload=args.upload)
    for gate in promoted["gates"]:
        print(f"{'pass' if gate['passed'] else 'FAIL'}  {gate['name']}: {gate['said']}")
    if promoted["refused"]:
        error = GateFailed(
            f"the bundle is not promoted: {promoted['bundle']}",
            where=f"{promoted['registered_model']} version {promoted['version']}",
            expected="every gate passed",
            found="; ".join(promoted["refused"]),
            next_step="champion stays where it is; train a better candidate, or change `promotion` in the recipe",
        )
        print(f"error: {error}", file=sys.stderr)
        return {**promoted, "status": "failed", "error": error.problem, "exit_code": error.exit_code}
    before = promoted["previous"]
    came = f"it was version {before}" if before else "it was nothing"
    print(f"{promoted['registered_model']}: champion is version {promoted['version']}, {came}")
    return promoted


def _rollback(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import requirements
    from ucotron_ray.registry import aliases

    requirements.require_packages("mlflow")
    moved = aliases.rollback(flags.run_of(args))
    print(f"{moved['registered_model']}: champion is version {moved['version']}, previous is {moved['previous']}")
    return moved


def _pull(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import requirements
    from ucotron_ray.registry import aliases

    requirements.require_packages("mlflow")
    bundle = aliases.pull(flags.run_of(args), args.directory, alias=args.alias)
    print(f"{bundle.manifest.name} {bundle.manifest.content[:16]}: {bundle.path}")
    return {"artifact": str(bundle.path), "content": bundle.manifest.content, "bundle": bundle.manifest.name}
