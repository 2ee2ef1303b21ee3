"""Samples against the simulator over real HTTP, with the real limiter and journal, without Ray."""

import asyncio
import concurrent.futures
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.teacher import Teacher, teaching
from ucotron_ray.core import config
from ucotron_ray.simulators.fireworks_settings import TEACHER
from ucotron_ray.synthesis import compaction, journal, outcomes
from ucotron_ray.synthesis.governor import Governor
from ucotron_ray.synthesis.job import Sending
from ucotron_ray.synthesis.ledger import Budget, Settings
from ucotron_ray.synthesis.plan import SampleResult, Task
from ucotron_ray.synthesis.tasks import relation_extraction
from ucotron_ray.synthesis.worker import Worker
from ucotron_ray.teacher.endpoint import endpoint_of
from ucotron_ray.teacher.prices import Price

PRICE = Price(1.0, 1.0, 1.0)


@contextmanager
def working(
    teacher: Teacher,
    directory: Path,
    *,
    max_usd: float | None = None,
    max_retries: int = 3,
    total: float = 30.0,
    give_up_after: float = 5.0,
    dialect: str = "auto",
    max_in_flight: int = 64,
    task: Task | None = None,
) -> Iterator[tuple[Worker, Governor]]:
    """One process of an invocation."""
    loaded = config.load()
    task = task or relation_extraction.make_task(loaded.recipe.generation)
    api = loaded.place.api.model_copy(update={"inference_base_url": teacher.base_url, "dialect": dialect})
    limits = Settings(8, max_in_flight, None, None, None, give_up_after)
    governor = Governor(limits, time.monotonic)
    governor.join("run", Budget(PRICE, max_usd), limits)

    async def exchange(name, finished, needs, trouble):
        governor.driver_is_alive("run")
        return governor.exchange("run", name, finished, needs, trouble)

    # On a busy machine a second is not always enough to be connected, and what failed is asked again.
    sending = Sending("run", 10.0, total, total, max_retries, 0.01)
    worker = Worker(task, endpoint_of(api, TEACHER), PRICE, sending, directory, directory / "marks", exchange)
    try:
        yield worker, governor
    finally:
        worker.close()


def sample(teacher: Teacher, directory: Path, numbers: range, **more) -> tuple[list[SampleResult], Governor]:
    with working(teacher, directory, **more) as (worker, governor):
        return worker.run(numbers), governor


def rows(results: list[SampleResult]) -> list:
    return [(result.number, result.done) for result in results]


def test_samples_end_accepted_with_two_requests_each(tmp_path):
    with teaching() as teacher:
        results, governor = sample(teacher, tmp_path, range(20))
        ledger = teacher.ledger()
    assert all(result.done.status == "accepted" for result in results)
    assert [result.requests for result in results] == [2] * 20
    assert ledger["received"] == 40 == governor.runs["run"].totals.sent
    assert governor.in_flight == 0
    assert governor.runs["run"].usd == pytest.approx(journal.spent(tmp_path, "run"))
    assert governor.runs["run"].usd > 0


def test_what_the_journal_holds_is_not_asked_again_and_gives_the_same_rows(tmp_path):
    with teaching(garbage=0.3) as teacher:
        first, _ = sample(teacher, tmp_path, range(30))
        asked = teacher.ledger()["received"]
        again, governor = sample(teacher, tmp_path, range(30))
        assert teacher.ledger()["received"] == asked
        assert governor.runs["run"].totals.sent == 0
        more, _ = sample(teacher, tmp_path, range(40))
    assert rows(first) == rows(again)
    assert rows(more)[:30] == rows(first)
    assert {result.requests for result in more[:30]} == {0}
    assert len({result.done.status for result in first}) > 1, "the garbage had an effect"


def test_faults_change_what_is_sent_and_not_what_is_made(tmp_path):
    faults = {"500": 0.1, "reset": 0.05, "half": 0.05, "503": 0.02}
    with teaching() as teacher:
        straight, _ = sample(teacher, tmp_path / "a", range(30))
    with teaching(faults=faults) as teacher:
        disturbed, governor = sample(teacher, tmp_path / "b", range(30), max_retries=20, give_up_after=60)
        ledger = teacher.ledger()
    assert rows(straight) == rows(disturbed)
    assert governor.runs["run"].totals.failed > 0
    assert ledger["received"] == governor.runs["run"].totals.sent
    # What was reset may have been paid, so it counts, in the worst case.
    assert journal.spent(tmp_path / "b", "run") > journal.spent(tmp_path / "a", "run")


def test_a_429_spends_no_attempt(tmp_path):
    with teaching(faults={"429-retry-after": 0.3}, retry_after="0") as teacher:
        results, governor = sample(teacher, tmp_path, range(20), max_retries=0)
    assert all(result.done.status == "accepted" for result in results)
    assert governor.runs["run"].totals.rate_limited > 0


