"""How good a projection is: cosine loss, and retrieval of a pair's own text among all texts of its side of the split.

A query is a projected CLIP vector; the candidates are the MiniLM vectors of all rows. Beside it stand a linear map (the
best that no training loop is needed for) and chance.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ucotron_ray.core.errors import InputError
from ucotron_ray.projection.pairs import Floats, Pairs, split

RECALL_AT = (1, 5, 10)
QUERIES_PER_STEP = 512
"""Similarities [512, N] that are held at once: 10 MB at 5,000 candidates."""

RIDGES = (1e-6, 1e-4, 1e-2, 1.0)
"""Regularisations of the linear map, as shares of the mean eigenvalue; the validation rows choose."""

Map = Callable[[Floats], Floats]


def unit(vectors: Floats) -> Floats:
    """Rows at length 1, as the server makes them after the projection."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)


def cosine_loss(projected: Floats, targets: Floats) -> float:
    """1 - mean cosine over all rows."""
    return float(1 - np.einsum("nd,nd->n", unit(projected), unit(targets)).mean())


ROUNDING = 1e-6
"""Cosines in float32 that are no further apart are the same: on AMD EPYC equal columns of a product differ so much."""


def ranks(projected: Floats, targets: Floats) -> NDArray[np.int64]:
    """Rank (1 = first) of each row's own target among all. A candidate that is as similar counts as before it."""
    queries, candidates = unit(projected), unit(targets)
    found = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), QUERIES_PER_STEP):
        part = slice(start, start + QUERIES_PER_STEP)
        similar = queries[part] @ candidates.T
        own = similar[np.arange(len(similar)), np.arange(start, start + len(similar))]
        found[part] = (similar >= own[:, None] - ROUNDING).sum(1)
    return found


def ranking(places: NDArray[np.int64]) -> dict[str, float]:
    """Recall@1, 5, 10 and mean reciprocal rank."""
    recalls = {f"recall_at_{k}": float((places <= k).mean()) for k in RECALL_AT}
    return {**recalls, "mrr": float((1 / places).mean())}


def chance(count: int) -> dict[str, float]:
    """The same for candidates in random order: k / N, and H_N / N for the reciprocal rank."""
    recalls = {f"recall_at_{k}": min(1.0, k / count) for k in RECALL_AT}
    return {**recalls, "mrr": float((1 / np.arange(1, count + 1)).sum() / count)}


def scores(projected: Floats, targets: Floats) -> dict[str, float]:
    """Cosine loss and retrieval of a set of rows."""
    return {"cosine_loss": cosine_loss(projected, targets), **ranking(ranks(projected, targets))}


def linear_map(pairs: Pairs, parts: Mapping[str, NDArray[np.int64]]) -> Map:
    """The ridge regression with intercept that has the lowest cosine loss on the validation rows."""
    x, y = pairs.clip[parts["train"]].astype(np.float64), pairs.minilm[parts["train"]].astype(np.float64)
    mean_x, mean_y = x.mean(0), y.mean(0)
    x -= mean_x
    gram, cross = x.T @ x, x.T @ (y - mean_y)
    scale = np.trace(gram) / len(gram)

    def solved(ridge: float) -> Map:
        weights = np.linalg.solve(gram + ridge * scale * np.eye(len(gram)), cross)
        return lambda rows: ((rows - mean_x) @ weights + mean_y).astype(np.float32)

    maps = [solved(ridge) for ridge in RIDGES]
    x_val, y_val = pairs.clip[parts["val"]], pairs.minilm[parts["val"]]
    return min(maps, key=lambda candidate: cosine_loss(candidate(x_val), y_val))


def refuse_empty(counts: Mapping[str, int], where: str) -> None:
    """Raise InputError where no pair fell on a side that is scored: sides are drawn by hash, pair by pair."""
    if not counts["val"] or not counts["test"]:
        raise InputError(
            "there are too few pairs to score a projection on",
            where=where,
            expected="pairs for validation and for test",
            found=f"{counts['val']} for validation, {counts['test']} for test",
            next_step="encode more descriptions, or raise projection.val_split and projection.test_split",
        )


def evaluate(pairs: Pairs, project: Map, divided: Mapping[str, Any], target: float) -> dict[str, Any]:
    """Projection, linear map and chance on validation and test rows; `passed` goes by the projection on both.

    Args:
        pairs: all pairs; only those that `divided` keeps from training are scored.
        project: the projection, [N, 512] → [N, 384].
        divided: `seed`, `val` and `test` of `pairs.split`.
        target: the cosine loss that must not be reached.
    """
    parts = split(pairs.keys, seed=int(divided["seed"]), val=divided["val"], test=divided["test"])
    refuse_empty({name: len(rows) for name, rows in parts.items()}, "the pairs")
    linear = linear_map(pairs, parts)
    result: dict[str, Any] = {"rows": {name: len(rows) for name, rows in parts.items()}, "target": target}
    for name in ("val", "test"):
        x, y = pairs.clip[parts[name]], pairs.minilm[parts[name]]
        result[name] = {
            "projection": scores(project(x), y),
            "linear": scores(linear(x), y),
            "chance": chance(len(x)),
        }
    losses = [result[name]["projection"]["cosine_loss"] for name in ("val", "test")]
    return {**result, "passed": all(loss < target for loss in losses)}
