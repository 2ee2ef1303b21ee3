"""Estimates against figures worked out by hand, the guide's tables row by row, and a finished run as calibration."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ucotron_ray import cli, pipeline
from ucotron_ray.core import config, generators
from ucotron_ray.core.artifacts import BuildResult, Input, Request, Store
from ucotron_ray.core.run import Run
from ucotron_ray.core.steps import Step
from ucotron_ray.models.shape import Shape
from ucotron_ray.planning import estimate, forecast, rates
from ucotron_ray.planning.rates import Rates, SynthesisRate, TrainingRate
from ucotron_ray.synthesis.generator import GuideFigures, generator

GUIDE_ROWS = 14
"""Five of generation, six of remote training, three of local training."""


@pytest.fixture
def settings():
    return config.load(overrides=[("models.generation.model_id", "accounts/simulator/models/teacher")])


# ---- by hand ---------------------------------------------------------------------------------------------------------


def test_synthesis_is_rows_times_tokens_times_price(settings):
    measured = Rates(synthesis={"relation_extraction": SynthesisRate(2.1, 360.0, 110.0, 0.0, 5.0, 12.0, "other")})
    figures = estimate.synthesis(settings, "relation_extraction", 1000, measured)
    # 360,000 prompt tokens at $0.50 and 110,000 answer tokens at $1.50 a million.
    assert figures.usd == pytest.approx(0.18 + 0.165)
    assert (figures.tokens, figures.requests) == (470_000, 2100)
    # Another teacher's speed says nothing: 110,000 tokens by the vendor's 36,000 a minute.
    assert figures.minutes == pytest.approx(110_000 / 36_000)
    same = replace(measured.synthesis["relation_extraction"], teacher="accounts/simulator/models/teacher")
    figures = estimate.synthesis(settings, "relation_extraction", 1000, Rates(synthesis={"relation_extraction": same}))
    assert figures.minutes == pytest.approx((12.0 + 1000 / 5.0) / 60)
    assert "time measured" in figures.basis


def test_limits_of_the_place_bound_the_time(settings):
    limited = config.load(overrides=[("api.requests_per_minute", 10)])
    figures = estimate.synthesis(limited, "contradiction", 100, Rates())
    assert figures.minutes == pytest.approx(10.0)


def test_a_teacher_without_a_price_is_priced_as_another_and_that_is_named():
    figures = estimate.synthesis(config.load(), "entity_resolution", 2000, Rates())
    # 360,000 prompt tokens at $0.55, 256,000 at $2.19.
    assert figures.usd == pytest.approx(0.198 + 0.56064)
    assert "priced as glm-4p6 of 2026-08-20" in figures.basis


def test_remote_training_is_tokens_times_epochs_times_the_price_of_the_size(settings):
    figures = estimate.remote_training(settings, "medium", "sft", 10_000, 3, Rates())
    assert figures.tokens == 10_000 * 3 * 300
    assert figures.usd == pytest.approx(4.5)
    # The guide's 120 minutes are for just that.
    assert figures.minutes == pytest.approx(120.0)
    half = estimate.remote_training(settings, "medium", "dpo", 5_000, 1, Rates())
    assert (half.usd, half.minutes) == (pytest.approx(1.7), pytest.approx(30.0))
    known = estimate.remote_training(settings, "slm", "sft", 1000, 1, Rates(remote={"sft": 1000.0}))
    assert known.minutes == pytest.approx(300_000 / 1000 / 60)


def test_local_time_is_four_operations_a_parameter_and_token(settings):
    figures = estimate.local_training(settings, "slm", 1000, 1, 2048, Rates())
    assert figures.minutes == pytest.approx(4 * 494e6 * 300_000 / 15e12 / 60, rel=1e-4)
    overridden = config.load(
        overrides=[("models.fine_tuning.slm.local_model", "mine"), ("models.fine_tuning.slm.params", "0.1B")]
    )
    measured = Rates(training={"sft": TrainingRate(200.0, 500.0, "mine")})
    figures = estimate.local_training(overridden, "slm", 1000, 2, 2048, measured)
    # 400,000 tokens at 500 a second for 0.1B, a model of 0.494B being 4.94 times as slow.
    assert figures.minutes == pytest.approx(400_000 / 500 * 4.94 / 60, rel=1e-4)
    assert "measured on this machine" in figures.basis


def test_memory_is_that_of_a_training_plan_by_hand():
    shape = Shape(100, 2, 4, 1, 25, 300, 1000, tied=True)
    settings = config.load().recipe.training.sft.slm.model_copy(update={"lora_rank": 8})
    # Blocks: q, o 100 x 100; k, v 100 x 25; three matrices of 100 x 300. Norms 5 x 100. Embedding 1000 x 100, tied.
    base = 2 * (2 * (20_000 + 5_000 + 90_000) + 500 + 100_000)
    lora = 16 * 8 * 2 * (2 * 200 + 2 * 125 + 3 * 400)
    # One block's inside, and the input of each of two blocks, 1,000 tokens; 250 of them are labels.
    block = 1000 * ((2 * 100 + 4 * 100 + 4 * 300) * 2 + 2 * 100 * 4)
    total = base + lora + block + 2 * 1000 * 100 * 2 + 3 * 250 * 1000 * 4
    assert estimate.training_memory_gb(shape, settings, context=1000) == pytest.approx(total / 1e9)


@pytest.mark.parametrize(
    ("guide", "ours", "said"),
    [
        ([2, 5], 2.0, "agrees"), ([2, 5], 5.01, "above"), ([2, 5], 1.99, "below"), ([15, 15], 22.4, "agrees"),
        ([15, 15], 22.6, "above"), ([15, 15], 9.9, "below"), ([2, 5], None, "unknown"),
    ],
)  # fmt: skip
def test_agreement(guide, ours, said):
    assert estimate.agreement(guide, ours) == said


# ---- the guide's tables --------------------------------------------------------------------------------------------


def test_every_row_of_the_guides_tables_has_our_figure_and_a_verdict():
    lines = estimate.beside_the_guide(config.load(), Rates())
    assert len(lines) == GUIDE_ROWS
    by_name = {line["what"]: line for line in lines}
    assert {name: line["memory"] for name, line in by_name.items() if line["table"] == "local"} == {
        "local sft slm": "agrees",
        "local sft small": "agrees",
        "local sft medium": "agrees",
    }
    assert by_name["sft slm"]["cost"] == "agrees"
    assert by_name["relation_extraction"]["cost"] == "above"
    for line in lines:
        assert line["rows"] > 0
        assert line["basis"]
        assert line["table"] == "local" or line["guide_usd"][0] < line["guide_usd"][1]


def test_the_tables_are_the_guides():
    """Numbers of the guide's section «Cost and Timing Estimates», typed in here a second time."""
    guide = estimate.tables()["guide"]
    rows = {task: figures.rows for task in generators.NAMES if (figures := generator(task).GUIDE) is not None}
    assert list(rows.values()) == [10000, 5000, 3000, 2000, 50000]
    assert GuideFigures(rows=5000, usd=(2, 4), minutes=(20, 20)) == generator("preference").GUIDE
    assert guide["remote"]["medium"] == {
        "sft": {"usd": [15, 40], "minutes": [120, 120]},
        "dpo": {"usd": [8, 20], "minutes": [60, 60]},
    }
    assert [guide["local"][tier]["memory_gb"] for tier in estimate.TIERS] == [8, 16, 24]


