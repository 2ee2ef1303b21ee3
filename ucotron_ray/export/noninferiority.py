"""Whether a variant loses no more F1 than a margin: a test that few rows, or a noisy variant, cannot pass by luck.

A variant is held to be as good as float32 if the upper bound of its loss on the same rows is within the margin. The
bound is the bootstrap's, one-sided. How many rows it takes to pass a variant that loses nothing follows from the
margin, the power and the spread of a row's paired difference.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ucotron_ray.evaluation import bootstrap

SIGNIFICANCE = 0.05
"""How often a variant that loses exactly the margin may pass."""

PAIRED_SD = 0.133
"""Of the difference of a row between float32 and int8, in F1: the demo's model, 0.136 on its 274 rows."""

FOUR_BITS_SD = 0.21
"""The same for int4."""

RESAMPLES, SEED = 2000, 42


@dataclass(frozen=True)
class Loss:
    """F1 of the first model less that of the second on the same rows, its upper bound, and a row's spread."""

    f1_drop: float
    upper: float
    sd: float
    rows: int


def rows_needed(margin: float, *, power: float, sd: float = PAIRED_SD) -> int:
    """Rows at which a variant without any loss passes in this share of the draws: ((z₁₋ₐ + z_power) · sd / margin)².

    That of a one-sided non-inferiority test of paired means (Julious 2010, Sample Sizes for Clinical Trials).
    """
    quantile = NormalDist().inv_cdf
    return math.ceil(((quantile(1 - SIGNIFICANCE) + quantile(power)) * sd / margin) ** 2)


def loss(before_N3: NDArray[np.float64], after_N3: NDArray[np.float64]) -> Loss:
    """How much lower the second F1 is. Counts a row are right, predicted and expected triples."""
    difference = bootstrap.paired(before_N3, after_N3, resamples=RESAMPLES, seed=SEED, confidence=1 - 2 * SIGNIFICANCE)
    influence_N = _influence(before_N3) - _influence(after_N3)
    return Loss(difference.difference, difference.high, float(influence_N.std()), len(before_N3))


def _influence(counts_N3: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each row moves F1 by, times the number of rows: the linear part of 2R / (P + E)."""
    right, predicted, expected = counts_N3.sum(axis=0)
    total = predicted + expected
    f1 = 2 * right / total if total else 1.0
    moved_N: NDArray[np.float64] = (2 * counts_N3[:, 0] - f1 * (counts_N3[:, 1] + counts_N3[:, 2])) / max(total, 1)
    return moved_N * len(counts_N3)
