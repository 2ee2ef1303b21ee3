"""The verb `tune` from rows to best.yaml, its trials in this process: what is left behind, resumed and promoted."""

import json
import shutil

import pytest
import yaml

from tests.tuning import Killed, in_process
from tests.unit.projection.test_fit import data as data  # the fixture, again for this file
from tests.unit.test_cli import call
from tests.unit.training.test_dpo_stage import ROWS
from tests.unit.training.test_dpo_stage import in_process as in_one_process  # noqa: F401 - a fixture
from ucotron_ray.core import artifacts, config, files, run, session
from ucotron_ray.core.artifacts import Store
from ucotron_ray.core.files import content_hash, file_hash, list_files
from ucotron_ray.data import jsonl
from ucotron_ray.models import base as base_models
from ucotron_ray.training import stage as training
from ucotron_ray.tuning import on_ray, png
from ucotron_ray.tuning import stage as tuning
from ucotron_ray.tuning import trial as trials

RECIPE = """
models: {fine_tuning: {slm: {local_model: MODEL}}}
training: {sft: {slm: {epochs: 1, batch_size: 4, max_rows: 16, eval_rows: 4}}}
tuning:
  search: grid
  space: {sft: {learning_rate: [1.0e-4, 1.0e-2], lora_rank: [2, 4]}}
  report_steps: 1
  f1_rows: 4
  max_new_tokens: 4
evaluation: {resamples: 50}
tracking: {mlflow_uri: none}
"""


@pytest.fixture
def place(tmp_path, tiny_model, monkeypatch):
    """A recipe and two files of rows; what would run on Ray runs here."""
    monkeypatch.setattr(run.Run, "connect", lambda self, *, workers=True: None)
    monkeypatch.setattr(session, "worker_resources", lambda workers: session.WorkerResources(1.0, 0.0))
    monkeypatch.setattr(session, "check_resources", lambda workers: None)
    monkeypatch.setattr(session, "room_for", lambda workers: 1)
    monkeypatch.setattr(session, "groups_on_gpus", lambda workers: 1)
    monkeypatch.setattr(on_ray, "sweep_on_ray", in_process())
    (tmp_path / "r.yaml").write_text(RECIPE.replace("MODEL", str(tiny_model)), encoding="utf-8")
    jsonl.write_rows(tmp_path / "rows.jsonl", ROWS[:16])
    jsonl.write_rows(tmp_path / "val.jsonl", ROWS[16:20])
    return tmp_path


@pytest.fixture
def no_pictures(monkeypatch):
    """PNGs take seconds, and one test looks at them."""
    monkeypatch.setattr(png, "write", lambda figures, directory: None)


def tune(place, capsys, *more: str) -> tuple[int, dict, str]:
    files = ["--train-data", str(place / "rows.jsonl"), "--val-data", str(place / "val.jsonl")]
    return call(place, capsys, "tune", "sft", "--recipe", str(place / "r.yaml"), *files, *more)


