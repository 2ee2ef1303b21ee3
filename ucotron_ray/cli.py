"""The command line: verbs, exit codes. Imports no stage: `--help` and every mistake in a flag answer at once."""

import argparse
import importlib
import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ucotron_ray import __version__
from ucotron_ray.core import redaction, variables
from ucotron_ray.core.errors import Stopped, UcotronRayError
from ucotron_ray.core.flags import Handler

VERBS = {
    "doctor": "operations.inspect_cli",
    "import-graph": "graph.cli",
    "schema": "graph.schema_cli",
    "synthesize": "synthesis.cli",
    "validate": "synthesis.validate_cli",
    "sft": "training.cli",
    "dpo": "training.cli",
    "projection": "projection.cli",
    "tune": "tuning.cli",
    "evaluate": "evaluation.cli",
    "compare": "evaluation.cli",
    "benchmark": "evaluation.cli",
    "export": "export.cli",
    "promote": "registry.cli",
    "rollback": "registry.cli",
    "pull": "registry.cli",
    "deploy": "serving.deploy_cli",
    "serve": "serving.cli",
    "pipeline": "pipeline_cli",
    "fireworks": "fireworks.cli",
    "submit": "operations.submit_cli",
    "status": "operations.cli",
    "dashboards": "operations.cli",
    "estimate": "planning.cli",
    "show": "operations.inspect_cli",
    "simulate-fireworks": "simulators.cli",
    "simulate-ucotron": "simulators.cli",
}
"""Every verb in the order of --help, and the module whose `add_<verb>` declares its flags and its handler."""

STOPPED_EXIT = 75


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return its exit code. Mistakes of the user end here as one block of text on stderr."""
    args = parse(argv)
    secrets = variables.known_secrets()
    sys.excepthook = redaction.hook(secrets)
    handler_of_log = logging.StreamHandler(sys.stderr)
    handler_of_log.setFormatter(redaction.Redacting(logging.Formatter("%(message)s"), secrets))
    logging.basicConfig(handlers=[handler_of_log], level=logging.INFO)
    for noisy in ("httpx2", "urllib3", "mlflow", "alembic", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _stop)
    began = time.monotonic()
    handler: Handler = args.handler
    try:
        result = {"status": "ok", "artifact": None, **handler(args)}
        code = int(result.pop("exit_code", 0))
    except UcotronRayError as error:
        print(redaction.redacted(f"error: {error}", secrets), file=sys.stderr)
        result = {"status": "stopped" if isinstance(error, Stopped) else "failed", "artifact": None}
        result |= {"error": redaction.redacted(error.problem, secrets), "exit_code": error.exit_code}
        code = error.exit_code
    except KeyboardInterrupt:
        problem = "stopped before the end, by Ctrl-C or SIGTERM"
        print(f"error: {problem}\n  next step: run the same command again: it goes on from here", file=sys.stderr)
        result = {"status": "stopped", "artifact": None, "error": problem, "exit_code": STOPPED_EXIT}
        code = STOPPED_EXIT
    result["seconds"] = round(time.monotonic() - began, 1)
    if args.json:
        print(redaction.redacted(json.dumps(result, ensure_ascii=False), secrets))
    return code


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags of one invocation. Ends the process with 2 for a mistake in them, as argparse does."""
    words = list(sys.argv[1:] if argv is None else argv)
    return _parser(words).parse_args(words)


class _Parser(argparse.ArgumentParser):
    """argparse repeats what it does not understand: without the passwords in it."""

    def error(self, message: str) -> NoReturn:
        super().error(redaction.in_places(message))


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ucotron-ray",
        description="Training data, fine-tuning and production of relation extraction models for Ucotron, on Ray.",
        epilog="exit codes: 0 done, 1 failed, 2 bad usage or input (nothing was started), 3 would overwrite what "
        "another recipe made, 75 stopped and resumable by the same command",
    )
    parser.add_argument("--version", action="version", version=f"ucotron-ray {__version__}")
    # Who submits another verb as a job reads that verb's flags first.
    parser.set_defaults(parse=parse)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    first = next((word for word in argv if not word.startswith("-")), None)
    for verb, home in VERBS.items():
        # The others are there for --help, and for the list in the answer to a verb that does not exist.
        if verb == first or first not in VERBS:
            module = importlib.import_module(f"ucotron_ray.{home}")
            getattr(module, f"add_{verb.replace('-', '_')}")(verbs)
    return parser


def _stop(signum: int, frame: FrameType | None) -> None:
    # Inside `ray.get` only this exception and SystemExit get through; any other would be swallowed.
    raise KeyboardInterrupt


def job(file: str) -> NoReturn:
    """The verb that an entrypoint of `jobs/` is named after, with the flags of this process; ends it."""
    sys.exit(main([Path(file).stem.replace("_", "-"), *sys.argv[1:]]))
