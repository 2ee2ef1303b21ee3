"""Every relation of an export is in a row or is counted with a reason; names match however they are written."""

import gzip
import json
import logging
import random
import unicodedata

import pytest

from ucotron_ray.core import config
from ucotron_ray.core.errors import InputError
from ucotron_ray.core.recipe import Graph
from ucotron_ray.core.run import Run
from ucotron_ray.graph import dataset, export, names
from ucotron_ray.graph import stage as graphs

GRAPH = config.load().recipe.graph


def settings(**changes: object) -> Graph:
    return GRAPH.model_copy(update={"min_relations": 0, "train_ratio": 1.0, **changes})


def document(text="Ann met Bo in Rome.", found=("Ann", "Bo", "Rome"), chunk=1, weight=0.9, predicate="met"):
    nodes = [{"@id": "ucotron:node/1", "@type": "Event", "content": text, "metadata": None}]
    nodes += [{"@id": f"ucotron:node/{n}", "@type": "Entity", "content": name} for n, name in enumerate(found, 2)]
    edges = [
        {
            "source": "ucotron:node/1",
            "target": f"ucotron:node/{n}",
            "edge_type": "RelatesTo",
            "metadata": {"entity_label": "person"},
        }
        for n in range(2, len(found) + 2)
    ]
    edges.append(
        {
            "source": "ucotron:node/2",
            "target": "ucotron:node/3",
            "edge_type": "RelatesTo",
            "weight": weight,
            "metadata": {"predicate": predicate, "source_chunk": chunk},
        }
    )
    return {"nodes": nodes, "edges": edges}


def rows(value, **changes):
    return dataset.rows_of_graph(export.parse(value, where="test"), settings(**changes))


def total(split, stated):
    return split.counts["relations"] + sum(split.counts.get(name, 0) for name in dataset.LOST) == stated


@pytest.mark.parametrize(
    "raw",
    [
        json.dumps(document()).encode("utf-8-sig"),
        json.dumps(document()).encode("utf-16"),
        b"\xfe\xff" + json.dumps(document(), indent=1).encode("utf-16-be"),
        gzip.compress(json.dumps(document()).encode()),
    ],
)
def test_an_export_is_read_in_any_encoding(tmp_path, raw):
    (tmp_path / "graph.json").write_bytes(raw)
    assert len(export.read_file(tmp_path / "graph.json").edges) == 4


@pytest.mark.parametrize("chunk", ["1", " ucotron:node/1", 1.0])
def test_a_chunk_named_in_any_way_is_the_chunk(chunk):
    split = rows(document(chunk=chunk))
    assert split.train[0].expected_relations[0].predicate == "met"
    assert split.reading == ("chunks as text",)
    assert rows(document()).reading == ()


@pytest.mark.parametrize("chunk", [None, "one", True, {"id": 1}, 9, "9"])
def test_a_graph_whose_relations_are_all_lost_is_refused_with_the_count(chunk):
    with pytest.raises(
        InputError, match=r"not one relation of the graph(.|\n)*'relations_(without_chunk|of_missing_chunks)': 1"
    ):
        rows(document(chunk=chunk))


def test_an_absent_weight_is_1_and_one_that_is_no_number_is_refused_with_the_place():
    assert rows(document(weight=None)).train[0].expected_relations[0].confidence == 1.0
    for weight in (float("nan"), float("inf"), "nan", "heavy", [1]):
        with pytest.raises(InputError, match=r"edges\[3\]"):
            rows(document(weight=weight))
    # As JSON that is none has it, which Python reads.
    value = json.loads(json.dumps(document(weight=float("nan"))))
    with pytest.raises(InputError, match=r"edges\[3\](.|\n)*no finite number"):
        rows(value)


NFC, NFD = "Café Ölçü", unicodedata.normalize("NFD", "Café Ölçü")


@pytest.mark.parametrize(
    ("name", "text", "written"),
    [
        (NFD, f"Ann met {NFC} in Rome.", NFC),
        (NFC, f"Ann met {NFD} in Rome.", NFD),
        (unicodedata.normalize("NFD", "한국은행"), "Ann met 한국은행 in Rome.", "한국은행"),
        ("O'Neil", "Ann met O’Neil in Rome.", "O’Neil"),
        ("Pat’s Bar", "Ann met Pat's  Bar in Rome.", "Pat's  Bar"),
        ("Bo Labs", "Ann met Bo\n Labs in Rome.", "Bo\n Labs"),
        ("Bo Labs", "Ann met Bo\u00a0Labs in Rome.", "Bo\u00a0Labs"),
        ("Bo", "Ann met Bob, and Bo in Rome.", "Bo"),
    ],
)
def test_a_name_is_found_however_it_is_written_and_stands_as_the_text_writes_it(name, text, written):
    split = rows(document(text=text, found=("Ann", name, "Rome")))
    row = split.train[0]
    assert [(r.subject, r.object) for r in row.expected_relations] == [("Ann", written)]
    entity = next(entity for entity in row.entities if entity.text == written)
    assert row.text[entity.start : entity.end] == written
    assert split.reading == (() if name == written else ("names folded",))


