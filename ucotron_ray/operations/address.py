"""Which cluster a job goes to. To be called before Ray is imported: it reads its way of authentication only once."""

import json
import logging
import os
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from ucotron_ray.core.errors import ConfigError

log = logging.getLogger(__name__)

DEFAULT = "http://127.0.0.1:8265"
SECONDS = 10.0


def of_cluster(address: str | None) -> str:
    """The address of the job server: what is given, else that of the variables, else this machine's. ConfigError."""
    joined = os.environ.get("RAY_ADDRESS", "")
    # `ray job submit` takes a dashboard there too; a head's own address says nothing of its dashboard's port.
    of_ray = joined if joined.startswith(("http://", "https://")) else None
    found = address or os.environ.get("RAY_API_SERVER_ADDRESS") or of_ray or DEFAULT
    parts = urlsplit(found if "://" in found else f"http://{found}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise ConfigError(
            "this is no address of a Ray dashboard",
            where="--address, RAY_API_SERVER_ADDRESS, RAY_ADDRESS",
            expected="http://HOST:8265 or https://HOST, without a password in it",
            found=parts.hostname or "no host",
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def authenticate_as_asked(address: str) -> str:
    """Ask the server for its way of authentication (this page needs no token) and tell Ray's client; the mode.

    Without `RAY_AUTH_MODE` Ray's own client sends no token even if it has one, and gets 401. The token itself stays
    with Ray. Raises ConfigError if nobody answers.
    """
    try:
        with urllib.request.urlopen(f"{address}/api/authentication_mode", timeout=SECONDS) as answer:
            mode = str(json.loads(answer.read()).get("authentication_mode", "disabled"))
    except urllib.error.HTTPError as error:
        # Heads before 2.52 have no such page.
        mode = "disabled" if error.code == 404 else "token"
    except (OSError, ValueError) as error:
        raise ConfigError(
            "no Ray dashboard answers",
            where=address,
            found=str(error),
            next_step="start one (cluster/local-head.sh), open the tunnel to it, or give --address",
        ) from error
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    if mode == "token":
        os.environ["RAY_AUTH_MODE"] = "token"
        if address.startswith("http://") and urlsplit(address).hostname not in ("127.0.0.1", "localhost", "::1"):
            log.warning(
                "submit: the cluster's token goes to %s in the clear: better through a tunnel or https", address
            )
    return mode
