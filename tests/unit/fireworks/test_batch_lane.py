"""The batch lane: a task's requests in waves, into the journal; killed anywhere, nothing is asked twice."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from tests.vendor import vending
from ucotron_ray import cli
from ucotron_ray.fireworks import batch as lane
from ucotron_ray.fireworks import datasets
from ucotron_ray.synthesis import journal

COUNT = 12


def fill(vendor, store, capsys, *more: str) -> tuple[int, dict]:
    arguments = ["fireworks", "batch", "relation_extraction", "--count", str(COUNT), *vendor.settings(store), *more]
    code = cli.main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def asked(vendor) -> Counter:
    """Every request of every batch, by its id."""
    ids: Counter = Counter()
    for entry in datasets.listed(vendor.account):
        name = entry["name"].rpartition("/")[2]
        if name.startswith("batch-relation"):
            for content in datasets.download(vendor.account, name).values():
                ids.update(json.loads(line)["custom_id"] for line in content.decode().splitlines())
    return ids


def journaled(store) -> list:
    return list(journal.records(store / "journal" / "relation_extraction"))


def test_two_waves_fill_the_journal_at_half_the_price(tmp_path, monkeypatch, capsys):
    with vending(monkeypatch) as vendor:
        code, made = fill(vendor, tmp_path, capsys)
        assert (code, made["open"], made["requests"], made["answered"]) == (0, 0, 2 * COUNT, 2 * COUNT)
        records = journaled(tmp_path)
        assert len({record.step for record in records}) == 2
        online = sum((r.prompt_tokens * 0.5 + r.completion_tokens * 1.5) / 1e6 for r in records)
        assert made["cost_usd"] == pytest.approx(online / 2, abs=1e-5)
        assert max(asked(vendor).values()) == 1
        # What is there is not asked again, and more samples pay for the new ones only.
        assert fill(vendor, tmp_path, capsys)[1]["requests"] == 0
        assert vendor.created("batchInferenceJobs") == 2


def test_online_synthesis_takes_what_the_batches_answered(tmp_path, monkeypatch, capsys):
    """The same ids: every answer that the conversations need is found by them."""
    from ucotron_ray.core import config
    from ucotron_ray.synthesis import batch, job
    from ucotron_ray.teacher.endpoint import Endpoint

    with vending(monkeypatch) as vendor:
        fill(vendor, tmp_path, capsys)
    task = job.task_of("relation_extraction", config.load().recipe.generation)
    reader = journal.Reader(tmp_path / "journal" / "relation_extraction")
    reader.refresh()
    asked_there = Endpoint("http://127.0.0.1:9", "accounts/simulator/models/teacher", None, None, None)
    assert list(batch.open_requests(task, asked_there, range(COUNT), reader)) == []
    for another in (
        replace(asked_there, model="another"),
        replace(asked_there, extra_body={"reasoning_effort": "low"}),
    ):
        assert len(list(batch.open_requests(task, another, range(COUNT), reader))) == COUNT


KILLS = {
    "before the upload": (datasets, "upload_prepared"),
    "before the job is created": (lane.tuning_jobs, "create_job"),
    "while it waits": (lane.waiting, "wait"),
    "before the results are fetched": (datasets, "download"),
    "before they are journaled": (lane.journal, "Writer"),
    "before the wave is closed": (lane.batch, "collected"),
}


@pytest.mark.parametrize("moment", KILLS)
@pytest.mark.parametrize("time", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_anywhere_the_same_command_goes_on_and_asks_nothing_twice(tmp_path, monkeypatch, capsys, moment, time):
    home, name = KILLS[moment]
    real, calls = getattr(home, name), []

    def killed(*args, **keywords):
        calls.append(1)
        if len(calls) == time:
            raise KeyboardInterrupt
        return real(*args, **keywords)

    with vending(monkeypatch) as vendor:
        with monkeypatch.context() as patched:
            patched.setattr(home, name, killed)
            assert fill(vendor, tmp_path, capsys)[0] == 75
        code, made = fill(vendor, tmp_path, capsys)
        assert (code, made["open"]) == (0, 0)
        assert max(asked(vendor).values()) == 1
        assert vendor.created("batchInferenceJobs") == 2
        assert vendor.created("datasets") == 4
    records = journaled(tmp_path)
    assert len(records) == len({record.rid for record in records}) == 2 * COUNT


def test_what_an_expired_job_answered_is_kept_and_the_rest_is_asked_again(tmp_path, monkeypatch, capsys):
    with vending(monkeypatch, job_end="EXPIRED") as vendor:
        code, made = fill(vendor, tmp_path, capsys)
        assert code == 0
        assert 0 < made["answered"] < made["requests"]
        # Each wave asks only what no wave before it answered.
        assert len({record.rid for record in journaled(tmp_path)}) == made["answered"]


def test_rows_that_failed_are_left_for_the_next_wave_or_for_online(tmp_path, monkeypatch, capsys):
    with vending(monkeypatch, batch_error_share=0.3) as vendor:
        code, made = fill(vendor, tmp_path, capsys)
    assert code == 0
    assert made["waves"] > 2
    assert len(journaled(tmp_path)) == made["answered"]


def test_a_model_without_batch_support_stays_queued_and_is_given_up(tmp_path, monkeypatch, capsys):
    with vending(monkeypatch, job_end="PENDING") as vendor:
        code, made = fill(vendor, tmp_path, capsys, "--pending-timeout", "0.05")
        assert (code, made["status"]) == (75, "stopped")
        assert "without batch support" in made["error"]
        assert vendor.created("batchInferenceJobs") == 1
        fill(vendor, tmp_path, capsys, "--pending-timeout", "0.05")
        assert vendor.created("batchInferenceJobs") == 1


def test_a_failed_batch_says_why_and_the_next_command_makes_another(tmp_path, monkeypatch, capsys):
    with vending(monkeypatch, job_end="FAILED") as vendor:
        assert fill(vendor, tmp_path, capsys)[0] == 1
        assert fill(vendor, tmp_path, capsys)[0] == 1
        assert vendor.created("batchInferenceJobs") == 2


def test_the_budget_is_hard(tmp_path, monkeypatch, capsys):
    with vending(monkeypatch) as vendor:
        code, made = fill(vendor, tmp_path, capsys, "--max-usd", "0.0018")
        assert (code, made["error"]) == (75, "stopped: budget reached")
        assert sum(record.cost_usd for record in journaled(tmp_path)) <= 0.0018
        assert fill(vendor, tmp_path, capsys)[0] == 0
        assert max(asked(vendor).values()) == 1


def test_results_come_in_any_order_and_in_either_shape(tmp_path):
    from ucotron_ray.synthesis import batch

    wave = batch.Wave(tmp_path, "w")
    wave.record.write_text(json.dumps({"run": "run", "model": "model", "steps": {"a" * 32: "text", "b" * 32: "text"}}))
    message = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
    lines = [
        {"custom_id": "b" * 32, "response": {"status_code": 200, "body": message}},
        "{broken",
        {"custom_id": "c" * 32, "response": message},
        {"custom_id": "a" * 32, "response": message},
    ]
    raw = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines).encode()
    reader = journal.Reader(tmp_path)
    found = list(batch.records(wave, raw, None, reader))
    assert [(record.rid[0], record.text, record.estimated) for record in found] == [
        ("b", "hi", True),
        ("a", "hi", True),
    ]


def test_a_wave_of_another_model_is_left_alone_and_one_beyond_the_budget_is_not_begun(tmp_path, monkeypatch, capsys):
    def killed(*args, **keywords):
        raise KeyboardInterrupt

    with vending(monkeypatch) as vendor:
        with monkeypatch.context() as patched:
            patched.setattr(lane.tuning_jobs, "create_job", killed)
            assert fill(vendor, tmp_path, capsys)[0] == 75
        assert fill(vendor, tmp_path, capsys, "--max-usd", "0.0001")[1]["error"] == "stopped: budget reached"
        assert vendor.created("batchInferenceJobs") == 0
        (record,) = (tmp_path / "journal" / "relation_extraction" / "batch").glob("*.json")
        left = json.loads(record.read_text())
        record.write_text(json.dumps({**left, "model": "accounts/simulator/models/other"}))
        code, made = fill(vendor, tmp_path, capsys)
        assert (code, made["waves"], made["requests"]) == (0, 2, 2 * COUNT), "its own two alone"
        assert {record.model for record in journaled(tmp_path)} == {left["model"]}
        assert json.loads(record.read_text())["collected"] is False
