"""Verbs that serve the simulators: `simulate-fireworks`, `simulate-ucotron`."""

import argparse
from pathlib import Path
from typing import Any

from ucotron_ray.core import flags, variables


def add_simulate_fireworks(verbs: Any) -> None:
    """`simulate-fireworks`: the simulator of the vendor."""
    parser = verbs.add_parser(
        "simulate-fireworks",
        help="Serve a SIMULATOR of Fireworks.ai on loopback, for tests and for trying things out.",
        description="Serve a SIMULATOR of Fireworks.ai on loopback. Its answers come from sentence patterns.",
        usage="ucotron-ray simulate-fireworks [options] [-- COMMAND with {url}]",
    )
    parser.set_defaults(handler=_simulate_fireworks, json=False)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="median latency")
    parser.add_argument("--latency-p99", type=float, metavar="SECONDS", help="lognormal with this 99th percentile")
    parser.add_argument("--faults", default="", metavar="NAME=SHARE,…", help="429, 500, 503, reset, hang, 400, …")
    parser.add_argument("--retry-after", default="1", help="header of the fault 429-retry-after")
    parser.add_argument("--garbage", type=float, default=0.03, help="share of answers with something wrong in them")
    parser.add_argument(
        "--plant",
        default="",
        metavar="NAME=SHARE,…",
        help="defects: wrong_span, same_fact, leak, …; the ledger knows where",
    )
    parser.add_argument("--requests-per-minute", type=float)
    parser.add_argument("--generated-tokens-per-minute", type=float)
    parser.add_argument("--limit-moves", default="", metavar="SECONDS:FACTOR,…", help="how the limits move")
    parser.add_argument("--completion-tokens", type=float, metavar="MEAN", help="report as many generated tokens")
    parser.add_argument("--model", action="append", default=[], metavar="ID", help="another model to list and serve")
    parser.add_argument(
        "--refuse-key", action="append", default=[], metavar="KEY", help="422 for requests with this key"
    )
    parser.add_argument("--profile", metavar="SERVER", help="habits of another server: azure, openrouter, ollama, …")
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="require the key in this variable (default: none)")
    parser.add_argument("--job-seconds", type=float, metavar="SECONDS", help="jobs take so long (default: six looks)")
    parser.add_argument("--job-end", default="COMPLETED", metavar="STATE", help="how jobs end, or where they stay")
    parser.add_argument("--max-active-jobs", type=int, metavar="N", help="quota of jobs at once")
    parser.add_argument("--cut-uploads", type=int, default=0, metavar="N", help="cut off so many uploads in the middle")
    parser.add_argument(
        "--control-faults", default="", metavar="NAME=SHARE,…", help="503, 429, lost, … for jobs and data"
    )
    parser.add_argument("--ledger", type=Path, metavar="FILE", help="write every request received, as JSONL")
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="run this, then stop; {url} is the address")


def add_simulate_ucotron(verbs: Any) -> None:
    """`simulate-ucotron`: the simulator of the server."""
    parser = flags.verb(
        verbs, "simulate-ucotron", "Serve a SIMULATOR of a Ucotron server on loopback, for tests.", _simulate_ucotron
    )
    parser.add_argument("--port", type=int, default=8420, help="port on 127.0.0.1")
    parser.add_argument("--graph", type=Path, metavar="FILE", help="export file to begin with")
    parser.add_argument("--api-key-env", metavar="VARIABLE", help="require the key in this variable (default: no auth)")
    parser.add_argument(
        "--config", type=Path, metavar="ucotron.toml", help="take [models] from there, as the server does"
    )
    parser.add_argument("--endpoint", metavar="URL", help="fine_tuned_re_endpoint that `learn` calls")
    parser.add_argument("--endpoint-model", default="ucotron-re", metavar="ID", help="fine_tuned_re_model")


def _simulate_fireworks(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.simulators import fireworks as simulator
    from ucotron_ray.simulators import fireworks_control as simulator_control
    from ucotron_ray.simulators import fireworks_settings as simulator_settings

    settings = simulator_settings.Settings(
        seed=args.seed,
        latency=args.latency,
        latency_p99=args.latency_p99,
        faults=simulator_settings.parse_faults(args.faults),
        retry_after=args.retry_after,
        garbage=args.garbage,
        plant=simulator_settings.parse_plants(args.plant),
        requests_per_minute=args.requests_per_minute,
        generated_tokens_per_minute=args.generated_tokens_per_minute,
        limit_moves=simulator_settings.parse_moves(args.limit_moves),
        completion_tokens=args.completion_tokens,
        models=(simulator_settings.TEACHER, simulator_settings.EMBEDDER, *args.model),
        api_key=variables.secret(args.api_key_env, None),
        refused_keys=tuple(args.refuse_key),
        profile=simulator_settings.parse_profile(args.profile),
        ledger=args.ledger,
        control=simulator_control.ControlSettings(
            job_seconds=args.job_seconds,
            job_end=args.job_end.upper(),
            max_active_jobs=args.max_active_jobs,
            cut_uploads=args.cut_uploads,
            faults=simulator_control.parse_control_faults(args.control_faults),
            seed=args.seed,
        ),
    )
    return {"exit_code": simulator.serve(settings, port=args.port, command=args.command or None)}


def _simulate_ucotron(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.simulators import ucotron as simulator

    simulator.serve(
        port=args.port,
        graph=args.graph,
        api_key_variable=args.api_key_env,
        endpoint=args.endpoint,
        endpoint_model=args.endpoint_model,
        config=args.config,
    )
    return {}
