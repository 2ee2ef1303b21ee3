"""A model of the hub is of one commit from the driver's first look on. The hub is a stand-in on loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from tests.hub_stand_in import HubStandIn, standing_in
from tests.unit.training.test_sft import SETTINGS, job
from ucotron_ray.core import config, variables
from ucotron_ray.core.artifacts import BuildResult, Request
from ucotron_ray.core.errors import ConfigError, InputError
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl
from ucotron_ray.evaluation import generate
from ucotron_ray.evaluation.predictions import PredictJob
from ucotron_ray.models import base as base_models
from ucotron_ray.models import pinning
from ucotron_ray.models import stage as models
from ucotron_ray.models.on_ray import _convert
from ucotron_ray.models.shape import shape_of
from ucotron_ray.simulators import demo_world
from ucotron_ray.training import setup
from ucotron_ray.training.stage import name_base

ROOT = Path(__file__).parents[3]
FIRST, SECOND, OTHER = "a1" * 20, "b2" * 20, "c3" * 20
NAME = "org/tiny"


@pytest.fixture
def cached(tmp_path, monkeypatch, tiny_model):
    """A cache as huggingface_hub leaves it, and no network: `main` is FIRST, `v2` is SECOND."""
    folder = tmp_path / "hub/models--org--tiny"
    for branch, commit in (("main", FIRST), ("v2", SECOND)):
        shutil.copytree(tiny_model, folder / "snapshots" / commit)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / branch).write_text(commit, encoding="utf-8")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that can be asked, and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with standing_in(HubStandIn(NAME, {FIRST: tmp_path, SECOND: tmp_path}, {"main": FIRST, "v2": SECOND})) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        yield hub


def run_of(tmp_path: Path, model: str = NAME) -> Run:
    overrides = [("store", str(tmp_path / "store")), ("models.fine_tuning.slm.local_model", model)]
    return Run(config.load(overrides=overrides), verb="sft", name="r")


@pytest.mark.usefixtures("cached")
def test_without_a_network_the_cache_says_the_commit():
    base = base_models.resolve(NAME)
    assert (base.reference, base.revision, base.identity) == (NAME, FIRST, f"hub:{NAME}@{FIRST}")
    assert base_models.resolve(NAME, "v2").identity == base_models.resolve(f"{NAME}@v2").identity != base.identity
    # A commit is taken as it is, known or not.
    assert base_models.resolve(NAME, OTHER).identity == f"hub:{NAME}@{OTHER}"
    with pytest.raises(InputError, match="not known which commit") as raised:
        base_models.resolve(NAME, "v3")
    assert "--revision" in str(raised.value.next_step)


@pytest.mark.usefixtures("cached")
def test_a_hub_that_does_not_answer_is_as_no_network(monkeypatch, caplog):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as taken:
        # Bound and not listening: nobody answers there.
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        assert base_models.resolve(NAME).revision == FIRST
        assert "the hub cannot be asked" in caplog.text
        with pytest.raises(InputError, match="not known which commit"):
            base_models.resolve(NAME, "v3")


@pytest.mark.usefixtures("cached")
def test_a_worker_loads_the_commit_that_the_driver_found(cached):
    base = base_models.resolve(NAME)
    # Meanwhile somebody fetched what `main` is by now, of another shape and without weights.
    (cached / "refs/main").write_text(SECOND, encoding="utf-8")
    newer = cached / "snapshots" / SECOND / "config.json"
    changed = {**json.loads(newer.read_text(encoding="utf-8")), "num_hidden_layers": 7}
    newer.write_text(json.dumps(changed), encoding="utf-8")
    at_worker = base_models.located(base.loadable)
    assert at_worker.revision == FIRST
    shape = shape_of(at_worker)
    assert shape is not None
    assert shape.layers == 2


@pytest.mark.parametrize(
    ("reference", "revision", "said"),
    [
        ("DIR", "main", "only a model of the hub"),
        (f"{NAME}@v1", "v2", "two revisions"),
        (NAME, "../../x", "no revision"),
        ("no-hub-name@main", None, "there is no model"),
    ],
)
def test_a_revision_that_cannot_be_is_refused(tiny_model, reference, revision, said):
    with pytest.raises(InputError, match=said):
        base_models.resolve(reference.replace("DIR", str(tiny_model)), revision)


def test_a_run_asks_the_hub_once_and_stays_at_that_commit(hub, tmp_path):
    run = run_of(tmp_path)
    first = models.tier_base(run)
    hub.branches["main"] = SECOND
    assert models.tier_base(run).identity == first.identity == f"hub:{NAME}@{FIRST}"
    assert models.model(run, NAME)[0].identity == first.identity
    assert hub.asked == [f"GET /api/models/{NAME}/revision/main"]
    # Another run is of the commit of its own time, and asks nothing of one that was named.
    assert models.tier_base(run_of(tmp_path)).revision == SECOND
    assert models.tier_base(run_of(tmp_path, f"{NAME}@{FIRST}")).revision == FIRST
    assert len(hub.asked) == 2
    assert run.hub_needed


@pytest.mark.usefixtures("hub")
def test_what_the_hub_does_not_have_is_said():
    with pytest.raises(InputError, match="no such revision"):
        base_models.resolve(NAME, "v3")


def test_a_gated_model_wants_the_token_and_never_shows_it(hub, monkeypatch):
    hub.token = "hf_canary-4711"
    monkeypatch.setenv("HF_TOKEN", "hf_canary-of-another")
    with pytest.raises(InputError, match="does not give") as raised:
        base_models.resolve(NAME)
    assert "HF_TOKEN" in str(raised.value.next_step)
    assert "canary" not in str(raised.value)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    base = base_models.resolve(NAME)
    assert base.revision == FIRST
    assert "canary" not in repr(base)
    assert hub.token in variables.known_secrets()


def adapter_on(run: Run, identity: str) -> None:
    fields = {"base": {"reference": NAME, "identity": identity}}
    with run.store.building(Request("adapter", "a", fields)) as build:
        build.publish(BuildResult({}, {}, []))


@pytest.mark.usefixtures("cached")
def test_an_adapter_keeps_the_commit_of_its_base(tmp_path):
    run = run_of(tmp_path)
    adapter_on(run, f"hub:{NAME}@{SECOND}")
    base, adapter = models.model(run, "a")
    assert (base.revision, adapter is not None) == (SECOND, True)
    with pytest.raises(ConfigError, match="knows the commit"):
        models.model(run, "a", "main")


@pytest.mark.usefixtures("cached")
def test_an_adapter_of_a_store_without_commits_is_used_and_told_of(tmp_path, caplog):
    run = run_of(tmp_path)
    adapter_on(run, f"hub:{NAME}")
    base, _ = models.model(run, "a")
    assert base.revision == FIRST
    assert "is not known" in caplog.text
    # What is made anew is of another recipe, and the plan names what differs.
    with pytest.raises(Exception, match="another recipe") as raised:
        run.store.refuse_other_recipe(Request("adapter", "a", {"base": models.base_fields(base)}))
    assert f'base.identity: "hub:{NAME}" → "hub:{NAME}@{FIRST}"' in str(raised.value)


WORKER = """
import json, sys
from ucotron_ray.models import base
loadable = sys.argv[1] if len(sys.argv) > 1 else base.resolve("org/tiny").loadable
if len(sys.argv) > 1:
    found = base.located(loadable)
    tokenizer, model = base.load_tokenizer(found), base.load_model(found, "float32")
    print(float(next(model.parameters()).sum()))
