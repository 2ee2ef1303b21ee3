"""Jobs are made once and found again; every state ends in the right exit code; lists are whole."""

import json
import re
from dataclasses import replace

import pytest

from tests.vendor import TINY, chat_file, pairs_file, vending
from ucotron_ray import cli
from ucotron_ray.core.errors import ConfigError, FireworksError, RateLimitError, RemoteJobFailed, Stopped
from ucotron_ray.fireworks import account as control
from ucotron_ray.fireworks import datasets, deployments, tuning_jobs, waiting
from ucotron_ray.fireworks.tuning_jobs import DpoJobConfig, JobStatus, SftJobConfig
from ucotron_ray.fireworks.waiting import Patience

FAST = Patience(interval=60.0, timeout=100_000.0, verbose=False)
"""On a clock of the test's own: a wait that should have ended is late, and does not hang."""


def made(vendor, tmp_path, **changes) -> JobStatus:
    uploaded = datasets.upload(vendor.account, chat_file(tmp_path / "rows.jsonl"))
    body = tuning_jobs.sft_body(vendor.account, uploaded.dataset_id, TINY, SftJobConfig(**changes), "HF_BASE_MODEL")
    return tuning_jobs.create_job(vendor.account, "sft", body)[0]


# ---- bodies ------------------------------------------------------------------------------------------------------------


def test_bodies_have_every_hyperparameter_in_the_vendors_words(monkeypatch):
    with vending(monkeypatch) as vendor:
        who = vendor.account
        sft = tuning_jobs.sft_body(who, "d", TINY, SftJobConfig(2, 1e-4, 8, 32, 4096, "held"), "HF_BASE_MODEL")
        dpo = tuning_jobs.dpo_body(who, "d", "mine", DpoJobConfig(1, 3e-5, 16, 4, 1024, 0.2), "HF_PEFT_ADDON")
    assert sft == {
        "dataset": "accounts/acme/datasets/d",
        "baseModel": TINY,
        "epochs": 2,
        "learningRate": 1e-4,
        "loraRank": 8,
        "maxContextLength": 4096,
        "batchSizeSamples": 32,
        "evaluationDataset": "accounts/acme/datasets/held",
    }
    assert dpo["lossConfig"] == {"method": "DPO", "dpo": {"beta": 0.2}}
    assert dpo["trainingConfig"] == {
        "warmStartFrom": "accounts/acme/models/mine",
        "epochs": 1,
        "learningRate": 3e-5,
        "loraRank": 16,
        "maxContextLength": 1024,
        "batchSizeSamples": 4,
    }


def test_a_beta_that_the_vendor_refuses_is_said_before_anything_is_sent(monkeypatch):
    with vending(monkeypatch) as vendor, pytest.raises(ConfigError, match="beta"):
        tuning_jobs.dpo_body(vendor.account, "d", TINY, DpoJobConfig(beta=0.5), None)


def test_wandb_goes_along_only_with_both_of_its_parts(tmp_path, monkeypatch, capsys):
    assert tuning_jobs.wandb_config("p", None) is None
    assert tuning_jobs.wandb_config(None, "k") is None
    assert "secret" not in repr(SftJobConfig(wandb_api_key="secret"))
    with vending(monkeypatch) as vendor:
        data = str(chat_file(tmp_path / "rows.jsonl"))
        arguments = ["fireworks", "sft", "--dataset", data, "--wandb-project", "p", *vendor.settings(tmp_path)]
        assert cli.main(arguments) == 0
        job = capsys.readouterr().out.split()[-1]
        name = f"accounts/acme/supervisedFineTuningJobs/{job}"
        assert "wandbConfig" not in control.call(vendor.account, "GET", name)
        monkeypatch.setenv("WANDB_API_KEY", "wb")
        assert cli.main([*arguments, "--again", "2"]) == 0
        again = control.call(vendor.account, "GET", name + "-2")
        assert again["wandbConfig"] == {"enabled": True, "project": "p", "apiKey": "wb"}


@pytest.mark.parametrize(("tier", "epochs", "rank", "context"), [("slm", 3, 8, 2048), ("medium", 2, 16, 4096)])
def test_a_tier_brings_its_numbers(tmp_path, monkeypatch, capsys, tier, epochs, rank, context):
    with vending(monkeypatch) as vendor:
        data = str(chat_file(tmp_path / "rows.jsonl"))
        arguments = ["fireworks", "sft", "--dataset", data, "--tier", tier, *vendor.settings(tmp_path)]
        assert cli.main([*arguments, "--learning-rate", "1e-5"]) == 0
        name = f"accounts/acme/supervisedFineTuningJobs/{capsys.readouterr().out.split()[-1]}"
        job = control.call(vendor.account, "GET", name)
    assert (job["epochs"], job["loraRank"], job["maxContextLength"]) == (epochs, rank, context)
    assert job["learningRate"] == 1e-5


