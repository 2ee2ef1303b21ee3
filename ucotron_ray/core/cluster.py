"""The address of a Ray cluster: what it says, and whether anybody listens. Ray itself would try for 13 minutes."""

import socket
from urllib.parse import urlsplit

from ucotron_ray.core import redaction, variables
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.place import Place

WHERE = "ray.address, RAY_ADDRESS"
ANSWER_SECONDS = 5.0
PORT, DASHBOARD_PORT = 6379, 8265

NOBODY = "there is no Ray cluster to connect to"
STEP = "start a head (cluster/local-head.sh), correct the address, or leave it away: then one is started here"

WORDS = ("auto", "local")
"""What Ray takes beside an address."""


def address_of(place: Place) -> str | None:
    """Where the cluster is that a run joins, the place's or that of RAY_ADDRESS; None if it starts one of its own."""
    return place.ray.address or variables.value("RAY_ADDRESS")


def check_text(address: str) -> None:
    """Raise ConfigError for what is no address of a cluster that a driver can join."""
    if address in WORDS:
        return
    scheme, host, port = _parts(address)
    if scheme in ("http", "https"):
        raise refused(
            "this is the address of a dashboard",
            address,
            next_step=f"give the head's own port (RAY_ADDRESS={host or 'HOST'}:{PORT}), or send the command as a job: "
            "ucotron-ray submit --address URL VERB ...",
        )
    if scheme not in ("", "ray") or not host or port is None:
        raise refused(
            "this is no address of a Ray cluster",
            address,
            next_step=f"RAY_ADDRESS={host}:{PORT}" if host and port is None and scheme == "" else None,
        )


def check_answers(address: str) -> None:
    """Raise ConfigError for what is no address, and where nobody listens."""
    check_text(address)
    if address in WORDS:
        return
    _, host, port = _parts(address)
    try:
        socket.create_connection((host, port or PORT), timeout=ANSWER_SECONDS).close()
    except OSError as error:
        raise refused(NOBODY, address, said=str(error), next_step=STEP) from error


def dashboard_of(address: str) -> str | None:
    """The page of a cluster's dashboard as a rule, by the address that a driver joins it with; None for `auto`."""
    if address in WORDS:
        return None
    scheme, host, _ = _parts(address)
    if scheme in ("http", "https"):
        return address
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{DASHBOARD_PORT}" if host else None


def _parts(address: str) -> tuple[str, str, int | None]:
    """Scheme ("" for none), host and port."""
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        return parts.scheme, parts.hostname or "", parts.port
    except ValueError:
        return "", "", None


def refused(problem: str, address: str, *, said: str | None = None, next_step: str | None = None) -> ConfigError:
    """What to raise for an address; it may hold a password."""
    shown = redaction.in_places(address)
    return ConfigError(
        problem,
        where=WHERE,
        expected=f"HOST:{PORT} of a head that runs (or auto, for one on this machine)",
        found=f"{shown}: {said}" if said else shown,
        next_step=next_step,
    )
