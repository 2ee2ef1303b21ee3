"""Which Ray cluster a run joins: whether the address is one, and whether somebody answers there. Without Ray."""

import logging
import socket
from pathlib import Path

from ucotron_ray.core.errors import ConfigError

log = logging.getLogger(__name__)

WHERE = "ray.address, RAY_ADDRESS"
CONNECT_SECONDS = 5.0
CURRENT_CLUSTER = Path("/tmp/ray/ray_current_cluster")
CLIENT = "ray://"
OWN_WORDS = ("auto", "local")
"""What Ray takes instead of an address."""


def check(address: str) -> None:
    """Raise ConfigError for an address that is none, or where nobody answers: Ray itself would try for minutes."""
    if address in OWN_WORDS:
        return
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            "this is the address of a dashboard, where jobs are submitted",
            where=WHERE,
            expected="HOST:PORT of a head (ray start prints it, 6379 by default), or auto",
            found=address.rpartition("@")[2],
            next_step="ucotron-ray submit --address URL VERB runs a verb as a job there",
        )
    host, colon, port = address.removeprefix(CLIENT).rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(
            "the address of the Ray head has no port",
            where=WHERE,
            expected="HOST:PORT of a head (ray start prints it, 6379 by default), or auto",
            found=address,
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise nobody(address, error.strerror or str(error)) from error


def nobody(address: str, found: str) -> ConfigError:
    """The error for an address without a head."""
    return ConfigError(
        "there is no Ray cluster to connect to",
        where=WHERE,
        expected="the address of a head that runs",
        found=f"{address}: {found}",
        next_step="start a head (cluster/local-head.sh), or leave the address away: then one is started here",
    )


def wants_token(address: str) -> ConfigError:
    """The error for a head that asks for a token, and got none or another one."""
    return ConfigError(
        "the Ray head asks for a token",
        where=WHERE,
        expected="RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token",
        found=address,
        next_step="copy the token of the cluster there, mode 0600 (cluster/README.md)",
    )


def note_other_head() -> None:
    """Say that a head runs on this machine where a run is about to start a second Ray beside it."""
    try:
        head = CURRENT_CLUSTER.read_text(encoding="utf-8").strip()
        check(head)
    except (OSError, UnicodeDecodeError, ConfigError):
        return
    log.warning(
        "a Ray head runs on this machine (%s); this run starts a Ray of its own: RAY_ADDRESS=auto joins it", head
    )
