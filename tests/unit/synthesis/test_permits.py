"""A sender and a limiter that stands still, or is gone."""

import asyncio
import time

import pytest

from tests.teacher import teaching
from ucotron_ray.core import config
from ucotron_ray.core.errors import Stopped
from ucotron_ray.simulators.fireworks_settings import TEACHER
from ucotron_ray.synthesis import permits
from ucotron_ray.synthesis.governor import Governor
from ucotron_ray.synthesis.job import Sending
from ucotron_ray.synthesis.ledger import Budget, Settings
from ucotron_ray.synthesis.tasks import relation_extraction
from ucotron_ray.synthesis.worker import Worker
from ucotron_ray.teacher.endpoint import endpoint_of


def made(teacher, directory, exchange) -> Worker:
    loaded = config.load()
    api = loaded.place.api.model_copy(update={"inference_base_url": teacher.base_url})
    task = relation_extraction.make_task(loaded.recipe.generation)
    how = Sending("run", 10.0, 30.0, 30.0, 3, 0.01)
    return Worker(task, endpoint_of(api, TEACHER), None, how, directory, directory / "marks", exchange)


@pytest.fixture
def governor() -> Governor:
    limits = Settings(8, 8, None, None, None, 20.0)
    governor = Governor(limits, time.monotonic)
    governor.join("run", Budget(None, None), limits)
    return governor


def test_a_limiter_that_stands_still_is_waited_for_and_asked_nothing_twice(tmp_path, governor, monkeypatch):
    monkeypatch.setattr(permits, "STALL_SECONDS", 0.05)
    calls = []

    async def exchange(name, finished, needs, trouble):
        calls.append(finished)
        if len(calls) == 5:
            await asyncio.sleep(4 * permits.STALL_SECONDS)
        governor.driver_is_alive("run")
        return governor.exchange("run", name, finished, needs, trouble)

    with teaching() as teacher:
        worker = made(teacher, tmp_path, exchange)
        results = worker.run(range(20))
        worker.close()
    assert [result.done.status for result in results] == ["accepted"] * 20
    assert governor.in_flight == 0
    assert governor.runs["run"].totals.answered == 40


@pytest.mark.parametrize("lost", [ConnectionError("the actor died"), None])
def test_without_a_limiter_the_process_ends_its_work_as_stopped_and_takes_nobody_elses(
    tmp_path, governor, monkeypatch, lost
):
    monkeypatch.setattr(permits, "STALL_SECONDS", 0.05)
    monkeypatch.setattr(permits, "LOST_SECONDS", 0.2)
    calls = []

    async def exchange(name, finished, needs, trouble):
        calls.append(finished)
        if len(calls) > 5:
            if lost:
                raise lost
            await asyncio.Event().wait()
        governor.driver_is_alive("run")
        return governor.exchange("run", name, finished, needs, trouble)

    with teaching(latency=0.02) as teacher:
        worker = made(teacher, tmp_path, exchange)
        for _ in range(2):
            with pytest.raises(Stopped, match="the limiter cannot be reached"):
                worker.run(range(50))
        worker.close()
