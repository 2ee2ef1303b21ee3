"""Path rewards: paths through a graph with the server's reward and its parts. Nobody is asked: it is computed.

Rows: reference §7.4. What the older generator did wrong, and what is done here instead: a pair of ends gives one row;
hop lengths are equally frequent; no node stands in more than a twentieth of the rows; no node of a validation row
stands in a training row. Pairs are drawn by a walk, so that long paths are as easy to find as short ones.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from ucotron_ray.core.recipe import Generation
from ucotron_ray.core.sections import Count, TaskSettings
from ucotron_ray.data.records import PathRow
from ucotron_ray.graph import paths
from ucotron_ray.graph.paths import EDGE_TYPES, PathGraph
from ucotron_ray.synthesis.generator import GuideFigures, UsualTokens
from ucotron_ray.synthesis.rows import Fields, RowKind
from ucotron_ray.synthesis.seeds import is_held_out

NAME = "path_reward"
VERSION = 1

GUIDE: GuideFigures | None = None
USUAL = UsualTokens(requests=0, prompt=0, completion=0)


class Settings(TaskSettings):
    """`generation.task(NAME)`: of the graph of `graph.source`, or of a generated one of `nodes` and `edges`.

    Hop lengths from 1 to `max_hops`, equally frequent; the search between two ends stops at `max_paths`.
    """

    target_samples: Count = 500
    max_hops: Annotated[int, Field(ge=1, le=8)] = 4
    max_paths: Count = 100
    nodes: Annotated[int, Field(ge=2)] = 5000
    edges: Count = 15000


DIGITS = 6
"""To which rewards are rounded (reference §7.4)."""

LARGEST_SHARE_OF_A_NODE = 0.05
SEVERAL_ROWS = 4
"""Every node may stand in so many rows, however few rows there are."""


def row_kind(max_hops: int | None = None) -> RowKind:
    """Paths; with `max_hops`, all hop lengths are equally frequent."""
    lengths = [_length(hops) for hops in range(1, (max_hops or 0) + 1)]
    return RowKind(
        name=NAME,
        model=PathRow,
        identity=lambda row: "{} {}".format(*sorted((row["source_id"], row["target_id"]))),
        labels=lambda row: [_length(row["hop_count"])],
        vocabulary=tuple(lengths),
        names=lambda row: [str(node) for node in row["path_node_ids"]],
        defects=_defects,
        shares={length: 1 / len(lengths) for length in lengths} if lengths else None,
        repeats_nearly=False,
    )


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


def _length(hops: int) -> str:
    return "1 hop" if hops == 1 else f"{hops} hops"


def _defects(row: Fields) -> list[str]:
    """Parts of a row that contradict each other; centrality cannot be computed again without the graph."""
    nodes, kinds = row["path_node_ids"], row["edge_types"]
    defects = []
    if not set(kinds) <= set(EDGE_TYPES):
        defects.append("outside_vocabulary")
    total = (
        paths.HOP_WEIGHT * row["reward_hop_decay"]
        + paths.COHERENCE_WEIGHT * row["reward_coherence"]
        + paths.CENTRALITY_WEIGHT * row["reward_centrality"]
    )
    fits = (
        [nodes[0], nodes[-1]] == [row["source_id"], row["target_id"]]
        and len(set(nodes)) == len(nodes) == len(kinds) + 1 == row["hop_count"] + 1
        and abs(row["reward_hop_decay"] - paths.HOP_DECAY ** len(kinds)) < 1e-5
        and abs(row["reward_coherence"] - paths.coherence(kinds)) < 1e-5
        and abs(row["reward_total"] - total) < 1e-5
    )
    return defects if fits else [*defects, "wrong_reward"]