# ---- once ----------------------------------------------------------------------------------------------------------------


def test_the_same_request_finds_its_job_and_another_one_makes_another(tmp_path, monkeypatch):
    with vending(monkeypatch) as vendor:
        first, second = made(vendor, tmp_path), made(vendor, tmp_path)
        other = made(vendor, tmp_path, epochs=1)
        assert first.name == second.name != other.name
        assert vendor.created("supervisedFineTuningJobs") == 2


def test_a_creation_whose_answer_is_lost_is_not_repeated(tmp_path, monkeypatch):
    """Half of all answers are lost after the work was done."""
    with vending(monkeypatch, faults={"lost": 0.5}, seed=3) as vendor:
        patient = replace(vendor, account=replace(vendor.account, max_retries=40, retry_delay=0.0))
        jobs = {made(patient, tmp_path, epochs=epochs).name for epochs in (1, 2, 3)}
        assert len(jobs) == vendor.created("supervisedFineTuningJobs") == 3
        assert vendor.created("datasets") == 1
        posts = vendor.control()["requests"]["POST /v1/accounts/{account}/supervisedFineTuningJobs"]
        assert posts == 3


def test_ids_depend_on_what_is_asked_and_on_nothing_else(monkeypatch):
    with vending(monkeypatch) as vendor:
        body = tuning_jobs.sft_body(vendor.account, "d", TINY, SftJobConfig(), None)
    again = {key: body[key] for key in reversed(list(body))}
    assert tuning_jobs.stable_job_id("sft", body) == tuning_jobs.stable_job_id("sft", again)
    assert tuning_jobs.stable_job_id("sft", {**body, "epochs": 4}) != tuning_jobs.stable_job_id("sft", body)
    assert tuning_jobs.stable_job_id("sft", body, 2) == tuning_jobs.stable_job_id("sft", body) + "-2"
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,62}", tuning_jobs.stable_job_id("sft", body, 12))


def test_a_quota_of_jobs_is_said_and_can_be_gone_on_with(tmp_path, monkeypatch):
    with vending(monkeypatch, max_active_jobs=1) as vendor:
        made(vendor, tmp_path)
        with pytest.raises(RateLimitError, match="quota") as raised:
            made(vendor, tmp_path, epochs=1)
        assert "at most 1 supervisedFineTuningJobs at once" in str(raised.value)
        assert raised.value.exit_code == 75


# ---- states --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("COMPLETED", 0, "succeeded"),
        ("FAILED", 1, "ended as failed"),
        ("CANCELLED", 1, "ended as cancelled"),
        ("EARLY_STOPPED", 1, "ended as early-stopped"),
        ("EXPIRED", 1, "ended as expired"),
        ("PAUSED", 75, "paused"),
        ("PENDING", 75, "deadline passed"),
        ("HIBERNATING", 75, "deadline passed"),
    ],
)
def test_every_state_has_its_exit_code(tmp_path, monkeypatch, capsys, end, code, said):
    """CANCELLED and EARLY_STOPPED used to be «done», unknown states were waited for without end."""
    with vending(monkeypatch, job_end=end) as vendor:
        job = made(vendor, tmp_path)
        timeout = ["--timeout", "0.2" if code == 75 and end != "PAUSED" else "20"]
        assert cli.main(["fireworks", "wait", job.job_id, *timeout, *vendor.settings(tmp_path), "--json"]) == code
        out, err = capsys.readouterr()
    assert said in out + err
    assert json.loads(out.splitlines()[-1])["status"] == {0: "ok", 1: "failed", 75: "stopped"}[code]
    if code == 75:
        assert f"fireworks wait {job.job_id}" in err


