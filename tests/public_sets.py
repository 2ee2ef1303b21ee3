"""Invented rows in the layouts of public sets, as small as shows the layout."""

import json
from pathlib import Path
from typing import Any


def lines(path: Path, records: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def array(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def sentence(text: str, entities: list[tuple[int, int, str]], relations: list[tuple[int, str, int]]) -> dict[str, Any]:
    """A record of CoNLL04 as SpERT has it, from words."""
    return {
        "tokens": text.split(),
        "entities": [{"start": start, "end": end, "type": kind} for start, end, kind in entities],
        "relations": [{"head": head, "type": kind, "tail": tail} for head, kind, tail in relations],
        "orig_id": 1,
    }


CONLL04 = {
    "train": [
        sentence("Bo Li works for Acme .", [(0, 2, "Peop"), (4, 5, "Org")], [(0, "Work_For", 1)]),
        sentence(
            "Di works for Umbra of Oslo .",
            [(0, 1, "Peop"), (3, 4, "Org"), (5, 6, "Loc")],
            [(0, "Work_For", 1), (1, "OrgBased_In", 2)],
        ),
        sentence("Ann lives in Rome .", [(0, 1, "Peop"), (3, 4, "Loc")], [(0, "Live_In", 1)]),
    ],
    "dev": [sentence("Al lives in Bern .", [(0, 1, "Peop"), (3, 4, "Loc")], [(0, "Live_In", 1)])],
    "test": [
        # This one stands in train too.
        sentence("Ann lives in Rome .", [(0, 1, "Peop"), (3, 4, "Loc")], [(0, "Live_In", 1)]),
        # The same name twice: Rome the organisation is the one that Cy works for.
        sentence(
            "From Rome , Cy went to work for Rome in Bern .",
            [(1, 2, "Loc"), (3, 4, "Peop"), (8, 9, "Org"), (10, 11, "Loc")],
            [(1, "Work_For", 2), (2, "OrgBased_In", 3)],
        ),
        # Only the first Oslo is an entity; the second stands closer.
        sentence("Oslo , or Oslo Fjord , is where Ida lives .", [(0, 1, "Loc"), (8, 9, "Peop")], [(1, "Live_In", 0)]),
        sentence("Nobody was there , said Eve .", [(5, 6, "Peop")], []),
    ],
}


def conll04(directory: Path) -> Path:
    for split, records in CONLL04.items():
        array(directory / f"conll04_{split}.json", records)
    return directory


def scierc(directory: Path) -> Path:
    record = {
        "doc_key": "A00-1",
        "sentences": [["We", "parse", "text", "."], ["It", "uses", "a", "neural", "parser", "for", "speech", "."]],
        "ner": [[[2, 2, "Material"]], [[7, 8, "Method"], [10, 10, "Material"]]],
        "relations": [[], [[7, 8, 10, 10, "USED-FOR"]]],
        "clusters": [],
    }
    for split in ("train", "dev", "test"):
        lines(directory / f"processed_data/json/{split}.json", [record])
    return directory


def crossre(directory: Path) -> Path:
    record = {
        "doc_key": "news-test-1",
        "sentence": ["All-rounder", "Phil", "Sim", "left", "Leic", "."],
        "ner": [[1, 2, "person"], [4, 4, "organisation"]],
        "relations": [[1, 2, 4, 4, "part-of", "", False, False], [1, 2, 4, 4, "role", "left", True, False]],
    }
    lines(directory / "crossre_data/news-test.json", [record])
    empty = {"doc_key": "ai-test-1", "sentence": ["Nothing", "."], "ner": [], "relations": []}
    lines(directory / "crossre_data/ai-test.json", [empty])
    return directory


def docred(directory: Path) -> Path:
    record = {
        "title": "Skai",
        "sents": [
            ["Skai", "TV", "is", "in", "Piraeus", "."],
            ["It", "is", "owned", "by", "Skai", "Group", "of", "Greece", "."],
        ],
        "vertexSet": [
            [{"name": "Skai TV", "sent_id": 0, "pos": [0, 2], "type": "ORG"}],
            [{"name": "Piraeus", "sent_id": 0, "pos": [4, 5], "type": "LOC"}],
            [
                {"name": "Skai Group", "sent_id": 1, "pos": [4, 6], "type": "ORG"},
                {"name": "It", "sent_id": 1, "pos": [0, 1], "type": "ORG"},
            ],
        ],
        "labels": [{"r": "P159", "h": 0, "t": 1, "evidence": [0]}, {"r": "P127", "h": 0, "t": 2, "evidence": [1]}],
    }
    array(directory / "dev.json", [record])
    array(directory / "rel_info.json", {"P159": "headquarters location", "P127": "owned by", "P17": "country"})
    return directory


def nyt(directory: Path) -> Path:
    record = {
        "sentText": '"Lee was born in Oslo , not in Bergen ."\r\n',
        "articleId": "/m/1",
        "relationMentions": [
            {"em1Text": "Lee", "em2Text": "Oslo", "label": "/people/person/place_of_birth"},
            {"em1Text": "Lee", "em2Text": "Bergen", "label": "None"},
        ],
        "entityMentions": [
            {"start": 0, "text": "Lee", "label": "PERSON"},
            {"start": 1, "text": "Oslo", "label": "LOCATION"},
        ],
        "sentId": "1",
    }
    lines(directory / "test.json", [record])
    return directory


def webnlg_triples(directory: Path) -> Path:
    record = {"text": "Oslo lies in Norway .", "triple_list": [["Oslo", "country", "Norway"]]}
    array(directory / "test_triples.json", [record])
    return directory


def webnlg_xml(directory: Path) -> Path:
    path = directory / "data/en/test/semantic-parsing-test-data-with-refs-en.xml"
    path.parent.mkdir(parents=True)
    path.write_text(
        """<?xml version='1.0' encoding='utf-8'?><benchmark><entries><entry category="Film" eid="Id1" size="2">
        <originaltripleset><otriple>Old_Film | runtime | 35.1</otriple></originaltripleset>
        <modifiedtripleset><mtriple>Old_Film_(1956) | length | 35.1</mtriple>
        <mtriple>Old_Film_(1956) | address | "1 High Street"</mtriple></modifiedtripleset>
        <lex lang="en" lid="1">Old Film is 35.1 minutes long.</lex><lex lang="en" lid="2">A film of 35.1.</lex>
        </entry></entries></benchmark>""",
        encoding="utf-8",
    )
    return directory


def text2kgbench(directory: Path) -> Path:
    train = {
        "id": "ont_1_film_train_1",
        "sent": "Oslo is by Lee.",
        "triples": [{"sub": "Oslo", "rel": "director", "obj": "Lee"}],
    }
    truth = {
        "id": "ont_1_film_test_1",
        "sent": "Bern Film is by Ann.",
        "triples": [{"sub": "Bern_Film", "rel": "director", "obj": "Ann"}],
    }
    lines(directory / "train/ont_1_film_train.jsonl", [train])
    lines(directory / "ground_truth/ont_1_film_ground_truth.jsonl", [truth])
    array(
        directory / "ontologies/1_film_ontology.json",
        {
            "title": "Film",
            "id": "ont_1_film",
            "concepts": [{"qid": "Q1", "label": "film"}, {"qid": "Q5", "label": "human"}],
            "relations": [
                {"pid": "P57", "label": "director", "domain": "Q1", "range": "Q5"},
                {"pid": "P58", "label": "screenwriter", "domain": "Q1", "range": "Q9"},
            ],
        },
    )
    return directory
