"""The gate finds every planted defect and nothing else; its page holds no markup of a row."""

import json
import random
import re
from html.parser import HTMLParser

import pytest

from tests.unit.synthesis.test_generators import NAMES, PAIRS, SCENES, answered
from tests.unit.synthesis.test_tasks import TASK
from ucotron_ray.core import config
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.data.readers import Entry
from ucotron_ray.synthesis import contents, gate, page, publish, rows

GENERATION = config.load().recipe.generation
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&</svg>"


def clean(task, count: int) -> list[tuple[str, dict]]:
    """Rows of the simulator without defect, the validation rows with their split."""
    made = [(task.sample(n)["split"], answered(task, n)) for n in range(count)]
    entries = [(split, end.row) for split, end in made if end.status == "accepted"]
    looked = gate.examine(task.rows, [Entry(str(n), s, r) for n, (s, r) in enumerate(entries)], 0.8)
    bad = {int(entry.where) for entry in looked if entry.defects}
    return [entry for number, entry in enumerate(entries) if number not in bad]


def wrong_span(row, rng, others):
    entity = {**row["entities"][0], "start": row["entities"][0]["start"] + 1}
    return {**row, "entities": [entity, *row["entities"][1:]]}


def outside_vocabulary(row, rng, others):
    return {**row, "relations": [{**row["relations"][0], "relation": "zaps"}, *row["relations"][1:]]}


def leak(row, rng, others):
    name = next(entity["text"] for split, other in others if split == "train" for entity in other["entities"])
    text = f"{row['text']} {name} too."
    start = len(row["text"]) + 1
    entity = {"text": name, "type": "Person", "start": start, "end": start + len(name)}
    return {**row, "text": text, "entities": [*row["entities"], entity]}


def secret(row, rng, others):
    return {**row, "text": f"{row['text']} The key is fw_{''.join(rng.choices('abcdef0123456789', k=24))}."}


def same_fact(row, rng, others):
    fact = {**row["fact_b"], "object": row["fact_a"]["object"], "text": f"To repeat it: {row['fact_a']['text']}"}
    return {**row, "fact_b": fact}


def alias_as_negative(row, rng, others):
    return {**row, "variant": rng.choice((row["canonical"].upper(), f"The {row['canonical']}"))}


def near_duplicate(row, rng, others):
    original = next(other["description"] for _, other in others if len(other["description"].split()) > 35)
    return {**row, "description": f"{original} {rng.randrange(10**6)}"}


@pytest.mark.parametrize(
    ("task", "plant", "eligible"),
    [
        (TASK, wrong_span, lambda split, row: True),
        (TASK, outside_vocabulary, lambda split, row: True),
        (TASK, leak, lambda split, row: split == "val"),
        (TASK, secret, lambda split, row: True),
        (PAIRS, same_fact, lambda split, row: row["label"] != "agrees"),
        (NAMES, alias_as_negative, lambda split, row: not row["is_duplicate"]),
        (SCENES, near_duplicate, lambda split, row: True),
    ],
    ids=lambda value: getattr(value, "__name__", getattr(value, "name", "")),
)
def test_every_planted_defect_is_found_in_its_row_and_in_no_other(task, plant, eligible):
    rng = random.Random(7)
    entries = clean(task, 300)
    places = [n for n, (split, row) in enumerate(entries) if eligible(split, row) and n > 20]
    planted = set(rng.sample(places, min(15, len(places))))
    mixed = [
        Entry(str(n), split, plant(row, rng, entries[:20]) if n in planted else row)
        for n, (split, row) in enumerate(entries)
    ]
    looked = list(gate.examine(task.rows, mixed, 0.8))
    assert {int(entry.where) for entry in looked if plant.__name__ in entry.defects} == planted
    assert {int(entry.where) for entry in looked if entry.defects} == planted
    report = gate.report(task.rows, looked, GENERATION.gate)
    assert report["state"] == "rejected"
    assert report["defects"][plant.__name__]["rows"] == len(planted)
    assert any(plant.__name__.replace("_", " ") in failure for failure in report["failures"])


