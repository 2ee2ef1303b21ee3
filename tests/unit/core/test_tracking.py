"""Tracking: spooled first, sent once, never in the way. Real MLflow on real sqlite."""

import json
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from ucotron_ray.core import config, sending, tracking
from ucotron_ray.core import destination as destinations
from ucotron_ray.core import spool as spools
from ucotron_ray.core.artifacts import BuildResult, Request, Store
from ucotron_ray.core.errors import ConfigError


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One MLflow database for the module: making its tables takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    return destinations.Destination(f"sqlite:///{folder / 'mlflow.db'}", "tests", (folder / "artifacts").as_uri())


def client(where: destinations.Destination):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=where.uri)


def adapter(tmp_path):
    with Store(tmp_path / "store").building(Request("adapter", "a", {"x": str(tmp_path)})) as build:
        (build.path / "weights").write_text(str(tmp_path), encoding="utf-8")
        return build.publish(BuildResult({}, {}, []))


def test_parent_child_params_metrics_over_time_lineage_and_files_arrive_once(tmp_path, database):
    spool = spools.Spool(tmp_path / "spool", "run-1")
    child = spool.child("sft")
    spool.start(name="pipeline demo")
    child.start(name="sft", parent=spool.run)
    child.params({"sft": {"epochs": 3, "rank": None}})
    for step, loss in enumerate((2.0, 1.5, 1.0)):
        child.metrics({"loss": loss, "broken": float("inf")}, step=step)
    made = adapter(tmp_path)
    child.model(made, "output")
    other = spool.child("evaluate")
    other.start(name="evaluate", parent=spool.run)
    other.dataset(made, "evaluation")
    other.model(made, "input")
    (tmp_path / "card.md").write_text("hello", encoding="utf-8")
    child.file(tmp_path / "card.md")
    for each in (child, other, spool):
        each.end("FINISHED")
    assert tracking.send_pending(spool.directory, database)
    assert not spools.has_pending(spool.directory)
    # Everything again, as after a kill between sending and noting it.
    sent = json.loads((spool.directory / "sent.json").read_text(encoding="utf-8"))
    (spool.directory / "sent.json").write_text(json.dumps({**sent, "offsets": {}}), encoding="utf-8")
    assert tracking.send_pending(spool.directory, database)

    server = client(database)
    experiment = server.get_experiment_by_name("tests").experiment_id
    runs = {
        run.info.run_name: run
        for run in server.search_runs([experiment])
        if run.data.tags[tracking.KEY_TAG].startswith("run-1")
    }
    assert set(runs) == {"pipeline demo", "sft", "evaluate"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    sft, parent = runs["sft"], runs["pipeline demo"]
    assert sft.data.tags["mlflow.parentRunId"] == parent.info.run_id == spools.run_id(spool.directory, "run-1")
    assert sft.data.params == {"sft.epochs": "3", "sft.rank": "None"}
    history = server.get_metric_history(sft.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(0, 2.0), (1, 1.5), (2, 1.0)]
    assert "broken" not in sft.data.metrics
    assert [entry.path for entry in server.list_artifacts(sft.info.run_id)] == ["card.md"]
    (output,) = server.get_run(sft.info.run_id).outputs.model_outputs
    # A search does not return models that went in; asking for the run does.
    evaluated = server.get_run(runs["evaluate"].info.run_id)
    assert [entry.model_id for entry in evaluated.inputs.model_inputs] == [output.model_id]
    assert evaluated.inputs.dataset_inputs[0].dataset.digest == made.manifest.content[:32]


def test_a_dead_server_keeps_the_spool_and_the_next_sender_empties_it(tmp_path, database):
    spool = spools.Spool(tmp_path, "run-2")
    spool.start(name="late")
    dead = destinations.Destination("http://127.0.0.1:9", "tests", None)
    with sending.Sender(tmp_path, dead):
        spool.metrics({"f1": 0.5})
    assert spools.has_pending(tmp_path)
    with sending.Sender(tmp_path, database):
        pass
    assert not spools.has_pending(tmp_path)
    run_id = spools.run_id(tmp_path, "run-2")
    assert run_id is not None
    assert client(database).get_run(run_id).data.metrics == {"f1": 0.5}


def test_a_server_that_never_answers_holds_a_run_up_for_a_bounded_time(tmp_path, database, monkeypatch, caplog):
    monkeypatch.setattr(sending, "CLOSE_SECONDS", 0.5)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    spool = spools.Spool(tmp_path, "run-slow")
    spool.start(name="slow")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        # The kernel takes the connection; nobody reads from it.
        where = destinations.Destination(f"http://127.0.0.1:{silent.getsockname()[1]}", "tests", None)
        sender = sending.Sender(tmp_path, where)
        with sender:
            spool.metrics({"f1": 0.5})
        assert "MLflow is slow" in caplog.text
        assert spools.has_pending(tmp_path)
        sender._thread.join(60)
        assert not sender._thread.is_alive()
    assert tracking.send_pending(tmp_path, database)
    run_id = spools.run_id(tmp_path, "run-slow")
    assert run_id is not None
    assert client(database).get_run(run_id).data.metrics == {"f1": 0.5}


def test_a_database_that_another_process_holds_delays_the_spool_and_loses_nothing(tmp_path, database):
    spool = spools.Spool(tmp_path, "run-locked")
    spool.start(name="locked")
    assert tracking.send_pending(tmp_path, database)
    spool.metrics({"f1": 0.5})
    hold = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('BEGIN EXCLUSIVE')\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    path = database.uri.removeprefix("sqlite:///")
    # sqlite waits five seconds for a lock by default, and MLflow asks four times.
    impatient = replace(database, uri=f"{database.uri}?timeout=0.1")
    command = [sys.executable, "-c", hold, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert not tracking.send_pending(tmp_path, impatient)
        assert spools.has_pending(tmp_path)
        other.kill()
    assert tracking.send_pending(tmp_path, impatient)
    run_id = spools.run_id(tmp_path, "run-locked")
    assert run_id is not None
    assert [entry.value for entry in client(database).get_metric_history(run_id, "f1")] == [0.5]


def test_a_torn_last_line_waits_for_its_end(tmp_path, database):
    spool = spools.Spool(tmp_path, "run-3")
    spool.start(name="torn")
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("a", encoding="utf-8") as file:
        file.write('{"run": "run-3", "ti')
    assert tracking.send_pending(tmp_path, database)
    assert spools.has_pending(tmp_path)


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "mlruns", "sqlite:///relative.db"])
def test_uris_that_would_lose_runs_are_refused(tmp_path, uri):
    place = config.load(overrides=[("tracking.mlflow_uri", uri)]).place
    with pytest.raises(ConfigError):
        destinations.destination(place, tmp_path)


