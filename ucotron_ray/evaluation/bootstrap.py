"""Bootstrap by row: intervals of F1, and whether one model's F1 differs from another's on the same rows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE_LEVEL = 0.95


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


def interval(counts_N3: NDArray[np.float64], *, resamples: int, seed: int) -> tuple[float, float]:
    """Bounds of 95 % of the F1 of the resamples, rows drawn with replacement."""
    f1_R = f1_of_counts(_sums(counts_N3, _picks(len(counts_N3), resamples=resamples, seed=seed)))
    low, high = np.quantile(f1_R, _tails())
    return float(low), float(high)


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
    picks_RN = _picks(len(counts_N3), resamples=resamples, seed=seed)
    differences_R = f1_of_counts(_sums(counts_N3, picks_RN)) - f1_of_counts(_sums(others_N3, picks_RN))
    low, high = np.quantile(differences_R, _tails(confidence))
    return Difference(
        difference=float(f1_of_counts(counts_N3.sum(axis=0)) - f1_of_counts(others_N3.sum(axis=0))),
        low=float(low),
        high=float(high),
        p_not_better=float((np.count_nonzero(differences_R <= 0) + 1) / (resamples + 1)),
        p_not_worse=float((np.count_nonzero(differences_R >= 0) + 1) / (resamples + 1)),
        rows=len(counts_N3),
    )


def _picks(num_rows: int, *, resamples: int, seed: int) -> NDArray[np.int64]:
    picks_RN: NDArray[np.int64] = np.random.default_rng(seed).integers(0, num_rows, size=(resamples, num_rows))
    return picks_RN


def _sums(counts_N3: NDArray[np.float64], picks_RN: NDArray[np.int64]) -> NDArray[np.float64]:
    sums_R3: NDArray[np.float64] = counts_N3[picks_RN].sum(axis=1)
    return sums_R3


def _tails(confidence: float = CONFIDENCE_LEVEL) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    return tail, 1 - tail
