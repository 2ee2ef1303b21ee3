"""How much memory of its own a Ray task needs for a large graph: prints one JSON object. For `generators.py`."""

import json
import os

import psutil
import ray

from ucotron_ray.graph import paths
from ucotron_ray.graph.on_ray import over_graph

NODES, EDGES = 100_000, 500_000


def look(graph: paths.PathGraph, number: int) -> dict[str, float]:
    """What a task's process has of its own after it walked over every array, and whether the arrays are copies."""
    touched = sum(int(array.sum()) for array in (graph.ids, graph.offsets, graph.neighbors, graph.kinds, graph.degrees))
    info = psutil.Process().memory_full_info()
    copies = sum(array.flags.owndata or array.flags.writeable for array in (graph.ids, graph.offsets, graph.neighbors))
    return {"pid": os.getpid(), "own_mb": info.uss / 2**20, "copied_arrays": copies, "touched": touched % 2}


def main() -> None:
    graph, _, _ = paths.generated(NODES, EDGES, seed=1)
    size = sum(array.nbytes for array in (graph.ids, graph.offsets, graph.neighbors, graph.kinds, graph.degrees))
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        empty, _, _ = paths.generated(10, 10, seed=1)
        idle = list(over_graph(look, empty, range(8), items_per_task=1))
        looked = list(over_graph(look, graph, range(8), items_per_task=1))
    finally:
        ray.shutdown()
    result = {
        "graph_mb": size / 2**20,
        "own_mb_with_ten_nodes": max(entry["own_mb"] for entry in idle),
        "own_mb": max(entry["own_mb"] for entry in looked),
        "copied_arrays": sum(entry["copied_arrays"] for entry in looked),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
