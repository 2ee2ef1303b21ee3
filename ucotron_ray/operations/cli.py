"""Verbs that watch: `status`, `dashboards`."""

import argparse
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from ucotron_ray.core import destination as destinations
from ucotron_ray.core import flags
from ucotron_ray.core.errors import StageFailed
from ucotron_ray.core.redaction import in_places


def add_status(verbs: Any) -> None:
    """`status`: the state of a store's runs."""
    parser = flags.verb(
        verbs,
        "status",
        "Print runs, stages, rows, dollars, trials and the last sign of each, from the store alone.",
        _status,
    )
    parser.add_argument("--all", action="store_true", help="all runs, not only the newest ten")


def add_dashboards(verbs: Any) -> None:
    """`dashboards`: the pages of a store."""
    flags.verb(
        verbs,
        "dashboards",
        "Serve Ray's dashboard, MLflow and TensorBoard for the store on 127.0.0.1, until Ctrl-C.",
        _dashboards,
    )


def _status(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.operations import status, status_table

    now = time.time()
    state = status.look(Path(flags.config_of(args).place.store).expanduser().absolute(), now=now)
    # `ucotron-ray status | head` ends quietly. Only while it prints: a process that goes on would end at the first TLS
    # connection that its other side closes.
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        print(status_table.table(state, now=now, limit=10**9 if args.all else 10), flush=True)
    finally:
        signal.signal(signal.SIGPIPE, before)
    return state.as_json()


def _dashboards(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.operations import address, dashboards

    settings = flags.config_of(args)
    store = Path(settings.place.store).expanduser().absolute()
    where = destinations.destination(settings.place, store)
    (store / "tracking").mkdir(parents=True, exist_ok=True)
    wanted = dashboards.pages(store, where.uri if where else None)
    # Their sockets lie below it, and may have paths of 107 bytes.
    with tempfile.TemporaryDirectory(prefix="ur-d-", dir="/tmp", ignore_cleanup_errors=True) as temporary:
        elsewhere = {} if where is None or where.uri.startswith("sqlite:") else {"MLflow": where.shown}
        running = address.of_cluster(None)
        script = Path.cwd() / "cluster" / "local-head.sh"
        if dashboards.answers(running):
            elsewhere["Ray"] = running
        elif script.is_file():
            wanted.append(dashboards.ray_page(script, Path(temporary)))
        try:
            with dashboards.Shown(wanted, store / "tracking" / "logs") as shown:
                for name, url in [*elsewhere.items(), *((page.name, page.url) for page in wanted)]:
                    print(in_places(f"{name:<12} {url}"))
                print("Ray asks for the token that `ray get-auth-token` prints; Ctrl-C ends these pages", flush=True)
                shown.wait()
        except KeyboardInterrupt:
            return {"status": "ok"}
    raise StageFailed("a page has ended by itself", where=str(store / "tracking" / "logs"))
