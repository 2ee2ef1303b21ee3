"""Deployments: the vendor serves a trained adapter only on one, by the GPU second. Made once, found again, taken down.

`minReplicaCount` 0 and a short window bound what a forgotten one costs. Fields: the vendor's SDK,
`types/deployment_create_params.py` (1.2.30).
"""

import logging
import time
from collections.abc import Callable

from ucotron_ray.core.errors import FireworksError, RemoteJobFailed, Stopped
from ucotron_ray.core.files import canonical_hash
from ucotron_ray.fireworks import account as control
from ucotron_ray.fireworks.account import Account

log = logging.getLogger(__name__)

READY, FAILED = "READY", ("FAILED", "DELETING", "DELETED")
MOST_DEPLOYMENTS = 100
SCALE_TO_ZERO_WINDOW = "300s"
"""Five minutes without a request: the least that the vendor takes."""


def deploy(account: Account, model: str) -> str:
    """A deployment of one model, merged into its base; its name. The same model finds the one that is there.

    The vendor remembers the ids of deleted ones: the first id of the model's that is free or alive is taken.
    """
    for attempt in range(1, MOST_DEPLOYMENTS + 1):
        chosen = f"ucotron-{canonical_hash([model, attempt])[:20]}"
        name = account.full_name("deployments", chosen)
        body = {
            "baseModel": model,
            "displayName": chosen,
            # Without a shape the vendor skips its checks; most deployments that fail have none (its SDK's docstring).
            "deploymentShape": "default",
            "minReplicaCount": 0,
            "maxReplicaCount": 1,
            "autoscalingPolicy": {"scaleToZeroWindow": SCALE_TO_ZERO_WINDOW},
        }
        path = f"{account.parent}/deployments"
        try:
            found, is_new = control.create(account, path, body, query={"deploymentId": chosen}, existing=name)
        except FireworksError as error:
            if error.status_code == 409:
                continue
            raise
        if found.get("state") not in FAILED:
            log.info("fireworks: %s deployment '%s' of %s", "made" if is_new else "found", chosen, model)
            return name
    raise FireworksError("no id is left for a deployment of this model", where=model, found=f"{MOST_DEPLOYMENTS} used")


def of_model(account: Account, model: str) -> str | None:
    """A deployment of the model that can be asked, whoever made it."""
    entries = control.pages(account, f"{account.parent}/deployments", "deployments")
    found = (entry["name"] for entry in entries if entry.get("baseModel") == model and entry.get("state") == READY)
    return next(found, None)


def wait_ready(
    account: Account,
    name: str,
    *,
    interval: float,
    timeout: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Until it can be asked. Raises RemoteJobFailed, or Stopped after `timeout` seconds (0 = no limit)."""
    began = clock()
    while True:
        found = control.call(account, "GET", name)
        state = str(found.get("state"))
        if state == READY:
            return
        if state in FAILED:
            message = (found.get("status") or {}).get("message")
            raise RemoteJobFailed(f"the deployment is {state.lower()}", where=name, found=message or "no reason given")
        if timeout and clock() - began >= timeout:
            raise Stopped(
                "the deployment is not ready yet", where=name, found=state, next_step="run the same command again"
            )
        sleep(interval)


def take_down(account: Account, name: str) -> None:
    """Delete it; one that is gone is fine."""
    found = control.find(account, name)
    if found is not None and found.get("state") not in ("DELETING", "DELETED"):
        control.call(account, "DELETE", name, query={"ignoreChecks": "true"})
        log.info("fireworks: took down deployment '%s'", name.rpartition("/")[2])


def served_model(model: str, deployment: str) -> str:
    """How a model on a deployment is asked."""
    return f"{model}#{deployment}"
