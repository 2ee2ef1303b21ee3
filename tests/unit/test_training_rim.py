"""What the rim does with a training's end, without a cluster: errors of ours come back, others make Ray try again."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest
import ray.train

from ucotron_ray import session
from ucotron_ray.errors import InputError, LossNotFinite, StageFailed, Stopped
from ucotron_ray.training import on_ray


def looped(monkeypatch, tmp_path, error: BaseException | None, *, world: int = 1) -> dict:
    """What a worker of `world` returns whose training ends with the error, or with a loss of 1."""
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: world)
    reported: list[dict] = []

    def train(*args):
        if error is not None:
            raise error
        return {"train_loss_last": 1.0}

    monkeypatch.setattr(on_ray, "_train", train)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "report", lambda metrics: reported.append(metrics))
    monkeypatch.setattr(session, "set_up_worker", lambda log_file: None)
    config = {"spool": str(tmp_path), "run": "r", "log_file": "", "stage": "sft", "job": {}, "score": {}}
    made = on_ray._loop(config)
    assert bool(reported) == (error is None)
    return made


@pytest.mark.parametrize("kind", [InputError, Stopped, LossNotFinite])
@pytest.mark.parametrize("world", [1, 2])
def test_what_all_workers_meet_comes_back_instead_of_being_tried_again(monkeypatch, tmp_path, kind, world):
    error = kind("a problem")
    assert looped(monkeypatch, tmp_path, error, world=world) == {"error": error}


def test_a_full_disk_comes_back_from_a_worker_that_is_alone_and_is_raised_beside_others(monkeypatch, tmp_path):
    error = StageFailed("the disk is full")
    assert looped(monkeypatch, tmp_path, error) == {"error": error}
    with pytest.raises(StageFailed, match="disk is full"):
        looped(monkeypatch, tmp_path, error, world=2)


def test_any_other_error_is_rays_to_try_again(monkeypatch, tmp_path):
    with pytest.raises(RuntimeError):
        looped(monkeypatch, tmp_path, RuntimeError("a socket"))
    assert looped(monkeypatch, tmp_path, None) == {"train_loss_last": 1.0}


def test_work_aside_gives_its_result_its_error_and_leaves_signals_to_the_main_thread(tmp_path):
    assert on_ray._aside(lambda: 7) == 7
    with pytest.raises(InputError, match="wrong"):
        on_ray._aside(lambda: (_ for _ in ()).throw(InputError("wrong")))
    request, seen = tmp_path / "stop", threading.Event()

    def work() -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        while not request.exists():
            seen.wait(0.01)
        return True

    with session.stopping(request):
        assert on_ray._aside(work)
