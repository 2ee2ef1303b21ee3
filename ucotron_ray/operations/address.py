"""Which cluster a job goes to. To be called before Ray is imported: it reads its way of authentication only once."""

import http.client
import json
import logging
import os
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from ucotron_ray.core import cluster, failures
from ucotron_ray.core.errors import ConfigError

log = logging.getLogger(__name__)

DEFAULT = "http://127.0.0.1:8265"
SECONDS = 10.0
MOST_BYTES = 65536
STEP = "start a head (cluster/local-head.sh), open the tunnel to it, or give --address"


def of_cluster(address: str | None) -> str:
    """The address of the job server: what was given, else RAY_API_SERVER_ADDRESS, RAY_ADDRESS, this machine's.

    RAY_ADDRESS mostly names the head's own port; its dashboard then has the usual one. Raises ConfigError.
    """
    found = address or os.environ.get("RAY_API_SERVER_ADDRESS") or _of_driver() or DEFAULT
    parts = urlsplit(found if "://" in found else f"http://{found}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise ConfigError(
            "this is no address of a Ray dashboard",
            where="--address, RAY_API_SERVER_ADDRESS, RAY_ADDRESS",
            expected="http://HOST:8265 or https://HOST, without a password in it",
            found=parts.hostname or "no host",
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _of_driver() -> str | None:
    joined = os.environ.get("RAY_ADDRESS")
    found = cluster.dashboard_of(joined) if joined else None
    if found is not None and found != joined:
        log.info("submit: the dashboard of RAY_ADDRESS=%s is taken to be %s (--address says another)", joined, found)
    return found


def authenticate_as_asked(address: str) -> str:
    """Ask the server for its way of authentication (this page needs no token) and tell Ray's client; the mode.

    Without `RAY_AUTH_MODE` Ray's own client sends no token even if it has one, and gets 401. The token itself stays
    with Ray. Raises ConfigError if nobody answers, or somebody who is no Ray dashboard.
    """
    status, answer = _asked(f"{address}/api/authentication_mode")
    mode = answer.get("authentication_mode") if status == 200 else {401: "token", 403: "token"}.get(status)
    if status == 404 and "ray_version" in _asked(f"{address}/api/version")[1]:
        # Heads before 2.52 have no such page, and no tokens.
        mode = "disabled"
    if mode not in ("token", "disabled"):
        raise ConfigError(
            "what answers there is no Ray dashboard",
            where=address,
            expected="a page /api/authentication_mode or /api/version, as a Ray head has it on port 8265",
            found=f"status {status}" if status != 200 else "a page of something else",
            next_step=STEP,
        )
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    if mode == "token":
        os.environ["RAY_AUTH_MODE"] = "token"
        if address.startswith("http://") and urlsplit(address).hostname not in ("127.0.0.1", "localhost", "::1"):
            log.warning(
                "submit: the cluster's token goes to %s in the clear: better through a tunnel or https", address
            )
    return mode


def _asked(url: str) -> tuple[int, dict[str, Any]]:
    """The status of a page, and the JSON object that it is; an empty one for any other page. Raises ConfigError."""
    try:
        with urllib.request.urlopen(url, timeout=SECONDS) as answer:
            status, body = int(answer.status), answer.read(MOST_BYTES)
    except urllib.error.HTTPError as error:
        return error.code, {}
    except (OSError, http.client.HTTPException, ValueError) as error:
        said = failures.first_line(error)
        raise ConfigError(
            "no Ray dashboard answers", where=url.partition("/api/")[0], found=said, next_step=STEP
        ) from error
    try:
        found = json.loads(body)
    except ValueError:
        return status, {}
    return status, found if isinstance(found, dict) else {}
