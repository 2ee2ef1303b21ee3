"""What was paid for is kept, whatever is cut off; damage is never mistaken for absence."""

import dataclasses
import hashlib
from pathlib import Path

import pytest

from ucotron_ray.core.errors import ArtifactError, CorruptArtifact
from ucotron_ray.synthesis import compaction, journal
from ucotron_ray.synthesis.journal import Reader, Record, Writer


def record(number: int, *, kind: str = "answer", run: str = "r", cost: float = 0.5) -> Record:
    return Record(
        rid=hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest(),
        kind=kind,
        text=f"äöü line\nbreak {number}",
        finish="stop",
        run=run,
        step="write",
        model="m",
        prompt_tokens=3,
        cached_tokens=0,
        completion_tokens=4,
        estimated=False,
        cost_usd=cost,
        attempts=1,
    )


def write(directory: Path, *numbers: int) -> Path:
    writer = Writer(directory)
    for number in numbers:
        writer.append(record(number))
    writer.close()
    return writer.path


def found(directory: Path) -> Reader:
    reader = Reader(directory)
    reader.refresh()
    return reader


def test_what_was_appended_is_found_by_its_id(tmp_path):
    write(tmp_path, 1, 2)
    reader = found(tmp_path)
    assert reader.get(record(1).rid) == record(1)
    assert reader.get(record(3).rid) is None


def test_a_line_is_readable_by_another_process_before_append_returns_to_its_caller(tmp_path):
    writer = Writer(tmp_path)
    writer.append(record(1))
    assert found(tmp_path).get(record(1).rid) == record(1), "not closed, not synced: still there"


def test_refresh_takes_in_what_others_added_since(tmp_path):
    reader = found(tmp_path)
    first = Writer(tmp_path)
    first.append(record(1))
    reader.refresh()
    first.append(record(2))
    write(tmp_path, 3)
    reader.refresh()
    assert [reader.get(record(n).rid) for n in (1, 2, 3)] == [record(1), record(2), record(3)]


@pytest.mark.parametrize("left", [1, 20, 45, 60, -1])
def test_a_torn_tail_is_dropped_wherever_it_was_torn(tmp_path, left):
    path = write(tmp_path, 1, 2)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    path.write_bytes(whole[: first + left] if left > 0 else whole[:-1])
    reader = found(tmp_path)
    assert reader.get(record(1).rid) == record(1)
    assert reader.get(record(2).rid) is None


@pytest.mark.parametrize("at", [3, 36, 60])
def test_damage_in_the_middle_stops_with_file_and_offset(tmp_path, at):
    path = write(tmp_path, 1, 2, 3)
    data = bytearray(path.read_bytes())
    second = data.index(b"\n") + 1
    data[second + at] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptArtifact) as error:
        list(journal.records(tmp_path))
    assert f"{path}, byte {second}" in str(error.value)
    if at > 32:
        with pytest.raises(CorruptArtifact):
            found(tmp_path)


def test_a_flipped_id_is_damage_too(tmp_path):
    path = write(tmp_path, 1)
    data = path.read_bytes()
    path.write_bytes((b"0" if data[:1] != b"0" else b"1") + data[1:])
    with pytest.raises(CorruptArtifact):
        list(journal.records(tmp_path))


def test_an_attempt_that_may_have_been_billed_costs_but_answers_nothing(tmp_path):
    writer = Writer(tmp_path)
    writer.append(record(1, kind="transient", cost=0.25))
    writer.append(record(2, cost=0.5))
    writer.append(record(3, run="another", cost=8.0))
    assert found(tmp_path).get(record(1).rid) is None
    assert journal.spent(tmp_path, "r") == 0.75


