"""Public sets are read as they are published, and a directory that holds something else is said in one error."""

import json

import pytest

from tests import public_sets
from ucotron_ray.core.errors import ConfigError, InputError
from ucotron_ray.data.records import Relation
from ucotron_ray.evaluation.benchmark.sets import fingerprint, layouts, read_set


def triples(data):
    return [
        (row.entities[head].name, predicate, row.entities[tail].name)
        for row in data.rows
        for head, predicate, tail in row.relations
    ]


def test_conll04_places_are_tokens_and_the_end_is_exclusive(tmp_path):
    data = read_set("conll04", public_sets.conll04(tmp_path))
    assert (data.split, len(data.rows)) == ("test", 4)
    assert triples(data) == [
        ("Ann", "Live_In", "Rome"),
        ("Cy", "Work_For", "Rome"),
        ("Rome", "OrgBased_In", "Bern"),
        ("Ida", "Live_In", "Oslo"),
    ]
    row = data.rows[1]
    assert row.text == "From Rome , Cy went to work for Rome in Bern ."
    assert [row.text[slice(*entity.spans[0])] for entity in row.entities] == ["Rome", "Cy", "Rome", "Bern"]
    assert [entity.spans[0][0] for entity in row.entities if entity.name == "Rome"] == [5, 32]
    asked = row.raw()
    assert [entity.label for entity in asked.entities] == ["location", "person", "organization", "location"]
    assert (asked.entities[2].start, asked.entities[2].end) == (32, 36)
    assert data.predicates == ("Live_In", "OrgBased_In", "Work_For")


def test_scierc_places_count_over_the_document_and_the_last_token_belongs_to_it(tmp_path):
    data = read_set("scierc", public_sets.scierc(tmp_path))
    assert [row.text for row in data.rows] == ["We parse text .", "It uses a neural parser for speech ."]
    assert triples(data) == [("neural parser", "USED-FOR", "speech")]


def test_crossre_has_domains_and_several_relations_a_pair(tmp_path):
    data = read_set("crossre", public_sets.crossre(tmp_path))
    assert [row.group for row in data.rows] == ["ai", "news"]
    assert triples(data) == [("Phil Sim", "part-of", "Leic"), ("Phil Sim", "role", "Leic")]
    assert data.rows[1].pairs() == [(0, 1)]


def test_docred_entities_have_several_names_and_pairs_without_a_label_are_negatives(tmp_path):
    data = read_set("docred", public_sets.docred(tmp_path))
    assert data.split == "dev"
    assert data.predicates == ("country", "headquarters location", "owned by")
    row = data.rows[0]
    assert row.entities[2].names == ("Skai Group", "It")
    assert [row.text[slice(*span)] for span in row.entities[2].spans] == ["Skai Group", "It"]
    assert triples(data) == [("Skai TV", "headquarters location", "Piraeus"), ("Skai TV", "owned by", "Skai Group")]
    assert row.negatives == ((1, 0), (1, 2), (2, 0), (2, 1))
    with pytest.raises(ConfigError, match="no split of this name"):
        read_set("docred", tmp_path, "test")


def test_nyt_lists_pairs_without_a_relation_and_its_paths_become_their_last_part(tmp_path):
    data = read_set("nyt", public_sets.nyt(tmp_path))
    row = data.rows[0]
    assert row.text == "Lee was born in Oslo , not in Bergen ."
    assert triples(data) == [("Lee", "place_of_birth", "Oslo")]
    assert [(entity.name, entity.type) for entity in row.entities] == [
        ("Lee", "PERSON"),
        ("Oslo", "LOCATION"),
        ("Bergen", "concept"),
    ]
    assert row.pairs() == [(0, 1), (0, 2)]
    assert row.pair(0, 2).expected_relations == []


def test_two_paths_with_one_last_part_stay_whole(tmp_path):
    labels = ["/a/country", "/b/country"]
    mentions = [{"em1Text": "Ann", "em2Text": "Rome", "label": label} for label in labels]
    public_sets.lines(tmp_path / "test.json", [{"sentText": "Ann in Rome", "relationMentions": mentions}])
    assert read_set("nyt", tmp_path).predicates == tuple(labels)


def test_webnlg_in_both_layouts(tmp_path):
    data = read_set("webnlg", public_sets.webnlg_triples(tmp_path / "joint"))
    assert triples(data) == [("Oslo", "country", "Norway")]
    data = read_set("webnlg", public_sets.webnlg_xml(tmp_path / "challenge"))
    assert [row.text for row in data.rows] == ["Old Film is 35.1 minutes long.", "A film of 35.1."]
    assert triples(data)[:2] == [
        ("Old Film (1956)", "length", "35.1"),
        ("Old Film (1956)", "address", "1 High Street"),
    ]


def test_text2kgbench_takes_vocabulary_and_types_from_the_ontology(tmp_path):
    data = read_set("text2kgbench", public_sets.text2kgbench(tmp_path))
    assert data.predicates == ("director", "screenwriter")
    assert data.rows[0].group == "1_film"
    assert [(entity.name, entity.type) for entity in data.rows[0].entities] == [("Bern Film", "film"), ("Ann", "human")]
    assert data.rows[0].raw().expected_relations == [Relation(subject="Bern Film", predicate="director", object="Ann")]


@pytest.mark.parametrize("name", layouts())
def test_a_directory_without_the_files_is_told_which_files_the_layout_has(tmp_path, name):
    with pytest.raises(InputError) as error:
        read_set(name, tmp_path)
    layout = layouts()[name]
    assert all(glob in error.value.expected for globs in layout.files.values() for glob in globs)
    assert str(tmp_path) in error.value.where


def test_a_layout_that_does_not_exist_is_told_the_ones_that_do(tmp_path):
    with pytest.raises(ConfigError) as error:
        read_set("tacred", tmp_path)
    assert "conll04" in error.value.expected


@pytest.mark.parametrize(
    "change",
    [
        {"entities": [{"start": 0, "end": 99, "type": "Peop"}]},
        {"entities": [{"start": 0, "end": 0, "type": "Peop"}]},
        {"relations": [{"head": -1, "tail": 0, "type": "Live_In"}]},
        {"tokens": []},
        {"tokens": None},
    ],
)
def test_a_record_of_another_layout_is_named_by_its_number(tmp_path, change):
    public_sets.conll04(tmp_path)
    file = tmp_path / "conll04_test.json"
    records = json.loads(file.read_text())
    records[1] |= change
    public_sets.array(file, records)
    with pytest.raises(InputError, match="not in the layout") as error:
        read_set("conll04", tmp_path)
    assert error.value.where.endswith("conll04_test.json, record 2")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe"])
def test_a_file_that_is_no_json_is_one_error(tmp_path, content):
    public_sets.conll04(tmp_path)
    (tmp_path / "conll04_test.json").write_bytes(content)
    with pytest.raises(InputError):
        read_set("conll04", tmp_path)


def test_the_fingerprint_is_of_every_split_that_is_read(tmp_path):
    public_sets.conll04(tmp_path)
    before = fingerprint("conll04", tmp_path)
    public_sets.array(tmp_path / "conll04_train.json", public_sets.CONLL04["train"][:1])
    assert fingerprint("conll04", tmp_path) != before