def test_attempts_are_bounded_and_a_sample_without_answer_stays_pending(tmp_path):
    with teaching(faults={"500": 1.0}) as teacher:
        results, _ = sample(teacher, tmp_path, range(2), max_retries=2, give_up_after=60)
        assert teacher.ledger()["received"] == 2 * 3
    assert [result.done.status for result in results] == ["pending"] * 2
    assert "no answer in 3 attempts: HTTP 500" in (results[0].done.reason or "")


def test_a_400_quarantines_its_sample_and_is_not_sent_again(tmp_path):
    with (
        teaching(faults={"400": 0.2}) as teacher,
        working(teacher, tmp_path, dialect="fireworks") as (worker, _),
    ):
        results = worker.run(range(30))
        received = teacher.ledger()["received"]
        again = worker.run(range(30))
        assert teacher.ledger()["received"] == received
    bad = [result for result in results if result.done.status == "quarantined"]
    assert 0 < len(bad) < 30
    assert all("does not take this request: HTTP 400: " in (result.done.reason or "") for result in bad)
    assert all("bad request" in (result.done.reason or "") for result in bad), "the server's own words"
    assert rows(results) == rows(again)


def test_a_later_invocation_asks_once_more_what_was_refused_and_has_the_rows_of_an_undisturbed_run(tmp_path):
    mended = tmp_path / "mended"
    with teaching() as teacher:
        straight, _ = sample(teacher, tmp_path / "straight", range(30), dialect="fireworks")
    with teaching(faults={"400": 0.2}) as teacher:
        results, _ = sample(teacher, mended, range(30), dialect="fireworks")
        refused = teacher.ledger()["statuses"]["400"]
        sample(teacher, mended, range(30), dialect="fireworks")
        assert teacher.ledger()["statuses"]["400"] == 2 * refused, "once more, and nothing else"
        assert teacher.ledger()["statuses"]["200"] == sum(r.kind == "answer" for r in journal.records(mended))
    assert rows(results) != rows(straight)
    with teaching() as teacher:
        again, _ = sample(teacher, mended, range(30), dialect="fireworks")
        received = teacher.ledger()["received"]
        assert rows(again) == rows(straight)
        assert journal.paid(mended, "run") == journal.paid(tmp_path / "straight", "run")
        compaction.compact(mended)
        kept, _ = sample(teacher, mended, range(30), dialect="fireworks")
        assert teacher.ledger()["received"] == received
    assert rows(kept) == rows(straight)
    assert journal.paid(mended, "run") == journal.paid(tmp_path / "straight", "run")
    assert journal.spent(mended, "run") == pytest.approx(journal.spent(tmp_path / "straight", "run"))


@pytest.mark.parametrize("status", ["401", "402", "404"])
def test_what_no_request_can_pass_stops_all_and_is_not_repeated(tmp_path, status):
    with teaching(faults={status: 1.0}, latency=0.05) as teacher:
        results, governor = sample(teacher, tmp_path, range(200))
        assert teacher.ledger()["received"] <= 8, "what was in flight, and no more"
    assert governor.runs["run"].stop
    assert {result.done.status for result in results} == {"pending"}


def test_a_hung_server_cannot_hang_the_run(tmp_path):
    began = time.monotonic()
    with teaching(faults={"hang": 1.0}) as teacher:
        results, governor = sample(teacher, tmp_path, range(50), total=0.3, give_up_after=2.0, max_retries=100)
    assert time.monotonic() - began < 15
    assert governor.runs["run"].stop == "the server gave no answer for 2 s"
    assert {result.done.status for result in results} == {"pending"}


def test_a_close_that_comes_as_the_limiter_answers_is_not_lost(tmp_path):
    """`asyncio.wait_for` of Python 3.11 swallows it there, and the run would wait for ever for its sender."""
    loaded = config.load()
    task = relation_extraction.make_task(loaded.recipe.generation)
    api = loaded.place.api.model_copy(update={"inference_base_url": "http://127.0.0.1:9", "dialect": "openai"})
    limits = Settings(8, 8, None, None, None, 5.0)
    governor = Governor(limits, time.monotonic)
    governor.join("run", Budget(PRICE, None), limits)
    closed: concurrent.futures.Future[None] = concurrent.futures.Future()
    made: list[Worker] = []

    async def exchange(name, finished, needs, trouble):
        if made and not closed.running() and closed.set_running_or_notify_cancel():
            asyncio.get_running_loop().call_soon(lambda: asyncio.ensure_future(close()))
        governor.driver_is_alive("run")
        return governor.exchange("run", name, finished, needs, trouble)

    async def close():
        await made[0]._close()
        closed.set_result(None)

    sending = Sending("run", 1.0, 1.0, 1.0, 1, 0.01)
    made.append(Worker(task, endpoint_of(api, TEACHER), PRICE, sending, tmp_path, tmp_path / "marks", exchange))
    closed.result(timeout=30)
    made[0]._loop.call_soon_threadsafe(made[0]._loop.stop)


