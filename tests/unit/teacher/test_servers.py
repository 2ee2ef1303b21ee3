"""Fifty rows through each server that the simulator can imitate: exact, nothing paid twice, no thinking in a row."""

import json
import re
import time
from pathlib import Path

import pytest

from tests.teacher import Teacher, teaching
from ucotron_ray.core import config
from ucotron_ray.simulators.fireworks_profiles import AZURE_VERSION, PROFILES, THOUGHT
from ucotron_ray.simulators.fireworks_settings import TEACHER
from ucotron_ray.synthesis import journal
from ucotron_ray.synthesis.governor import Governor
from ucotron_ray.synthesis.job import Sending
from ucotron_ray.synthesis.ledger import Budget, Settings
from ucotron_ray.synthesis.plan import SampleResult
from ucotron_ray.synthesis.tasks import relation_extraction
from ucotron_ray.synthesis.worker import Worker
from ucotron_ray.teacher.check import check
from ucotron_ray.teacher.endpoint import endpoint_of
from ucotron_ray.teacher.outcome import OutcomeKind
from ucotron_ray.teacher.prices import Price

ROWS = 50
PRICE = Price(1.0, 1.0, 1.0)


def synthesized(teacher: Teacher, directory, **settings: object) -> list[SampleResult]:
    overrides = [("api.inference_base_url", teacher.base_url), *((f"api.{k}", v) for k, v in settings.items())]
    loaded = config.load(overrides=overrides)
    endpoint = endpoint_of(loaded.place.api, TEACHER)
    check(endpoint)
    limits = Settings(8, 64, None, None, None, 30.0)
    governor = Governor(limits, time.monotonic)
    governor.join("run", Budget(PRICE, None), limits)

    async def exchange(name, finished, needs, trouble):
        governor.driver_is_alive("run")
        return governor.exchange("run", name, finished, needs, trouble)

    task = relation_extraction.make_task(loaded.recipe.generation)
    sending = Sending("run", 10.0, 30.0, 30.0, 3, 0.01)
    worker = Worker(task, endpoint, PRICE, sending, directory, directory / "marks", exchange)
    try:
        return worker.run(range(ROWS))
    finally:
        worker.close()


@pytest.mark.parametrize("profile", PROFILES)
def test_fifty_rows_of_every_server(tmp_path, monkeypatch, profile):
    monkeypatch.setenv("AZURE_KEY", "canary-4711")
    settings: dict[str, object] = {}
    with teaching(profile=profile) as teacher:
        path = PROFILES[profile].path
        if path is not None:
            url = teacher.base_url.removesuffix("/inference/v1") + f"{path}?api-version={AZURE_VERSION}"
            settings = {"inference_base_url": url, "headers": {"api-key": {"variable": "AZURE_KEY"}}}
        results = synthesized(teacher, tmp_path, **settings)
        ledger = teacher.ledger()
    assert [result.done.status for result in results] == ["accepted"] * ROWS
    rows = json.dumps([result.done.row for result in results])
    assert THOUGHT[:20] not in rows
    assert "think>" not in rows
    records = list(journal.records(tmp_path))
    assert len(records) == len({record.rid for record in records}) == ledger["statuses"]["200"]
    assert ledger["answered_twice"] == 0
    # What was in flight when reasoning was first seen is cut off, and paid beside two answers a row; no more than that.
    cut_off = sum(record.kind == OutcomeKind.TRUNCATED for record in records)
    assert len(records) == 2 * ROWS + cut_off
    assert (0 < cut_off <= ROWS // 2) if profile == "openai-reasoning" else cut_off == 0


def test_the_rows_are_those_of_the_vendor_whatever_the_server(tmp_path):
    with teaching() as teacher:
        straight = synthesized(teacher, tmp_path / "a")
    with teaching(profile="llama-cpp") as teacher:
        # Room for reasoning is another max_tokens, and with it another answer of the simulator's.
        thought = synthesized(teacher, tmp_path / "b", hidden_tokens=0)
    assert [result.done for result in straight] == [result.done for result in thought]


def test_the_table_of_servers_names_every_profile():
    table = (Path(__file__).parents[3] / "docs/teachers.md").read_text(encoding="utf-8")
    assert set(re.findall(r"profile `([a-z-]+)`", table)) == set(PROFILES)
