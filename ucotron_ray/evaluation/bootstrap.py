"""Paired bootstrap by row: whether one model's F1 differs from another's on the same rows, and by how much.

The interval of one F1 is in `intervals.py`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE_LEVEL = 0.95

DRAWN_AT_ONCE = 1_000_000
"""Row numbers: with three counts of 8 bytes each, 24 MB. All 1,000 resamples of 100,000 rows would be 2.4 GB."""


@dataclass(frozen=True)
class Difference:
    """F1 of one model less that of another on the same rows.

    `low` and `high` bound 95 % of the resamples, or the share that was asked for. `p_not_better` is the share of
    resamples in which the first model is not better, `p_not_worse` the share in which it is not worse;
    (k + 1) / (n + 1), so neither is ever 0.
    """

    difference: float
    low: float
    high: float
    p_not_better: float
    p_not_worse: float
    rows: int


def f1_of_counts(sums_R3: NDArray[np.float64]) -> NDArray[np.float64]:
    """Micro F1 of summed counts (right, predicted, expected); 1 where nothing was expected and nothing predicted."""
    denominators_R = sums_R3[..., 1] + sums_R3[..., 2]
    f1_R: NDArray[np.float64] = np.where(denominators_R > 0, 2 * sums_R3[..., 0] / np.maximum(denominators_R, 1), 1.0)
    return f1_R


def paired(
    counts_N3: NDArray[np.float64],
    others_N3: NDArray[np.float64],
    *,
    resamples: int,
    seed: int,
    confidence: float = CONFIDENCE_LEVEL,
) -> Difference:
    """The difference of two models; both are resampled by the same rows, so the hardness of a row cancels out.

    Raises ValueError where the two have not the same number of rows.
    """
    if len(counts_N3) != len(others_N3) or not len(counts_N3):
        raise ValueError(f"{len(counts_N3)} rows against {len(others_N3)}: the two must have answered the same rows")
    drawn = _picks(len(counts_N3), resamples=resamples, seed=seed)
    differences_R = np.concatenate(
        [f1_of_counts(counts_N3[picks].sum(axis=1)) - f1_of_counts(others_N3[picks].sum(axis=1)) for picks in drawn]
    )
    low, high = np.quantile(differences_R, _tails(confidence))
    return Difference(
        difference=float(f1_of_counts(counts_N3.sum(axis=0)) - f1_of_counts(others_N3.sum(axis=0))),
        low=float(low),
        high=float(high),
        p_not_better=float((np.count_nonzero(differences_R <= 0) + 1) / (resamples + 1)),
        p_not_worse=float((np.count_nonzero(differences_R >= 0) + 1) / (resamples + 1)),
        rows=len(counts_N3),
    )


def _picks(num_rows: int, *, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Row numbers of the resamples, [some resamples, num_rows] at a time; all together as if drawn at once."""
    generator = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // num_rows)
    for start in range(0, resamples, at_once):
        yield generator.integers(0, num_rows, size=(min(at_once, resamples - start), num_rows))


def _tails(confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    return tail, 1 - tail
