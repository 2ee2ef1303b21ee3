"""What waits for room on a cluster, in words: Ray itself waits without one."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ucotron_ray.core import placement
from ucotron_ray.core.placement import Resources

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""Between two looks: what waits at two of them in a row is said, after 20 s at the latest."""


@dataclass(frozen=True)
class Demand:
    """What waits on a cluster, of all its jobs: what, and how many of it. And what its living nodes have."""

    waiting: Mapping[tuple[tuple[str, float], ...], int]
    nodes: Sequence[Resources]


def lines(demand: Demand) -> list[str]:
    """A line for each kind of work that waits."""
    made = []
    for asked, count in demand.waiting.items():
        one = dict(asked)
        have = ", ".join(f"{placement.total(demand.nodes, name):g} {name}" for name in one)
        never = placement.room(demand.nodes, one) == 0
        why = "no node has room for it" if never else "all of it is in use"
        made.append(
            f"cluster: {count} x {_shown(one)} wait: {why}; {len(demand.nodes)} node(s) have {have} together"
            + (". Add a node, or start the head with processors of its own" if never else "")
        )
    return made


@contextmanager
def watched(look: Callable[[], Demand], seconds: float = LOOK_SECONDS) -> Iterator[None]:
    """Say what waits for room for the time of the block, once it has waited from one look to the next."""
    done = threading.Event()

    def watch() -> None:
        before: set[tuple[tuple[str, float], ...]] = set()
        said: set[tuple[tuple[str, float], ...]] = set()
        while not done.wait(seconds):
            try:
                now = look()
            except Exception as error:
                log.debug("cluster: its demand is not known", exc_info=error)
                continue
            still = {asked: count for asked, count in now.waiting.items() if asked in before and asked not in said}
            said |= still.keys()
            for line in lines(replace(now, waiting=still)):
                log.warning("%s", line)
            before = set(now.waiting)

    thread = threading.Thread(target=watch, name="demand", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        # A look after the end of the connection would make Ray connect once more.
        thread.join(5.0)


def _shown(one: Resources) -> str:
    return "{" + ", ".join(f"{name}: {amount:g}" for name, amount in one.items()) + "}"
