"""The state of a store from its files alone: runs, stages, rows, dollars, trials, signs of life, resumable or not."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ucotron_ray import cli
from ucotron_ray.core import spool as spools
from ucotron_ray.core.artifacts import BuildResult, Request, Store
from ucotron_ray.operations import record, status, status_table


def spool(store: Path, key: str) -> spools.Spool:
    made = spools.Spool(spools.spool_directory(store), key)
    made.start(name=f"sft {key}")
    return made


def stage(run: spools.Spool, name: str, artifact: str) -> spools.Spool:
    child = run.child(name)
    child.start(name=name, parent=run.run, tags={"ucotron.artifact": artifact})
    return child


def begun(store: Path, request: Request, files: dict[str, str]) -> None:
    """A build that was killed: a process that ends in the middle of it."""
    script = (
        "import json, os, sys\nfrom pathlib import Path\nfrom ucotron_ray.core.artifacts import Request, Store\n"
        "store, kind, name, files = Path(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])\n"
        "with Store(store).building(Request(kind, name, {})) as build:\n"
        "    for file, text in files.items(): (build.path / file).write_text(text)\n"
        "    os._exit(9)\n"
    )
    command = [sys.executable, "-c", script, str(store), request.kind, request.name, json.dumps(files)]
    assert subprocess.run(command, check=False, timeout=60).returncode == 9


def test_an_empty_store_and_none_at_all_have_no_runs(tmp_path):
    for store in (tmp_path, tmp_path / "nowhere"):
        found = status.look(store)
        assert found.runs == found.building == found.artifacts == found.jobs == []
        assert "no run has begun here" in status_table.table(found, now=0.0, limit=10)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("word", "state", "resumable"), [("FINISHED", "finished", False), ("FAILED", "failed", False), ("KILLED", "stopped", True)]
)  # fmt: skip
def test_a_run_that_ended_says_how(tmp_path, word, state, resumable):
    run = spool(tmp_path, "sft-a-0123")
    child = stage(run, "sft", "adapter/a")
    child.end(word)
    run.end(word)
    (found,) = status.look(tmp_path).runs
    assert (found.state, found.resumable) == (state, resumable)
    assert [(entry.name, entry.state, entry.artifact) for entry in found.stages] == [("sft", state, "adapter/a")]


def test_a_killed_run_is_lost_and_resumable_once_it_is_silent(tmp_path):
    run = spool(tmp_path, "sft-a-0123")
    stage(run, "sft", "adapter/a")
    (found,) = status.look(tmp_path).runs
    assert (found.state, found.stages[0].state) == ("running", "running")
    (found,) = status.look(tmp_path, now=time.time() + status.SILENT_SECONDS + 1).runs
    assert (found.state, found.resumable, found.stages[0].state) == ("lost", True, "lost")


def test_a_second_process_of_the_same_run_counts_not_the_first_ones_end(tmp_path, monkeypatch):
    run = spool(tmp_path, "sft-a-0123")
    run.end("KILLED")
    assert status.look(tmp_path).runs[0].state == "stopped"
    later = time.time() + 1
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: later)
        run.start(name="sft a")
    assert status.look(tmp_path).runs[0].state == "running"


def test_a_lock_that_is_held_says_building_however_long_it_is_silent(tmp_path):
    later = time.time() + 10 * status.SILENT_SECONDS
    with pytest.raises(KeyboardInterrupt), Store(tmp_path).building(Request("adapter", "a", {})):
        (found,) = status.look(tmp_path, now=later).building
        assert (found.kind, found.name, found.state, found.resumable) == ("adapter", "a", "building", False)
        raise KeyboardInterrupt
    (found,) = status.look(tmp_path, now=later).building
    assert (found.state, found.resumable) == ("interrupted", True)


def test_rows_and_dollars_of_a_synthesis_that_was_killed(tmp_path):
    begun(tmp_path, Request("dataset", "d", {}), {"rows.jsonl": ""})
    live = tmp_path / "tracking" / "metrics" / "d.jsonl"
    live.parent.mkdir(parents=True)
    lines = [{"rows": 5, "usd": 0.1, "at": 5.0}, {"rows": 17, "usd": 0.25, "at": time.time()}]
    live.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"rows": 18, "us', encoding="utf-8")
    run = spool(tmp_path, "synthesize-d-0123")
    stage(run, "synthesize", "dataset/d")
    (found,) = status.look(tmp_path, now=time.time() + 1000).runs
    assert (found.rows, found.usd, found.state, found.resumable) == (17, 0.25, "lost", True)


def test_rows_and_dollars_of_a_synthesis_that_is_done(tmp_path):
    run = spool(tmp_path, "synthesize-d-0123")
    child = stage(run, "synthesize", "dataset/d")
    with Store(tmp_path).building(Request("dataset", "d", {})) as build:
        build.publish(BuildResult({"cost_usd": 1.5}, {"train": 90, "val": 10, "rejected": 7}, []))
    child.end("FINISHED")
    run.end("FINISHED")
    (found,) = status.look(tmp_path).runs
    assert (found.rows, found.usd, found.resumable) == (100, 1.5, False)


def test_trials_of_a_sweep_by_state(tmp_path):
    trials = [{"id": f"t{number}", "state": state} for number, state in enumerate(["finished", "failed", "finished"])]
    begun(tmp_path, Request("sweep", "s", {}), {"sweep.json": json.dumps({"trials": trials})})
    run = spool(tmp_path, "tune-s-0123")
    stage(run, "tune", "sweep/s")
    (found,) = status.look(tmp_path).runs
    assert found.trials == {"failed": 1, "finished": 2}


def test_the_states_are_those_that_the_sweeps_record_has():
    from ucotron_ray.tuning import record as sweeps

    assert sweeps.RECORD == status.SWEEP
    assert "state" in sweeps.Trial.model_fields
    assert "trials" in sweeps.Record.model_fields


@pytest.mark.parametrize("damage", ["", "{", '{"trials": 3}', "[1]", "\x00"])
def test_damaged_files_are_read_as_far_as_they_go(tmp_path, damage):
    begun(tmp_path, Request("sweep", "s", {}), {"sweep.json": damage})
    run = spool(tmp_path, "tune-s-0123")
    with next(spools.spool_directory(tmp_path).glob("*.jsonl")).open("a") as file:
        file.write('{"type": "metr')
    stage(run, "tune", "sweep/s")
    folder = record.directory_of(tmp_path) / "ucotron-sft-1"
    folder.mkdir(parents=True)
    (folder / record.RECORD).write_text(damage, encoding="utf-8")
    found = status.look(tmp_path)
    assert len(found.runs) == 1
    assert found.jobs == []


def test_the_verb_prints_a_table_and_one_json_object(tmp_path, capsys):
    run = spool(tmp_path, "sft-a-0123")
    stage(run, "sft", "adapter/a").end("KILLED")
    run.end("KILLED")
    kept = record.Keeper(
        record.directory_of(tmp_path) / "ucotron-sft-1",
        record.JobRecord(run="ucotron-sft-1", command=["sft"], address="http://127.0.0.1:8265", package="p"),
    )
    kept.note("ucotron-sft-1-1", "ended", status="STOPPED", code=75, cause="stopped from outside")
    assert cli.main(["status", "--set", f"store={tmp_path}", "--json"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out.splitlines()[-1])
    assert (result["status"], result["runs"][0]["state"], result["runs"][0]["resumable"]) == ("ok", "stopped", True)
    assert result["jobs"][0]["attempts"][0]["code"] == 75
    line = next(line for line in out.splitlines() if line.startswith("sft sft-a-0123"))
    assert "stopped" in line
    assert "yes" in line
    assert "job: ucotron-sft-1: attempt 1 stopped (stopped from outside)" in out


def test_status_needs_neither_ray_nor_mlflow(tmp_path):
    script = (
        "import sys\nfrom ucotron_ray import cli\n"
        f"cli.main(['status', '--set', 'store={tmp_path}'])\n"
        "print([name for name in ('ray', 'mlflow', 'torch', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_verb_leaves_the_process_as_it_was(tmp_path, capsys):
    """`| head` ends it quietly, but a process that goes on is not to end at a connection that is closed."""
    before = signal.getsignal(signal.SIGPIPE)
    assert cli.main(["status", "--set", f"store={tmp_path}"]) == 0
    assert signal.getsignal(signal.SIGPIPE) == before
