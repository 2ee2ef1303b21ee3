"""The verb `deploy`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ucotron_ray.core import flags, variables

ENDPOINT, KEY_VARIABLE = "http://127.0.0.1:8000/v1", "UCOTRON_RE_API_KEY"


def add_deploy(verbs: Any) -> None:
    """`deploy`: files for a Ucotron server, and the probe."""
    parser = flags.verb(
        verbs,
        "deploy",
        "Write a bundle's ucotron.toml lines and GGUF directory; with --server, prove that the server uses it.",
        _deploy,
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle's name or directory; every byte is verified")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where the files go (default: deploy/BUNDLE)")
    parser.add_argument("--endpoint", default=ENDPOINT, metavar="URL", help="where the bundle is served (%(default)s)")
    parser.add_argument(
        "--key-env", default=KEY_VARIABLE, metavar="VARIABLE", help="holds the endpoint's key (%(default)s)"
    )
    parser.add_argument(
        "--gguf", default="q8_0", metavar="PRECISION", help="which GGUF file: q8_0 or f16 (%(default)s)"
    )
    parser.add_argument("--models-dir", type=Path, metavar="DIR", help="the server's own models directory")
    parser.add_argument(
        "--server", metavar="URL", help="a running server: let it learn a sentence and look who answered"
    )
    parser.add_argument("--namespace", help="where the probe learns (default: a new one)")


def _deploy(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.models import bundles
    from ucotron_ray.serving import deployment

    run = flags.run_of(args, name="deploy")
    bundle = bundles.bundle_of(run, args.bundle)
    directory = args.output or Path("deploy") / bundle.manifest.name
    written = deployment.deploy(
        run,
        bundle,
        directory,
        endpoint=args.endpoint,
        key_variable=args.key_env,
        precision=args.gguf,
        models_dir=args.models_dir,
    )
    for name, path in written.items():
        print(f"{name:<15} {path}")
    if "gguf" not in written:
        print("the bundle has no GGUF file: only the endpoint can be used", file=sys.stderr)
    result: dict[str, Any] = {"artifact": str(bundle.path), "files": written, "probe": None}
    if args.server:
        key = args.key_env if variables.is_set(args.key_env) else None
        proof = deployment.prove(run, bundle, args.server, args.endpoint, key, args.namespace)
        print(f"the model answers: {proof['why']}")
        result["probe"] = proof
    return result
