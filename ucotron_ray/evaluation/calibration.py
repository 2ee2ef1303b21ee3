"""Whether a stated confidence is the share of right triples: ECE, Brier, AURC, and the points of a reliability diagram.

Definitions: reference §4.9. ECE: Naeini et al. 2015, with bins of equal mass; AURC: Geifman and El-Yaniv 2017.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BINS = 15
MIN_DISTINCT = 5
"""With fewer different values a confidence says next to nothing: training rows that all have the same one give that."""


def calibration(judged: Sequence[tuple[float, bool]]) -> dict[str, Any] | None:
    """Figures of (confidence, is right) of predicted triples; None where nothing was predicted.

    `bins` are the diagram's points: mean confidence, share of right triples, and how many triples there are.
    """
    if not judged:
        return None
    ordered = sorted(judged)
    confidence_N = np.array([confidence for confidence, _ in ordered], dtype=np.float64)
    right_N = np.array([right for _, right in ordered], dtype=np.float64)
    bins = [
        {"confidence": float(part_C.mean()), "accuracy": float(part_R.mean()), "triples": len(part_C)}
        for part_C, part_R in _equal_mass(confidence_N, right_N)
    ]
    distinct = len(np.unique(confidence_N))
    return {
        "triples": len(ordered),
        "mean_confidence": float(confidence_N.mean()),
        "accuracy": float(right_N.mean()),
        "ece": sum(entry["triples"] * abs(entry["accuracy"] - entry["confidence"]) for entry in bins) / len(ordered),
        "brier": float(((confidence_N - right_N) ** 2).mean()),
        "aurc": _aurc(confidence_N, right_N),
        "distinct": distinct,
        "degenerate": distinct < MIN_DISTINCT,
        "bins": bins,
    }


def _equal_mass(
    confidence_N: NDArray[np.float64], right_N: NDArray[np.float64]
) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """At most BINS parts of about equal size. Equal confidences stay in one part: their order means nothing."""
    size = len(confidence_N)
    targets = [round(number * size / BINS) for number in range(1, BINS + 1)]
    ends = sorted({int(np.searchsorted(confidence_N, confidence_N[max(end, 1) - 1], side="right")) for end in targets})
    starts = [0, *ends[:-1]]
    return [(confidence_N[start:end], right_N[start:end]) for start, end in zip(starts, ends, strict=True)]


def _aurc(confidence_N: NDArray[np.float64], right_N: NDArray[np.float64]) -> float:
    """Mean risk over all coverages, the surest triples first; within equal confidences every order is as good."""
    values_U, inverse_N = np.unique(confidence_N, return_inverse=True)
    mean_U = np.bincount(inverse_N, weights=right_N) / np.bincount(inverse_N, minlength=len(values_U))
    errors_N = (1 - mean_U[inverse_N])[::-1]
    return float((np.cumsum(errors_N) / np.arange(1, len(errors_N) + 1)).mean())
