"""One trial without Ray, on tiny models: scores with intervals, the best adapter kept, every end an outcome."""

import json
import math
import multiprocessing
import resource

import pytest

from tests.tuning import Killed
from tests.unit.projection.test_fit import SETTINGS as LAYER
from tests.unit.projection.test_fit import data as data  # the fixture, again for this file
from tests.unit.training.test_sft import SETTINGS
from tests.unit.training.test_sft import job as sft_job
from ucotron_ray.core.errors import InputError
from ucotron_ray.core.files import file_hash
from ucotron_ray.tuning import job as jobs
from ucotron_ray.tuning import trial
from ucotron_ray.tuning.job import BEST, STOP, TrialJob

FINAL, KEPT = "adapter/adapter_model.safetensors", f"{BEST}/adapter_model.safetensors"


def made(directory, model, **settings: object) -> TrialJob:
    """A trial of eight steps with four reports in `directory/trials/t`."""
    path = directory / "trials" / "t"
    values = SETTINGS.model_dump() | {"epochs": 2, "eval_steps": 2, "save_steps": 2, "eval_f1_rows": 4} | settings
    training = sft_job(path, model, settings=values)
    return wrapped("sft", path, vars(training))


def wrapped(stage: str, path, training: dict) -> TrialJob:
    job = TrialJob(
        trial="t",
        stage=stage,
        directory=str(path),
        training=training,
        f1_rows=4,
        max_new_tokens=4,
        eval_batch=4,
        spool=str(path / "spool"),
        run="sweep/t",
        log_file=str(path / "log"),
    )
    jobs.write(job)
    assert jobs.read(path) == job
    return job


@pytest.fixture(scope="module")
def straight(tmp_path_factory, tiny_model):
    directory = tmp_path_factory.mktemp("trial")
    scores: list[dict] = []
    job = made(directory, tiny_model)
    outcome = trial.run(job, lambda score: scores.append(dict(score)))
    return directory / "trials" / "t", job, scores, outcome


def test_a_trial_tells_each_score_with_its_interval_and_ends_in_an_outcome(straight):
    path, job, scores, outcome = straight
    assert [score["step"] for score in scores] == [2, 4, 6, 8]
    for score in scores:
        assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
        assert score["loss"] > 0
        assert 0 < score["answer_seconds"] <= score["seconds"]
        assert score["began"] <= score["at"]
    assert outcome["state"] == "finished"
    assert outcome["metrics"]["steps"] == 8
    assert trial.outcome_of(path) == outcome
    # A second call trains nothing: it would tell a score.
    assert trial.run(job, lambda score: pytest.fail("trained again")) == outcome


@pytest.mark.parametrize(("second", "step"), [(0.5, 4), (0.6, 6)])
def test_the_adapter_of_the_best_score_is_kept_not_the_last(tmp_path, tiny_model, monkeypatch, second, step):
    values, losses = iter([0.2, 0.7, 0.7, 0.1]), iter([1.0, second, 0.5, 0.1])
    seen: list[tuple[int, str]] = []
    evaluated = trial.Scores.evaluated

    def with_value(self, metrics) -> None:
        evaluated(self, {**metrics, "eval_f1": next(values), "eval_loss": next(losses)})

    monkeypatch.setattr(trial.Scores, "evaluated", with_value)
    path = tmp_path / "trials" / "t"
    trial.run(made(tmp_path, tiny_model), lambda score: seen.append((score["step"], file_hash(path / KEPT))))
    best = json.loads((path / BEST / "score.json").read_text(encoding="utf-8"))
    # The earliest of equal ones; at equal F1 the smaller loss, as the record ranks them.
    assert (best["step"], best["value"]) == (step, 0.7)
    hashes = dict(seen)
    assert hashes[2] != hashes[4]
    assert (hashes[4] == hashes[6]) == (step == 4)
    assert hashes[6] == hashes[8] == file_hash(path / KEPT)
    assert file_hash(path / KEPT) != file_hash(path / FINAL)


