"""Paths and rewards: the same as a slow search that is written down as the reference says it."""

import random

import numpy as np
import pytest

from ucotron_ray.core import config
from ucotron_ray.graph import paths
from ucotron_ray.graph.export import parse
from ucotron_ray.synthesis import path_samples
from ucotron_ray.synthesis.tasks import path_reward

GENERATION = config.load().recipe.generation


def slow_paths(count: int, edges: list, source: int, target: int, max_hops: int, max_paths: int) -> list:
    """The server's search, without any pruning: (nodes, kinds), shortest first, stable."""
    around = {node: [] for node in range(count)}
    for one, two, kind in edges:
        if one != two:
            around[one].append((two, kind))
            around[two].append((one, kind))
    if source == target:
        return [((source,), ())]
    found, stack = [], [([source], [])]
    while stack and len(found) < max_paths:
        nodes, kinds = stack.pop()
        if len(kinds) == max_hops:
            continue
        for neighbor, kind in around[nodes[-1]]:
            if neighbor in nodes:
                continue
            if neighbor == target:
                found.append(((*nodes, neighbor), (*kinds, kind)))
                if len(found) >= max_paths:
                    break
            else:
                stack.append(([*nodes, neighbor], [*kinds, kind]))
    return sorted(found, key=lambda path: len(path[1]))


def slow_reward(nodes, kinds, degrees) -> float:
    groups = {
        **dict.fromkeys(("RelatesTo", "HasProperty"), 0),
        **dict.fromkeys(("CausedBy", "Supersedes", "NextEpisode"), 1),
        "ConflictsWith": 2,
        **dict.fromkeys(("Actor", "Object", "Location", "Companion"), 3),
    }
    marks = []
    for i in range(1, len(kinds)):
        if kinds[i] == kinds[i - 1]:
            marks.append(1.0)
        elif kinds[i] in groups and groups.get(kinds[i]) == groups.get(kinds[i - 1], -1):
            marks.append(0.7)
        else:
            marks.append(0.3)
    coherence = sum(marks) / len(marks) if marks else 1.0
    inner = [degrees[node] for node in nodes[1:-1]]
    centrality = sum(d / max(inner) for d in inner) / len(inner) if inner else 0.5
    return 0.4 * 0.8 ** len(kinds) + 0.4 * coherence + 0.2 * centrality


def random_graph(rng: random.Random) -> tuple[int, list]:
    count = rng.randint(2, 9)
    kinds = [*paths.EDGE_TYPES, "Unheard"]
    return count, [(rng.randrange(count), rng.randrange(count), rng.choice(kinds)) for _ in range(rng.randint(1, 18))]


@pytest.mark.parametrize("seed", range(150))
def test_search_and_reward_are_those_of_the_reference(seed):
    rng = random.Random(seed)
    count, edges = random_graph(rng)
    graph = paths.build(range(count), edges)
    degrees = [
        len({b for a, b, _ in edges if a == n != b} | {a for a, b, _ in edges if b == n != a}) for n in range(count)
    ]
    assert graph.degrees.tolist() == degrees
    source, target = rng.randrange(count), rng.randrange(count)
    max_hops, max_paths = rng.randint(1, 5), rng.choice((1, 2, 5, 100))
    found = paths.find(graph, source, target, max_hops=max_hops, max_paths=max_paths)
    slow = slow_paths(count, edges, source, target, max_hops, max_paths)
    assert [(path.nodes, path.kinds) for path in found] == slow
    for path in found:
        assert paths.reward(graph, path).total == pytest.approx(slow_reward(path.nodes, path.kinds, degrees), abs=1e-12)


def test_a_split_has_no_edge_across_and_keeps_the_degrees():
    graph, _, _ = paths.generated(400, 1600, seed=3)
    sides = paths.regions(graph, 0.2, seed=3)
    assert sides.sum() == 80
    cut = paths.split(graph, sides)
    owners = np.repeat(np.arange(400), np.diff(cut.offsets))
    assert (sides[owners] == sides[cut.neighbors]).all()
    assert (cut.degrees == graph.degrees).all()
    inside = (np.diff(cut.offsets)[sides == 1] > 0).mean()
    assert inside > 0.8, "a side hangs together"


def test_entities_of_one_name_are_one_node_and_edges_keep_their_true_types():
    document = {
        "nodes": [
            {"@id": "ucotron:node/1", "@type": "Entity", "content": "Ana"},
            {"@id": "ucotron:node/2", "@type": "Entity", "content": "ana "},
            {"@id": "ucotron:node/3", "@type": "Entity", "content": "Bo"},
            {"@id": "ucotron:node/4", "@type": "Event", "content": "Bo"},
        ],
        "edges": [
            {"source": "ucotron:node/2", "target": "ucotron:node/3", "edge_type": "CausedBy"},
            {"source": "ucotron:node/3", "target": "ucotron:node/4", "edge_type": "RelatesTo"},
            {"source": "ucotron:node/9", "target": "ucotron:node/4", "edge_type": "RelatesTo"},
        ],
    }
    graph, contents, kinds = paths.from_export(parse(document, where="here"))
    assert graph.ids.tolist() == [1, 3, 4]
    assert (contents, kinds) == (["Ana", "Bo", "Bo"], ["Entity", "Entity", "Event"])
    assert paths.find(graph, 0, 2, max_hops=3, max_paths=9)[0].kinds == ("CausedBy", "RelatesTo")


def drawn(graph, count):
    return [path_samples.draw(GENERATION.model_dump(), graph, number) for number in range(count)]


def test_rows_are_sound_long_paths_are_as_frequent_as_short_ones_and_no_node_is_in_both_splits():
    whole, contents, kinds = paths.generated(600, 1800, seed=5)
    graph = paths.split(whole, paths.regions(whole, GENERATION.val_ratio, 5))
    outcomes = list(path_samples.settled(drawn(graph, 200), 200, contents, kinds, graph))
    rows = [(o["split"], o["row"]) for o in outcomes if o["row"]]
    assert len(rows) > 150
    kind = path_reward.row_kind(4)
    assert not [row for _, row in rows if list(kind.defects(row))]
    lengths = [sum(row["hop_count"] == hops for _, row in rows) for hops in (1, 2, 3, 4)]
    assert min(lengths) > 0.6 * max(lengths)
    nodes = {split: {n for s, row in rows if s == split for n in row["path_node_ids"]} for split in ("train", "val")}
    assert nodes["val"]
    assert not nodes["train"] & nodes["val"]
    used = [n for _, row in rows for n in row["path_node_ids"]]
    assert max(map(used.count, set(used))) <= 10, "a twentieth of the rows"


def test_a_row_whose_reward_was_changed_is_found():
    graph, contents, kinds = paths.generated(100, 300, seed=5)
    row = next(o["row"] for o in path_samples.settled(drawn(graph, 9), 9, contents, kinds, graph) if o["row"])
    kind = path_reward.row_kind()
    assert list(kind.defects(row)) == []
    for change in ({"reward_total": 0.1}, {"hop_count": 3}, {"path_node_ids": [*row["path_node_ids"][:-1], -5]}):
        assert "wrong_reward" in kind.defects({**row, **change}), change
