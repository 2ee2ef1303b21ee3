"""What was paid for is kept, whatever is cut off; damage is never mistaken for absence."""

import dataclasses
import hashlib
import os
import zlib
from pathlib import Path

import pytest

from ucotron_ray.core.errors import ArtifactError, CorruptArtifact
from ucotron_ray.synthesis import compaction, journal, outcomes
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


def test_two_failures_of_one_request_stay_two_after_a_compaction(tmp_path):
    writer = Writer(tmp_path)
    for moment in (1.0, 2.0):
        writer.append(dataclasses.replace(record(1, kind="transient", cost=0.25), at=moment))
    writer.close()
    compaction.compact(tmp_path)
    assert journal.spent(tmp_path, "r") == 0.5


def test_requests_are_settled_by_what_the_journal_knows_of_them_for_this_run(tmp_path):
    writer = Writer(tmp_path)
    writer.append(record(1))
    writer.append(record(2, run="another"))
    writer.append(record(3, kind="transient", cost=0.25))
    rids = {record(number).rid: number for number in range(1, 5)}
    assert {rids[rid] for rid in journal.settled(tmp_path, "r", rids)} == {1, 3}


def test_what_was_in_flight_at_a_kill_stays_unless_it_is_in_the_journal_and_is_noted_once(tmp_path):
    outcomes.keep_unsettled(tmp_path, 1.0, {"a": 0.5, "b": 0.25})
    assert outcomes.unsettled(tmp_path, lambda rids: {"a"}) == 1.25
    # Each invocation notes what it was told of the earlier ones and its own requests: the sum does not grow by itself.
    for _ in range(3):
        outcomes.keep_unsettled(tmp_path, outcomes.unsettled(tmp_path, lambda rids: {"a"}), {})
    assert outcomes.unsettled(tmp_path, lambda rids: set()) == 1.25
    (tmp_path / outcomes.UNSETTLED).write_text('{"usd": 3.5}', encoding="utf-8")
    assert outcomes.unsettled(tmp_path, lambda rids: set()) == 3.5, "as files of before have it"


def test_who_gave_an_answer_is_kept_without_passwords_and_journals_of_before_are_read(tmp_path):
    assert journal.server_of("https://me:secret@host:8443/v1/?key=secret") == "https://host:8443/v1"
    writer = Writer(tmp_path)
    new = dataclasses.replace(record(1), server="https://host/v1", at=5.0)
    writer.append(new)
    line = journal.encode(record(2))
    rid, _, body = line.rstrip(b"\n").split(b" ", 2)
    body = body.replace(b',"server":null,"at":0.0', b"")
    writer.close()
    old = b"%s %08x %s\n" % (rid, zlib.crc32(rid + body), body)
    (tmp_path / "segments" / "old.log").write_bytes(old)
    assert found(tmp_path).get(record(1).rid) == new
    assert found(tmp_path).get(record(2).rid) == record(2)


def test_a_prompt_that_was_rejected_is_no_answer_and_known_as_refused(tmp_path):
    writer = Writer(tmp_path)
    writer.append(record(1, kind="rejected", cost=0.0))
    writer.append(record(2, kind="transient", cost=0.1))
    reader = found(tmp_path)
    writer.append(record(3, kind="rejected", cost=0.0))
    reader.refresh()
    assert [reader.get(record(number).rid) for number in (1, 2, 3)] == [None] * 3
    assert [reader.was_refused(record(number).rid) for number in (1, 2, 3)] == [True, False, True]
    assert journal.paid(tmp_path, "r")["answers"] == 0


def test_close_gives_the_descriptor_back_and_says_what_could_not_be_made_durable(tmp_path, monkeypatch):
    writer = Writer(tmp_path)
    writer.append(record(1))
    writer.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writer._file)
    failing = Writer(tmp_path)
    monkeypatch.setattr(journal.os, "fsync", lambda file: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    failing.append(record(2))
    with pytest.raises(OSError, match="Input/output error"):
        failing.close()


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
