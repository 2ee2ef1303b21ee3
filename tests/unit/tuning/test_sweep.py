"""A sweep's record and decisions without any training: order, stops, resumes, seeds, tiers."""

import itertools
import json
import random

import pytest

from tests.tuning import STEPS, begun, f1, halving, opened, plan, played
from ucotron_ray.core.errors import CorruptArtifact
from ucotron_ray.tuning import record as records
from ucotron_ray.tuning import report
from ucotron_ray.tuning import sweep as sweeps
from ucotron_ray.tuning.record import Score
from ucotron_ray.tuning.summary import best_so_far, importance, summary, winner


def states(sweep) -> dict[str, str]:
    return {trial.id: trial.state for trial in sweep.record.trials}


def test_halving_saves_steps_and_finds_the_grids_winner(tmp_path):
    for name in ("grid", "asha"):
        (tmp_path / name).mkdir()
    grid, asha = opened(tmp_path / "grid", plan(scheduler="none")), opened(tmp_path / "asha", plan())
    played(grid)
    played(asha)
    full, few = summary(grid.record), summary(asha.record)
    assert full["steps_run"] == full["steps_full"] == 9 * STEPS
    assert full["steps_saved"] == 0
    # In one order, that of the seed; the benchmark has a hundred.
    assert few["steps_saved"] > 0.15
    assert few["states"]["stopped"] + few["states"]["finished"] == 9
    assert full["winners"]["slm"]["params"] == {"learning_rate": 1e-3, "lora_rank": 16}
    assert few["winners"]["slm"]["params"] == full["winners"]["slm"]["params"]
    assert importance(grid.record, "slm")["learning_rate"] > 0.9
    assert importance(grid.record, "slm")["lora_rank"] == 0
    steps, values = zip(*best_so_far(grid.record, "slm"), strict=True)
    assert steps[-1] == 9 * STEPS
    assert list(values) == sorted(values)


@pytest.mark.parametrize("until", [1, 8, 20, 31])
def test_a_sweep_that_was_cut_off_anywhere_goes_on_to_the_same_decisions(tmp_path, until):
    straight_dir, cut_dir = tmp_path / "straight", tmp_path / "cut"
    straight_dir.mkdir()
    cut_dir.mkdir()
    straight, cut = opened(straight_dir, plan()), opened(cut_dir, plan())
    played(straight)
    played(cut, until=until)
    before = {name: state for name, state in states(cut).items() if state in ("finished", "stopped")}
    assert "running" in states(cut).values()
    again = opened(cut_dir, plan())
    assert "running" not in states(again).values()
    finished = {trial.id: trial for trial in again.record.trials if trial.id in before}
    played(again)
    assert states(again) == states(straight)
    assert [(s.trial, s.step, s.value, s.stop) for s in again.record.scores] == [
        (s.trial, s.step, s.value, s.stop) for s in straight.record.scores
    ]
    # Those that were over are untouched, to the second.
    assert {name: again.record.trial(name) for name in finished} == finished


def test_a_score_that_comes_again_changes_no_decision(tmp_path):
    sweep = opened(tmp_path, plan())
    first, second = sweep.next(), None
    assert not sweep.scored(Score(trial=first.id, step=3, value=0.5, at=1.0))
    sweep.ended(first.id, "finished")
    second = sweep.next()
    assert sweep.scored(Score(trial=second.id, step=3, value=0.4, at=2.0))
    count = len(sweep.record.scores)
    assert not sweep.scored(Score(trial=first.id, step=3, value=0.5, at=9.0))
    assert len(sweep.record.scores) == count
    assert sweep.record.scores[0].at == 1.0


def test_equal_f1_is_decided_by_the_loss_and_more_f1_is_not(tmp_path):
    record = begun(plan())

    def rank(value: float, loss: float | None) -> float:
        return record.rank(Score(trial="slm-000", step=1, value=value, loss=loss, at=0.0))

    assert rank(0.0, 1.0) > rank(0.0, 2.0) > rank(0.0, 11.0) > rank(0.0, 12.0) > rank(0.0, None)
    assert rank(0.504, 12.0) > rank(0.500, 0.1)


def test_tiers_come_in_turn_or_side_by_side_within_their_shares(tmp_path):
    for side_by_side, wanted in ((False, ["slm", "slm", None]), (True, ["slm", "slm", "small", "small", None])):
        folder = tmp_path / str(side_by_side)
        folder.mkdir()
        sweep = opened(folder, plan(tiers=("slm", "small"), at_once=2, side_by_side=side_by_side))
        started = [sweep.next() for _ in wanted]
        assert [trial and trial.tier for trial in started] == wanted
        sweep.ended(started[0].id, "failed", "no reason")
        assert sweep.next().tier == "slm"


