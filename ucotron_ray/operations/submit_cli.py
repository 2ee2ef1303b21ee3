"""The verb `submit`: another verb as a job on a Ray cluster."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucotron_ray.core import flags
from ucotron_ray.core.errors import ConfigError, StageFailed, Stopped

if TYPE_CHECKING:
    from ucotron_ray.operations.submission import Submission


def add_submit(verbs: Any) -> None:
    """`submit`: a verb as a job of a cluster."""
    text = (
        "Run VERB as a job on a Ray cluster and wait for it. The same command again attaches to the job that runs, "
        "or goes on where the last one ended. Ctrl-C leaves the job running."
    )
    parser: argparse.ArgumentParser = verbs.add_parser(
        "submit",
        help=text,
        description=text,
        usage="ucotron-ray submit [options] VERB [flags of the verb]",
        epilog="exit codes: the job's own; 75 for a stopped, killed or lost one (the same command goes on)",
    )
    parser.set_defaults(handler=_submit)
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the cluster's dashboard (default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine's)",
    )
    parser.add_argument("--runtime-env", type=Path, metavar="FILE", help="such as cluster/runtime_env.yaml")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable; never a secret")
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="PATH",
        help="upload this file or directory too (code, recipes and places always are)",
    )
    parser.add_argument("--working-dir", metavar="local:///PATH", help="a directory that all nodes have: no upload")
    parser.add_argument("--python", default="python", help="the cluster's Python")
    parser.add_argument("--cpus", type=float, default=0.0, help="processors of the driver; more than 0 off the head")
    parser.add_argument("--retries", type=int, default=0, metavar="N", help="more attempts after a resumable end only")
    parser.add_argument("--again", action="store_true", help="a new attempt though the last one succeeded")
    parser.add_argument("--no-wait", action="store_true", help="return once it is submitted")
    parser.add_argument("--dry-run", action="store_true", help="check, print what would be uploaded, submit nothing")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="where to keep log and events (default: the store)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")
    parser.add_argument("job", nargs=argparse.REMAINDER, metavar="VERB ...", help="the verb and its flags")


def _submit(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.operations import record, submission

    options = submission.Options(args.runtime_env, args.env, args.include, args.working_dir, args.python)
    plan = submission.plan(Path.cwd(), args.job, options)
    # A mistake in the job's own flags or files ends here, not on the cluster.
    store = submission.check_store(flags.config_of(args.parse(plan.arguments)).place.store)
    directory = (args.run_dir.expanduser() if args.run_dir else record.directory_of(store)) / plan.run
    print(f"{plan.run}: {plan.command}\n{plan.shown()}")
    shown = {"run": plan.run, "files": len(plan.files or []), "bytes": sum(file.size for file in plan.files or [])}
    if args.dry_run:
        return {"status": "planned", **shown}
    return {**shown, **_run(args, plan, directory)}


def _run(args: argparse.Namespace, plan: "Submission", directory: Path) -> dict[str, Any]:
    from ucotron_ray.operations import address, jobs, record

    where = address.of_cluster(args.address)
    address.authenticate_as_asked(where)
    # Only now: Ray reads the way of authentication once, when it is imported.
    from ucotron_ray.operations.on_ray import JobServer

    try:
        server = JobServer(where)
    except OSError as error:
        raise ConfigError("the cluster takes no jobs", where=where, found=str(error), next_step=address.STEP) from error
    known = record.JobRecord(run=plan.run, command=plan.arguments, address=where, package=plan.digest)
    keeper = record.Keeper(directory, known)
    send = _sender(server, plan, args.cpus)
    try:
        name = jobs.begin(server, plan.run, keeper, send, again=args.again)
        if args.no_wait:
            return {"job": name, "status": "submitted", "run_dir": str(directory)}
        name, ended = jobs.finish(server, name, keeper, send, retries=args.retries)
    except OSError as error:
        raise StageFailed("the cluster did not take the job", where=where, found=str(error)) from error
    except KeyboardInterrupt:
        name = keeper.record.attempts[-1].id if keeper.record.attempts else "nothing was submitted yet"
        if keeper.record.attempts:
            keeper.note(name, "left")
        raise Stopped(
            f"the job goes on without this command: {name}",
            where=f"{where}, log so far in {directory}",
            next_step=f"run the same command again to attach; to stop the job: ray job stop {name}",
        ) from None
    return {
        "status": "ok" if ended.code == 0 else "stopped" if ended.code == jobs.RESUMABLE_EXIT else "failed",
        "job": name,
        "cause": ended.cause,
        "exit_code": ended.code,
        "run_dir": str(directory),
        "result": jobs.result_of(keeper.log_text(name)),
    }


def _sender(server: Any, plan: "Submission", cpus: float) -> Callable[[str], None]:
    from ucotron_ray.operations import package

    def send(name: str) -> None:
        metadata = {"ucotron_run": plan.run, "verb": plan.arguments[0]}
        if plan.files is None:
            server.submit(name, plan.command, plan.runtime_env, None, metadata=metadata, cpus=cpus)
            return
        with tempfile.TemporaryDirectory(prefix="ucotron-submit-") as aside:
            staged = package.stage(plan.root, plan.files, Path(aside), marker=name)
            server.submit(name, plan.command, plan.runtime_env, staged, metadata=metadata, cpus=cpus)

    return send