def test_default_is_an_absolute_sqlite_in_the_store_and_none_switches_off(tmp_path):
    default = destinations.destination(config.load().place, tmp_path)
    assert default is not None
    assert default.uri == f"sqlite:///{tmp_path}/tracking/mlflow.db"
    assert destinations.destination(config.load(overrides=[("tracking.mlflow_uri", "none")]).place, tmp_path) is None


def test_names_that_mlflow_does_not_take_are_spelt_in_its_letters(tmp_path, database):
    spool = spools.Spool(tmp_path / "spool", "run-names")
    spool.start(name="names")
    spool.params({"by group": {"a/../b=1": 2}})
    spool.metrics({"unseen (50%) /f1": 0.5, "x" * 300: 1.0})
    with Store(tmp_path / "store").building(Request("adapter", "demo-0.5b", {})) as build:
        (build.path / "weights").write_text("w", encoding="utf-8")
        spool.model(build.publish(BuildResult({}, {}, [])), "output")
    assert tracking.send_pending(spool.directory, database)
    found = client(database).get_run(spools.run_id(spool.directory, "run-names"))
    assert found.data.metrics == {"unseen _50__ _f1": 0.5, "x" * 250: 1.0}
    assert found.data.params == {"by group.a_.._b_1": "2"}
    (output,) = found.outputs.model_outputs
    assert client(database).get_logged_model(output.model_id).name == "adapter-demo-0-5b"