def test_the_best_are_repeated_with_other_seeds_to_their_end_and_the_mean_wins(tmp_path):
    sweep = opened(tmp_path, plan(**{"confirm.top": 2, "confirm.seeds": [7, 8]}))
    while (trial := sweep.next()) is not None and trial.of is None:
        for step in range(3, STEPS + 1, 3):
            if sweep.scored(Score(trial=trial.id, step=step, value=f1(trial.params, step), at=0.0)):
                break
        sweep.ended(trial.id, "finished")
    best, second = (entry.id for entry in sweeps.ranked(sweep.record, sweep.record.trials)[:2])
    repeated = [entry for entry in sweep.record.trials if entry.of]
    assert [(entry.of, entry.seed) for entry in repeated] == [(best, 7), (best, 8), (second, 7), (second, 8)]
    while trial is not None:
        # The winner was lucky: with other seeds it is the worse one, and far behind; it still runs to its end.
        value = 0.1 if trial.of == best else 0.8
        assert not any(
            sweep.scored(Score(trial=trial.id, step=step, value=value, at=0.0)) for step in range(3, STEPS + 1, 3)
        )
        sweep.ended(trial.id, "finished")
        trial = sweep.next()
    assert sweep.is_over
    won = winner(sweep.record, "slm")
    assert won["trial"] == second
    assert won["seeds"] == [42, 7, 8]
    assert won["mean"] == pytest.approx((won["value"] + 0.8 + 0.8) / 3)


def test_a_failed_trial_is_recorded_and_the_rest_go_on(tmp_path):
    sweep = opened(tmp_path, plan())
    first = sweep.next()
    sweep.ended(first.id, "failed", "OutOfMemoryError: CUDA out of memory")
    played(sweep)
    assert states(sweep)[first.id] == "failed"
    assert set(states(sweep).values()) == {"failed", "finished", "stopped"}
    kept = json.loads((tmp_path / records.RECORD).read_text(encoding="utf-8"))["trials"][0]
    assert (kept["state"], kept["cause"], kept["params"]) == (
        "failed",
        "OutOfMemoryError: CUDA out of memory",
        first.params,
    )
    assert winner(sweep.record, "slm") is not None


def test_no_step_is_saved_by_trials_that_failed_or_have_not_run(tmp_path):
    sweep = opened(tmp_path, plan(scheduler="none"))
    sweep.ended(sweep.next().id, "failed", "OutOfMemoryError")
    assert summary(sweep.record)["steps_saved"] is None
    assert 'data-value="steps_saved" data-exact="null">–<' in report.page(sweep.record)
    played(sweep, until=9)
    # The second ran to its end, seven wait.
    made = summary(sweep.record)
    assert (made["steps_saved"], made["steps_run"], made["steps_full"]) == (0, STEPS, 9 * STEPS)


def test_the_record_is_plain_json_and_a_damaged_one_is_no_new_sweep(tmp_path):
    sweep = opened(tmp_path, plan())
    played(sweep, until=5)
    assert records.read(tmp_path) == sweep.record
    (tmp_path / records.RECORD).write_text('{"name": ', encoding="utf-8")
    with pytest.raises(CorruptArtifact, match="cannot be read"):
        records.read(tmp_path)


def test_fixed_cost_is_what_lies_before_the_first_step_and_after_the_last_score(tmp_path, monkeypatch):
    clock = iter([100.0, 101.0, 160.0])
    sweep = opened(tmp_path, plan())
    monkeypatch.setattr(sweeps.time, "time", lambda: next(clock))
    trial = sweep.next()
    sweep.launched(trial.id, {"CPU": 1.0})
    sweep.scored(Score(trial=trial.id, step=27, value=0.5, at=158.0), began=112.0)
    sweep.ended(trial.id, "finished")
    made = sweep.record.trial(trial.id)
    assert made.fixed_seconds == pytest.approx(12 + 2)
    assert made.seconds == 60


@pytest.mark.parametrize("steps", [1, 5, 9, 27, 40, 96, 128, 131, 1000])
def test_reports_are_about_nine_and_end_with_the_trial_where_they_can(steps):
    every = records.report_steps(steps)
    assert 1 <= every <= steps
    if steps not in (1, 5, 131):
        assert steps % every == 0
        assert 6 <= steps // every <= 12


def test_rungs_are_those_of_rays_scheduler():
    assert records.rungs(3, 3, STEPS) == [3, 9]
    scheduler = halving(plan())
    assert sorted(milestone for milestone, _ in scheduler._rules._brackets[0]._rungs) == [3, 9, 27]


def test_order_of_arrival_does_not_change_who_can_win(tmp_path):
    """ASHA over curves that never cross keeps the best configuration, whatever the order."""
    params = [
        {"learning_rate": rate, "lora_rank": rank} for rate, rank in itertools.product([1e-4, 3e-4, 1e-3], [8, 16, 32])
    ]
    for seed in range(20):
        order = list(range(9))
        random.Random(seed).shuffle(order)
        scheduler, left = halving(plan()), []
        for index in order:
            steps = range(3, STEPS + 1, 3)
            if not any(scheduler.stops(str(index), step, f1(params[index], step)) for step in steps if step < STEPS):
                left.append(index)
        assert params.index({"learning_rate": 1e-3, "lora_rank": 16}) in left
