"""Weights & Biases gets what MLflow gets, once; it is off without its key, and never stops a run."""

import sys
import types

import pytest

from ucotron_ray.core import config
from ucotron_ray.core import wandb as wandb_mirror
from ucotron_ray.core.place import Tracking
from ucotron_ray.core.spool import Spool


class FakeRun:
    def __init__(self, facts):
        self.facts, self.logged, self.code = facts, [], None

    def log(self, values):
        self.logged.append(values)

    def finish(self, exit_code):
        self.code = exit_code


@pytest.fixture
def wandb(monkeypatch):
    module = types.ModuleType("wandb")
    module.runs = []
    module.__spec__ = types.SimpleNamespace(name="wandb")

    def init(**facts):
        module.runs.append(FakeRun(facts))
        return module.runs[-1]

    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setattr(wandb_mirror.importlib.util, "find_spec", lambda name: module.__spec__)
    monkeypatch.setenv("WANDB_API_KEY", "wb-secret")
    return module


def settings(**changes) -> Tracking:
    return config.load(overrides=[(f"tracking.{key}", value) for key, value in changes.items()]).place.tracking


def spooled(tmp_path) -> Spool:
    spool = Spool(tmp_path / "spool", "pipeline-x")
    spool.start(name="pipeline x")
    spool.params({"tier": "slm", "sft": {"epochs": 3}})
    child = spool.child("sft")
    child.start(name="sft", parent=spool.run)
    child.metrics({"loss": 2.0}, step=1)
    child.metrics({"loss": 1.0}, step=2)
    child.end("FINISHED")
    spool.end("FAILED")
    Spool(tmp_path / "spool", "another").metrics({"loss": 9.0})
    return spool


def test_a_run_and_its_stages_are_sent_once(tmp_path, wandb):
    spool = spooled(tmp_path)
    assert wandb_mirror.mirror(settings(enabled=True), spool)
    whole, stage = wandb.runs
    assert (whole.facts["project"], whole.facts["config"]) == ("ucotron-finetune", {"tier": "slm", "sft.epochs": "3"})
    assert stage.logged == [{"loss": 2.0, "step": 1}, {"loss": 1.0, "step": 2}]
    assert (whole.code, stage.code) == (1, 0)
    assert stage.facts["group"] == whole.facts["group"]
    assert wandb_mirror.mirror(settings(enabled=True), spool)
    assert len(wandb.runs) == 2
    # It goes on as the same run there.
    spool.child("sft").metrics({"loss": 0.5}, step=3)
    assert wandb_mirror.mirror(settings(enabled=True), spool)
    assert wandb.runs[2].facts["id"] == stage.facts["id"]
    assert wandb.runs[2].logged == [{"loss": 0.5, "step": 3}]


@pytest.mark.parametrize("missing", ["enabled", "key", "project", "package"])
def test_it_is_off_without_any_of_its_parts(tmp_path, wandb, monkeypatch, missing, caplog):
    if missing == "key":
        monkeypatch.delenv("WANDB_API_KEY")
    if missing == "package":
        monkeypatch.setattr(wandb_mirror.importlib.util, "find_spec", lambda name: None)
    project = None if missing == "project" else "p"
    assert not wandb_mirror.mirror(settings(enabled=missing != "enabled", wandb_project=project), spooled(tmp_path))
    assert wandb.runs == []
    assert "wb-secret" not in caplog.text


def test_its_failures_stop_nothing_and_are_sent_the_next_time(tmp_path, wandb, monkeypatch, caplog):
    def broken(**facts):
        raise RuntimeError("the key wb-secret is no good")

    spool = spooled(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(wandb, "init", broken)
        assert not wandb_mirror.mirror(settings(enabled=True), spool)
    assert "RuntimeError" in caplog.text
    assert "wb-secret" not in caplog.text
    assert wandb_mirror.mirror(settings(enabled=True), spool)
    assert len(wandb.runs) == 2
