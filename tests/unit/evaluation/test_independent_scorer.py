"""Another scorer, written from the definitions with loops over plain strings, agrees with ours.

It shares no code with the package: names are normalised here again, answers are known before they become JSON, and
places are found token by token.
"""

import json
import random
import unicodedata

import pytest

from tests import public_sets
from ucotron_ray.data.records import Entity, RawRow, Relation
from ucotron_ray.evaluation.benchmark.protocols import END_TO_END, ENTITIES_GIVEN, PAIRS, measures, questions
from ucotron_ray.evaluation.benchmark.sets import read_set
from ucotron_ray.evaluation.scoring import score_row, summary

NAMES = ["Ann", "Bo Li", "Café Nord", "Acme", "Rome", "New Rome", "Straße 5", "东京", "C", "C++", "C#"]
PREDICATES = ["works_for", "lives in", "met", "born-in"]
FIGURES = ("precision", "recall", "f1", "exact_f1", "pair_f1", "macro_f1", "predicate_accuracy", "valid_answers")


def plain(text: str) -> str:
    """Case, `_`, runs of white space, quotes around and `.,;:` behind do not count."""
    out = ""
    for letter in unicodedata.normalize("NFC", text).casefold():
        blank = letter == "_" or letter.isspace()
        if not (blank and out.endswith(" ")):
            out += " " if blank else letter
    changed = True
    while changed:
        changed = False
        for edge in " \"'":
            if out.startswith(edge):
                out, changed = out[1:], True
        for edge in " \"'.,;:":
            if out.endswith(edge):
                out, changed = out[:-1], True
    return out


def f1(right: int, predicted: int, expected: int) -> float:
    if predicted + expected == 0:
        return 1.0
    precision = right / predicted if predicted else 0.0
    recall = right / expected if expected else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def count(predicted: list, expected: list) -> tuple[int, int, int]:
    """Right, predicted and expected, each thing once."""
    left, right = [], []
    for thing in predicted:
        if thing not in left:
            left.append(thing)
    for thing in expected:
        if thing not in right:
            right.append(thing)
    return sum(thing in right for thing in left), len(left), len(right)


def figures(rows: list[tuple[list | None, list]]) -> dict[str, float]:
    """The figures of (predicted triples, None for no array; expected triples) of every row."""
    totals = {kind: [0, 0, 0] for kind in ("triples", "exact", "pairs")}
    per_predicate: dict[str, list[int]] = {}
    named = 0
    for found, expected in rows:
        predicted = found or []
        same = [tuple(plain(part) for part in triple) for triple in predicted]
        right = [tuple(plain(part) for part in triple) for triple in expected]
        parts = {
            "triples": count(same, right),
            "exact": count([tuple(triple) for triple in predicted], [tuple(triple) for triple in expected]),
            "pairs": count([(one, two) for one, _, two in same], [(one, two) for one, _, two in right]),
        }
        for kind, counts in parts.items():
            totals[kind] = [old + new for old, new in zip(totals[kind], counts, strict=True)]
        named += len({(one, two) for one, label, two in same if (one, label, two) in right})
        for label in {triple[1] for triple in same + right}:
            counts = count([t for t in same if t[1] == label], [t for t in right if t[1] == label])
            old = per_predicate.get(label, [0, 0, 0])
            per_predicate[label] = [one + two for one, two in zip(old, counts, strict=True)]
    good, predicted, expected = totals["triples"]
    empty = predicted + expected == 0
    macro = [f1(*counts) for counts in per_predicate.values() if counts[2]]
    return {
        "precision": 1.0 if empty else good / predicted if predicted else 0.0,
        "recall": 1.0 if empty else good / expected if expected else 0.0,
        "f1": f1(*totals["triples"]),
        "exact_f1": f1(*totals["exact"]),
        "pair_f1": f1(*totals["pairs"]),
        "macro_f1": sum(macro) / len(macro) if macro else 0.0,
        "predicate_accuracy": named / totals["pairs"][0] if totals["pairs"][0] else 0.0,
        "valid_answers": sum(found is not None for found, _ in rows) / len(rows),
    }


