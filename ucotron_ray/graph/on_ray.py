"""Runs a function over a graph in Ray tasks. The graph lies in the object store once; tasks read it where it lies."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import ray

from ucotron_ray.core import session
from ucotron_ray.graph.paths import PathGraph

Item = TypeVar("Item")
Answer = TypeVar("Answer")

MOST_IN_FLIGHT_PER_CPU = 2


def over_graph(
    function: Callable[[PathGraph, Item], Answer], graph: PathGraph, items: Sequence[Item], *, items_per_task: int
) -> Iterator[Answer]:
    """`function(graph, item)` for every item, in their order.

    The arrays of the graph are mapped read-only into every task's memory: numpy arrays are not copied out of the object
    store. Raises StageFailed with the function's own error, and Stopped where Ray has no room for the graph.
    """
    try:
        yield from _over_graph(function, graph, items, items_per_task)
    except ray.exceptions.RayError as error:
        next_step = "what is done is kept; correct the cause and run the same command again"
        raise session.cause_of(error, "a task over the graph failed", next_step=next_step) from error


def _over_graph(
    function: Callable[[PathGraph, Item], Answer], graph: PathGraph, items: Sequence[Item], items_per_task: int
) -> Iterator[Answer]:
    shared = ray.put(graph)
    task = ray.remote(_apply).options(num_cpus=1, max_retries=2)
    parts = [items[start : start + items_per_task] for start in range(0, len(items), items_per_task)]
    most = max(2, int(MOST_IN_FLIGHT_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    running = [task.remote(function, shared, part) for part in parts[:most]]
    rest = iter(parts[most:])
    while running:
        answers = ray.get(running.pop(0))
        part = next(rest, None)
        if part is not None:
            running.append(task.remote(function, shared, part))
        yield from answers


def _apply(function: Callable[[PathGraph, Any], Any], graph: PathGraph, items: Sequence[Any]) -> list[Any]:
    return [function(graph, item) for item in items]
