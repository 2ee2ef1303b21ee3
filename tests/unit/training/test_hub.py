"""Nothing leaves this machine unless a flag says so, and a wrong flag is found before the training."""

import huggingface_hub
import pytest
from huggingface_hub.errors import OfflineModeIsEnabled

from tests.unit import test_cli
from tests.unit.test_cli import _no_ray  # noqa: F401 - the fixture is used by being there
from ucotron_ray.core.artifacts import BuildResult, Request, Store
from ucotron_ray.core.errors import StageFailed
from ucotron_ray.data import jsonl
from ucotron_ray.simulators import demo_world
from ucotron_ray.training import hub


@pytest.mark.parametrize(
    ("repository", "token", "said"),
    [("mine", "hf_canary", "ORG/NAME"), ("org/mine", "", "HF_TOKEN is not set")],
)
def test_an_upload_that_could_only_fail_ends_before_the_training(
    tmp_path, capsys, monkeypatch, tiny_model, repository, token, said
):
    monkeypatch.setenv("HF_TOKEN", token)
    rows = tmp_path / "rows.jsonl"
    jsonl.write_rows(rows, demo_world.rows(demo_world.graph_world(1), 8, seed=1))
    arguments = ["sft", "--train-data", str(rows), "--model-name", str(tiny_model), "--push-to-hub", repository]
    code, _, err = test_cli.call(tmp_path, capsys, *arguments, "--set", "tracking.mlflow_uri=none")
    assert code == 2
    assert said in err
    assert "hf_canary" not in err


def test_the_adapter_alone_goes_into_a_private_repository(tmp_path, monkeypatch):
    calls: list[tuple] = []

    class Api:
        def create_repo(self, name, *, private, exist_ok):
            calls.append(("create", name, private, exist_ok))
            return f"https://hub/{name}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            calls.append(("upload", repo_id, folder_path))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with Store(tmp_path).building(Request("adapter", "a", {})) as build:
        (build.path / "adapter").mkdir()
        (build.path / "adapter" / "adapter_config.json").write_text("{}")
        adapter = build.publish(BuildResult({}, {}, []))
    assert hub.push(adapter, "org/a") == "https://hub/org/a"
    assert calls == [("create", "org/a", True, True), ("upload", "org/a", str(adapter.path / "adapter"))]

    def refuse(*args, **kwargs):
        raise OfflineModeIsEnabled("offline")

    monkeypatch.setattr(Api, "upload_folder", refuse)
    with pytest.raises(StageFailed, match="did not take it"):
        hub.push(adapter, "org/a")