def respelled(rng: random.Random, text: str) -> str:
    """One of the spellings that count as the same, mostly the text itself."""
    others = [text.upper() if text != "Straße 5" else "STRASSE 5", text.replace(" ", "  "), text.replace(" ", "_")]
    others += [f'"{text}"', f"{text}.", f" {text} "]
    return rng.choice(others) if rng.random() < 0.3 else text


def drawn(rng: random.Random) -> tuple[list[tuple[list | None, list]], list[RawRow], list[str]]:
    """A prediction set: triples as they were drawn, and the same as rows and answers of ours."""
    plain_rows, rows, answers = [], [], []
    for _ in range(rng.randint(1, 6)):
        expected = [
            (rng.choice(NAMES), rng.choice(PREDICATES), rng.choice(NAMES)) for _ in range(rng.choice([0, 1, 2, 4]))
        ]
        predicted: list | None = []
        for _ in range(rng.choice([0, 1, 2, 5])):
            triple = rng.choice(expected) if expected and rng.random() < 0.6 else None
            triple = triple or (rng.choice(NAMES), rng.choice(PREDICATES), rng.choice(NAMES))
            predicted.append(tuple(respelled(rng, part) for part in triple))
        predicted += predicted[: rng.choice([0, 0, 1])]
        answer = json.dumps(
            [dict(zip(("subject", "predicate", "object"), triple, strict=True)) for triple in predicted]
        )
        if rng.random() < 0.1:
            predicted, answer = None, rng.choice(["", "no relation", '{"subject": "Ann"}'])
        elif rng.random() < 0.1:
            answer = f"Here they are: {answer} Done."
        plain_rows.append((predicted, expected))
        relations = [Relation(subject=one, predicate=label, object=two) for one, label, two in expected]
        given = [Entity(text=name, label="person") for name in NAMES]
        rows.append(RawRow(text=" ".join(NAMES), entities=given, expected_relations=relations))
        answers.append(answer)
    return plain_rows, rows, answers


def test_both_scorers_agree_on_a_thousand_random_prediction_sets():
    rng = random.Random(20)
    seen = set()
    for _ in range(1000):
        plain_rows, rows, answers = drawn(rng)
        ours = summary([score_row(*pair) for pair in zip(rows, answers, strict=True)])
        other = figures(plain_rows)
        assert {key: ours[key] for key in FIGURES} == pytest.approx(other), (plain_rows, answers)
        seen.add(round(other["f1"], 2))
    assert len(seen) > 50, "the sets are not all right or all wrong"


# On a set in CoNLL04's layout: places are windows of tokens.


def windows(name: str, tokens: list[str]) -> list[tuple[int, int]]:
    words = name.split()
    for same in (str, str.lower):
        wanted = [same(word) for word in words]
        found = []
        for start in range(len(tokens) - len(words) + 1):
            if [same(token) for token in tokens[start : start + len(words)]] == wanted:
                found.append((start, start + len(words)))
        if found and words:
            return found
    return []


def offset(tokens: list[str], place: tuple[int, int]) -> tuple[int, int]:
    start = sum(len(token) + 1 for token in tokens[: place[0]])
    return start, start + len(" ".join(tokens[place[0] : place[1]]))


def meant(record: dict, subject: str, object_: str, given: bool) -> tuple:
    """Places of subject and object: of given entities of that name, else anywhere; the closest two."""
    tokens = record["tokens"]
    candidates = []
    for name in (subject, object_):
        own = [
            (entity["start"], entity["end"])
            for entity in record["entities"]
            if given and plain(" ".join(tokens[entity["start"] : entity["end"]])) == plain(name)
        ]
        candidates.append(own or windows(name, tokens))
    best = None
    for one in candidates[0]:
        for two in candidates[1]:
            if one != two:
                (a, b), (c, d) = offset(tokens, one), offset(tokens, two)
                key = (max(c - b, a - d, 0), (a, b), (c, d))
                if best is None or key < best[0]:
                    best = (key, one, two)
    if best:
        return best[1], best[2]
    return tuple(
        places[0] if places else plain(name) for places, name in zip(candidates, (subject, object_), strict=True)
    )