def test_a_refusal_is_an_answer_only_for_who_read_before_it_came(tmp_path):
    writer = Writer(tmp_path)
    writer.append(record(1, kind="poison", cost=0.0))
    reader = found(tmp_path)
    writer.append(record(2, kind="poison", cost=0.0))
    reader.refresh()
    assert reader.get(record(1).rid) is None
    assert reader.get(record(2).rid) == record(2, kind="poison", cost=0.0)
    # What answers the same request later, by then or after a compaction.
    writer.append(record(1))
    reader.refresh()
    assert reader.get(record(1).rid) == found(tmp_path).get(record(1).rid) == record(1)
    writer.close()
    assert compaction.compact(tmp_path) == 3
    assert found(tmp_path).get(record(1).rid) == record(1)
    assert found(tmp_path).get(record(2).rid) is None


def test_a_refusal_costs_nothing_and_does_not_stand_for_the_answer_that_came_later(tmp_path):
    writer = Writer(tmp_path)
    for entry in (record(1, kind="poison", cost=0.0), record(1, cost=0.5), record(2, kind="poison", cost=0.0)):
        writer.append(entry)
    writer.close()
    assert journal.spent(tmp_path, "r") == 0.5
    assert journal.paid(tmp_path, "r") == {"answers": 1, "cost in dollars": 0.5, "tokens in": 3, "tokens out": 4}


def test_compaction_forgets_no_cost(tmp_path):
    writer = Writer(tmp_path)
    writer.append(record(1, kind="transient", cost=0.25))
    writer.append(record(1, cost=0.5))
    writer.close()
    compaction.compact(tmp_path)
    assert journal.spent(tmp_path, "r") == 0.75
    assert found(tmp_path).get(record(1).rid) == record(1)


def test_compaction_keeps_each_answer_once_and_can_be_cut_off(tmp_path):
    write(tmp_path, 1, 2)
    segments = {path: path.read_bytes() for path in (tmp_path / "segments").glob("*.log")}
    assert compaction.compact(tmp_path) == 2
    # As if the kill came between the shards and the removal of the segments.
    for path, data in segments.items():
        path.write_bytes(data)
    write(tmp_path, 2, 3)
    assert compaction.compact(tmp_path) == 1
    assert sorted(r.rid for r in journal.records(tmp_path)) == sorted(record(n).rid for n in (1, 2, 3))
    assert not list((tmp_path / "segments").glob("*"))
    assert found(tmp_path).get(record(2).rid) == record(2)


def test_a_journal_has_one_run_at_a_time(tmp_path):
    with journal.held(tmp_path), pytest.raises(ArtifactError, match="another run") as error, journal.held(tmp_path):
        pass
    assert "process" in str(error.value)
    with journal.held(tmp_path):
        pass


def test_a_record_survives_its_line(tmp_path):
    for number in range(50):
        original = dataclasses.replace(record(number), text="\x00\u2028\U0001f600\r\n\\" * number)
        assert journal.decode(journal.encode(original), tmp_path, 0) == original
        assert journal.encode(original).count(b"\n") == 1


def test_a_shard_that_is_gone_or_cut_off_is_damage_and_no_shard_is_overwritten(tmp_path):
    for numbers in ((1,), (2,), (3,)):
        write(tmp_path, *numbers)
        compaction.compact(tmp_path)
    first, second, third = sorted((tmp_path / "shards").glob("*.log"))
    data = first.read_bytes()
    first.unlink()
    with pytest.raises(CorruptArtifact, match="damaged"):
        list(journal.records(tmp_path))
    write(tmp_path, 4)
    compaction.compact(tmp_path)
    assert second.exists()
    assert third.exists()
    assert len(list(journal.records(tmp_path))) == 3
    third.write_bytes(third.read_bytes()[:-10])
    with pytest.raises(CorruptArtifact, match="damaged"):
        list(journal.records(tmp_path))
    assert data


def test_a_full_disk_leaves_whole_lines_and_ends_the_segment(tmp_path, monkeypatch):
    import os

    writer = Writer(tmp_path)
    writer.append(record(1))
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[: len(data) // 2]))
    with pytest.raises(OSError, match="full"):
        writer.append(record(2))
    monkeypatch.setattr(os, "write", real)
    with pytest.raises(OSError, match="full"):
        writer.append(record(3))
    assert [entry.rid for entry in journal.records(tmp_path)] == [record(1).rid]
