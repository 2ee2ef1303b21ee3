"""`pipeline --remote`: every step once, wherever the command was killed; failed jobs; scores of the deployed model."""

import json

import pytest

from tests.vendor import pairs_file, vending
from ucotron_ray import cli
from ucotron_ray.core.errors import AuthError
from ucotron_ray.fireworks import account as control
from ucotron_ray.fireworks import stage as remote
from ucotron_ray.fireworks import tuning_jobs


@pytest.fixture
def rows(tmp_path, demo_files):
    """The guide's directory: training and validation rows, and pairs."""
    from ucotron_ray.data import jsonl

    folder = tmp_path / "data"
    folder.mkdir()
    found = jsonl.read_relations(demo_files[1])
    jsonl.write_rows(folder / "train_sft.jsonl", found[:8])
    jsonl.write_rows(folder / "val_sft.jsonl", found[8:])
    pairs_file(folder / "train_dpo.jsonl")
    return folder


def chain(vendor, rows, tmp_path, capsys, *more: str) -> tuple[int, dict, str]:
    arguments = ["pipeline", "--remote", "--name", "mine", "--data-dir", str(rows)]
    code = cli.main([*arguments, *vendor.settings(tmp_path / "store"), *more, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), err


def test_the_chain_trains_scores_and_leaves_nothing_running(tmp_path, rows, monkeypatch, capsys):
    with vending(monkeypatch) as vendor:
        code, result, _ = chain(vendor, rows, tmp_path, capsys)
        assert code == 0
        assert 0 <= result["base_f1"] <= 1
        assert result["tuned_f1"] >= result["base_f1"]
        assert result["valid_answers"] == 1.0
        assert result["cost_usd"] > 0
        created = vendor.control()["created"]
        assert (created["supervisedFineTuningJobs"], created["dpoJobs"], created["datasets"]) == (1, 1, 3)
        dpo = next(tuning_jobs.list_jobs(vendor.account, ("dpo",)))
        sft = next(tuning_jobs.list_jobs(vendor.account, ("sft",)))
        assert dpo.base_model == sft.output_model
        alive = [e["state"] for e in control.pages(vendor.account, "accounts/acme/deployments", "deployments")]
        assert alive == ["DELETED"]
        requests = sum(vendor.control()["requests"].values())
        again = chain(vendor, rows, tmp_path, capsys)[1]
        expected = {stage["stage"]: stage for stage in result["estimate"]}
        assert expected["remote-sft"]["actual_usd"] + expected["remote-dpo"]["actual_usd"] == result["cost_usd"]
        assert again["estimate"] == []
        assert {**again, "seconds": 0, "estimate": 0} == {**result, "seconds": 0, "estimate": 0}
        # Reused: only the base model was looked at.
        assert sum(vendor.control()["requests"].values()) == requests + 1
    for name in ("mine-remote-sft", "mine-remote-dpo"):
        found = json.loads((tmp_path / "store" / "model" / name / "remote.json").read_text())
        assert found["state"] == "COMPLETED"


def test_the_plan_makes_nothing(tmp_path, rows, monkeypatch, capsys):
    with vending(monkeypatch) as vendor:
        code, result, _ = chain(vendor, rows, tmp_path, capsys, "--dry-run")
        assert code == 0
        assert {step["action"] for step in result["plan"]} == {"run"}
        training = ["import-pairs", "remote-sft", "remote-dpo", "remote-evaluate", "remote-evaluate"]
        stages = ["import-rows", *training]
        assert [step["stage"] for step in result["plan"]] == stages
        unaligned = chain(vendor, rows, tmp_path, capsys, "--dry-run", "--skip-dpo", "--set", "evaluation.base=false")[
            1
        ]["plan"]
        assert [step["stage"] for step in unaligned] == [
            "import-rows",
            "remote-sft",
            "remote-evaluate",
        ]
        assert vendor.control()["created"] == {}
    assert not (tmp_path / "store").exists()


MOMENTS = {
    "upload": (remote.vendor_datasets, "upload", 3),
    "create": (remote.tuning_jobs, "create_job", 2),
    "wait": (remote.waiting, "wait", 2),
    "deploy": (remote.deployments, "deploy", 1),
    "ready": (remote.deployments, "wait_ready", 1),
    "note": (remote, "write_json", 4),
}


USUAL = {("create", 1, "after"), ("wait", 2, "before"), ("deploy", 1, "after")}
ALL = [(m, n, s) for m, (*_, most) in MOMENTS.items() for n in range(1, most + 1) for s in ("before", "after")]


@pytest.mark.parametrize(
    ("moment", "time", "side"), [case if case in USUAL else pytest.param(*case, marks=pytest.mark.slow) for case in ALL]
)
def test_killed_at_any_step_it_goes_on_and_makes_nothing_twice(tmp_path, rows, monkeypatch, capsys, moment, time, side):
    home, name, _ = MOMENTS[moment]
    real, calls = getattr(home, name), []

    def killed(*args, **keywords):
        calls.append(1)
        if len(calls) == time and side == "before":
            raise KeyboardInterrupt
        result = real(*args, **keywords)
        if len(calls) == time:
            raise KeyboardInterrupt
        return result

    with vending(monkeypatch) as vendor:
        with monkeypatch.context() as patched:
            patched.setattr(home, name, killed)
            assert chain(vendor, rows, tmp_path, capsys)[0] == 75
        code, result, _ = chain(vendor, rows, tmp_path, capsys)
        assert code == 0
        assert result["tuned_f1"] is not None
        created = vendor.control()["created"]
        assert (created["supervisedFineTuningJobs"], created["dpoJobs"], created["datasets"]) == (1, 1, 3)


def test_a_job_that_failed_is_said_and_gone_on_with_after_a_resume(tmp_path, rows, monkeypatch, capsys):
    with vending(monkeypatch, job_end="FAILED") as vendor:
        code, result, err = chain(vendor, rows, tmp_path, capsys)
        assert (code, result["status"]) == (1, "failed")
        job = next(tuning_jobs.list_jobs(vendor.account, ("sft",)))
        assert f"fireworks resume {job.job_id}" in err
        assert chain(vendor, rows, tmp_path, capsys)[0] == 1
        assert vendor.created("supervisedFineTuningJobs") == 1
        # The simulator lets a resumed job end well.
        assert cli.main(["fireworks", "resume", job.job_id, *vendor.settings(tmp_path / "store")]) == 0
        capsys.readouterr()
        assert chain(vendor, rows, tmp_path, capsys, "--skip-dpo")[0] == 0
        assert vendor.created("supervisedFineTuningJobs") == 1


def test_billing_that_stops_in_the_middle_can_be_gone_on_with(tmp_path, rows, monkeypatch, capsys):
    def refused(*args, **keywords):
        raise AuthError("the account's budget is spent", found="HTTP 402")

    with vending(monkeypatch) as vendor:
        with monkeypatch.context() as patched:
            patched.setattr(remote, "dpo", refused)
            code, result, err = chain(vendor, rows, tmp_path, capsys)
        assert (code, result["status"]) == (75, "stopped")
        assert "HTTP 402" in err
        assert chain(vendor, rows, tmp_path, capsys)[0] == 0
        assert vendor.created("supervisedFineTuningJobs") == 1


def test_replace_makes_another_job_in_place_of_one_that_failed(tmp_path, rows, monkeypatch, capsys):
    with vending(monkeypatch, job_end="FAILED") as vendor:
        assert chain(vendor, rows, tmp_path, capsys)[0] == 1
        assert chain(vendor, rows, tmp_path, capsys, "--replace")[0] == 1
        names = [job.job_id for job in tuning_jobs.list_jobs(vendor.account, ("sft",))]
        assert len(names) == 2
        assert names[1] == names[0] + "-2"


def test_another_recipe_is_refused(tmp_path, rows, monkeypatch, capsys):
    with vending(monkeypatch) as vendor:
        assert chain(vendor, rows, tmp_path, capsys, "--skip-dpo")[0] == 0
        code, _, err = chain(vendor, rows, tmp_path, capsys, "--skip-dpo", "--epochs", "1")
        assert code == 3
        assert "epochs: 3 → 1" in err
        assert vendor.created("supervisedFineTuningJobs") == 1


def test_a_deployment_is_taken_down_when_scoring_fails(tmp_path, rows, monkeypatch, capsys):
    def broken(*args, **keywords):
        raise KeyboardInterrupt

    with vending(monkeypatch) as vendor:
        monkeypatch.setattr(remote, "_scored", broken)
        assert chain(vendor, rows, tmp_path, capsys, "--skip-dpo")[0] == 75
        alive = [e["state"] for e in control.pages(vendor.account, "accounts/acme/deployments", "deployments")]
        assert alive == ["DELETED"]


def test_a_recipe_whose_model_the_vendor_does_not_train(tmp_path, rows, monkeypatch, capsys):
    with vending(monkeypatch) as vendor:
        code, _, err = chain(vendor, rows, tmp_path, capsys, "--set", "models.fine_tuning.slm.model_id=none")
        assert code == 2
        assert "models/none" in err
    assert not (tmp_path / "store" / "dataset").exists()


def test_missing_account_is_exit_2_before_any_work(tmp_path, rows, monkeypatch, capsys):
    with vending(monkeypatch) as vendor:
        monkeypatch.delenv("FIREWORKS_ACCOUNT_ID")
        code, _, err = chain(vendor, rows, tmp_path, capsys)
    assert code == 2
    assert "FIREWORKS_ACCOUNT_ID is not set" in err
    assert not (tmp_path / "store" / "dataset").exists()
