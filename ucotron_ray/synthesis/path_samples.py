"""Samples of path rewards: pairs of ends drawn by a walk, the path between them, its reward and the reward's parts.

Drawn by a walk, so that long paths are as easy to find as short ones; no node stands in more than a twentieth of the
rows; no node of a validation row stands in a training row.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ucotron_ray.core.recipe import Generation
from ucotron_ray.graph import paths
from ucotron_ray.graph.paths import PathGraph
from ucotron_ray.synthesis.seeds import is_held_out
from ucotron_ray.synthesis.tasks.path_reward import NAME, Settings

DIGITS = 6
"""To which rewards are rounded (reference §7.4)."""

LARGEST_SHARE_OF_A_NODE = 0.05

SEVERAL_ROWS = 4
"""Every node may stand in so many rows, however few rows there are."""


def draw(generation: Mapping[str, Any], graph: PathGraph, number: int) -> dict[str, Any]:
    """The outcome of one sample: a row without contents, or why there is none. `generation`: the recipe's section."""
    settings = Generation.model_validate(generation)
    task, seed = settings.task(NAME), settings.seed
    rng = random.Random(f"{seed}/{NAME}/{number}")
    held_out = is_held_out(number, seed=seed, val_ratio=settings.val_ratio)
    split = "val" if held_out else "train"
    walk = _walk(graph, int(held_out), number % task.max_hops + 1, rng)
    if walk is None:
        return _outcome(number, split, "the walk came to an end")
    path = _path_of(graph, walk, task, rng)
    if path is None:
        return _outcome(number, split, "so many shorter paths that the search found none of this length")
    return _outcome(number, split, None, _row(graph, path))


def settled(
    outcomes: Iterable[dict[str, Any]], count: int, contents: Sequence[str], kinds: Sequence[str], graph: PathGraph
) -> Iterator[dict[str, Any]]:
    """Outcomes with the contents of their ends; rows whose nodes stand in enough rows already are rejected."""
    most = max(SEVERAL_ROWS, round(count * LARGEST_SHARE_OF_A_NODE))
    index = {int(node): place for place, node in enumerate(graph.ids)}
    used: Counter[int] = Counter()
    for outcome in outcomes:
        row = outcome["row"]
        if row is None:
            yield outcome
            continue
        if any(used[node] >= most for node in row["path_node_ids"]):
            yield {**outcome, "status": "rejected", "reason": "a node of it stands in enough rows", "row": None}
            continue
        used.update(row["path_node_ids"])
        source, target = index[row["source_id"]], index[row["target_id"]]
        ends = {"source_content": contents[source], "target_content": contents[target]}
        metadata = {"source_type": kinds[source], "target_type": kinds[target]}
        yield {**outcome, "row": {**row, **ends, "metadata": metadata}}


def _outcome(number: int, split: str, reason: str | None, row: dict[str, Any] | None = None) -> dict[str, Any]:
    status = "accepted" if row is not None else "rejected"
    return {"number": number, "status": status, "split": split, "reason": reason, "notes": [], "row": row}


def _walk(graph: PathGraph, side: int, hops: int, rng: random.Random) -> list[int] | None:
    """A walk without a repeated node, from a random node of the side."""
    nodes = np.flatnonzero((graph.sides == side) & (np.diff(graph.offsets) > 0))
    if not nodes.size:
        return None
    walk = [int(nodes[rng.randrange(nodes.size)])]
    while len(walk) <= hops:
        ahead = sorted(set(graph.around(walk[-1])[0]) - set(walk))
        if not ahead:
            return None
        walk.append(rng.choice(ahead))
    return walk


def _path_of(graph: PathGraph, walk: list[int], task: Settings, rng: random.Random) -> paths.Path | None:
    """One of the paths of the walk's length between its ends, of those that the search finds."""
    found = paths.find(graph, walk[0], walk[-1], max_hops=task.max_hops, max_paths=task.max_paths)
    as_long = [path for path in found if len(path.nodes) == len(walk)]
    return rng.choice(as_long) if as_long else None


def _row(graph: PathGraph, path: paths.Path) -> dict[str, Any]:
    reward = paths.reward(graph, path)
    ids = [int(graph.ids[node]) for node in path.nodes]
    return {
        "source_id": ids[0],
        "target_id": ids[-1],
        "source_content": "",
        "target_content": "",
        "path_node_ids": ids,
        "edge_types": list(path.kinds),
        "hop_count": len(path.kinds),
        "reward_total": round(reward.total, DIGITS),
        "reward_hop_decay": round(reward.hop, DIGITS),
        "reward_coherence": round(reward.coherence, DIGITS),
        "reward_centrality": round(reward.centrality, DIGITS),
        "metadata": {},
    }
