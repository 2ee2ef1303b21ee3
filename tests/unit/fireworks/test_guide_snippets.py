"""The guide's snippets as they stand there, but for their import line and their «...»; its steps as commands."""

import json
import subprocess
import sys

import pytest

from tests.vendor import TINY, chat_file, environment, pairs_file, vending
from ucotron_ray import cli

SNIPPETS = {
    "upload": """
from ucotron_ray.fireworks import FireworksFineTuner
ft = FireworksFineTuner()
ft.upload_file('data/finetune/train_sft.jsonl')
""",
    "sft": """
from ucotron_ray.fireworks import FireworksFineTuner, SftJobConfig
ft = FireworksFineTuner()
config = SftJobConfig(epochs=3, learning_rate=2e-4, lora_rank=16)
job = ft.create_sft_job(dataset_id='...', model_id='...', config=config)
ft.wait_for_job(job)
""",
    "dpo": """
from ucotron_ray.fireworks import FireworksFineTuner, DpoJobConfig
ft = FireworksFineTuner()
config = DpoJobConfig(epochs=2, learning_rate=5e-5, lora_rank=16)
job = ft.create_dpo_job(dataset_id='...', model_id='...', config=config)
ft.wait_for_job(job)
""",
    "evaluation": """
from ucotron_ray.fireworks import FireworksFineTuner
ft = FireworksFineTuner()
ft.test_model(model_id='accounts/YOUR_ACCOUNT/models/ucotron-re-slm')
ft.compare_models(model_ids=['base-model', 'finetuned-model'])
""",
}


def snippet(name: str, vendor, directory, *dots: str, **names: str) -> str:
    code = SNIPPETS[name]
    for value in dots:
        code = code.replace("'...'", f"'{value}'", 1)
    for old, new in names.items():
        code = code.replace(old, new)
    # What the caller of a snippet would look at.
    code += "\nprint(repr(locals().get('job', '')))\n"
    done = subprocess.run(
        [sys.executable, "-c", code.replace("wait_for_job(job)", "wait_for_job(job, poll_interval=0.01)")],
        capture_output=True, text=True, cwd=directory, env=environment(vendor), timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "data" / "finetune"
    folder.mkdir(parents=True)
    chat_file(folder / "train_sft.jsonl")
    pairs_file(folder / "train_dpo.jsonl")
    return folder


def test_the_guides_python_runs_with_nothing_but_its_import_line_changed(tmp_path, files, monkeypatch):
    with vending(monkeypatch) as vendor:
        snippet("upload", vendor, tmp_path)
        rows = next(name for name in vendor.control()["stored"]).split("/")[0].rpartition("~")[2]
        sft = snippet("sft", vendor, tmp_path, rows, TINY)
        assert "ucotron-sft-" in sft
        model = sft.split("output_model='")[1].split("'")[0]
        capture = cli.main(["fireworks", "upload", str(files / "train_dpo.jsonl"), *vendor.settings(tmp_path)])
        assert capture == 0
        pairs = (
            next(name for name in vendor.control()["stored"] if "train-dpo" in name).split("/")[0].rpartition("~")[2]
        )
        dpo = snippet("dpo", vendor, tmp_path, pairs, model)
        tuned = dpo.split("output_model='")[1].split("'")[0]
        # A trained adapter is served on a deployment only.
        from ucotron_ray.fireworks import deployments

        deployments.wait_ready(vendor.account, deployments.deploy(vendor.account, tuned), interval=0.0, timeout=5.0)
        names = {"accounts/YOUR_ACCOUNT/models/ucotron-re-slm": tuned, "base-model": TINY, "finetuned-model": tuned}
        snippet("evaluation", vendor, tmp_path, **names)
        created = vendor.control()["created"]
        assert (created["supervisedFineTuningJobs"], created["dpoJobs"], created["datasets"]) == (1, 1, 2)


def call(capsys, *arguments: str) -> dict:
    assert cli.main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_guides_steps_run_as_commands(tmp_path, files, monkeypatch, capsys):
    with vending(monkeypatch) as vendor:
        where = vendor.settings(tmp_path / "store")
        assert TINY in call(capsys, "fireworks", "models", *where)["models"]
        rows = call(capsys, "fireworks", "upload", str(files / "train_sft.jsonl"), *where)
        assert (rows["rows"], rows["layout"], rows["sent"]) == (5, "chat", True)
        sft = call(capsys, "fireworks", "sft", "--dataset", rows["dataset_id"], "--wait", *where)
        assert (sft["state"], sft["new"]) == ("succeeded", True)
        dpo = call(
            capsys, "fireworks", "dpo", "--dataset", str(files / "train_dpo.jsonl"),
            "--base-model", sft["output_model"], "--output-model", "ucotron-re-slm", "--beta", "0.2", *where,
        )  # fmt: skip
        assert call(capsys, "fireworks", "wait", dpo["job"], *where)["state"] == "succeeded"
        assert call(capsys, "fireworks", "status", dpo["job"], *where)["output_model"].endswith("/ucotron-re-slm")
        assert len(call(capsys, "fireworks", "list", "--limit", "10", *where)["jobs"]) == 2
        tested = call(capsys, "fireworks", "test", "ucotron-re-slm", "--deploy", *where)
        assert (tested["summary"]["rows"], len(tested["answers"])) == (5, 5)
        own = call(capsys, "fireworks", "test", TINY, "--prompts", "Hello", "Bye", *where)
        assert [answer["prompt"] for answer in own["answers"]] == ["Hello", "Bye"]
        compared = call(capsys, "fireworks", "compare", TINY, "ucotron-re-slm", "--deploy", *where)
        assert set(compared["summary"]) == {TINY, "ucotron-re-slm"}
        # Nothing is left that costs.
        from ucotron_ray.fireworks import account as control

        deployed = control.pages(vendor.account, "accounts/acme/deployments", "deployments")
        assert {entry["state"] for entry in deployed} == {"DELETED"}


def test_an_adapter_without_a_deployment_is_said(tmp_path, files, monkeypatch, capsys):
    with vending(monkeypatch) as vendor:
        where = vendor.settings(tmp_path / "store")
        sft = call(capsys, "fireworks", "sft", "--dataset", str(files / "train_sft.jsonl"), "--wait", *where)
        assert cli.main(["fireworks", "test", sft["output_model"], *where]) == 2
        assert "add --deploy" in capsys.readouterr().err


def test_importing_the_guides_names_imports_nothing_heavy():
    heavy = ("torch", "transformers", "ray", "mlflow", "numpy")
    code = (
        "import sys\nfrom ucotron_ray.fireworks import FireworksFineTuner, SftJobConfig, DpoJobConfig\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
