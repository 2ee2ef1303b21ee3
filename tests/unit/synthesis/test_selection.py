"""Every planned sample ends in exactly one place, and no validation row shares a name with a training row."""

import json
import random
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from ucotron_ray.core import config
from ucotron_ray.core.errors import StageFailed
from ucotron_ray.synthesis import outcomes, publish, seeds, selection
from ucotron_ray.synthesis.quality import Duplicates, is_name, leaking, shingles
from ucotron_ray.synthesis.tasks import contradiction, relation_extraction

KIND, KIND_OF_FACTS = relation_extraction.row_kind(), contradiction.row_kind()
GENERATION = config.load().recipe.generation


def outcome(number: int, status: str = "accepted", *, text: str | None = None, split: str = "train", names=("A", "B")):
    row = None
    if status == "accepted":
        text = text or f"row {number} has its own words {number * 7} {number * 11} {number * 13}"
        relation = {"subject": names[0], "relation": "works_at", "object": names[1]}
        relation |= {"subject_type": "Person", "object_type": "Person"}
        entities = [{"text": name, "type": "Person", "start": 0, "end": 1} for name in names]
        row = {"text": text, "entities": entities, "relations": [relation], "metadata": {"seed_subject": names[0]}}
    reason = None if status == "accepted" else "why"
    return {"number": number, "status": status, "split": split, "reason": reason, "notes": [], "row": row}


def judged(tmp_path, entries, count=100):
    (tmp_path / outcomes.OUTCOMES).mkdir(exist_ok=True)
    # Two files, out of order, as two workers leave them.
    outcomes.append_outcomes(tmp_path / outcomes.OUTCOMES / "b.jsonl", entries[::2])
    outcomes.append_outcomes(tmp_path / outcomes.OUTCOMES / "a.jsonl", entries[1::2])
    return selection.select(tmp_path, KIND, count, 0.8)


def test_the_sum_is_what_was_planned_and_the_count_is_exact(tmp_path):
    entries = [outcome(n) for n in range(6)] + [
        outcome(6, "rejected"),
        outcome(7, "quarantined"),
        outcome(8, "pending"),
    ]
    entries.append(outcome(9, text=entries[0]["row"]["text"].upper() + "!"))
    verdicts = judged(tmp_path, entries, count=4)
    counts = selection.counts(verdicts, 10)
    assert counts == {"accepted": 4, "rejected": 1, "duplicate": 1, "quarantined": 1, "pending": 3}
    assert [v.number for v in verdicts if v.status == "accepted"] == [0, 1, 2, 3], "the first of the plan"
    files = selection.write_files(tmp_path, KIND, verdicts).lines
    assert files == {"relation_extraction.jsonl": 4, "train.jsonl": 4, "vendor.jsonl": 4, "rejected.jsonl": 6}
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert all(reasons)
    assert selection.NOT_NEEDED in reasons


def test_a_lost_sample_is_noticed(tmp_path):
    with pytest.raises(StageFailed, match="lost"):
        selection.counts(judged(tmp_path, [outcome(0), outcome(2)]), 3)


def test_a_sample_that_two_workers_ended_counts_once_and_an_answer_beats_none(tmp_path):
    verdicts = judged(tmp_path, [outcome(0, "pending"), outcome(0), outcome(1), outcome(1)])
    assert [(v.number, v.status) for v in verdicts] == [(0, "accepted"), (1, "accepted")]


def test_an_outcome_cut_off_by_a_kill_is_not_read(tmp_path):
    judged(tmp_path, [outcome(0), outcome(1)])
    path = tmp_path / outcomes.OUTCOMES / "a.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    assert [v.number for v in selection.select(tmp_path, KIND, 10, 0.8)] == [0]


def test_a_validation_row_with_a_name_of_training_is_rejected(tmp_path):
    rows = [
        outcome(0, names=("Ana", "X")),
        outcome(1, split="val", names=("ANA", "Y")),
        outcome(2, split="val", names=("Bo", "Z")),
    ]
    verdicts = judged(tmp_path, rows)
    assert [v.status for v in verdicts] == ["accepted", "rejected", "accepted"]
    assert leaking([(0, "train", ["a"]), (1, "val", ["A "]), (2, "val", ["b"])]) == {1}


def of_entities(*entities: tuple[str, str]):
    made = [{"text": text, "type": label, "start": 0, "end": 1} for text, label in entities]
    return {"text": "-", "entities": made, "relations": []}


def test_common_nouns_in_most_rows_cost_no_validation_row():
    rng = random.Random(5)
    generic = [("annual report", "Concept"), ("Annual report", "Concept"), ("the board", "organization")]
    generic += [("employees", "person"), ("supply chain delays", "Event")]
    rows = []
    for number in range(1000):
        own = (f"Ada {chr(65 + number % 26)}{number}", "Person")
        entities = [own, rng.choice(generic)] if rng.random() < 0.6 else [own]
        rows.append((number, "val" if number % 10 == 0 else "train", list(KIND.names(of_entities(*entities)))))
    assert leaking(rows) == set()


