"""Whether the store is shared by the nodes that send: what is journaled on a disk of its own is paid again."""

import platform
import threading
from pathlib import Path

from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.files import write_text

TOKEN = "token"
TRIES, PAUSE_SECONDS = 20, 0.5
"""NFS may take seconds until another node's new file is seen."""


def leave_token(directory: Path, token: str) -> None:
    """The driver's part: a file that every sender must see."""
    write_text(directory / TOKEN, token)


def check_token(directory: Path, token: str) -> None:
    """The sender's part, before it writes anything. Raises ConfigError where it does not see the driver's file."""
    pause = threading.Event()
    for attempt in range(TRIES):
        if attempt:
            pause.wait(PAUSE_SECONDS)
        try:
            if (directory / TOKEN).read_text(encoding="utf-8") == token:
                return
        except OSError:
            continue
    raise ConfigError(
        "the store is not shared by the nodes: answers that are paid for would be kept on a node's own disk",
        where=f"{directory} on {platform.node()}",
        expected="the directory that the driver writes to, on a file system that all nodes mount at the same path",
        found="a directory without the driver's file" if directory.is_dir() else "no such directory",
        next_step="name such a directory with --set store=DIR; or run on one node",
    )