def test_a_trial_that_was_killed_goes_on_from_its_checkpoint_to_the_same_bytes(straight, tmp_path, tiny_model):
    told: list[int] = []

    def killed(score) -> None:
        told.append(score["step"])
        if score["step"] == 6:
            raise Killed

    job = made(tmp_path, tiny_model)
    with pytest.raises(Killed):
        trial.run(job, killed)
    assert trial.outcome_of(tmp_path / "trials" / "t") is None
    steps: list[int] = []
    outcome = trial.run(job, lambda score: steps.append(score["step"]))
    # At the kill the checkpoint of step 6 was not written: it goes on from step 4.
    assert (told, steps) == ([2, 4, 6], [6, 8])
    assert outcome["state"] == "finished"
    assert file_hash(tmp_path / "trials" / "t" / FINAL) == file_hash(straight[0] / FINAL)


def test_a_rate_that_explodes_is_an_outcome_with_its_cause(tmp_path, tiny_model):
    outcome = trial.run(made(tmp_path, tiny_model, learning_rate=1e30, max_grad_norm=1e30), lambda score: None)
    assert outcome["state"] == "failed"
    assert "not finite" in outcome["cause"]
    assert trial.outcome_of(tmp_path / "trials" / "t") == outcome


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nand so on"),
            "RuntimeError: CUDA out of memory. Tried to allocate 2 GiB",
        ),
        # Said by us, and yet one worker's alone: its machine has no such file.
        (InputError("there is no model at '/models/x'"), "there is no model at '/models/x'"),
    ],
)
def test_an_error_is_an_outcome_but_for_one_of_several_workers(tmp_path, tiny_model, monkeypatch, error, cause):
    def broken(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(trial, "_train", broken)
    with pytest.raises(type(error)):
        trial.run(made(tmp_path, tiny_model), lambda score: None, world=2)
    outcome = trial.run(made(tmp_path, tiny_model), lambda score: None)
    assert outcome == {"state": "failed", "cause": cause, "metrics": {}}


def _within(memory: int, job: TrialJob) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    trial.run(job, lambda score: None)


@pytest.mark.slow
def test_memory_that_is_not_there_is_an_outcome_that_says_how_much_was_wanted(tmp_path, tiny_model):
    # A matrix of 25 GB in a process that may have 16.
    job = made(tmp_path, tiny_model, lora_rank=2**27)
    process = multiprocessing.get_context("spawn").Process(target=_within, args=(16 * 2**30, job))
    process.start()
    process.join(120)
    outcome = trial.outcome_of(tmp_path / "trials" / "t")
    assert process.exitcode == 0
    assert outcome is not None
    assert outcome["state"] == "failed"
    assert "can't allocate memory" in outcome["cause"]


def test_the_sweeps_stop_file_stops_a_trial_with_a_checkpoint_and_no_outcome(tmp_path, tiny_model):
    job = made(tmp_path, tiny_model)
    path = tmp_path / "trials" / "t"

    def ask(score) -> None:
        (tmp_path / STOP).touch()

    outcome = trial.run(job, ask)
    assert outcome["state"] == "interrupted"
    assert trial.outcome_of(path) is None
    (tmp_path / STOP).unlink()
    steps: list[int] = []
    assert trial.run(job, lambda score: steps.append(score["step"]))["state"] == "finished"
    assert steps[-1] == 8
    assert 2 not in steps


def test_a_trial_of_the_projection_tells_its_validation_loss_every_epoch_and_can_be_stopped(data, tmp_path):
    path = tmp_path / "trials" / "t"
    settings = LAYER | {"epochs": 3}
    fields = {"pairs": str(data), "directory": str(path), "settings": settings, "encoders": {}, "num_threads": 1}
    job = wrapped("projection", path, fields)
    scores: list[dict] = []

    def ask(score) -> None:
        scores.append(dict(score))
        if len(scores) == 1:
            (tmp_path / STOP).touch()

    assert trial.run(job, ask)["state"] == "interrupted"
    (tmp_path / STOP).unlink()
    outcome = trial.run(job, ask)
    assert [score["step"] for score in scores] == [8, 16, 24]
    assert outcome["metrics"]["best_val_loss"] == min(score["value"] for score in scores)
    assert all(math.isfinite(score["value"]) for score in scores)
