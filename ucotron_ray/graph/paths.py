"""Paths through a knowledge graph and their rewards, as the Ucotron server computes them (reference §7.2, §7.3).

A graph is a few numpy arrays, so that processes of one machine can share it without a copy.
"""

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ucotron_ray.data.records import name_key
from ucotron_ray.graph.export import KnowledgeGraph, Node

HOP_DECAY = 0.8
HOP_WEIGHT, COHERENCE_WEIGHT, CENTRALITY_WEIGHT = 0.4, 0.4, 0.2
SAME_TYPE, SAME_GROUP, OTHER = 1.0, 0.7, 0.3
NO_INTERMEDIATE = 0.5

GROUPS = (
    ("RelatesTo", "HasProperty"),
    ("CausedBy", "Supersedes", "NextEpisode"),
    ("ConflictsWith",),
    ("Actor", "Object", "Location", "Companion"),
)
EDGE_TYPES = tuple(kind for group in GROUPS for kind in group)

_NODE_KINDS = {"Entity": 60, "Event": 25, "Fact": 15, "Skill": 5}
_HUB_SHARE = 0.3
"""Of the generated edges, that end where another edge ends: some nodes get many, none gets half of all."""


@dataclass(frozen=True)
class PathGraph:
    """An undirected graph with typed edges. N nodes, E edges; node numbers are indices here, not the graph's ids.

    Neighbours of node i: `neighbors[offsets[i]:offsets[i + 1]]`, in the order in which the edges were given, with the
    edges' types in `kinds` beside them, as indices into `kind_names`.
    """

    ids: npt.NDArray[np.int64]  # (N,)
    offsets: npt.NDArray[np.int64]  # (N + 1,)
    neighbors: npt.NDArray[np.int32]  # (2E,)
    kinds: npt.NDArray[np.int16]  # (2E,)
    degrees: npt.NDArray[np.int32]  # (N,) number of different neighbours
    sides: npt.NDArray[np.int8]  # (N,) which part of a split a node belongs to; 0 for all where there is none
    kind_names: tuple[str, ...]

    def around(self, node: int) -> tuple[list[int], list[int]]:
        """Neighbours of a node and the types of the edges to them."""
        part = slice(self.offsets[node], self.offsets[node + 1])
        return self.neighbors[part].tolist(), self.kinds[part].tolist()


@dataclass(frozen=True)
class Path:
    """Nodes from source to target, and the type of each edge between them."""

    nodes: tuple[int, ...]
    kinds: tuple[str, ...]


@dataclass(frozen=True)
class Reward:
    """The parts of a path's reward and their weighted sum, each from 0 to 1."""

    hop: float
    coherence: float
    centrality: float
    total: float


def build(ids: Sequence[int], edges: Iterable[tuple[int, int, str]]) -> PathGraph:
    """A graph from the nodes' ids and from edges between indices of them. Loops are left out: no path has one."""
    kept = [(source, target, kind) for source, target, kind in edges if source != target]
    names = tuple(dict.fromkeys(kind for _, _, kind in kept))
    numbers = {name: number for number, name in enumerate(names)}
    source = np.fromiter((edge[0] for edge in kept), np.int64, len(kept))
    target = np.fromiter((edge[1] for edge in kept), np.int64, len(kept))
    kind = np.fromiter((numbers[edge[2]] for edge in kept), np.int16, len(kept))
    # Both directions of an edge stand next to each other, so that a stable sort keeps the order of the edges.
    begin = np.stack([source, target], axis=1).ravel()
    end = np.stack([target, source], axis=1).ravel()
    order = np.argsort(begin, kind="stable")
    offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum(np.bincount(begin, minlength=len(ids)), out=offsets[1:])
    different = np.unique(begin * max(1, len(ids)) + end) // max(1, len(ids))
    return PathGraph(
        ids=np.asarray(ids, np.int64),
        offsets=offsets,
        neighbors=end[order].astype(np.int32),
        kinds=np.repeat(kind, 2)[order],
        degrees=np.bincount(different, minlength=len(ids)).astype(np.int32),
        sides=np.zeros(len(ids), np.int8),
        kind_names=names,
    )


def split(graph: PathGraph, sides: npt.NDArray[np.int8]) -> PathGraph:
    """The graph without the edges between nodes of different sides; degrees stay those of the whole graph."""
    owners = np.repeat(np.arange(len(graph.ids)), np.diff(graph.offsets))
    kept = sides[owners] == sides[graph.neighbors]
    offsets = np.zeros(len(graph.ids) + 1, np.int64)
    np.cumsum(np.bincount(owners[kept], minlength=len(graph.ids)), out=offsets[1:])
    neighbors, kinds = graph.neighbors[kept], graph.kinds[kept]
    return PathGraph(graph.ids, offsets, neighbors, kinds, graph.degrees, sides, graph.kind_names)


