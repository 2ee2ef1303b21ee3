"""Verbs that look and change nothing: `doctor`, `show`."""

import argparse
from pathlib import Path
from typing import Any

from ucotron_ray.core import flags


def add_doctor(verbs: Any) -> None:
    """`doctor`: what this machine lacks."""
    flags.verb(
        verbs,
        "doctor",
        "Check Python, packages, GPU, variables and models, and say what to do about each gap.",
        _doctor,
    )


def add_show(verbs: Any) -> None:
    """`show`: a manifest and its ancestry."""
    parser = flags.verb(verbs, "show", "Print an artifact's manifest and its ancestry.", _show)
    parser.add_argument("artifact", metavar="NAME", help="a name, or KIND/NAME")


def _doctor(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.operations import doctor

    checks = doctor.examine(flags.config_of(args))
    for check in checks:
        print(f"{check.verdict:<5} {check.subject:<22} {check.found}" + (f"  → {check.advice}" if check.advice else ""))
    gaps = sum(check.verdict == doctor.GAP for check in checks)
    return {"gaps": gaps, "exit_code": 1 if gaps else 0, "status": "gaps" if gaps else "ok"}


def _show(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core.artifacts import Store
    from ucotron_ray.operations import show

    store = Store(Path(flags.config_of(args).place.store).expanduser())
    found = show.find(store, args.artifact)
    for artifact in found:
        print(show.describe(store, artifact))
    return {"artifact": str(found[0].path), "manifests": [artifact.manifest.model_dump() for artifact in found]}