else:
    print(loadable)
"""


def test_workers_load_the_drivers_commit_though_the_branch_moves(tmp_path, tiny_model):
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    weights = load_file(moved / "model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, moved / "model.safetensors", {"format": "pt"})
    expected = float(weights["model.embed_tokens.weight"].sum())
    stand_in = HubStandIn(NAME, {FIRST: tiny_model, SECOND: moved}, {"main": FIRST}, token="hf_canary-4711")
    with standing_in(stand_in) as hub:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_canary-4711", "PYTHONPATH": str(ROOT)}
        environment["HF_HUB_DISABLE_XET"] = "1"

        def process(name: str, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-c", WORKER, *arguments],
                env={**environment, "HF_HOME": str(tmp_path / name), **changes},
                capture_output=True,
                text=True,
                check=False,
                timeout=120,
            )

        driver = process("driver")
        loadable = driver.stdout.strip()
        assert loadable == f"{NAME}@{FIRST}", driver.stderr
        hub.branches["main"] = SECOND
        hub.asked.clear()
        worker = process("worker", loadable)
        assert worker.returncode == 0, worker.stderr
        assert float(worker.stdout) == pytest.approx(expected, abs=1e-3)
        assert [line for line in hub.asked if "main" in line.split("/")] == []
        # A worker whose node has no token says which one it lacks, and is not started again for it.
        refused = process("other", loadable, HF_TOKEN="")
    assert refused.returncode == 1
    assert "InputError" in refused.stderr
    assert "HF_TOKEN" in refused.stderr


def test_a_directory_is_read_once_a_process_and_again_when_a_file_changes(tmp_path, tiny_model, monkeypatch):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    read = []
    monkeypatch.setattr("ucotron_ray.core.files.file_hash", lambda path: read.append(path.name) or path.name)
    first = base_models.resolve(str(model)).identity
    assert base_models.resolve(str(model)).identity == first
    assert sorted(read) == sorted(path.name for path in model.iterdir())
    (model / "config.json").write_text((model / "config.json").read_text(encoding="utf-8") + " ", encoding="utf-8")
    base_models.resolve(str(model))
    assert len(read) == 2 * len(list(model.iterdir()))


def test_what_a_worker_does_with_a_model_reads_it_only_to_load_it(tmp_path, tiny_model, monkeypatch):
    def refuse(*_: object) -> str:
        raise AssertionError("a worker hashed the model")

    model = shutil.copytree(tiny_model, tmp_path / "model")
    base = base_models.resolve(str(model))
    for name in ("file_hash", "list_files", "_hash_of"):
        monkeypatch.setattr(base_models, name, refuse)
    monkeypatch.setattr("ucotron_ray.core.files.file_hash", refuse)
    monkeypatch.setattr(pinning, "commit_of", refuse)
    _convert(base.loadable, str(tmp_path / "converted"))
    assert (tmp_path / "converted/model.safetensors").is_file()
    training = job(tmp_path / "run", model)
    worker = setup.begin("sft", training, SETTINGS)
    adapted = setup.adapted(worker, training, SETTINGS)
    # By a name PEFT would ask the hub for the configuration of `main`, at every checkpoint.
    for checkpoint in ("one", "two"):
        adapted.save_pretrained(tmp_path / checkpoint)
        kept = json.loads((tmp_path / checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
        assert not kept["base_model_name_or_path"]
    jsonl.write_rows(tmp_path / "rows.jsonl", demo_world.rows(demo_world.graph_world(2), 2, seed=2))
    asked = PredictJob(
        base=base.loadable,
        adapter=None,
        rows_file=str(tmp_path / "rows.jsonl"),
        questions=((0, "chat"),),
        output_file=str(tmp_path / "answers.jsonl"),
        max_new_tokens=2,
        batch_size=1,
        dtype="float32",
        num_threads=1,
    )
    assert generate.predict(asked)["new_tokens"] > 0


def test_an_adapter_names_commit_and_base(tmp_path):
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({"r": 4, "base_model_name_or_path": ""}), encoding="utf-8")
    name_base(file, NAME, FIRST)
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found == {"r": 4, "base_model_name_or_path": NAME, "revision": FIRST}