def test_one_event_that_mlflow_refuses_holds_up_no_other(tmp_path, database, caplog):
    spool = spools.Spool(tmp_path, "run-refused")
    spool.start(name="refused")
    spool.metrics({"f1": 0.5})
    spool._write({"type": "metrics", "values": {"no/../name": 1.0}, "step": 0})
    other = spools.Spool(tmp_path, "run-beside")
    other.metrics({"f1": 0.75})
    spool.metrics({"f1": 0.6}, step=1)
    assert tracking.send_pending(tmp_path, database)
    assert not spools.has_pending(tmp_path)
    server = client(database)
    history = server.get_metric_history(spools.run_id(tmp_path, "run-refused"), "f1")
    assert [entry.value for entry in history] == [0.5, 0.6]
    assert server.get_run(spools.run_id(tmp_path, "run-beside")).data.metrics == {"f1": 0.75}
    assert "MLflow refuses metrics of run-refused" in caplog.text


def test_a_run_that_was_deleted_is_left_alone_and_what_comes_later_makes_another(tmp_path, database):
    spool, other = spools.Spool(tmp_path, "run-deleted"), spools.Spool(tmp_path, "run-kept")
    spool.start(name="deleted")
    assert tracking.send_pending(tmp_path, database)
    deleted = spools.run_id(tmp_path, "run-deleted")
    client(database).delete_run(deleted)
    spool.metrics({"f1": 0.5})
    other.metrics({"f1": 0.75})
    spool.metrics({"f1": 0.6}, step=1)
    assert tracking.send_pending(tmp_path, database)
    assert not spools.has_pending(tmp_path)
    made = client(database).get_run(spools.run_id(tmp_path, "run-deleted"))
    assert (made.info.run_id != deleted, made.data.metrics) == (True, {"f1": 0.6})
    assert client(database).get_run(spools.run_id(tmp_path, "run-kept")).data.metrics == {"f1": 0.75}


def test_an_experiment_that_was_deleted_comes_back_with_its_runs(tmp_path, database, caplog):
    where = replace(database, experiment="deleted")
    spool = spools.Spool(tmp_path, "run-restored")
    spool.start(name="restored")
    assert tracking.send_pending(tmp_path, where)
    server = client(where)
    server.delete_experiment(server.get_experiment_by_name("deleted").experiment_id)
    spool.metrics({"f1": 0.5})
    assert tracking.send_pending(tmp_path, where)
    assert server.get_run(spools.run_id(tmp_path, "run-restored")).data.metrics == {"f1": 0.5}
    assert "was deleted, and is restored" in caplog.text


def test_a_line_that_is_no_event_is_skipped_for_good(tmp_path, database, caplog):
    spool = spools.Spool(tmp_path, "run-torn")
    spool.start(name="torn")
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("a", encoding="utf-8") as file:
        # What a full disk cut off, and the next event behind it in the same line.
        file.write('{"run": "run-torn", "ti{"run": "run-torn", "time": 1, "type": "tags", "values": {}}\n')
    spool.metrics({"f1": 0.5})
    with path.open("a", encoding="utf-8") as file:
        file.write("[]\n")
    assert tracking.send_pending(tmp_path, database)
    assert not spools.has_pending(tmp_path)
    assert client(database).get_run(spools.run_id(tmp_path, "run-torn")).data.metrics == {"f1": 0.5}
    assert caplog.text.count("is no event and is skipped") == 2