def find(graph: PathGraph, source: int, target: int, *, max_hops: int, max_paths: int) -> list[Path]:
    """Paths without a repeated node, shortest first; among equals in the order of the search.

    The search is the server's: depth first with a stack, neighbours in the order of the edges, a path is noted when an
    edge reaches the target, the end comes with `max_paths`. Branches that cannot reach the target within what is left
    of `max_hops` are not entered, which changes nothing in what is found, nor in which order.
    """
    if source == target:
        return [Path((source,), ())]
    left = distances(graph, target, max_hops)
    found: list[Path] = []
    stack: list[tuple[tuple[int, ...], tuple[int, ...]]] = [((source,), ())]
    while stack and len(found) < max_paths:
        nodes, kinds = stack.pop()
        hops = len(kinds) + 1
        for neighbor, kind in zip(*graph.around(nodes[-1]), strict=True):
            if neighbor == target:
                found.append(Path((*nodes, neighbor), tuple(graph.kind_names[k] for k in (*kinds, kind))))
                if len(found) >= max_paths:
                    break
            elif neighbor not in nodes and 0 <= left[neighbor] <= max_hops - hops:
                stack.append(((*nodes, neighbor), (*kinds, kind)))
    return sorted(found, key=lambda path: len(path.kinds))


def distances(graph: PathGraph, target: int, most: int) -> npt.NDArray[np.int8]:
    """Hops from every node to the target, -1 where they are `most` or more: (N,)."""
    away = np.full(len(graph.ids), -1, np.int8)
    away[target] = 0
    front = np.array([target])
    for hops in range(1, most):
        front = np.unique(_neighbors_of(graph, front))
        front = front[away[front] < 0]
        if not front.size:
            break
        away[front] = hops
    return away


def reward(graph: PathGraph, path: Path) -> Reward:
    """The reward of a path (reference §7.3)."""
    hop = HOP_DECAY ** len(path.kinds)
    fit = coherence(path.kinds)
    between = [max(1, int(graph.degrees[node])) for node in path.nodes[1:-1]]
    centrality = sum(between) / len(between) / max(between) if between else NO_INTERMEDIATE
    total = HOP_WEIGHT * hop + COHERENCE_WEIGHT * fit + CENTRALITY_WEIGHT * centrality
    return Reward(hop, fit, centrality, min(1.0, max(0.0, total)))


def coherence(kinds: Sequence[str]) -> float:
    """How well consecutive edge types go together, on average; 1 where there is no more than one edge."""
    pairs = list(itertools.pairwise(kinds))
    return sum(_fit(one, two) for one, two in pairs) / len(pairs) if pairs else 1.0


def from_export(graph: KnowledgeGraph) -> tuple[PathGraph, list[str], list[str]]:
    """The graph of an export with the contents and kinds of its nodes. Entities of one name become one node.

    The server never merges them, since new entities have no neighbours yet (reference §1.11).
    """
    numbers: dict[int, int] = {}
    by_name: dict[str, int] = {}
    kept: list[Node] = []
    for node in graph.nodes.values():
        key = name_key(node.content) if node.kind == "Entity" else f"\0{node.number}"
        if key not in by_name:
            by_name[key] = len(kept)
            kept.append(node)
        numbers[node.number] = by_name[key]
    edges = [
        (numbers[edge.source], numbers[edge.target], edge.kind)
        for edge in graph.edges
        if edge.source in numbers and edge.target in numbers
    ]
    return build([node.number for node in kept], edges), [n.content for n in kept], [n.kind for n in kept]


def generated(num_nodes: int, num_edges: int, seed: int) -> tuple[PathGraph, list[str], list[str]]:
    """A made-up graph, its contents and the kinds of its nodes. No edge twice, no node alone in having edges."""
    rng = random.Random(f"{seed}/graph")
    kinds = rng.choices(list(_NODE_KINDS), weights=list(_NODE_KINDS.values()), k=num_nodes)
    edges: dict[tuple[int, int], str] = {}
    ends: list[int] = []
    for _ in range(num_edges):
        source = rng.randrange(num_nodes)
        target = rng.choice(ends) if ends and rng.random() < _HUB_SHARE else rng.randrange(num_nodes)
        if source != target and (source, target) not in edges:
            edges[(source, target)] = rng.choice(EDGE_TYPES)
            ends.append(target)
    graph = build(range(1, num_nodes + 1), ((s, t, kind) for (s, t), kind in edges.items()))
    return graph, [f"Node {number + 1} ({kind})" for number, kind in enumerate(kinds)], kinds


def regions(graph: PathGraph, share: float, seed: int) -> npt.NDArray[np.int8]:
    """1 for about `share` of the nodes, 0 for the others: (N,). Nodes of a side hang together as far as they can.

    Grown from nodes of the seed's choice by breadth: a side of single nodes picked at random would have no paths.
    """
    sides = np.zeros(len(graph.ids), np.int8)
    wanted, have = round(share * len(graph.ids)), 0
    order = np.random.default_rng(seed).permutation(len(graph.ids))
    for start in order:
        if have >= wanted:
            break
        front = np.array([start]) if not sides[start] else np.empty(0, np.int64)
        while front.size and have < wanted:
            front = front[: wanted - have]
            sides[front] = 1
            have += front.size
            front = np.unique(_neighbors_of(graph, front))
            front = front[sides[front] == 0]
    return sides


def _neighbors_of(graph: PathGraph, nodes: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """The neighbours of many nodes at once, with repetitions."""
    counts = graph.offsets[nodes + 1] - graph.offsets[nodes]
    total = int(counts.sum())
    if not total:
        return np.empty(0, np.int32)
    inside = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    found: npt.NDArray[np.int32] = graph.neighbors[np.repeat(graph.offsets[nodes], counts) + inside]
    return found


def _fit(one: str, two: str) -> float:
    if one == two:
        return SAME_TYPE
    return SAME_GROUP if any(one in group and two in group for group in GROUPS) else OTHER
