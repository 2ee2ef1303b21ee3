"""The verbs `sft` and `dpo` from rows to adapters with the rim's calls made in this process: what connects the parts."""

import json
from types import SimpleNamespace

import pytest

from tests.unit import test_cli
from tests.unit.training.test_dpo import ROWS as PAIRS
from ucotron_ray.core import config, run, session
from ucotron_ray.core.artifacts import Store
from ucotron_ray.core.files import MANIFEST
from ucotron_ray.data import jsonl
from ucotron_ray.data import stage as datasets
from ucotron_ray.evaluation.scoring import f1_of
from ucotron_ray.export import stage as export
from ucotron_ray.models import on_ray as models_rim
from ucotron_ray.models import stage as models
from ucotron_ray.simulators import demo_world
from ucotron_ray.training import dpo, on_policy, sft
from ucotron_ray.training import on_ray as rim
from ucotron_ray.training.job import DpoJob, SftJob, TrainingJob

ROWS = [row for row in demo_world.rows(demo_world.graph_world(2), 80, seed=2) if row.expected_relations]


@pytest.fixture
def in_process(monkeypatch):
    """Everything that would run in a Ray worker runs here."""

    def train(job, workers, spool, build, log_file, *, answer_tokens):
        stage = dpo if isinstance(job, DpoJob) else sft
        kind = DpoJob if isinstance(job, DpoJob) else SftJob
        return stage.train(kind(**vars(job)), lambda metrics: None)

    def merge(base, adapter, directory, workers, log_file):
        from ucotron_ray.models import base as base_models
        from ucotron_ray.models.merge import write_merged

        write_merged(base_models.resolve(base), adapter, directory)

    monkeypatch.setattr(run.Run, "connect", lambda self, *, workers=True: None)
    monkeypatch.setattr(session, "worker_resources", lambda workers: SimpleNamespace(threads=1))
    monkeypatch.setattr(rim, "train_on_ray", train)
    monkeypatch.setattr(
        rim, "reference_on_ray", lambda job, workers, log: dpo.write_reference(TrainingJob(**vars(job)))
    )
    monkeypatch.setattr(
        rim, "sample_on_ray", lambda job, workers, log: on_policy.write_pairs(on_policy.SampleJob(**job), f1_of)
    )
    monkeypatch.setattr(models_rim, "merge_on_ray", merge)


def test_from_rows_to_an_adapter_that_prefers_right_answers(tmp_path, capsys, tiny_model, in_process):
    rows = tmp_path / "rows.jsonl"
    val = tmp_path / "val.jsonl"
    jsonl.write_rows(rows, ROWS[:12])
    jsonl.write_rows(val, ROWS[12:16])
    common = ["--model-name", str(tiny_model), "--epochs", "1", "--batch-size", "4"]
    quiet = ["--set", "tracking.mlflow_uri=none"]
    code, trained, err = test_cli.call(
        tmp_path, capsys, "sft", "--train-data", str(rows), "--val-data", str(val), "--name", "a", *common, *quiet
    )
    assert code == 0, err
    store = Store(tmp_path / "store")
    (tokens,) = [name for name in store.names("cache") if name.startswith("tokens-")]
    assert store.get("cache", tokens).manifest.counts["rows"] == trained["counts"]["rows"] == 12
    adapter = store.get("adapter", "a")
    assert {"plan.json", "report.html", "training.json"} <= {entry.path for entry in adapter.manifest.files}
    plan = json.loads((adapter.path / "plan.json").read_text(encoding="utf-8"))
    assert plan["work"]["steps"] * plan["epochs"] == trained["steps"] == 3
    dataset = adapter.manifest.inputs[0].name
    settings = {"batch_size": 4, "epochs": 1, "eval_rows": 4, "on_policy.samples": 2, "on_policy.max_tokens": 6}
    own = [part for key, value in settings.items() for part in ("--set", f"training.dpo.slm.{key}={value}")]
    dry, planned, _ = test_cli.call(
        tmp_path, capsys, "dpo", "--data", dataset, "--from", "a", "--dry-run", *own, *quiet
    )
    assert (dry, planned["status"]) == (0, "planned")
    assert store.names("model") == []
    code, aligned, err = test_cli.call(tmp_path, capsys, "dpo", "--data", dataset, "--from", "a", *own, *quiet)
    assert code == 0, err
    assert abs(aligned["train_loss_first"] - 0.6931) < 1e-3
    assert 0 <= aligned["longer_wins"] <= 1
    assert store.names("model") == ["a-merged"]
    assert set(store.names("adapter")) == {"a", "a-dpo"}
    pairs = next(name for name in store.names("dataset") if name.startswith("on-policy-"))
    code, planned, _ = test_cli.call(tmp_path, capsys, "dpo", "--data", pairs, "--from", "a", "--dry-run", *own, *quiet)
    assert (code, planned["plan"]["stage"], planned["plan"]["work"]["rows"]) == (0, "dpo", aligned["counts"]["rows"])
    # Once more: everything is there, nothing is prepared.
    before = len(store.names("cache"))
    again = test_cli.call(tmp_path, capsys, "dpo", "--data", dataset, "--from", "a", *own, *quiet)[1]
    assert again["artifact"] == aligned["artifact"]
    assert len(store.names("cache")) == before