def test_a_sweep_leaves_record_page_pictures_winner_and_an_overlay_that_sft_takes(place, capsys, tiny_model):
    code, result, err = tune(place, capsys, "--output", str(place / "best.yaml"))
    assert code == 0, err
    store = Store(place / "store")
    made = store.get("sweep", "r")
    paths = {entry.path for entry in made.manifest.files}
    assert {
        "sweep.json",
        "summary.json",
        "best.yaml",
        "sweep.html",
        "winners/slm/adapter/adapter_model.safetensors",
    } <= paths
    assert {"png/curves-slm.png", "png/heat-slm.png", "png/parallel-slm.png", "png/importance-slm.png"} <= paths
    assert {"png/compute-slm.png", "png/cost.png"} <= paths
    # TensorBoard's files of all four, weights of the winner alone, nothing of Ray's, no link.
    assert len({path.split("/")[1] for path in paths if "/tensorboard/" in path}) == 4
    assert [path for path in paths if path.endswith(".safetensors")] == [
        "winners/slm/adapter/adapter_model.safetensors"
    ]
    assert not [path for path in paths if path.startswith("ray/") or path.endswith("/stop")]
    assert result["trials"] == 4
    assert result["states"]["finished"] + result["states"]["stopped"] == 4
    assert result["steps_full"] == 16
    won = result["winners"]["slm"]
    assert made.manifest.metrics["slm_f1"] == won["value"]

    best = yaml.safe_load((place / "best.yaml").read_text(encoding="utf-8"))
    assert best["training"]["sft"]["slm"] == won["params"]
    said = best["tuned"]["winners"]["slm"]
    assert said["f1"] == won["value"]
    assert said["seeds"] == [42]
    assert best["tuned"]["recipe"] == made.manifest.recipe
    assert said["checkpoint"] == content_hash(list_files(made.path / "winners/slm"))
    adapter = json.loads((made.path / "winners/slm/adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert adapter["r"] == won["params"]["lora_rank"]
    assert adapter["base_model_name_or_path"] == str(tiny_model)

    # The overlay is the same recipe as its numbers by hand; what it says about the sweep is not hashed.
    overlaid = config.load(recipe=place / "r.yaml", overlays=[place / "best.yaml"])
    by_hand = config.load(
        recipe=place / "r.yaml", overrides=[(f"training.sft.slm.{key}", value) for key, value in won["params"].items()]
    )
    dataset = store.get("dataset", made.manifest.inputs[0].name)
    base = base_models.resolve(str(tiny_model))
    hashes = {
        training.sft_request(run.Run(loaded, verb="sft", name="x"), dataset, base).recipe
        for loaded in (overlaid, by_hand, config.load(recipe=place / "best.yaml"))
    }
    assert overlaid.recipe.sft == by_hand.recipe.sft
    assert len(hashes) == 2  # best.yaml alone has other rows and batches than the recipe; over it, the same

    # The same command again: nothing runs.
    again = tune(place, capsys)[1]
    assert again["artifact"] == result["artifact"]
    check_tracking(place)


@pytest.mark.usefixtures("no_pictures")
def test_driver_and_trials_hash_the_model_once(place, capsys, tiny_model, monkeypatch):
    own = shutil.copytree(tiny_model, place / "own")
    (place / "r.yaml").write_text(RECIPE.replace("MODEL", str(own)), encoding="utf-8")
    hashed = []

    def counted(path):
        hashed.append(path)
        return file_hash(path)

    monkeypatch.setattr(files, "file_hash", counted)
    code, result, err = tune(place, capsys)
    assert (code, result["trials"]) == (0, 4), err
    # The trials run in this very process.
    assert sorted(path.name for path in hashed if path.parent == own) == sorted(path.name for path in own.iterdir())


def check_tracking(place) -> None:
    """Every trial is a child of the sweep, with its end and its curves."""
    events = [
        json.loads(line)
        for path in (place / "store/tracking/spool").glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    starts = {event["run"]: event for event in events if event["type"] == "start"}
    parents = [key for key in starts if key.endswith("/tune")]
    assert len(parents) == 1
    children = [key for key, event in starts.items() if event["parent"] == parents[0]]
    assert sorted(children) == [f"{parents[0]}/slm-{number:03d}" for number in range(4)]
    ends = {event["run"]: event["status"] for event in events if event["type"] == "end"}
    assert {ends[child] for child in children} == {"FINISHED"}
    losses = [event for event in events if event["type"] == "metrics" and "loss" in event["values"]]
    assert {event["run"] for event in losses} == set(children)


THREE = ("--set", "tuning.scheduler=none", "--set", "tuning.space.sft.lora_rank=[2]")
THREE += ("--set", "tuning.space.sft.learning_rate=[1.0e-4, 1.0e-3, 1.0e-2]")


def test_a_sweep_that_was_killed_goes_on_and_trains_no_finished_trial_again(place, capsys, monkeypatch, no_pictures):
    monkeypatch.setattr(on_ray, "sweep_on_ray", in_process(killed_after=6))
    with pytest.raises(Killed):
        tune(place, capsys, *THREE)
    capsys.readouterr()
    partial = place / "store/sweep/r.partial"
    assert [trials.outcome_of(path) is not None for path in sorted((partial / "trials").iterdir())] == [True, False]
    first = (partial / "trials/slm-000/outcome.json").stat().st_mtime_ns
    ran: list[str] = []
    real = trials.run

    def counted(job, tell, **more):
        ran.append(job.trial)
        return real(job, tell, **more)

    monkeypatch.setattr(trials, "run", counted)
    monkeypatch.setattr(on_ray, "sweep_on_ray", in_process())
    code, result, err = tune(place, capsys, *THREE)
    assert code == 0, err
    assert ran == ["slm-001", "slm-002"]
    made = Store(place / "store").get("sweep", "r")
    assert (made.path / "trials/slm-000/outcome.json").stat().st_mtime_ns == first
    record = json.loads((made.path / "sweep.json").read_text(encoding="utf-8"))
    steps = [(score["trial"], score["step"]) for score in record["scores"]]
    assert sorted(steps) == [(f"slm-{n:03d}", step) for n in range(3) for step in (1, 2, 3, 4)]
    assert result["steps_run"] == 12


def test_trials_that_fail_do_not_stop_the_rest_and_if_all_do_the_causes_are_said(place, capsys, no_pictures):
    rates = "tuning.space.sft.learning_rate=[1.0e-3, 1.0e+30]"
    slack = ["--set", "training.sft.slm.max_grad_norm=1.0e+30", "--set", "tuning.space.sft.lora_rank=[2]"]
    code, result, _ = tune(place, capsys, "--set", rates, *slack)
    assert code == 0
    assert (result["states"]["failed"], result["states"]["finished"]) == (1, 1)
    page = (Store(place / "store").get("sweep", "r").path / "sweep.html").read_text(encoding="utf-8")
    assert "the training loss is not finite" in page
    rates = "tuning.space.sft.learning_rate=[1.0e+29, 1.0e+30]"
    code, result, err = tune(place, capsys, "--name", "bad", "--set", rates, *slack)
    assert code == 1
    assert "no trial of the sweep came to a score" in err
    assert "slm-000: the training loss is not finite" in err


def test_a_sweep_that_failed_for_what_is_in_no_recipe_begins_anew_with_replace(place, capsys, monkeypatch, no_pictures):
    def full(*arguments: object) -> None:
        raise OSError("No space left on device")

    few = ["--set", "tuning.space.sft.learning_rate=[1.0e-3]", "--set", "tuning.space.sft.lora_rank=[2]"]
    with monkeypatch.context() as broken:
        broken.setattr(trials, "_train", full)
        assert tune(place, capsys, *few)[0] == 1
    # Without the word its ends stay, as they do after any kill.
    assert tune(place, capsys, *few)[0] == 1
    code, result, err = tune(place, capsys, *few, "--replace")
    assert code == 0, err
    assert result["states"]["finished"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "tuning.space.sft.lora_rnk=[8]"], "did you mean `lora_rank`?"),
        (["--set", "training.sft.slm.eval_rows=0"], "compared on validation rows"),
        (["--tiers", "huge"], "tuning.tiers"),
        (["--data", "x"], "--data belongs to `tune dpo`"),
        (["--model-name", "/nowhere/model"], "there is no model at"),
        (["--set", "trials.slm.at_once=0"], "trials.slm.at_once"),
        (["--set", "tuning.space.sft.target_modules=[all-linear, bogus]"], "found:     bogus"),
        (["--set", "tuning.space.sft.batch_size=[6, 8]", "--set", "workers.num_workers=4"], "6 rows, 4 workers"),
        (["--set", "tuning.space.sft.batch_size=[6, 8]", "--set", "trials.slm.num_workers=4"], "6 rows, 4 workers"),
        (["--set", "trials.slm.num_workers=3"], "training.sft.slm.batch_size, trials.slm.num_workers"),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_mistakes_end_before_anything_is_started(place, capsys, monkeypatch, arguments, said, dry):
    monkeypatch.setattr(run.Run, "connect", lambda self, **more: pytest.fail("Ray would have been started"))
    code, _, err = tune(place, capsys, *arguments, *dry)
    assert code == 2
    assert said in err
    assert not (place / "store/sweep").exists()


def test_a_name_that_is_taken_is_said_before_anything_is_prepared(place, capsys, monkeypatch):
    with Store(place / "store").building(artifacts.Request("sweep", "r", {"other": 1})) as build:
        build.publish(artifacts.BuildResult({}, {}, []))
    monkeypatch.setattr(run.Run, "connect", lambda self, **more: pytest.fail("Ray would have been started"))
    code, _, err = tune(place, capsys)
    assert code == 3
    assert "made by another recipe" in err


def test_a_sweep_without_validation_rows_and_dpo_without_an_adapter_are_refused(place, capsys):
    rows = ["--train-data", str(place / "rows.jsonl")]
    code, _, err = call(place, capsys, "tune", "sft", "--recipe", str(place / "r.yaml"), *rows)
    assert code == 2
    assert "no validation rows" in err
    code, _, err = call(place, capsys, "tune", "dpo", "--recipe", str(place / "r.yaml"), "--data", "x")
    assert code == 2
    assert "`tune dpo` needs --from" in err


def test_a_dry_run_names_the_trials_and_starts_nothing(place, capsys, monkeypatch):
    monkeypatch.setattr(run.Run, "connect", lambda self, **more: pytest.fail("Ray would have been started"))
    code, result, _ = tune(place, capsys, "--dry-run")
    assert code == 0
    assert [trial["id"] for trial in result["trials"]] == [f"slm-{number:03d}" for number in range(4)]
    assert result["plans"]["slm"]["work"]["steps"] == 4
    assert not (place / "store/sweep").exists()


@pytest.mark.slow
def test_preferences_are_tuned_on_an_adapter_with_one_reference_for_all_trials(place, capsys, request, monkeypatch):
    request.getfixturevalue("in_one_process")
    monkeypatch.setattr(session, "worker_resources", lambda workers: session.WorkerResources(1.0, 0.0))
    files = ["--train-data", str(place / "rows.jsonl"), "--val-data", str(place / "val.jsonl")]
    code, _, err = call(place, capsys, "sft", "--recipe", str(place / "r.yaml"), "--name", "a", *files)
    assert code == 0, err
    store = Store(place / "store")
    dataset = store.get("adapter", "a").manifest.inputs[0].name
    own = {"batch_size": 4, "epochs": 1, "eval_rows": 4, "on_policy.samples": 2, "on_policy.max_tokens": 6}
    settings = {f"training.dpo.slm.{key}": value for key, value in own.items()}
    settings |= {"tuning.space.dpo.learning_rate": "[1.0e-5]", "tuning.space.dpo.lora_rank": "[2]"}
    settings |= {"tuning.space.dpo.beta": "[0.05, 0.3]"}
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    arguments = ["tune", "dpo", "--recipe", str(place / "r.yaml"), "--data", dataset, "--from", "a", *overrides]
    code, result, err = call(place, capsys, *arguments)
    assert code == 0, err
    assert result["states"]["finished"] + result["states"]["stopped"] == 2
    made = store.get("sweep", "a-dpo")
    assert len([name for name in store.names("cache") if name.startswith("reference-")]) == 1
    best = config.load(recipe=place / "r.yaml", overlays=[made.path / "best.yaml"]).recipe
    assert best.dpo.beta == result["winners"]["slm"]["params"]["beta"]
    assert best.tuned.stage == "dpo"
    # The base is that of the adapter: an overlay does not name another.
    assert "models:" not in (made.path / "best.yaml").read_text(encoding="utf-8")
    assert {entry.role for entry in made.manifest.inputs} == {"data", "adapter"}


def tune_projection(place, capsys, data, monkeypatch) -> tuple[int, dict, str]:
    with Store(place / "store").building(artifacts.Request("dataset", "pairs", {"x": 1})) as build:
        for file in data.iterdir():
            (build.path / file.name).write_bytes(file.read_bytes())
        build.publish(artifacts.BuildResult({}, {"rows": 600}, []))
    monkeypatch.setattr("ucotron_ray.projection.embeddings.pairs_of", lambda run, name: run.store.get("dataset", name))
    monkeypatch.setattr("ucotron_ray.projection.embeddings.labels_of", lambda made: {"clip": "a", "text": "b"})
    values = {"tuning.search": "grid", "tuning.space.projection.learning_rate": "[1.0e-9, 3.0e-3]"}
    values |= {"tuning.space.projection.hidden_dim": "[32]", "projection.epochs": 3, "projection.batch_size": 64}
    settings = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    quiet = ["--set", "tracking.mlflow_uri=none"]
    return call(place, capsys, "tune", "projection", "--input", "pairs", *settings, *quiet)


def test_a_layer_whose_trial_was_stopped_can_win(place, capsys, data, monkeypatch, no_pictures):
    class Strict:
        def __init__(self, **limits: int) -> None:
            pass

        def stops(self, trial: str, step: int, value: float) -> bool:
            return True

    monkeypatch.setattr(on_ray, "Halving", Strict)
    code, result, err = tune_projection(place, capsys, data, monkeypatch)
    assert code == 0, err
    assert (result["states"]["stopped"], result["winners"]["projection"]["state"]) == (2, "stopped")
    made = Store(place / "store").get("sweep", "projection")
    assert (made.path / "winners/projection/model.safetensors").is_file()


def test_the_projection_is_tuned_by_its_validation_loss(place, capsys, data, monkeypatch, no_pictures):
    code, result, err = tune_projection(place, capsys, data, monkeypatch)
    assert code == 0, err
    assert result["metric"] == "val_loss"
    won = result["winners"]["projection"]
    assert won["params"] == {"learning_rate": 3e-3, "hidden_dim": 32}
    best = config.load(recipe=artifacts.Path(result["best"])).recipe
    assert (best.projection.learning_rate, best.projection.hidden_dim) == (3e-3, 32)
    assert best.tuned.stage == "projection"
    assert best.tuned.winners["projection"]["val_loss"] == won["value"]


def test_a_cluster_that_grows_is_waited_for_before_its_trials_are_counted(tmp_path, monkeypatch):
    wanted = [("ray.wait_for_nodes", 60), ("trials.slm.gpus_per_worker", 1), ("trials.slm.at_once", 2)]
    loaded = config.load(overrides=[*wanted, ("workers.cpus_per_worker", 3), ("store", str(tmp_path))])
    waited: list[tuple[int, float | None, float]] = []

    def grown(workers, seconds: float) -> None:
        waited.append((workers.num_workers, workers.gpus_per_worker, seconds))

    monkeypatch.setattr(session, "wait_for_nodes", grown)
    monkeypatch.setattr(session, "worker_resources", lambda workers: session.WorkerResources(3.0, 1.0))
    monkeypatch.setattr(session, "check_resources", lambda workers: None)
    monkeypatch.setattr(session, "room_for", lambda workers: 2 * len(waited))
    workers, at_once = tuning.shares(run.Run(loaded, verb="tune", name="grows"), ["slm"])
    assert waited == [(2, 1.0, 60.0)]
    assert at_once == {"slm": 2}
    assert workers["slm"].num_workers == 1
