"""Uploads arrive whole and once; a file that cannot be used is said line by line, before anything is sent."""

import json
import re
from dataclasses import replace

import pytest

from tests.vendor import chat_file, pairs_file, vending
from ucotron_ray.core.errors import FireworksError, InputError
from ucotron_ray.fireworks import account as control
from ucotron_ray.fireworks import datasets
from ucotron_ray.fireworks.dataset_rows import prepared, stable_id

GOOD = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "[]"}]}


def write(path, *rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "no JSON"),
        ("[1]", "list"),
        ({"text": 1}, "keys text"),
        ({"messages": [{"role": "user", "content": "q"}]}, "messages"),
        ({"messages": [{"role": "robot", "content": "q"}, {"role": "assistant", "content": "a"}]}, "role"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "user", "content": "q"}]}, "no answer"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]}, "no answer"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "a preference row after chat rows"),
        ({"messages": None}, "messages"),
    ],
)
def test_the_first_line_that_cannot_be_used_is_named_and_nothing_is_sent(tmp_path, monkeypatch, bad, said):
    path = write(tmp_path / "rows.jsonl", GOOD, "", GOOD, bad, GOOD)
    with vending(monkeypatch) as vendor:
        with pytest.raises(InputError) as raised:
            datasets.upload(vendor.account, path)
        assert f"{path}, line 4" in str(raised.value)
        assert said in str(raised.value)
        assert vendor.control()["requests"] == {}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"input": {"messages": [{"role": "user", "content": "q"}]}, "preferred_output": []}, "preferred_output"),
        ({"input": None, "preferred_output": []}, "messages"),
    ],
)
def test_preference_rows_are_checked_too(tmp_path, bad, said):
    with pytest.raises(InputError, match=said), prepared(write(tmp_path / "rows.jsonl", bad, bad, bad)):
        pass


def test_equal_answers_and_repeated_ids_are_refused(tmp_path):
    turn = [{"role": "assistant", "content": "a"}]
    same = {"input": GOOD, "preferred_output": turn, "non_preferred_output": turn}
    with pytest.raises(InputError, match="equal"), prepared(write(tmp_path / "a.jsonl", same, same, same)):
        pass
    batch = {"custom_id": "1", "body": {"messages": GOOD["messages"]}}
    with pytest.raises(InputError, match="line 2"), prepared(write(tmp_path / "b.jsonl", batch, batch)):
        pass


def test_too_few_rows_an_empty_file_and_no_file(tmp_path):
    for path, said in (
        (write(tmp_path / "two.jsonl", GOOD, GOOD), "no such number"),
        (write(tmp_path / "empty.jsonl"), "no rows"),
        (tmp_path / "none.jsonl", "cannot be read"),
    ):
        with pytest.raises(InputError, match=said), prepared(path):
            pass


def test_our_own_rows_go_in_the_servers_prompt(tmp_path):
    from ucotron_ray.data import wire

    row = {"text": "Ada works at Acme.", "entities": [{"text": "Ada", "label": "person"}, {"text": "Acme"}]}
    row["expected_relations"] = [{"subject": "Ada", "predicate": "works_at", "object": "Acme"}]
    with prepared(write(tmp_path / "rows.jsonl", row, row, row)) as file:
        sent = json.loads(file.path.read_text().splitlines()[0])["messages"]
        assert (file.layout, file.rows, file.converted) == ("chat", 3, True)
    assert sent[0] == {"role": "system", "content": wire.CHAT_SYSTEM}
    assert wire.parse_prompt(sent[1]["content"])[0] == "Ada works at Acme."
    assert wire.parse_answer(sent[2]["content"])[0].predicate == "works_at"


def test_the_guides_pairs_go_in_the_vendors_layout(tmp_path):
    with prepared(pairs_file(tmp_path / "pairs.jsonl")) as file:
        sent = json.loads(file.path.read_text().splitlines()[0])
        assert file.layout == "preference"
    assert sent["input"]["messages"] == [{"role": "user", "content": "Extract relations from: 0"}]
    assert sent["preferred_output"] == [{"role": "assistant", "content": "[1]"}]