def test_a_name_that_is_another_one_is_not_found():
    for name in ("Cafe", "Annie", "An"):
        entity, _ = names.located(name, "person", "Ann met Annabel at Café Rome")
        assert (name == "An") == (entity.start >= 0), (
            "the server too takes a part of a word where there is no whole one"
        )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"predicate": 108}, "relations_without_predicate"),
        ({"predicate": " "}, "relations_without_predicate"),
        ({"found": ("Ann", "Zed", "Rome")}, "relations_not_in_text"),
        ({"found": ("Ann", "ANN", "Rome", "Bo"), "text": "Ann, ANN met Bo in Rome."}, "relations_to_itself"),
        ({"found": ("Ann", " ", "Rome")}, "relations_with_missing_end"),
    ],
)
def test_a_relation_that_is_in_no_row_is_counted_with_its_reason(change, reason):
    value = document(**change)
    # One that is kept, so that there is something to train.
    value["edges"].append(
        {**value["edges"][-1], "target": "ucotron:node/4", "metadata": {"predicate": "in", "source_chunk": 1}}
    )
    split = rows(value)
    assert (split.counts["relations"], split.counts[reason]) == (1, 1)
    assert f"1 {dataset.LOST[reason]}" in str(dataset.lost(split.counts))


def test_whatever_a_graph_has_each_relation_is_in_a_row_or_in_one_count():
    looked = 0
    seen: set[str] = set()
    for seed in range(60):
        rng = random.Random(seed)
        nodes, edges, stated = [], [], 0
        for chunk in range(1, 40, 4):
            text = rng.choice(
                [
                    *["Ann met Bo.", "Ann met Bo far away, and then Cy.", "Ann  met Bo."] * 3,
                    "Bo met Cy.",
                    "Only Cy.",
                    " ",
                ]
            )
            nodes.append(
                {
                    "@id": f"ucotron:node/{chunk}",
                    "@type": "Event",
                    "content": f"{chunk % 8}: {text}" if text.strip() else text,
                }
            )
            for at in range(1, 4):
                name = rng.choice([*["Ann", "Bo", "Cy"] * 4, "Zed", "", "ann"])
                nodes.append({"@id": f"ucotron:node/{chunk + at}", "@type": "Entity", "content": name})
                edges.append(
                    {
                        "source": f"{chunk}",
                        "target": chunk + at,
                        "edge_type": "x",
                        "metadata": {"entity_label": "person"},
                    }
                )
            for _ in range(rng.randrange(6)):
                stated += 1
                said = {
                    "predicate": rng.choice([*["met", "knows"] * 4, 5, ""]),
                    "source_chunk": rng.choice([*[chunk, str(chunk)] * 4, 99, None]),
                }
                ends = [rng.choice([*[chunk + 1, chunk + 2, chunk + 3] * 4, 500]) for _ in range(2)]
                edges.append({"source": ends[0], "target": ends[1], "edge_type": "x", "metadata": said})
        try:
            split = rows({"nodes": nodes, "edges": edges}, max_samples=3, max_text_length=24, min_relations=seed % 3)
        except InputError:
            continue
        looked += 1
        assert total(split, stated), (seed, split.counts)
        seen.update(name for name in split.counts if split.counts[name])
    assert looked > 15
    assert seen >= set(dataset.LOST), set(dataset.LOST) - seen


def test_what_equal_texts_state_twice_is_one_relation_and_one_that_is_counted():
    value = document()
    again = json.loads(json.dumps(document(chunk=11)).replace("ucotron:node/", "ucotron:node/1"))
    split = rows({"nodes": value["nodes"] + again["nodes"], "edges": value["edges"] + again["edges"]})
    assert (split.counts["rows"], split.counts["relations"], split.counts["relations_repeated"]) == (1, 1, 1)


def test_what_was_lost_is_in_the_log_and_in_the_manifest(tmp_path, caplog):
    value = document()
    value["edges"] += [
        {**value["edges"][-1], "metadata": {"predicate": "met", "source_chunk": chunk}} for chunk in (7, "x")
    ]
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(value))
    loaded = config.load(
        overrides=[("store", str(tmp_path / "store")), ("tracking.mlflow_uri", "none"), ("graph.min_relations", 0)]
    )
    with Run(loaded, verb="import-graph", name="g") as run, caplog.at_level(logging.WARNING):
        made = graphs.import_graph(run, str(path))
    assert made.manifest.counts["relations_of_missing_chunks"] == made.manifest.counts["relations_without_chunk"] == 1
    assert "2 relations of the export are in no row" in caplog.text


def test_a_graph_that_earlier_versions_read_otherwise_is_imported_again(tmp_path):
    asked = []
    for number, value in enumerate(
        (document(), document(chunk="1"), document(text="Ann met Bo\u00a0Labs.", found=("Ann", "Bo Labs")))
    ):
        path = tmp_path / f"{number}.json"
        path.write_text(json.dumps(value))
        loaded = config.load(
            overrides=[("store", str(tmp_path / "store")), ("graph.source", str(path)), ("graph.min_relations", 0)]
        )
        request = graphs.known_request(Run(loaded, verb="import-graph", name="g"))
        assert request is not None
        asked.append(request.fields["source"].get("read"))
    assert asked == [None, "chunks as text", "names folded"]