def test_an_aligned_adapter_knows_base_and_rows_wherever_the_store_lies_and_is_made_anew_with_another_start(
    tmp_path, capsys, tiny_model, in_process
):
    jsonl.write_rows(tmp_path / "rows.jsonl", ROWS[:8])
    jsonl.write_rows(tmp_path / "pairs.jsonl", PAIRS)
    quiet = ["--set", "tracking.mlflow_uri=none"]
    first = ["sft", "--train-data", str(tmp_path / "rows.jsonl"), "--name", "a", "--model-name", str(tiny_model)]
    first += ["--batch-size", "4", *quiet]
    then = ["dpo", "--data", str(tmp_path / "pairs.jsonl"), "--from", "a", *quiet]
    then += [part for key in ("batch_size=4", "epochs=1") for part in ("--set", f"training.dpo.slm.{key}")]
    for command in ([*first, "--epochs", "1"], then):
        code, _, err = test_cli.call(tmp_path, capsys, *command)
        assert code == 0, err
    moved = (tmp_path / "store").rename(tmp_path / "moved")
    adapter = Store(moved).get("adapter", "a-dpo")
    files = [adapter.path / "adapter/adapter_config.json", adapter.path / "training.json", adapter.path / MANIFEST]
    assert not [file.name for file in files if str(tmp_path / "store") in file.read_text(encoding="utf-8")]
    elsewhere = run.Run(config.load(overrides=[("store", str(moved))]), verb="export", name="a-dpo")
    base, found = models.model(elsewhere, "a-dpo")
    assert (base.reference, base.path) == ("model/a-merged", moved / "model/a-merged")
    data = datasets.data_of(elsewhere, found)
    assert data is not None
    assert data.manifest.name == Store(moved).get("adapter", "a").manifest.inputs[0].name
    stated = {relation.predicate for row in ROWS[:8] for relation in row.expected_relations}
    assert set(export.predicates(elsewhere, found)) == stated
    moved.rename(tmp_path / "store")
    # The merged model that is there is of the adapter before.
    for command in ([*first, "--epochs", "2", "--replace"], [*then, "--replace"]):
        code, _, err = test_cli.call(tmp_path, capsys, *command)
        assert code == 0, err
    store = Store(tmp_path / "store")
    merged = store.get("model", "a-merged").manifest
    assert merged.inputs[0].content == store.get("adapter", "a").manifest.content
    assert store.get("adapter", "a-dpo").manifest.inputs[1].content == merged.content


def test_pairs_in_other_layouts_are_imported_as_pairs_and_files_of_before_under_their_old_name(tmp_path, caplog):
    import json
    import logging

    from ucotron_ray.core import config
    from ucotron_ray.core.files import file_hash
    from ucotron_ray.core.run import Run
    from ucotron_ray.data import jsonl
    from ucotron_ray.training import preferences

    def write(name, value):
        path = tmp_path / name
        path.write_text(json.dumps(value) + "\n", encoding="utf-8")
        return path

    answers = {"chosen": [{"role": "assistant", "content": "a"}], "rejected": [{"role": "assistant", "content": "b"}]}
    asked = [{"role": "system", "content": "S"}, {"role": "user", "content": "q"}]
    turns = write("turns.jsonl", {"prompt": asked, **answers})
    plain = write("plain.jsonl", {"prompt": "q", "chosen": "a", "rejected": "b"})
    system = write("system.jsonl", {"prompt": "q", "chosen": "a", "rejected": "b", "system": "S"})
    loaded = config.load(overrides=[("store", str(tmp_path / "store")), ("tracking.mlflow_uri", "none")])
    with Run(loaded, verb="dpo", name="x") as run, caplog.at_level(logging.INFO):
        made = preferences.data_of(run, str(turns))
        named = preferences.data_of(run, str(turns), layout="dpo-turns")
        fields = {path: preferences.import_request(run, path).fields for path in (plain, system)}
    pair = jsonl.read_preferences(made.path / "train.jsonl")[0]
    assert [turn.model_dump() for turn in pair.turns or ()] == asked
    assert made.manifest.content == named.manifest.content
    assert "read 1 of layout dpo-turns" in caplog.text
    assert fields[plain] == {"file": file_hash(plain), "seed": loaded.recipe.dpo.seed}
    assert fields[system]["read"] == ["system"]
