"""The checker of tests/faults finds each broken invariant, and none in what is whole."""

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.invariants import After, Ended, broken, running
from ucotron_ray.core.artifacts import BuildResult, Request, Store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    with Store(tmp_path / "store").building(Request("dataset", "d", {})) as build:
        (build.path / "rows.jsonl").write_text("{}\n", encoding="utf-8")
        build.publish(BuildResult({}, {}, []))
    return tmp_path / "store"


def test_what_is_whole_breaks_nothing(store):
    made = store / "dataset" / "d"
    ended = [(Ended(0, "made\n"), 0), (Ended(75, "error: stopped\n  next step: again"), 75)]
    by_status = {"accepted": ["a"], "rejected": ["b"]}
    after = After(
        store, ["a", "b"], by_status, made=made, straight=made, ended=ended, canary="sk-x", processes_before=running()
    )
    assert broken(after) == []


@pytest.mark.parametrize(
    ("by_status", "said"),
    [
        ({"accepted": ["a", "b"], "rejected": ["b"]}, "I1: b has 2 ends"),
        ({"accepted": ["a"]}, "I1: b has no end"),
        ({"accepted": ["a", "b", "c"]}, "I1: c was never planned"),
    ],
)
def test_ids_that_do_not_add_up(store, by_status, said):
    assert broken(After(store, ["a", "b"], by_status)) == [said]


def test_a_request_that_was_answered_again(store, tmp_path):
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_text('{"event": "out", "request": "r", "status": "200"}\n' * 3, encoding="utf-8")
    assert broken(After(store, ledger=ledger, may_repeat=2)) == []
    assert broken(After(store, ledger=ledger, may_repeat=1)) == ["I2: 2 requests answered again, at most 1"]


def test_other_bytes_missing_and_further_files(store, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "rows.jsonl").write_text("{}", encoding="utf-8")
    (other / "more.jsonl").touch()
    after = After(store, made=store / "dataset" / "d", straight=other)
    assert broken(after) == ["I3: more.jsonl differs", "I3: rows.jsonl differs"]


@pytest.mark.parametrize(
    ("ended", "code", "said"),
    [
        (Ended(0, ""), 75, "I4: exit code 0, not 75"),
        (Ended(1, "error: x\nTraceback (most recent call last)\n"), 1, "I4: a traceback"),
        (Ended(1, ""), 1, "I4: 0 causes for exit code 1"),
        (Ended(1, "error: a\nerror: b\n"), 1, "I4: 2 causes for exit code 1"),
        (Ended(0, "error: a\n"), 0, "I4: 1 causes for exit code 0"),
    ],
)
def test_a_wrong_code_a_traceback_and_a_cause_too_many_or_too_few(store, ended, code, said):
    assert said in broken(After(store, ended=[(ended, code)]))


def test_damaged_bytes_and_half_files(store):
    (store / "dataset" / "d" / "rows.jsonl").write_text("[]\n", encoding="utf-8")
    (store / "dataset" / "d" / ".manifest.json.4711").touch()
    assert broken(After(store)) == ["I5: dataset 'd' is damaged", "I5: .manifest.json.4711 is half a file"]


@pytest.mark.parametrize(
    "form", [lambda s: s, lambda s: base64.b64encode(s.encode()).decode(), lambda s: json.dumps({"k": s})]
)
def test_a_secret_in_whatever_form(store, tmp_path, form):
    outside = tmp_path / "session"
    outside.mkdir()
    (outside / "a.log").write_text(f"x {form('sk-canary-1')} y", encoding="utf-8")
    assert broken(After(store, canary="sk-canary-1")) == []
    assert broken(After(store, canary="sk-canary-1", outside=[outside])) == ["I6: the secret is in a.log"]


def test_a_process_that_is_left(store):
    before = running()
    process = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    try:
        (line,) = broken(After(store, processes_before=before))
        assert line.startswith(f"I7: process {process.pid} is left")
    finally:
        process.kill()
        process.wait()
    assert broken(After(store, processes_before=before)) == []
