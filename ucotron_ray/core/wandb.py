"""Runs at Weights & Biases, beside MLflow: only if `tracking.enabled`, a project and WANDB_API_KEY are there.

The only file that imports wandb. It reads the events that tracking has spooled, and says how far it got in
`wandb.json`: a run that goes on after a kill is one run there too, and no failure there stops a run here.
"""

import hashlib
import importlib.util
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ucotron_ray.core import variables
from ucotron_ray.core.files import write_json
from ucotron_ray.core.place import Tracking
from ucotron_ray.core.spool import Spool

log = logging.getLogger(__name__)

KEY_VARIABLE = "WANDB_API_KEY"
SENT = "wandb.json"
INIT_SECONDS = 20.0


def mirror(settings: Tracking, spool: Spool) -> bool:
    """Send what this run and its stages have spooled since the last time. False if it is off, or could not be sent."""
    if not settings.enabled:
        return False
    if not settings.wandb_project or not variables.is_set(KEY_VARIABLE):
        log.warning("tracking: no Weights & Biases: tracking.wandb_project or %s is not set", KEY_VARIABLE)
        return False
    if importlib.util.find_spec("wandb") is None:
        log.warning("tracking: no Weights & Biases: pip install -c constraints.txt 'ucotron-ray[wandb]'")
        return False
    try:
        _send(settings.wandb_project, spool)
        return True
    except Exception as error:  # noqa: BLE001 - the promise: no failure of a tracker, of whatever kind, stops a run
        log.warning("tracking: Weights & Biases could not be reached (%s)", type(error).__name__)
        return False


def _send(project: str, spool: Spool) -> None:
    record = spool.directory / SENT
    sent: dict[str, int] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    by_run: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(spool.directory.glob("*.jsonl")):
        for offset, event in _events(path, sent.get(path.name, 0)):
            if event["run"] == spool.run or event["run"].startswith(spool.run + "/"):
                by_run.setdefault(event["run"], []).append(event)
                sent[path.name] = offset
    for key, events in by_run.items():
        _send_run(project, spool, key, sorted(events, key=lambda event: int(event["time"])))
    if by_run:
        write_json(record, sent)


def _send_run(project: str, spool: Spool, key: str, events: list[dict[str, Any]]) -> None:
    import wandb  # noqa: PLC0415 - seconds, and only where it is wanted

    facts: dict[str, Any] = {}
    for event in events:
        facts |= event["values"] if event["type"] in ("params", "tags") else {}
    run = wandb.init(
        project=project,
        id=hashlib.blake2b(key.encode(), digest_size=8).hexdigest(),
        name=key.rpartition("/")[2],
        group=spool.run,
        config=facts,
        resume="allow",
        dir=str(spool.directory.parent),
        # Neither this run's output nor its end may wait for them.
        settings={"console": "off", "init_timeout": INIT_SECONDS},
    )
    for event in events:
        if event["type"] == "metrics":
            run.log({**event["values"], "step": event["step"]})
    ended = next((event["status"] for event in reversed(events) if event["type"] == "end"), "FINISHED")
    run.finish(exit_code=0 if ended == "FINISHED" else 1)


def _events(path: Path, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Whole lines behind the offset, each with the offset behind it; a torn last one waits."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield offset, json.loads(line)
