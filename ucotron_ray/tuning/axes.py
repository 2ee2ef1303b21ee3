"""Marks of an axis: round numbers that cover what is drawn."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """From values to shares of an axis's length, 0 to 1, with the values that are marked."""

    low: float
    high: float
    log: bool
    marks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Where a value lies."""
        if self.log:
            value, low, high = math.log10(value), math.log10(self.low), math.log10(self.high)
        else:
            low, high = self.low, self.high
        return (value - low) / (high - low) if high > low else 0.5


def scale(values: Sequence[float], *, log: bool = False, from_zero: bool = False) -> Scale:
    """An axis for these values: with a margin, or from 0."""
    low, high = min(values), max(values)
    if log:
        low, high = low / 1.4, high * 1.4
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        marks = [factor * 10.0**power for power in decades for factor in (1, 2, 5)]
        return Scale(low, high, True, tuple(mark for mark in marks if low <= mark <= high))
    if from_zero:
        low = min(0.0, low)
    if high == low:
        low, high = low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1)
    step = _round_step((high - low) / 5)
    low, high = (low if from_zero else math.floor(low / step) * step), math.ceil(high / step - 1e-9) * step
    count = round((high - low) / step)
    return Scale(low, high, False, tuple(low + index * step for index in range(count + 1)))


def label(value: float) -> str:
    """A mark's value, short."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:.4g}"


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough - 1e-12 * power)
