"""Path rewards: paths through a graph with the server's reward and its parts. Nobody is asked: it is computed.

Rows: reference §7.4. What the older generator did wrong, and what is done here instead: a pair of ends gives one row;
hop lengths are equally frequent; no node stands in more than a twentieth of the rows; no node of a validation row
stands in a training row. Pairs are drawn by a walk, so that long paths are as easy to find as short ones.
"""

from typing import Annotated

from pydantic import Field

from ucotron_ray.core.sections import Count, TaskSettings
from ucotron_ray.data.records import PathRow
from ucotron_ray.synthesis.generator import GuideFigures, UsualTokens
from ucotron_ray.synthesis.rows import Fields, RowKind

NAME = "path_reward"
VERSION = 1

GUIDE: GuideFigures | None = None
USUAL = UsualTokens(requests=0, prompt=0, completion=0)


class Settings(TaskSettings):
    """`generation.tasks.path_reward`: of the graph of `graph.source`, or of a generated one of `nodes` and `edges`.

    Hop lengths from 1 to `max_hops`, equally frequent; the search between two ends stops at `max_paths`.
    """

    target_samples: Count = 500
    max_hops: Annotated[int, Field(ge=1, le=8)] = 4
    max_paths: Count = 100
    nodes: Annotated[int, Field(ge=2)] = 5000
    edges: Count = 15000


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


def _length(hops: int) -> str:
    return "1 hop" if hops == 1 else f"{hops} hops"


def _defects(row: Fields) -> list[str]:
    """Parts of a row that contradict each other; centrality cannot be computed again without the graph."""
    from ucotron_ray.graph import paths  # noqa: PLC0415 - numpy, which reading a recipe does without

    nodes, kinds = row["path_node_ids"], row["edge_types"]
    defects = []
    if not set(kinds) <= set(paths.EDGE_TYPES):
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
