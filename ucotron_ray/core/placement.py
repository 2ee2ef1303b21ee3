"""Which workers find a place on which nodes. Plain arithmetic over the resources that Ray lists for each node."""

import math
from collections.abc import Mapping, Sequence

from ucotron_ray.core.errors import ResourceError

Resources = Mapping[str, float]
"""CPU, GPU, memory (bytes) and others, of a node or of one worker."""


def total(nodes: Sequence[Resources], name: str) -> float:
    """Of all nodes."""
    return sum(node.get(name, 0.0) for node in nodes)


def fitting(node: Resources, one: Resources) -> int:
    """How many such workers a node holds."""
    return min(math.floor(node.get(name, 0.0) / amount) for name, amount in one.items() if amount)


def room(nodes: Sequence[Resources], one: Resources) -> int:
    """How many such workers the nodes hold together: none lies on two of them."""
    return sum(fitting(node, one) for node in nodes)


def largest_share(nodes: Sequence[Resources], num_workers: int, gpus: float) -> float:
    """The most processors that each of so many workers can have.

    Whole ones, and all of them: the driver needs none, as it only waits.
    """
    even = max(1, math.floor(total(nodes, "CPU") / num_workers))
    for cpus in range(even, 0, -1):
        if room(nodes, {"CPU": float(cpus), "GPU": gpus}) >= num_workers:
            return float(cpus)
    # There is no placement at all: `check` says so.
    return float(even)


def memories(nodes: Sequence[Resources], one: Resources) -> list[float]:
    """Bytes of each node that holds such a worker, where Ray knows them."""
    return [node["memory"] for node in nodes if node.get("memory") and fitting(node, one)]


def check(nodes: Sequence[Resources], one: Resources, num_workers: int) -> None:
    """Raise ResourceError if there is too little in all, or no way to spread so many workers over the nodes."""
    for name, amount in one.items():
        asked, have = amount * num_workers, total(nodes, name)
        if asked > have:
            raise ResourceError(
                f"the cluster has too few {name}s for the place's workers",
                where="workers.num_workers, workers.cpus_per_worker, workers.gpus_per_worker",
                expected=f"{asked:g} {name}s",
                found=f"{have:g} {name}s",
                next_step="lower the workers in the place file, or join a larger cluster",
            )
    places = room(nodes, one)
    if places < num_workers:
        raise ResourceError(
            "no placement of the workers on the cluster's nodes exists: a worker cannot be split over nodes",
            where="workers.num_workers, workers.cpus_per_worker, workers.gpus_per_worker",
            expected=f"{num_workers} x {dict(one)}",
            found=f"room for {places} on nodes with {[_shown(node) for node in nodes]}",
            next_step="lower the workers in the place file, or join larger nodes",
        )


def _shown(node: Resources) -> str:
    return ", ".join(f"{node.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))