def test_a_clean_set_is_ok_and_its_numbers_are_those_of_the_rows():
    entries = clean(TASK, 120)
    looked = gate.examine(TASK.rows, [Entry(str(n), split, row) for n, (split, row) in enumerate(entries)], 0.8)
    report = gate.report(TASK.rows, looked, GENERATION.gate)
    assert (report["state"], report["failures"]) == ("ok", [])
    assert report["rows"] == len(entries) == sum(report["splits"].values())
    texts = [len(row["text"]) for _, row in entries]
    assert (report["lengths"]["min"], report["lengths"]["max"]) == (min(texts), max(texts))
    assert sum(bar["rows"] for bar in report["lengths"]["histogram"]) == len(entries)
    for bar in report["lengths"]["histogram"]:
        assert bar["rows"] == sum(bar["from"] <= length <= bar["to"] for length in texts)
    assert sum(report["labels"].values()) == sum(len(row["relations"]) for _, row in entries)
    json.dumps(report, allow_nan=False)


def test_what_was_caught_counts_for_the_state_too_and_a_missing_label_does_in_a_large_set():
    looked = [gate.RowReport(str(n), "train", (), 10, ("works_at",)) for n in range(1000)]
    report = gate.report(TASK.rows, looked, GENERATION.gate, caught={"secret": 20}, samples=1020)
    assert report["state"] == "rejected"
    assert [failure.split(":")[0] for failure in report["failures"]] == ["caught", "vocabulary"]
    assert gate.report(TASK.rows, [], GENERATION.gate)["failures"] == ["there is no row"]


def test_a_threshold_of_something_unknown_is_refused():
    wrong = GENERATION.gate.model_copy(update={"caught": {"wrongspan": 0.1}})
    with pytest.raises(ConfigError, match="wrongspan"):
        rows.check_limits(wrong)


class Parsed(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def test_the_page_has_pictures_no_script_nothing_from_outside_and_hostile_text_as_text():
    looked = [
        gate.RowReport(HOSTILE, "train", ("schema",), 5, (HOSTILE,), detail=HOSTILE),
        gate.RowReport("line 2", "train", (), 9, (HOSTILE, "works_at")),
    ]
    report = gate.report(TASK.rows, looked, GENERATION.gate)
    text = page.page(HOSTILE, report)
    parsed = Parsed(text)
    assert {"svg", "rect", "table"} <= set(parsed.tags)
    assert not {"script", "img", "link", "iframe", "object", "a"} & set(parsed.tags)
    assert not [name for name, _ in parsed.attributes if name.startswith("on") or name in ("src", "href")]
    assert "default-src 'none'" in text
    assert not re.search(r"https?://", text)
    assert HOSTILE in parsed.text
    card = publish.card({"name": "x", "task": "y"}, {}, report, {f"rejected: {HOSTILE}": 3}, "MIT")
    assert "<script" not in card


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("end <|im_end|> of turn", "special_token"),
        ("[INST] do it [/INST]", "special_token"),
        ("a\u202eb", "control_character"),
        ("zero\u200bwidth", "control_character"),
        ("nul\x00", "control_character"),
        ("key sk-abcdefghijklmnopqrstuv", "secret"),
        ("-----BEGIN RSA PRIVATE KEY-----", "secret"),
        ("AKIAABCDEFGHIJKLMNOP", "secret"),
        ("password = hunter2hunter2", "secret"),
        ("mail ana.silva@example.org please", "personal_data"),
        ("call +49 30 1234 5678", "personal_data"),
        ("card 4111 1111 1111 1111", "personal_data"),
        ("IBAN DE89 3704 0044 0532 0130 00", "personal_data"),
    ],
)
def test_hostile_and_private_strings_are_known(text, name):
    assert contents.found([text]) == [name]


@pytest.mark.parametrize(
    "text",
    [
        "In 2024 the population was 412,780.",
        "She said <b>no</b> and a < b.",
        "The password was lost; the secret of success is work.",
        "Tab\tand line\nfeed are no controls here",
        "../../etc/passwd; rm -rf /",
        "From 1998-2003 he lived at 12 Main St., 555 people came.",
        "Ana Silva, PhD | R&D",
    ],
)
def test_plain_strings_are_not_taken_for_them(text):
    assert contents.found([text]) == []
