"""A variant passes as often as the margin, the power and its true loss say: by simulation, not by the formula again."""

import numpy as np
import pytest

from ucotron_ray.export import noninferiority

MARGIN, POWER, DRAWS = 0.02, 0.8, 100
SHIFTED = 0.133**2 / 2
"""Share of rows that change and lose nothing on average, for a spread of 0.133 where a row has one triple each way."""


def _draw(rng: np.random.Generator, rows: int, loss: float) -> tuple[np.ndarray, np.ndarray]:
    """Counts of float32 (F1 0.85) and of a variant whose true F1 is lower by `loss`: some rows better, some worse."""
    before = np.column_stack([rng.random(rows) < 0.85, np.ones(rows), np.ones(rows)]).astype(float)
    after = before.copy()
    drawn = rng.random(rows)
    better = (before[:, 0] == 0) & (drawn < SHIFTED / 0.15)
    worse = (before[:, 0] == 1) & (drawn < (SHIFTED + loss) / 0.85)
    after[better, 0], after[worse, 0] = 1, 0
    return before, after


@pytest.mark.parametrize(
    ("loss", "least", "most"), [(0.0, 0.65, 0.95), (0.01, 0.1, 0.5), (0.03, 0.0, 0.05), (0.07, 0.0, 0.0)]
)
def test_a_variant_passes_as_often_as_its_true_loss_lets_it(loss, least, most):
    rows = noninferiority.rows_needed(MARGIN, power=POWER)
    rng = np.random.default_rng(7)
    passed = [noninferiority.loss(*_draw(rng, rows, loss)).upper <= MARGIN for _ in range(DRAWS)]
    assert least <= np.mean(passed) <= most


def test_a_loss_of_just_the_margin_passes_seldom():
    rows = noninferiority.rows_needed(MARGIN, power=POWER)
    rng = np.random.default_rng(11)
    passed = [noninferiority.loss(*_draw(rng, rows, MARGIN)).upper <= MARGIN for _ in range(DRAWS)]
    assert np.mean(passed) <= 0.12


def test_few_rows_cannot_pass_what_is_noisy():
    rng = np.random.default_rng(3)
    passed = [noninferiority.loss(*_draw(rng, 32, 0.07)).upper <= MARGIN for _ in range(DRAWS)]
    assert np.mean(passed) <= 0.12, "with 32 rows the gate of before let 88 % of these through"


def test_rows_follow_from_margin_power_and_spread():
    assert noninferiority.rows_needed(0.02, power=0.8) == 274
    assert noninferiority.rows_needed(0.01, power=0.8) == 1094
    assert noninferiority.rows_needed(0.02, power=0.8, sd=0.266) == pytest.approx(4 * 273.4, abs=1)
    assert noninferiority.rows_needed(0.02, power=0.9) > noninferiority.rows_needed(0.02, power=0.8)


def test_the_spread_of_a_row_is_what_the_bootstrap_sees():
    before, after = _draw(np.random.default_rng(5), 2000, 0.02)
    found = noninferiority.loss(before, after)
    standard_error = found.sd / np.sqrt(found.rows)
    assert found.upper - found.f1_drop == pytest.approx(1.645 * standard_error, rel=0.1)


def test_equal_answers_lose_nothing():
    before, _ = _draw(np.random.default_rng(1), 50, 0.0)
    assert noninferiority.loss(before, before) == noninferiority.Loss(0.0, 0.0, 0.0, 50)