def test_answers_that_another_server_of_the_same_model_gave_are_taken_and_told(tmp_path):
    with teaching() as one:
        first, _ = sample(one, tmp_path, range(10))
    with teaching() as other:
        results, _ = sample(other, tmp_path, range(12))
        assert other.ledger()["received"] == 4
    assert rows(results)[:10] == rows(first)
    assert [len(result.elsewhere) for result in results] == [2] * 10 + [0] * 2
    assert {server for result in results for server in result.elsewhere} == {one.base_url}
    (tmp_path / outcomes.OUTCOMES).mkdir()
    for part in (results[:5], results[3:]):
        lines = [outcomes.line_of(result, "train") for result in part]
        outcomes.append_outcomes(tmp_path / outcomes.OUTCOMES / f"{len(part)}.jsonl", lines)
    assert outcomes.elsewhere(tmp_path) == {one.base_url: 20}


@pytest.mark.parametrize(("fault", "costs"), [("500", False), ("reset", True), ("402", False), ("403", False)])
def test_dollars_are_booked_only_where_somebody_may_have_been_billed(tmp_path, fault, costs):
    with teaching(faults={fault: 1.0}) as teacher:
        _, governor = sample(teacher, tmp_path, range(3), max_retries=0)
    assert (governor.runs["run"].usd > 0) is costs
    assert governor.runs["run"].usd == pytest.approx(journal.spent(tmp_path, "run"))


def test_the_budget_is_hard_and_the_rest_stays_pending(tmp_path):
    with teaching() as teacher:
        results, governor = sample(teacher, tmp_path, range(200), max_usd=0.02)
    assert governor.runs["run"].usd <= 0.02
    assert journal.spent(tmp_path, "run") <= 0.02
    assert (governor.runs["run"].stop or "").startswith("budget")
    assert {result.done.status for result in results} >= {"pending", "accepted"}


def test_a_server_that_refuses_keys_is_asked_with_fewer(tmp_path):
    refused = ("context_length_exceeded_behavior", "response_format")
    with teaching(refused_keys=refused) as teacher:
        results, _ = sample(teacher, tmp_path, range(60))
        ledger = teacher.ledger()
    assert all(result.done.status == "accepted" for result in results)
    assert ledger["statuses"]["200"] == 120
    assert ledger["statuses"]["422"] <= 5 * 8, "found out with the first requests, not with each"


def test_no_more_are_in_flight_than_the_window_and_permits_ahead_fill_it(tmp_path):
    with teaching(latency=0.05) as teacher:
        _, governor = sample(teacher, tmp_path, range(200), max_in_flight=8)
        ledger = teacher.ledger()
    assert governor.window == 8
    assert ledger["most_in_flight"] == 8


def test_a_stop_hands_back_the_permits_that_were_not_used(tmp_path):
    with teaching(latency=0.05, faults={"402": 0.05}) as teacher:
        _, governor = sample(teacher, tmp_path, range(200))
        ledger = teacher.ledger()
    assert governor.in_flight == 0
    assert governor.reserved_of("run") == pytest.approx(0.0)
    assert governor.runs["run"].totals.sent == ledger["received"]


def test_a_cut_off_answer_is_asked_for_once_more_and_never_taken(tmp_path):
    with teaching(faults={"length": 0.2}) as teacher:
        results, _ = sample(teacher, tmp_path, range(40))
    kinds = [record.kind for record in journal.records(tmp_path)]
    assert "truncated" in kinds
    for result in results:
        if result.done.status == "quarantined":
            assert "cut off" in (result.done.reason or "")
    assert sum(result.done.status == "accepted" for result in results) > 20


def test_a_journal_that_cannot_be_written_stops_the_run(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal.Writer, "append", full)
    with teaching() as teacher:
        results, governor = sample(teacher, tmp_path, range(100))
        assert teacher.ledger()["received"] <= 8
    assert "No space left" in (governor.runs["run"].stop or "")
    assert {result.done.status for result in results} <= {"pending", "accepted", "rejected"}


def test_an_error_that_nobody_foresaw_costs_its_sample_and_gives_its_place_back(tmp_path):
    with teaching() as teacher:
        with working(teacher, tmp_path) as (worker, governor):
            ask, calls = worker._client.ask, []

            async def spoiled(body, **more):
                calls.append(body)
                if len(calls) <= 4:
                    raise ValueError("nobody foresaw it")
                return await ask(body, **more)

            worker._client.ask = spoiled
            results = worker.run(range(12))
        assert teacher.ledger()["received"] == 16
    statuses = sorted(result.done.status for result in results)
    assert statuses == ["accepted"] * 8 + ["quarantined"] * 4
    assert governor.in_flight == 0
    # It may have been answered behind our back: it counts as paid.
    assert governor.runs["run"].usd > journal.spent(tmp_path, "run")
