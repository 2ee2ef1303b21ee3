"""The rim of training without a cluster: what comes back, what Ray may try again, and Ray Train's local mode."""

import json
import os
import signal
import threading
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import ray.train
from ray.train.torch import TorchTrainer

from tests.unit.training.test_sft import SETTINGS, WEIGHTS, job
from tests.unit.training.test_sft import straight as straight  # the fixture, again for this file
from ucotron_ray.core import run_log, signals
from ucotron_ray.core.errors import InputError, LossNotFinite, StageFailed, Stopped
from ucotron_ray.core.files import file_hash
from ucotron_ray.training import on_ray


def looped(monkeypatch, tmp_path, error: BaseException | None, *, world: int = 1) -> dict:
    """What a member of a group of `world` returns whose training ends with the error, or with a loss of 1."""
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: world)
    reported: list[dict] = []

    def train(*args):
        if error is not None:
            raise error
        return {"train_loss_last": 1.0}

    monkeypatch.setattr(on_ray, "_train", train)
    monkeypatch.setattr(on_ray, "_scorer", lambda config: None)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "report", lambda metrics: reported.append(metrics))
    monkeypatch.setattr(run_log, "set_up_worker", lambda log_file: None)
    config = {"spool": str(tmp_path), "run": "r", "log_file": "", "stage": "sft", "score": {}}
    made = on_ray._member({**config, "job": {"directory": str(tmp_path)}})
    assert bool(reported) == ("error" not in made)
    return made


@pytest.mark.parametrize(("kind", "world"), [(InputError, 1), (Stopped, 1), (Stopped, 2), (LossNotFinite, 2)])
def test_what_all_workers_meet_comes_back_instead_of_being_tried_again(monkeypatch, tmp_path, kind, world):
    error = kind("a problem")
    assert looped(monkeypatch, tmp_path, error, world=world) == {"error": error}


@pytest.mark.parametrize("error", [StageFailed("full"), InputError("no model", found="x"), IndexError("out of range")])
def test_what_one_machine_may_meet_alone_ends_the_next_attempt_of_all(monkeypatch, tmp_path, error):
    """A full disk, a model that is not there: the others would wait for this worker in a collective call."""
    with pytest.raises(type(error)):
        looped(monkeypatch, tmp_path, error, world=2)
    # Ray starts all of them again, and none of them trains.
    (_, said), *_ = looped(monkeypatch, tmp_path, RuntimeError("trained again"), world=2).items()
    if isinstance(error, IndexError):
        assert (type(said), said.found) == (StageFailed, "IndexError: out of range")
    else:
        assert (type(said), str(said)) == (type(error), str(error))


@pytest.mark.parametrize("error", [InputError("a row"), ValueError("a bug"), KeyError("x"), RuntimeError("a shape")])
def test_a_mistake_that_the_only_worker_meets_comes_back_at_once(monkeypatch, tmp_path, error):
    said = looped(monkeypatch, tmp_path, error)["error"]
    assert said is error or (isinstance(said, StageFailed) and said.found.startswith(type(error).__name__))


def test_a_device_a_disk_or_the_loss_of_a_peer_is_rays_to_try_again(monkeypatch, tmp_path):
    with pytest.raises(OSError, match="handle"):
        looped(monkeypatch, tmp_path, OSError(116, "Stale file handle"))
    with pytest.raises(RuntimeError):
        looped(monkeypatch, tmp_path, RuntimeError("Connection closed by peer"), world=2)
    assert looped(monkeypatch, tmp_path, None, world=2) == {"train_loss_last": 1.0}


def test_work_aside_gives_its_result_its_error_and_leaves_signals_to_the_main_thread(tmp_path):
    assert signals.aside(lambda: 7) == 7
    with pytest.raises(InputError, match="wrong"):
        signals.aside(lambda: (_ for _ in ()).throw(InputError("wrong")))
    request, seen = tmp_path / "stop", threading.Event()

    def work() -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        while not request.exists():
            seen.wait(0.01)
        return True

    with signals.stopping(request):
        assert signals.aside(work)


def in_local_mode(monkeypatch, tmp_path, model, name: str, **settings: object):
    """The same training function in Ray Train's local mode: its context and reports, without any cluster."""
    # A worker logs to a file of its own; this process has other tests to serve.
    monkeypatch.setattr(run_log, "set_up_worker", lambda log_file: None)
    made = job(tmp_path / name, model, settings={**SETTINGS.model_dump(), **settings})
    config = {"stage": "sft", "job": asdict(made), "spool": str(tmp_path / "spool"), "run": "r"}
    config |= {"log_file": str(tmp_path / "log"), "score": {"max_new_tokens": 4, "batch_size": 4}}
    trainer = TorchTrainer(
        on_ray._member,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(num_workers=0),
        run_config=ray.train.RunConfig(name=name, storage_path=str(tmp_path / "ray")),
    )
    return trainer.fit()


def test_the_function_that_runs_plainly_runs_in_ray_train_with_its_scorer(straight, monkeypatch, tmp_path, tiny_model):
    result = in_local_mode(monkeypatch, tmp_path, tiny_model, "a", eval_f1_rows=2, eval_steps=2)
    assert not ray.is_initialized()
    assert 0.0 <= result.return_value["eval_f1"] <= 1.0
    assert result.metrics["pid"] == os.getpid()
    # Scoring draws no random number: the weights are those of the run without it.
    assert file_hash(tmp_path / "a" / WEIGHTS) == file_hash(straight / WEIGHTS)
    events = [
        json.loads(line) for path in (tmp_path / "spool").glob("*.jsonl") for line in path.read_text().splitlines()
    ]
    assert [event["step"] for event in events if "eval_f1" in event["values"]] == [2, 4]


def test_a_loss_that_is_no_number_comes_back_from_ray_train(monkeypatch, tmp_path, tiny_model):
    result = in_local_mode(monkeypatch, tmp_path, tiny_model, "b", learning_rate=1e30, max_grad_norm=1e30)
    assert isinstance(result.return_value["error"], LossNotFinite)
