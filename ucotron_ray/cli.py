"""The command line: verbs, exit codes. Imports no stage: `--help` and every mistake in a flag answer at once."""

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from ucotron_ray import __version__
from ucotron_ray import pipeline_cli as chain
from ucotron_ray.core import redaction, variables
from ucotron_ray.core.errors import Stopped, UcotronRayError
from ucotron_ray.core.flags import Handler
from ucotron_ray.data import cli as validation
from ucotron_ray.evaluation import cli as evaluation
from ucotron_ray.export import cli as export
from ucotron_ray.fireworks import cli as fireworks
from ucotron_ray.operations import cli as operations
from ucotron_ray.operations import inspect_cli as inspection
from ucotron_ray.operations import submit_cli as submitting
from ucotron_ray.planning import cli as estimating
from ucotron_ray.projection import cli as projection
from ucotron_ray.registry import cli as registry
from ucotron_ray.serving import cli as serving
from ucotron_ray.serving import deploy_cli as deploy
from ucotron_ray.simulators import cli as simulators
from ucotron_ray.synthesis import cli as data
from ucotron_ray.training import cli as training
from ucotron_ray.tuning import cli as tuning

STOPPED_EXIT = 75


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; return its exit code. Mistakes of the user end here as one block of text on stderr."""
    args = _parser().parse_args(argv)
    secrets = variables.known_secrets()
    sys.excepthook = redaction.hook(secrets)
    handler_of_log = logging.StreamHandler(sys.stderr)
    handler_of_log.setFormatter(redaction.Redacting(logging.Formatter("%(message)s"), secrets))
    logging.basicConfig(handlers=[handler_of_log], level=logging.INFO)
    for noisy in ("httpx", "urllib3", "mlflow", "alembic", "asyncio"):
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
        print(json.dumps(result, ensure_ascii=False))
    return code


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags of one invocation. Ends the process with 2 for a mistake in them, as argparse does."""
    return _parser().parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ucotron-ray",
        description="Training data, fine-tuning and production of relation extraction models for Ucotron, on Ray.",
        epilog="exit codes: 0 done, 1 failed, 2 bad usage or input (nothing was started), 3 would overwrite what "
        "another recipe made, 75 stopped and resumable by the same command",
    )
    parser.add_argument("--version", action="version", version=f"ucotron-ray {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    inspection.add_doctor(verbs)
    data.add_import_graph(verbs)
    data.add_synthesize(verbs)
    validation.add_validate(verbs)
    training.add_sft(verbs)
    training.add_dpo(verbs)
    projection.add_projection(verbs)
    tuning.add_tune(verbs)
    evaluation.add_evaluate(verbs)
    evaluation.add_compare(verbs)
    export.add_export(verbs)
    registry.add_promote(verbs)
    registry.add_rollback(verbs)
    registry.add_pull(verbs)
    deploy.add_deploy(verbs)
    serving.add_serve(verbs)
    chain.add_pipeline(verbs)
    fireworks.add_fireworks(verbs)
    submitting.add_submit(verbs)
    operations.add_status(verbs)
    operations.add_dashboards(verbs)
    estimating.add_estimate(verbs)
    inspection.add_show(verbs)
    simulators.add_simulate_fireworks(verbs)
    simulators.add_simulate_ucotron(verbs)
    return parser


def _stop(signum: int, frame: FrameType | None) -> None:
    # Inside `ray.get` only this exception and SystemExit get through; any other would be swallowed.
    raise KeyboardInterrupt