def test_the_verb_prints_the_tables_and_one_object(tmp_path, capsys):
    store = f"store={tmp_path / 'none'}"
    assert cli.main(["estimate", "--rows", "100", "--set", store, "--json"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert "local sft medium" in out
    assert len(result["guide"]) == GUIDE_ROWS
    assert {figure["rows"] for figure in result["figures"] if "sft" in figure["what"]} == {100}
    assert not (tmp_path / "none").exists()


# ---- calibration -------------------------------------------------------------------------------------------------------


def artifact(store: Store, kind, name, fields, *, counts=None, metrics=None, seconds=60.0, inputs=()):
    with store.building(Request(kind, name, fields, tuple(inputs))) as build:
        (build.path / "rows.jsonl").write_text("{}\n")
        build._began -= seconds
        return build.publish(BuildResult(metrics or {}, counts or {}, []))


def finished(store: Store, name: str, *, rows: int, speed: float) -> None:
    """The artifacts of a run of the chain whose every second is known."""
    teacher = "accounts/simulator/models/teacher"
    metrics = {"requests": rows * 2.0, "prompt_tokens": rows * 300.0, "completion_tokens": rows * 100.0}
    artifact(
        store, "dataset", f"{name}-teacher", {"task": "relation_extraction", "teacher": teacher},
        counts={"accepted": rows}, seconds=rows / speed,
        metrics={**metrics, "cost_usd": rows * 3e-4, "asking_seconds": rows / speed / 2},
    )  # fmt: skip
    artifact(store, "dataset", f"{name}-mix", {"mix": "x"}, counts={"train": rows})
    artifact(
        store, "adapter", name, {"sft": {"epochs": 2}, "base": {"reference": "mine"}},
        counts={"rows": rows, "tokens": rows * 250}, seconds=rows / speed * 8,
    )  # fmt: skip
    adapter = Input(role="adapter", kind="adapter", name=name, content="0")
    artifact(store, "scores", name, {"e": 1}, counts={"predictions": 70}, seconds=140, inputs=[adapter])
    artifact(store, "scores", f"{name}-base", {"e": 1}, counts={"predictions": 70}, seconds=210)
    artifact(store, "bundle", name, {"e": 1}, seconds=90)


def run_of(tmp_path: Path, name: str, rows: int) -> Run:
    values = {
        "store": str(tmp_path / "store"), "tracking.mlflow_uri": "none", "generation.in_pipeline": rows,
        "models.generation.model_id": "accounts/simulator/models/teacher", "training.sft.slm.epochs": 2,
        "models.fine_tuning.slm.local_model": "mine", "models.fine_tuning.slm.params": "0.1B",
        "evaluation.max_rows": 55, "evaluation.raw_rows": 8, "evaluation.end_to_end_rows": 2, "training.sft.slm.max_rows": rows,
    }  # fmt: skip
    return Run(config.load(overrides=list(values.items())), verb="pipeline", name=name)


def chain(run: Run) -> tuple[list[Step], Rates]:
    return pipeline.chain(run, pipeline.Options()), rates.measured(run.store)


def test_one_finished_run_calibrates_the_next_one(tmp_path):
    run = run_of(tmp_path, "second", 300)
    finished(run.store, "first", rows=100, speed=5.0)
    stages = {stage.stage: stage for stage in forecast.before(run, *chain(run))}
    assert stages["synthesize"].tokens == pytest.approx(300 * 400)
    # 300 x 300 prompt tokens at $0.50 and 300 x 100 at $1.50 a million.
    assert stages["synthesize"].usd == pytest.approx(0.045 + 0.045)
    # Of the 20 seconds of 100 rows 10 were the start, which 300 rows have no more of.
    assert stages["synthesize"].minutes == pytest.approx((10 + 30) / 60, rel=0.02)
    assert stages["sft"].tokens == pytest.approx(300 * 250 * 2)
    assert stages["sft"].minutes == pytest.approx(300 / 5 * 8 / 60, rel=0.02)
    assert stages["evaluate"].minutes == pytest.approx(140 / 60, rel=0.02)
    assert stages["evaluate-base"].minutes == pytest.approx(210 / 60, rel=0.02)
    assert stages["export"].minutes == pytest.approx(1.5, rel=0.02)


def test_estimate_and_actual_are_stored_and_shown(tmp_path, caplog):
    caplog.set_level("INFO")
    run = run_of(tmp_path, "second", 300)
    finished(run.store, "first", rows=100, speed=5.0)
    steps, expected_by = chain(run)
    expected = forecast.before(run, steps, expected_by)
    finished(run.store, "second", rows=300, speed=4.0)
    settled = {stage.stage: stage for stage in forecast.settle(run, expected, expected_by)}
    assert settled["synthesize"].actual_usd == pytest.approx(0.09)
    assert settled["synthesize"].actual_tokens == 120_000
    assert settled["sft"].actual_tokens == settled["sft"].tokens == 150_000
    assert settled["sft"].actual_minutes == pytest.approx(300 / 4 * 8 / 60, rel=0.02)
    stored = json.loads((run.store.root / "estimates" / "second.json").read_text())["stages"]
    assert [stage["stage"] for stage in stored] == ["synthesize", "sft", "evaluate", "evaluate-base", "export"]
    assert "8.0 → 10.0" in caplog.text


def test_what_is_there_is_not_forecast(tmp_path):
    run = run_of(tmp_path, "first", 100)
    finished(run.store, "first", rows=100, speed=5.0)
    assert forecast.before(run, *chain(run)) == []
    assert forecast.settle(run, [], Rates()) == []


def test_without_a_finished_run_nothing_is_claimed_to_be_measured(tmp_path):
    run = run_of(tmp_path, "new", 100)
    assert rates.measured(run.store) == Rates()
    stages = {stage.stage: stage for stage in forecast.before(run, *chain(run))}
    assert stages["export"].minutes is None
    assert stages["synthesize"].minutes is not None


def test_a_synthesis_that_was_answered_by_its_journal_is_no_measure(tmp_path):
    store = Store(tmp_path / "store")
    metrics = {"requests": 3.0, "prompt_tokens": 900.0, "completion_tokens": 10.0, "cost_usd": 0.0}
    fields = {"task": "relation_extraction", "teacher": "t"}
    artifact(store, "dataset", "x-teacher", fields, counts={"accepted": 100}, metrics=metrics)
    assert rates.measured(store).synthesis == {}


def test_damaged_and_foreign_manifests_are_passed_over(tmp_path):
    store = Store(tmp_path / "store")
    finished(store, "first", rows=10, speed=5.0)
    for name, text in (("journal/task", '{"lines": 3}'), ("adapter/broken", "{")):
        folder = store.root / name
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(text)
    assert set(rates.measured(store).training) == {"sft"}


def test_what_went_on_after_a_kill_and_a_projections_bundle_are_no_measure(tmp_path):
    store = Store(tmp_path / "store")
    fields = {"sft": {"epochs": 2}, "base": {"reference": "mine"}}
    request = Request("adapter", "killed", fields)
    with pytest.raises(KeyboardInterrupt), store.building(request):
        raise KeyboardInterrupt
    artifact(store, "adapter", "killed", fields, counts={"rows": 10, "tokens": 2500})
    artifact(store, "bundle", "layer", {"export": "projection"})
    assert rates.measured(store) == Rates()
    run = run_of(tmp_path, "killed", 10)
    (stage,) = forecast.taken(run, [forecast.Stage("sft", "adapter/killed", 1.0)])
    assert (stage.actual_minutes, stage.actual_tokens) == (None, 5000)


def test_another_models_speed_is_no_measure_of_this_one(tmp_path):
    run = run_of(tmp_path, "second", 300)
    finished(run.store, "first", rows=100, speed=5.0)
    run.config = config.load(overrides=[("store", str(tmp_path / "store")), ("generation.in_pipeline", 300)])
    stages = {stage.stage: stage for stage in forecast.before(run, *chain(run))}
    assert stages["sft"].minutes is None


@pytest.mark.parametrize(
    ("said", "count"),
    [("1.5B", 1.5e9), ("494M", 494e6), (" 0.5b ", 5e8), ("135000000", 135e6), ("many", None), (None, None)],
)
def test_a_tiers_size_is_read_however_it_is_said(said, count):
    assert estimate.parameters(said) == (pytest.approx(count) if count else None)
