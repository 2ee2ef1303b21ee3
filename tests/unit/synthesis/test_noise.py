"""Errors that have nothing to do with load cost their own share and no more: minutes of sending on a clock that jumps."""

import pytest

from tests.virtual_time import send_for, sending
from ucotron_ray.simulators.fireworks_settings import Settings as Server

CAP, LATENCY, RAMP, SECONDS = 64, 8.0, 60.0, 240.0


def rate(tmp_path, **server) -> float:
    with sending(tmp_path, CAP, latency=LATENCY, **server) as (worker, _, sleeping):
        send_for(worker, sleeping, SECONDS, CAP)
    return sleeping.count("200", RAMP, SECONDS) / (SECONDS - RAMP)


def test_noise_costs_its_own_share(tmp_path):
    free = rate(tmp_path / "free")
    assert free == pytest.approx(CAP / LATENCY, rel=0.03), "as many as may be in flight are"
    assert rate(tmp_path / "some", noise=0.01) > 0.95 * free
    assert rate(tmp_path / "more", noise=0.05) > 0.9 * free


def test_the_same_seed_gives_the_same_minutes(tmp_path):
    assert rate(tmp_path / "one", noise=0.05) == rate(tmp_path / "two", noise=0.05)


def test_a_limit_that_the_server_tells_is_used_and_hardly_refused_under_noise_too(tmp_path):
    limit = 5.0
    with sending(tmp_path, CAP, latency=LATENCY, noise=0.05, limits=Server(requests_per_minute=60 * limit)) as (
        worker,
        _,
        sleeping,
    ):
        send_for(worker, sleeping, 300.0, CAP)
    taken = sum(sleeping.count(name, 120.0, 300.0) for name in ("200", "500", "reset"))
    assert taken / 180 > 0.95 * limit
    assert sleeping.count("429", 0.0, 300.0) < 0.01 * taken


def test_a_server_that_resets_what_is_too_much_is_relieved(tmp_path):
    with sending(tmp_path, CAP, latency=1.0, capacity=20) as (worker, _, sleeping):
        send_for(worker, sleeping, 120.0, CAP)
    assert sleeping.count("200", 30.0, 120.0) / 90 > 0.6 * 20
    resets = sleeping.count("reset", 30.0, 120.0)
    assert resets < 0.5 * sleeping.count("200", 30.0, 120.0)
