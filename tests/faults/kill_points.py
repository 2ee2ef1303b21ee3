"""A process killed at its n-th change of a directory, without a process: every later change fails as well.

Python tells of each file that it opens, renames, removes and makes (`sys.addaudithook`), before it is done. A hook
cannot be taken away again, so there is one, which does nothing outside of `killed_at`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path


class Killed(BaseException):
    """The process would be gone here."""


@dataclass
class _Watch:
    root: str = ""
    left: int = 0
    dead: bool = False
    changes: int = 0


_CHANGES = {"os.rename": 2, "os.remove": 1, "os.mkdir": 1, "os.rmdir": 1, "os.truncate": 1, "os.symlink": 2}


@cache
def _watch() -> _Watch:
    """The one watch of this process, with its hook in place."""
    watch = _Watch()

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if watch.root and _changes(watch.root, event, arguments):
            watch.changes += 1
            watch.left -= 1
            if watch.dead or watch.left < 0:
                watch.dead = True
                raise Killed

    sys.addaudithook(hook)
    return watch


def _changes(root: str, event: str, arguments: tuple[object, ...]) -> bool:
    if event == "open":
        flags = arguments[2]
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return bool(writes) and str(arguments[0]).startswith(root)
    count = _CHANGES.get(event, 0)
    # `shutil.rmtree` removes by name within an open directory: a name without a root is one of those.
    return any(str(path).startswith(root) or not str(path).startswith("/") for path in arguments[:count])


@contextmanager
def killed_at(root: Path, change: int) -> Iterator[_Watch]:
    """In the block the `change`-th change below `root` (from 0) and all later ones raise Killed instead of happening.

    `dead` says afterwards whether it came so far.
    """
    watch = _watch()
    watch.root, watch.left, watch.dead, watch.changes = str(root), change, False, 0
    try:
        yield watch
    except Killed:
        pass
    finally:
        watch.root = ""
