"""Killed before every single change of a file, then run again: the same bytes, nothing half, nothing lost."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.invariants import After, broken
from tests.faults.kill_points import killed_at
from ucotron_ray import cli
from ucotron_ray.core import artifacts
from ucotron_ray.core.artifacts import BuildResult, Request, Store
from ucotron_ray.operations import record
from ucotron_ray.synthesis import compaction, journal

MOST = 200


def every_kill(tmp_path: Path, prepare: Callable[[Path], None], step: Callable[[Path], None]) -> list[Path]:
    """For each change that `step` makes a directory in which it was killed there, not yet run again."""
    places = []
    for change in range(MOST):
        place = tmp_path / f"kill-{change}"
        place.mkdir()
        prepare(place)
        with killed_at(place, change) as watch:
            step(place)
        if not watch.dead:
            assert change > 3, "hardly anything was written"
            return places
        places.append(place)
    raise AssertionError(f"more than {MOST} changes")


def build(store: Path, text: str, *, replace: bool = False) -> None:
    with Store(store).building(Request("dataset", "d", {"text": text}), replace=replace) as work:
        if work.artifact is None:
            for name in ("a.jsonl", "b.jsonl"):
                (work.path / name).write_text(text, encoding="utf-8")
            work.publish(BuildResult({}, {}, []))


def test_an_artifact_is_there_whole_or_not_at_all(tmp_path):
    places = every_kill(tmp_path, lambda place: None, lambda place: build(place, "new"))
    for place in places:
        found = Store(place).find("dataset", "d")
        if found is not None:
            artifacts.verify(found)
        build(place, "new")
        assert (place / "dataset/d/a.jsonl").read_text() == (place / "dataset/d/b.jsonl").read_text() == "new"
        Store(place).get("dataset", "d")


def test_replacing_an_artifact_never_leaves_none(tmp_path):
    places = every_kill(
        tmp_path, lambda place: build(place, "old"), lambda place: build(place, "new", replace=True)
    )  # fmt: skip
    without = 0
    for place in places:
        found = Store(place).find("dataset", "d")
        without += found is None
        build(place, "new", replace=True)
        assert (place / "dataset/d/a.jsonl").read_text() == "new"
        Store(place).get("dataset", "d")
    # Between the two renames the old one has another name; it is not lost, but not found.
    assert without <= 1


@pytest.mark.faults
def test_rows_from_a_graph_are_the_same_after_a_kill_anywhere(tmp_path, demo_files):
    def run(place: Path) -> None:
        arguments = ["import-graph", str(demo_files[0]), "--name", "d", "--set", f"store={place}"]
        assert cli.main([*arguments, "--set", "tracking.mlflow_uri=none"]) == 0

    straight = tmp_path / "straight"
    straight.mkdir()
    run(straight)
    places = every_kill(tmp_path, lambda place: None, run)
    for place in places:
        run(place)
        after = After(place, made=place / "dataset/d", straight=straight / "dataset/d")
        assert broken(after) == []


def test_no_answer_is_lost_by_a_compaction_that_is_killed_anywhere(tmp_path):
    def answers(place: Path) -> dict[str, str]:
        reader = journal.Reader(place)
        reader.refresh()
        return {rid: found.text for rid in RIDS if (found := reader.get(rid)) is not None}

    def fill(place: Path) -> None:
        for start in (0, 5):
            writer = journal.Writer(place)
            for rid in RIDS[start : start + 5]:
                writer.append(answer(rid))
            writer.close()

    places = every_kill(tmp_path, fill, compaction.compact)
    for place in places:
        assert len(answers(place)) == len(RIDS)
        compaction.compact(place)
        assert answers(place) == {rid: f"answer of {rid}" for rid in RIDS}


RIDS = [f"{number:032x}" for number in range(10)]


def answer(rid: str) -> journal.Record:
    return journal.Record(rid, "ok", f"answer of {rid}", "stop", "run", "step", "model", 1, 0, 1, False, 0.1, 1)


def test_the_record_of_a_job_is_the_old_one_or_the_new_one(tmp_path):
    known = record.JobRecord(run="r", command=["sft"], address="a", package="p")

    def first(place: Path) -> None:
        record.Keeper(place / "r", known).note("r-1", "submitted")

    def second(place: Path) -> None:
        keeper = record.Keeper(place / "r", known)
        keeper.note("r-1", "ended", status="FAILED", code=75)
        keeper.note("r-2", "submitted")

    for place in every_kill(tmp_path, first, second):
        found = record.read(place / "r")
        assert found is not None
        assert found.attempts[0].status in ("SUBMITTED", "FAILED")
        second(place)
        again = record.read(place / "r")
        assert again is not None
        assert [entry.id for entry in again.attempts] == ["r-1", "r-2"]


@pytest.mark.parametrize("change", [0, 1])
def test_the_killer_itself_stops_what_comes_after(tmp_path, change):
    with killed_at(tmp_path, change) as watch:
        try:
            for name in "abc":
                (tmp_path / name).touch()
        finally:
            (tmp_path / "late").touch()
    assert watch.dead
    assert sorted(path.name for path in tmp_path.iterdir()) == list("abc")[:change]