def by_places(records: list[dict], predicted: list[list], given: bool) -> tuple[int, int, int]:
    totals = [0, 0, 0]
    for record, triples in zip(records, predicted, strict=True):
        found = []
        for subject, label, object_ in triples:
            one, two = meant(record, subject, object_, given)
            found.append((one, label, two))
        places = [(entity["start"], entity["end"]) for entity in record["entities"]]
        expected = [(places[r["head"]], r["type"], places[r["tail"]]) for r in record["relations"]]
        totals = [old + new for old, new in zip(totals, count(found, expected), strict=True)]
    return tuple(totals)


def guesses(rng: random.Random, record: dict) -> list[tuple[str, str, str]]:
    tokens = record["tokens"]
    names = [" ".join(tokens[entity["start"] : entity["end"]]) for entity in record["entities"]]
    right = [(names[r["head"]], r["type"], names[r["tail"]]) for r in record["relations"]]
    made = [triple for triple in right if rng.random() < 0.7]
    made += [(one.upper(), label, two) for one, label, two in right if rng.random() < 0.3]
    for _ in range(rng.choice([0, 1, 3])):
        pool = [*names, "Atlantis", "for", names[0].upper(), " ".join(tokens[:2])]
        made.append((rng.choice(pool), rng.choice(["Work_For", "Live_In", "OrgBased_In"]), rng.choice(pool)))
    return made


@pytest.mark.parametrize("protocol", [ENTITIES_GIVEN, END_TO_END])
def test_both_scorers_agree_on_places_in_a_set_of_conll04s_layout(tmp_path, protocol):
    data = read_set("conll04", public_sets.conll04(tmp_path))
    records = public_sets.CONLL04["test"]
    asked = questions(data.rows, protocol)
    rng = random.Random(4)
    for _ in range(200):
        predicted = [guesses(rng, record) for record in records]
        answers = [
            json.dumps([dict(zip(("subject", "predicate", "object"), triple, strict=True)) for triple in triples])
            for triples in predicted
        ]
        made = measures(data, asked, answers, protocol, has_spans=True)
        right, number, expected = by_places(records, predicted, protocol == ENTITIES_GIVEN)
        figure = made["boundaries"]
        assert (figure["relations_predicted"], figure["relations_expected"]) == (number, expected), predicted
        assert figure["f1"] == pytest.approx(f1(right, number, expected)), predicted
        names = [
            (
                triples,
                [(row.entities[head].name, label, row.entities[tail].name) for head, label, tail in row.relations],
            )
            for triples, row in zip(predicted, data.rows, strict=True)
        ]
        assert made["names"]["f1"] == pytest.approx(figures(names)["f1"])


def test_both_scorers_agree_on_the_pairs_of_that_set(tmp_path):
    data = read_set("conll04", public_sets.conll04(tmp_path))
    asked = questions(data.rows, PAIRS)
    rng = random.Random(5)
    for _ in range(100):
        answers, right, number, expected = [], 0, 0, 0
        for question in asked:
            head, tail = (entity.text for entity in question.raw.entities)
            labels = {label for label in data.predicates if rng.random() < 0.4}
            triples = [(head, label, tail) for label in labels] + [(tail, "Live_In", head)] * rng.choice([0, 1])
            answers.append(
                json.dumps([dict(zip(("subject", "predicate", "object"), triple, strict=True)) for triple in triples])
            )
            wanted = {relation.predicate for relation in question.raw.expected_relations}
            right, number, expected = right + len(labels & wanted), number + len(labels), expected + len(wanted)
        made = measures(data, asked, answers, PAIRS, has_spans=True)["pairs"]
        assert made["f1"] == pytest.approx(f1(right, number, expected))
