"""The verb `serve`."""

import argparse
from pathlib import Path
from typing import Any

from ucotron_ray.core import flags


def add_serve(verbs: Any) -> None:
    """`serve`: an OpenAI-compatible endpoint on Ray Serve."""
    parser = flags.verb(
        verbs, "serve", "Serve a model behind the call that the Ucotron server makes, on Ray Serve.", _serve
    )
    parser.epilog = (
        "POST /v1/chat/completions (also streaming), GET /v1/models, /healthz, /metrics. Answers are always the most "
        "likely ones, whatever temperature is asked. It serves until SIGTERM or Ctrl-C, which is its normal end: "
        "running answers are finished, and the exit code is 0. Where MODEL is replaced by a verified one, the replicas "
        "go over to it without losing a request."
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a bundle's name or path, or an alias (champion, candidate, previous); an adapter's path or a base model "
        "runs on transformers",
    )
    flags.add_setting(parser, "--host", "serving.host", metavar="ADDRESS")
    flags.add_setting(parser, "--port", "serving.port")
    flags.add_setting(parser, "--replicas", "serving.num_replicas")
    flags.add_setting(parser, "--variant", "serving.variant")
    flags.add_setting(parser, "--api-key-env", "serving.key_variable", metavar="VARIABLE")


def _serve(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import requirements
    from ucotron_ray.serving import stage as serving

    requirements.require_packages("ray", "onnxruntime", "tokenizers", "llguidance", "jinja2")
    with flags.run_of(args, name=Path(args.model).name) as run:
        return serving.serve(run, args.model, ready=_announce)


def _announce(model: str, url: str) -> None:
    print(f"ucotron-ray serve: {model} on {url}", flush=True)