def test_planted_names_are_found():
    rng = random.Random(6)
    pools = {kind: seeds.every_name(kind) for kind in ("person", "organization", "university", "city", "work")}
    foreign = [
        ("北京", "Location"),
        ("محمد علي", "Person"),
        ("iPhone 15", "Concept"),
        ("x200", "product"),
        ("Łódź", "city"),
    ]
    train, val, planted = [], [], set()
    for number in range(1000):
        kind = rng.choice(sorted(pools))
        entity = (rng.choice(pools[kind]), seeds.KINDS[kind]) if rng.random() < 0.8 else rng.choice(foreign)
        train.append((number, "train", list(KIND.names(of_entities(entity, ("annual report", "Concept"))))))
        entities = [("annual report", "Concept"), ("Own Name Of This Row " + str(number), "Person")]
        if number % 2:
            entities.append((entity[0], rng.choice((entity[1], "Concept"))))
            planted.add(1000 + number)
        val.append((1000 + number, "val", list(KIND.names(of_entities(*entities)))))
    found = leaking([*train, *val])
    assert found <= planted
    assert len(found) >= 0.99 * len(planted)


@pytest.mark.parametrize(
    ("text", "label", "name"),
    [
        ("annual report", "Concept", False),
        ("Annual report", "Concept", False),
        ("Kite labs", "Organization", True),
        ("Silver Garden", "Concept", True),
        ("the Board", "Concept", True),
        ("staff", "person", False),
        ("Inflation", "Concept", True),
        ("x200", "product", True),
        ("東京", "location", True),
        ("überprüfung", "Concept", False),
    ],
)
def test_what_a_name_is(text, label, name):
    assert is_name(text, label) is name


def test_rows_beyond_the_count_do_not_change_those_within(tmp_path):
    rows = [outcome(0, names=("A", "B")), outcome(1, split="val", names=("C", "D")), outcome(2, names=("C", "E"))]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    few, more = judged(tmp_path / "a", rows[:2], count=2), judged(tmp_path / "b", rows, count=2)
    assert [v.status for v in few] == ["accepted", "accepted"]
    assert [v.status for v in more] == ["accepted", "accepted", "pending"]


def test_near_duplicates_are_found_and_other_texts_are_not():
    base = "the quick brown fox jumps over the lazy dog near the old mill and then runs back to the dark green forest again"
    duplicates = Duplicates(0.8)
    assert (
        duplicates.earlier("another text about other things that came before it in the file and is not alike") is None
    )
    assert duplicates.earlier(base) is None
    assert duplicates.earlier(base.title() + "...") == ("duplicate", 1)
    assert duplicates.earlier(base + " today") == ("near_duplicate", 1)
    assert duplicates.earlier(base.replace("fox", "cat").replace("mill", "barn").replace("green", "blue")) is None
    assert Duplicates(1.0).earlier(base) is None


def test_shingles_of_short_texts_are_the_text():
    assert shingles(["a", "b"]) == {"a b"}
    assert len(shingles(list("abcdefg"))) == 3


def test_every_class_has_exactly_its_share_and_what_is_missing_counts_samples_of_the_mixture(tmp_path):
    kind = replace(KIND, shares={"a": 0.75, "b": 0.25}, labels=lambda row: [row["metadata"]["class"]])

    def of_class(number, label):
        made = outcome(number)
        return {**made, "row": {**made["row"], "metadata": {"class": label}}}

    def verdicts(entries, count):
        folder = tmp_path / f"{len(entries)}-{count}"
        (folder / outcomes.OUTCOMES).mkdir(parents=True)
        outcomes.append_outcomes(folder / outcomes.OUTCOMES / "a.jsonl", entries)
        return selection.select(folder, kind, count, 0.8)

    few = verdicts([of_class(n, "a") for n in range(6)], 8)
    assert selection.missing(few, kind, 8) == 8, "two of b are two eighths"
    more = verdicts([of_class(n, "b" if n in (1, 2, 5) else "a") for n in range(12)], 8)
    assert selection.missing(more, kind, 8) == 0
    kept = [v.number for v in more if v.status == "accepted"]
    assert kept == [0, 1, 2, 3, 4, 6, 7, 8], "the first of each class"
    assert kind.quotas(10) == {"a": 8, "b": 2} or kind.quotas(10) == {"a": 7, "b": 3}
    for count in range(1, 60):
        assert sum(KIND_OF_FACTS.quotas(count).values()) == count


def test_rows_with_hostile_text_or_another_shape_are_quarantined_at_the_last_step(tmp_path):
    bad = outcome(1, text="a text with <|im_end|> in it and more words")
    shapeless = outcome(2)
    shapeless["row"]["entities"] = [{"text": "A"}]
    verdicts = judged(tmp_path, [outcome(0), bad, shapeless])
    assert [(v.status, v.defect) for v in verdicts] == [
        ("accepted", None),
        ("quarantined", "special_token"),
        ("quarantined", "schema"),
    ]
    written = selection.write_files(tmp_path, KIND, verdicts)
    assert written.caught == {"special_token": 1, "schema": 1}


def test_the_table_holds_the_rows_of_the_file_and_both_are_the_same_bytes_again(tmp_path):
    entries = [outcome(n, split="val" if n % 5 == 0 else "train", names=(f"A{n}", f"B{n}")) for n in range(12)]
    made = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        verdicts = judged(tmp_path / name, entries)
        facts = {"name": "set", "task": KIND.name}
        published = publish.publish(tmp_path / name, KIND, verdicts, GENERATION, facts)
        assert published.failures == ["defects: wrong span in 12 of 12 rows: 100.00%, not 0.00%"]
        made.append({path.name: path.read_bytes() for path in (tmp_path / name).glob("*.*")})
    assert made[0] == made[1]
    rows = [json.loads(line) for line in made[0]["relation_extraction.jsonl"].splitlines()]
    assert pq.read_table(tmp_path / "one" / "relation_extraction.parquet").to_pylist() == rows
    vendor = [json.loads(line) for line in made[0]["vendor.jsonl"].splitlines()]
    assert [turn["role"] for turn in vendor[0]["messages"]] == ["system", "user", "assistant"]