class Clock:
    """Time that passes by sleeping."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def waited(vendor, job, patience, **more):
    clock = Clock()
    return waiting.wait(vendor.account, job, patience, clock=clock, sleep=clock.sleep, **more), clock


def test_no_limit_means_no_limit(tmp_path, monkeypatch):
    """A timeout of 0 used to end at once."""
    with vending(monkeypatch, job_polls=50) as vendor:
        done, clock = waited(vendor, made(vendor, tmp_path), Patience(interval=36_000, timeout=0, verbose=False))
    assert done.state == "COMPLETED"
    assert clock.now > 3600 * 400


def test_a_state_that_nobody_knows_is_shown_and_waited_for_an_hour(tmp_path, monkeypatch, caplog):
    caplog.set_level("WARNING")
    with vending(monkeypatch, job_end="HIBERNATING") as vendor:
        job = made(vendor, tmp_path)
        with pytest.raises(Stopped, match="does not know") as raised:
            waited(vendor, job, Patience(interval=60, timeout=0))
    assert raised.value.found == "HIBERNATING"
    assert caplog.text.count("a state that this version does not know: HIBERNATING") == 1


def test_a_job_that_stays_queued_is_explained(tmp_path, monkeypatch, caplog):
    caplog.set_level("WARNING")
    with vending(monkeypatch, job_end="PENDING") as vendor:
        job = made(vendor, tmp_path)
        with pytest.raises(Stopped, match="deadline"):
            waited(vendor, job, Patience(interval=60, timeout=1200))
        assert 2 <= caplog.text.count("jobs wait for the vendor's capacity") <= 4
        with pytest.raises(Stopped, match="queued for 10m"):
            waited(vendor, job, Patience(interval=60, timeout=0, pending_timeout=600))


def test_ctrl_c_leaves_the_job_alone_and_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    with vending(monkeypatch) as vendor:
        job = made(vendor, tmp_path)
        with pytest.raises(Stopped, match="runs on at the vendor") as raised:
            waiting.wait(vendor.account, job, FAST, sleep=interrupt)
        assert f"fireworks wait {job.job_id}" in raised.value.next_step
        assert tuning_jobs.get_job(vendor.account, job.name).state not in tuning_jobs.ENDED_BADLY
        posts = [
            key for key in vendor.control()["requests"] if key.startswith("POST") and "{name}" in key and "Jobs" in key
        ]
        assert posts == []


def failing(monkeypatch, status, *, times, after=1):
    """`get_job` that fails so many times after some good looks."""
    real, calls = tuning_jobs.get_job, []

    def get(*args):
        calls.append(1)
        if after < len(calls) <= after + times:
            error = FireworksError("no", found=f"HTTP {status}")
            error.status_code = status
            raise error
        return real(*args)

    monkeypatch.setattr(tuning_jobs, "get_job", get)


@pytest.mark.parametrize("status", [None, 429, 503])
def test_an_outage_is_waited_out(tmp_path, monkeypatch, status):
    with vending(monkeypatch) as vendor:
        job = made(vendor, tmp_path)
        failing(monkeypatch, status, times=10)
        assert waited(vendor, job, Patience(interval=60, verbose=False))[0].state == "COMPLETED"
        job = made(vendor, tmp_path, epochs=1)
        failing(monkeypatch, status, times=1000)
        with pytest.raises(Stopped, match="the job runs on"):
            waited(vendor, job, Patience(interval=60, verbose=False))


def test_a_refusal_in_the_middle_is_a_stop_and_at_the_first_look_an_error(tmp_path, monkeypatch):
    with vending(monkeypatch) as vendor:
        job = made(vendor, tmp_path)
        failing(monkeypatch, 403, times=1)
        with pytest.raises(Stopped) as raised:
            waited(vendor, job, Patience(interval=60, verbose=False))
        assert f"fireworks wait {job.job_id}" in raised.value.next_step
        failing(monkeypatch, 403, times=1, after=0)
        with pytest.raises(FireworksError, match="no"):
            waited(vendor, job, Patience(interval=60, verbose=False))


def test_the_callback_sees_every_look(tmp_path, monkeypatch):
    seen = []
    with vending(monkeypatch) as vendor:
        waited(vendor, made(vendor, tmp_path), FAST, callback=lambda job: seen.append((job.state, job.percent)))
    assert seen[-1] == ("COMPLETED", 100)
    assert [percent for _, percent in seen] == sorted(percent for _, percent in seen)


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (59.6, "1m 0s"), (61, "1m 1s"), (3661, "1h 1m 1s")])
def test_durations(seconds, text):
    assert waiting.duration(seconds) == text


def test_the_line_has_state_bar_time_and_time_left():
    job = JobStatus("accounts/a/dpoJobs/j", "dpo", "RUNNING", percent=25.0)
    assert waiting.progress_line(job, 60.0) == "j  running  [######..................] 25%  1m 0s, about 3m 0s left"
    assert waiting.progress_line(JobStatus("x/j", "sft", "PENDING"), 5.0) == "j  queued  5s"


# ---- lists, cancel, resume --------------------------------------------------------------------------------------------------


def test_the_list_has_both_kinds_and_all_pages(tmp_path, monkeypatch, capsys):
    with vending(monkeypatch, page_size=2) as vendor:
        for epochs in (1, 2, 3):
            made(vendor, tmp_path, epochs=epochs)
        pairs = datasets.upload(vendor.account, pairs_file(tmp_path / "pairs.jsonl"))
        body = tuning_jobs.dpo_body(vendor.account, pairs.dataset_id, TINY, DpoJobConfig(), None)
        tuning_jobs.create_job(vendor.account, "dpo", body)
        assert cli.main(["fireworks", "list", *vendor.settings(tmp_path), "--json"]) == 0
        jobs = json.loads(capsys.readouterr().out.splitlines()[-1])["jobs"]
    assert sorted(job["kind"] for job in jobs) == ["dpo", "sft", "sft", "sft"]


def test_cancel_then_resume_then_done(tmp_path, monkeypatch):
    with vending(monkeypatch) as vendor:
        job = made(vendor, tmp_path)
        assert tuning_jobs.cancel_job(vendor.account, job).state == "CANCELLED"
        with pytest.raises(RemoteJobFailed, match="cancelled"):
            waited(vendor, job, FAST)
        with pytest.raises(FireworksError, match="refuses"):
            tuning_jobs.cancel_job(vendor.account, job)
        tuning_jobs.resume_job(vendor.account, job)
        assert waited(vendor, job, FAST)[0].state == "COMPLETED"
        assert vendor.created("supervisedFineTuningJobs") == 1


def test_a_job_is_found_by_its_bare_id_whatever_its_kind(tmp_path, monkeypatch):
    with vending(monkeypatch) as vendor:
        pairs = datasets.upload(vendor.account, pairs_file(tmp_path / "pairs.jsonl"))
        body = tuning_jobs.dpo_body(vendor.account, pairs.dataset_id, TINY, DpoJobConfig(), None)
        job, _ = tuning_jobs.create_job(vendor.account, "dpo", body, job_id="mine")
        found = tuning_jobs.get_job(vendor.account, "mine")
        assert (found.name, found.kind) == (job.name, "dpo")
        assert tuning_jobs.get_job(vendor.account, job.name).name == job.name


def test_rows_of_the_wrong_kind_fail_the_job_with_the_vendors_reason(tmp_path, monkeypatch):
    with vending(monkeypatch) as vendor:
        pairs = datasets.upload(vendor.account, pairs_file(tmp_path / "pairs.jsonl"))
        body = tuning_jobs.sft_body(vendor.account, pairs.dataset_id, TINY, SftJobConfig(), None)
        job, _ = tuning_jobs.create_job(vendor.account, "sft", body)
        with pytest.raises(RemoteJobFailed, match="failed") as raised:
            waited(vendor, job, FAST)
    assert "syntax error" in raised.value.found


def test_costs_are_money_of_the_vendors_or_plain_numbers():
    status = tuning_jobs.status_of({"name": "n", "estimatedCost": {"units": "3", "nanos": 250000000}}, "sft")
    assert status.usd == 3.25
    assert tuning_jobs.status_of({"name": "n", "estimatedCost": 1.5}, "sft").usd == 1.5
    assert tuning_jobs.status_of({}, "sft").usd is None


# ---- deployments ----------------------------------------------------------------------------------------------------------


def test_a_deployment_is_found_again_and_its_id_never_used_twice(tmp_path, monkeypatch):
    with vending(monkeypatch) as vendor:
        waited(vendor, job := made(vendor, tmp_path), FAST)
        model = tuning_jobs.get_job(vendor.account, job.name).output_model
        first, again = deployments.deploy(vendor.account, model), deployments.deploy(vendor.account, model)
        assert first == again
        assert deployments.of_model(vendor.account, model) is None
        deployments.wait_ready(vendor.account, first, interval=0.0, timeout=5.0)
        assert deployments.of_model(vendor.account, model) == first
        deployments.take_down(vendor.account, first)
        deployments.take_down(vendor.account, first)
        assert deployments.deploy(vendor.account, model) != first
        assert vendor.created("deployments") == 2