@pytest.mark.parametrize("stem", ["Train_SFT (v2)", "1st", "___", "x" * 200, "Ünï"])
def test_ids_are_what_the_vendor_accepts(stem):
    made = stable_id(stem, "0123456789abcdef" * 4)
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,62}", made)
    assert made.endswith("-0123456789ab")


@pytest.mark.parametrize("signed", [False, True])
def test_an_equal_file_is_reused_and_another_one_never_lands_under_its_id(tmp_path, monkeypatch, signed):
    if signed:
        monkeypatch.setattr(datasets, "DIRECT_UPLOAD_BYTES", 10)
    path = chat_file(tmp_path / "Train_Rows.jsonl")
    with vending(monkeypatch) as vendor:
        first = datasets.upload(vendor.account, path)
        second = datasets.upload(vendor.account, path)
        assert (first.sent, second.sent, first.dataset_id) == (True, False, second.dataset_id)
        chat_file(path, rows=6)
        third = datasets.upload(vendor.account, path)
        assert third.sent
        assert third.dataset_id != first.dataset_id
        assert vendor.created("datasets") == 2
        assert datasets.download(vendor.account, third.dataset_id) == {path.name: path.read_bytes()}


@pytest.mark.parametrize("signed", [False, True])
def test_an_upload_that_is_cut_off_is_sent_again_from_its_beginning(tmp_path, monkeypatch, signed):
    """The older client sent the rest of the handle, which was nothing."""
    if signed:
        monkeypatch.setattr(datasets, "DIRECT_UPLOAD_BYTES", 10)
    path = chat_file(tmp_path / "rows.jsonl", rows=3000)
    with vending(monkeypatch, cut_uploads=2) as vendor:
        uploaded = datasets.upload(vendor.account, path)
        assert datasets.download(vendor.account, uploaded.dataset_id)["rows.jsonl"] == path.read_bytes()
        assert vendor.created("datasets") == 1
        assert list(vendor.control()["stored"].values()) == [path.stat().st_size]


def test_an_upload_that_was_never_finished_is_finished(tmp_path, monkeypatch):
    path = chat_file(tmp_path / "rows.jsonl")
    with vending(monkeypatch, cut_uploads=100) as vendor:
        with pytest.raises(FireworksError, match="did not answer"):
            datasets.upload(vendor.account, path)
        assert vendor.created("datasets") == 1
        name = next(entry["name"] for entry in datasets.listed(vendor.account))
        assert control.call(vendor.account, "GET", name)["state"] == "UPLOADING"
        # The next try of the same command, on a better day.
        uploaded = datasets.upload(replace(vendor.account, max_retries=200, retry_delay=0.0), path)
        assert uploaded.sent
        assert vendor.created("datasets") == 1


def test_an_id_of_the_users_own_is_not_taken_for_other_rows(tmp_path, monkeypatch):
    with vending(monkeypatch) as vendor:
        datasets.upload(vendor.account, chat_file(tmp_path / "a.jsonl"), dataset_id="mine")
        with pytest.raises(InputError, match="holds something else"):
            datasets.upload(vendor.account, chat_file(tmp_path / "b.jsonl", rows=7), dataset_id="mine")


def test_what_the_vendor_refuses_is_said(tmp_path, monkeypatch):
    with vending(monkeypatch) as vendor, pytest.raises(FireworksError, match="invalid dataset id"):
        datasets.upload(vendor.account, chat_file(tmp_path / "a.jsonl"), dataset_id="Not_Good")


def test_the_guides_rows_and_our_own_can_stand_in_one_file(tmp_path):
    row = {"text": "Ada works at Acme.", "entities": [], "expected_relations": []}
    with prepared(write(tmp_path / "rows.jsonl", GOOD, GOOD, row, GOOD)) as file:
        sent = [json.loads(line) for line in file.path.read_text().splitlines()]
        assert file.converted
    assert [len(row["messages"]) for row in sent] == [2, 2, 3, 2]
