"""`submit` on a real head with token auth: exit code, status and log for success, failure, stop and kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ray.conftest import ROOT, Head
from tests.ray.test_chain import finished, wait_for
from ucotron_ray.operations import record

pytestmark = pytest.mark.ray


def submitting(head: Head, *arguments: str, token: Path | None = None) -> subprocess.Popen:
    """`ucotron-ray submit`, from a shell that was not told that the cluster wants a token."""
    environment = {**head.environment, "HF_HUB_OFFLINE": "1"}
    for name in ("RAY_AUTH_MODE", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        environment.pop(name, None)
    if token is not None:
        environment["RAY_AUTH_TOKEN_PATH"] = str(token)
    command = [sys.executable, "-m", "ucotron_ray", "submit", "--address", head.dashboard, "--json", *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def driver(folder: Path, name: str, text: str) -> list[str]:
    """A stand-in for the cluster's Python: what a driver may do, in a moment."""
    script = folder / name
    script.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    script.chmod(0o755)
    return ["--python", str(script)]


def job(store: Path, name: str = "x") -> list[str]:
    return ["import-graph", "/data/graph.jsonld", "--name", name, "--set", f"store={store}"]


def log_of(store: Path) -> str:
    return "".join(path.read_text() for path in record.directory_of(store).glob("*/*.log"))


def test_success_is_0_with_the_jobs_own_result_and_a_second_submit_attaches(ray_head, demo_files, tmp_path):
    store = tmp_path / "store"
    arguments = [
        "--python",
        sys.executable,
        "import-graph",
        str(demo_files[0]),
        "--name",
        "g",
        "--set",
        f"store={store}",
    ]
    first = finished(submitting(ray_head, *arguments))
    assert first["result"]["status"] == "ok"
    assert Path(first["result"]["artifact"]) == store / "dataset" / "g"
    assert (Path(first["run_dir"]) / f"{first['job']}.log").read_text().splitlines()[-1].startswith('{"status": "ok"')
    second = finished(submitting(ray_head, *arguments))
    assert second["job"] == first["job"]
    assert "attached" in second["stderr"]
    # The state of it, from the store alone: nothing here knows of the cluster.
    command = [sys.executable, "-m", "ucotron_ray", "status", "--set", f"store={store}", "--json"]
    shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert [run["state"] for run in shown["runs"]] == ["finished"]
    assert shown["jobs"][0]["attempts"][0]["status"] == "SUCCEEDED"
    token = Path(ray_head.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    for path in store.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes(), path


def test_a_failure_has_the_drivers_own_code_and_its_words_are_kept(ray_head, tmp_path):
    store = tmp_path / "store"
    result = finished(submitting(ray_head, "--python", sys.executable, *job(store)), code=2)
    assert result["status"] == "failed"
    assert "exit code 2" in result["cause"]
    assert "/data/graph.jsonld" in log_of(store)


def test_a_stopped_job_is_not_a_success(ray_head, tmp_path):
    store = tmp_path / "store"
    process = submitting(ray_head, *driver(tmp_path, "sleeps", "echo started; exec sleep 600"), *job(store))
    wait_for(lambda: "started" in log_of(store), process)
    (found,) = record.directory_of(store).glob("*/job.json")
    name = json.loads(found.read_text())["attempts"][0]["id"]
    stop(ray_head, name)
    result = finished(process, code=75)
    assert (result["status"], result["job"]) == ("stopped", name)
    assert "stopped from outside" in result["cause"]


def test_a_killed_driver_is_tried_again_and_ends_well(ray_head, tmp_path):
    store = tmp_path / "store"
    text = f'echo $$ > {tmp_path}/pid; test -e {tmp_path}/twice && echo \'{{"status": "ok"}}\' && exit 0\n'
    text += f"touch {tmp_path}/twice; echo started; exec sleep 600"
    process = submitting(ray_head, "--retries", "1", *driver(tmp_path, "dies", text), *job(store))
    wait_for(lambda: "started" in log_of(store), process)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    result = finished(process)
    assert (result["status"], result["result"]) == ("ok", {"status": "ok"})
    attempts = record.read(Path(result["run_dir"])).attempts
    assert [(attempt.code, attempt.status) for attempt in attempts] == [(75, "FAILED"), (0, "SUCCEEDED")]
    assert "SIGKILL" in attempts[0].cause


@pytest.mark.faults
def test_ctrl_c_leaves_the_job_and_the_same_command_finds_it_again(ray_head, tmp_path):
    store = tmp_path / "store"
    text = f'echo started; while ! test -e {tmp_path}/go; do sleep 0.1; done; echo \'{{"status": "ok"}}\''
    arguments = [*driver(tmp_path, "waits", text), *job(store)]
    process = submitting(ray_head, *arguments)
    wait_for(lambda: "started" in log_of(store), process)
    process.send_signal(signal.SIGINT)
    left = finished(process, code=75)
    assert "the job goes on without this command" in left["stderr"]
    assert "run the same command again to attach" in left["stderr"]
    again = submitting(ray_head, *arguments)
    wait_for(lambda: events(store, "attached"), again)
    (tmp_path / "go").touch()
    result = finished(again)
    assert result["result"] == {"status": "ok"}
    assert events(store, "submitted") == 1


def test_a_wrong_token_is_refused_before_anything_is_started(ray_head, tmp_path):
    wrong = tmp_path / "token"
    wrong.write_text("f" * 32, encoding="utf-8")
    wrong.chmod(0o600)
    result = finished(submitting(ray_head, *job(tmp_path / "store"), token=wrong), code=2)
    assert "does not take our token" in result["stderr"]
    assert "f" * 32 not in result["stderr"]


def events(store: Path, kind: str) -> int:
    lines = [
        line for path in record.directory_of(store).glob("*/events.jsonl") for line in path.read_text().splitlines()
    ]
    return sum(json.loads(line)["event"] == kind for line in lines)


def stop(head: Head, name: str) -> None:
    environment = {**head.environment, "RAY_API_SERVER_ADDRESS": head.dashboard}
    ray = str(Path(sys.executable).with_name("ray"))
    subprocess.run([ray, "job", "stop", name], env=environment, check=True, capture_output=True, timeout=120)


@pytest.mark.faults
def test_an_environment_that_cannot_be_made_is_tried_again_and_then_a_failure(ray_head, tmp_path):
    store = tmp_path / "store"
    arguments = ["--working-dir", f"local://{tmp_path}/nowhere", "--retries", "1", *job(store)]
    result = finished(submitting(ray_head, *arguments), code=1)
    assert "the runtime environment could not be set up" in result["cause"]
    assert [attempt.code for attempt in record.read(Path(result["run_dir"])).attempts] == [1, 1]
