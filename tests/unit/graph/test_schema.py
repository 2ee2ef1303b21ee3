"""The schema of a graph and of an ontology, what it proposes, and the verb that writes it."""

import importlib.util
import itertools
import json
import time
from pathlib import Path

import pytest

from tests.unit.graph.test_server import KEYS, Server
from ucotron_ray import cli
from ucotron_ray.core.errors import InputError
from ucotron_ray.data import schema_file
from ucotron_ray.data.records import server_label
from ucotron_ray.graph import export
from ucotron_ray.graph.proposals import Proposal, proposals
from ucotron_ray.graph.schema import MAX_PREDICATES, induce
from ucotron_ray.simulators import demo_world
from ucotron_ray.simulators import ucotron as simulator


def graph_of(*facts: tuple[str, str, str], labels: dict[str, str] | None = None, texts: dict[int, str] | None = None):
    """A graph of (subject, predicate, object), each with a chunk of its own; `texts` by the fact's index."""
    nodes: dict[int, export.Node] = {}
    edges: list[export.Edge] = []
    numbers: dict[str, int] = {}
    for index, (subject, predicate, object_) in enumerate(facts):
        chunk = len(nodes)
        nodes[chunk] = export.Node(chunk, "Event", (texts or {}).get(index, f"{subject} and {object_}."), {})
        for name in (subject, object_):
            if name not in numbers:
                numbers[name] = len(nodes)
                label = (labels or {}).get(name)
                nodes[numbers[name]] = export.Node(
                    numbers[name], "Entity", name, {"entity_label": label} if label else {}
                )
        metadata = {"predicate": predicate, "source_chunk": chunk}
        edges.append(export.Edge(numbers[subject], numbers[object_], "RelatesTo", 1.0, metadata))
    return export.KnowledgeGraph(nodes, edges, None)


def of(name: str, schema):
    found = schema.predicate_named(name)
    assert found is not None
    return found


def test_the_demo_world_has_its_own_predicates_with_their_types():
    rows = list(demo_world.rows(demo_world.graph_world(1), 150, 1))
    schema = induce(export.parse(demo_world.export_document(rows), where="test")).schema
    assert {p.name for p in schema.predicates} == {p.name for p in demo_world.PREDICATES}
    for truth in demo_world.PREDICATES:
        found = of(truth.name, schema)
        assert found.domain == (server_label(truth.subject),)
        assert found.range == (server_label(truth.object),)
        assert found.count == sum(r.predicate == truth.name for row in rows for r in row.expected_relations)
        assert 1 <= len(found.examples) <= 3
        for example in found.examples:
            (row,) = (row for row in rows if row.text == example.text)
            stated = {(r.subject, r.predicate, r.object) for r in row.expected_relations}
            assert (example.subject, truth.name, example.object) in stated
    counts = [p.count for p in schema.predicates]
    assert counts == sorted(counts, reverse=True)


def test_a_type_with_too_few_ends_is_left_out_and_said():
    facts = [(f"P{n}", "lives_in", f"C{n}") for n in range(40)]
    labels = {f"P{n}": "person" for n in range(40)} | {f"C{n}": "city" for n in range(40)}
    induced = induce(graph_of(*facts, labels=labels | {"P0": "film", "C0": "country", "C1": "country"}))
    assert of("lives_in", induced.schema).domain == ("person",)
    assert of("lives_in", induced.schema).range == ("city", "country")
    assert induced.stray_types == [("lives_in", "domain", "film", 1)]
    assert {kind.name for kind in induced.schema.types} == {"person", "city", "country"}


def test_spellings_are_one_predicate_and_one_type():
    facts = (("Ann", "works_at", "Kite"), ("Bo", "worksAt", "Kite"), ("Cy", "works_at", "Oak"))
    labels = {"Ann": "Person", "Bo": "person", "Cy": "person ", "Kite": "company"}
    schema = induce(graph_of(*facts, labels=labels)).schema
    (found,) = schema.predicates
    assert (found.name, found.count, found.domain) == ("works_at", 3, ("person",))
    # What has no label is what the server calls it.
    assert found.range == ("company", "concept")


def test_the_label_in_the_chunk_comes_before_the_entitys_own():
    graph = graph_of(("Ann", "visits", "Paris"), labels={"Ann": "person", "Paris": "person"})
    (edge,) = graph.edges
    graph.edges.append(
        export.Edge(edge.metadata["source_chunk"], edge.target, "RelatesTo", 1.0, {"entity_label": "city"})
    )
    assert of("visits", induce(graph).schema).range == ("city",)


def test_examples_are_the_shortest_texts_that_name_both_ends_with_other_names_each():
    facts = (
        ("Ann", "met", "Bo"),
        ("Ann", "met", "Cy"),
        ("Di", "met", "Ed"),
        ("Fe", "met", "Gus"),
        ("Hal", "met", "Ida"),
    )
    texts = {
        0: "Ann met Bo.",
        1: "Ann, Cy",
        2: "Di met him.",
        3: "Fe met Gus " + "and others " * 40,
        4: "Hal  met\nIda, too.",
    }
    (found,) = induce(graph_of(*facts, texts=texts)).schema.predicates
    shown = [(example.subject, example.object, example.text) for example in found.examples]
    assert shown == [("Ann", "Cy", "Ann, Cy"), ("Hal", "Ida", "Hal met Ida, too.")]


def test_rare_predicates_are_left_out_and_counted():
    facts = (("A", "met", "B"), ("C", "met", "D"), ("A", "saw", "B"))
    induced = induce(graph_of(*facts), min_count=2)
    assert [p.name for p in induced.schema.predicates] == ["met"]
    assert induced.rare == {"saw": 1}


def test_graphs_that_give_no_schema_are_refused():
    with pytest.raises(InputError, match="gives no schema"):
        induce(export.KnowledgeGraph({}, [], None))
    with pytest.raises(InputError, match="lower --min-count"):
        induce(graph_of(("A", "met", "B")), min_count=2)
    many = [("A", f"p{n}", "B") for n in range(MAX_PREDICATES + 1)]
    with pytest.raises(InputError, match="--min-count 2 keeps fewer"):
        induce(graph_of(*many, ("A", "p0", "C")))


def test_what_the_graph_hints_at_is_proposed_and_nothing_else():
    people = [f"P{n}" for n in range(12)]
    labels = dict.fromkeys(people, "person") | {"Kite": "company", "Oak": "company"}
    chain = list(itertools.pairwise(people))
    facts = [(a, "parent_of", b) for a, b in chain] + [(b, "child_of", a) for a, b in chain[:5]]
    # The same pairs under two names; another predicate that goes along with few of them.
    facts += [(a, "manages", b) for a, b in zip(people, people[2:], strict=False)]
    facts += [(a, "boss_of", b) for a, b in zip(people[:6], people[2:], strict=False)]
    facts += [(a, "met", b) for a, b in [*chain[6:8], *zip(people, people[5:], strict=False)]]
    facts += [(a, "married_to", b) for a, b in [("P0", "P9"), ("P9", "P0"), ("P1", "P8"), ("P8", "P1"), ("P2", "P7")]]
    facts += [
        ("P0", "works_at", "Kite"),
        ("P1", "works_for", "Oak"),
        ("Kite", "founded_by", "P3"),
        ("P4", "founded", "Oak"),
    ]
    facts += [("P0", "working_at", "P11")]
    found = proposals(induce(graph_of(*facts, labels=labels)))
    assert {(proposal.kind, *sorted(proposal.predicates)) for proposal in found} == {
        ("symmetric", "married_to"),
        ("inverse", "child_of", "parent_of"),
        ("alias", "boss_of", "manages"),
        ("alias", "works_at", "works_for"),
        ("inverse", "founded", "founded_by"),
    }
    reasons = {proposal.predicates[0]: proposal.reason for proposal in found}
    assert reasons["married_to"] == "2 of 3 pairs stand in both directions"
    assert reasons["manages"] == "6 of 6 pairs are pairs of both"
    assert reasons["parent_of"] == "5 of 5 pairs stand in the other with the ends exchanged"


def test_opposites_and_mere_resemblance_are_no_proposals():
    facts = (
        ("A", "moved_to", "B"),
        ("A", "moved_from", "B"),
        ("A", "member_of_team", "B"),
        ("A", "coach_of_team", "B"),
    )
    assert proposals(induce(graph_of(*facts))) == []


def test_a_hundred_thousand_edges_take_seconds():
    facts = [(f"N{n % 40_000}", f"{n % 97}x_of", f"M{n * 7 % 39_999}") for n in range(100_000)]
    graph = graph_of(*facts)
    began = time.process_time()
    induced = induce(graph)
    proposals(induced)
    # 1.5 s of one core where this was written.
    assert time.process_time() - began < 15
    assert sum(p.count or 0 for p in induced.schema.predicates) == 100_000


needs_rdflib = pytest.mark.skipif(
    importlib.util.find_spec("rdflib") is None, reason="rdflib is not installed: the extra `ontology`"
)

ONTOLOGY = """\
@prefix : <http://example.org/o#> .
@prefix owl: <http://www.w3.org/2002/07/owl#> .
@prefix rdf: <http://www.w3.org/1999/02/22-rdf-syntax-ns#> .
@prefix rdfs: <http://www.w3.org/2000/01/rdf-schema#> .
@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
@prefix xsd: <http://www.w3.org/2001/XMLSchema#> .
:Agent a owl:Class ; rdfs:subClassOf owl:Thing ; rdfs:label "Agente"@es, "Agent"@en .
:Person a owl:Class ; rdfs:subClassOf :Agent ; rdfs:comment "A human\\n being." .
:Student a owl:Class ; rdfs:subClassOf :Person .
:MusicalWork a owl:Class .
:C17 a owl:Class ; rdfs:label "Organization" ; rdfs:subClassOf :Agent, [ a owl:Restriction ] .
:worksAt a owl:ObjectProperty ; rdfs:domain :Person ; rdfs:range :C17 ; rdfs:comment "Is employed there."@en ;
    skos:altLabel "employed by", "knows", "works at" .
:employs a owl:ObjectProperty ; owl:inverseOf :worksAt .
:knows a owl:ObjectProperty, owl:SymmetricProperty ; rdfs:domain :Person .
:made a owl:ObjectProperty ; rdfs:domain [ a owl:Class ; owl:unionOf ( :Student :C17 ) ] ; rdfs:range :MusicalWork .
:P9 a owl:ObjectProperty ; rdfs:label "trata de"@es, "is about"@en ; rdfs:range owl:Thing .
:hasParent a owl:ObjectProperty ; owl:inverseOf :hasChild .
:hasChild a owl:ObjectProperty ; owl:inverseOf :hasParent .
:studiedBy a owl:ObjectProperty ; owl:inverseOf :studies ; rdfs:domain :MusicalWork .
:studies a owl:ObjectProperty ; rdfs:domain :Person, :Student .
:age a owl:DatatypeProperty ; rdfs:range xsd:int .
:name a rdf:Property ; rdfs:range rdfs:Literal .
:likes a rdf:Property .
"""


@needs_rdflib
def test_an_ontology_gives_types_and_predicates(tmp_path, caplog):
    from ucotron_ray.graph import ontology

    file = tmp_path / "o.ttl"
    file.write_text(ONTOLOGY, encoding="utf-8")
    schema = ontology.read(file)
    assert {kind.name: kind.description for kind in schema.types} == {
        "agent": "", "person": "A human being.", "student": "", "musical work": "", "organization": "",
    }  # fmt: skip
    assert {p.name: (p.domain, p.range) for p in schema.predicates} == {
        # A class stands for all below it.
        "works_at": (("person", "student"), ("organization",)),
        "employs": (("organization",), ("person", "student")),
        "knows": (("person", "student"), ("person", "student")),
        "made": (("organization", "student"), ("musical work",)),
        "is_about": ((), ()),
        "has_child": ((), ()),
        "has_parent": ((), ()),
        "studies": (("student",), ()),
        "studied_by": (("musical work",), ("student",)),
        "likes": ((), ()),
    }
    assert of("works_at", schema).description == "Is employed there."
    assert of("works_at", schema).aliases == ("employed_by",)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["works_at"]
    assert "the name knows is taken" in caplog.text
    assert {p.name: p.inverse for p in schema.predicates if p.inverse} == {
        "employs": "works_at",
        "has_parent": "has_child",
        "studied_by": "studies",
    }
    assert [p.name for p in schema.predicates if p.symmetric] == ["knows"]
    # RDF/XML says the same, also under .owl.
    import rdflib

    other = tmp_path / "o.owl"
    other.write_text(rdflib.Graph().parse(file).serialize(format="xml"), encoding="utf-8")
    assert ontology.read(other) == schema
    assert schema_file.read(_written(tmp_path, schema_file.write(schema))) == schema


@needs_rdflib
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (":a :b", "cannot be read"),
        ("<rdf:RDF>", "cannot be read"),
        ("", "gives no schema"),
        (
            ONTOLOGY + ":x a owl:ObjectProperty ; rdfs:label 'made' .\n<http://other.org/made> a owl:ObjectProperty .",
            "have one name",
        ),
    ],
)
def test_an_ontology_that_cannot_be_used_is_refused(tmp_path, text, said):
    from ucotron_ray.graph import ontology

    with pytest.raises(InputError, match=said):
        ontology.read(_written(tmp_path, text, "o.ttl"))


@needs_rdflib
def test_nothing_outside_of_an_ontologys_file_is_read(tmp_path):
    from ucotron_ray.graph import ontology

    (tmp_path / "secret").write_text("s3cret", encoding="utf-8")
    text = f'''<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "{(tmp_path / "secret").as_uri()}">]>
    <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#" xmlns:rdfs="http://www.w3.org/2000/01/rdf-schema#"
      xmlns:owl="http://www.w3.org/2002/07/owl#"><owl:ObjectProperty rdf:about="http://a/b">
      <rdfs:comment>&e;</rdfs:comment></owl:ObjectProperty></rdf:RDF>'''
    assert "s3cret" not in schema_file.write(ontology.read(_written(tmp_path, text, "o.owl")))


def test_without_rdflib_the_verb_says_what_to_install(tmp_path, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "rdflib" else find_spec(name, *rest)
    )
    code, _, err = run("schema", str(_written(tmp_path, ONTOLOGY, "o.ttl")), capsys=capsys)
    assert (code, "pip install -c constraints.txt rdflib" in err) == (2, True)


def _written(directory: Path, text: str, name: str = "s.yaml") -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def run(*arguments: str, capsys) -> tuple[int, dict, str]:
    code = cli.main([*arguments, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), out + err


def test_the_verb_writes_what_it_can_read_and_overwrites_nothing(tmp_path, capsys, demo_files):
    output = tmp_path / "new" / "schema.yaml"
    code, result, said = run("schema", str(demo_files[0]), "--output", str(output), capsys=capsys)
    assert (code, result["artifact"], result["predicates"]) == (0, str(output), 20)
    assert "works_at" in said
    written = output.read_text(encoding="utf-8")
    code, checked, said = run("schema", str(output), capsys=capsys)
    assert (code, checked["content"], checked["schema"]) == (0, result["content"], result["schema"])
    # The same again is no harm; what a person edited stays, unless they say otherwise.
    assert run("schema", str(demo_files[0]), "--output", str(output), capsys=capsys)[0] == 0
    output.write_text(written + "# mine\n", encoding="utf-8")
    code, _, said = run("schema", str(demo_files[0]), "--output", str(output), capsys=capsys)
    assert (code, "--force" in said) == (2, True)
    assert output.read_text(encoding="utf-8").endswith("# mine\n")
    assert run("schema", str(demo_files[0]), "--output", str(output), "--force", capsys=capsys)[0] == 0
    assert output.read_text(encoding="utf-8") == written


def test_the_verb_says_what_it_left_out(capsys, demo_files):
    most = run("schema", str(demo_files[0]), capsys=capsys)[1]["schema"]["predicates"][0]["count"]
    code, result, said = run("schema", str(demo_files[0]), "--min-count", str(most), capsys=capsys)
    assert code == 0
    assert f"left out: {20 - result['predicates']} predicates" in said
    assert len(result["rare"]) == 20 - result["predicates"] > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.jsonld"], "cannot be read"),
        (["nowhere.yaml"], "no readable YAML"),
        (["nowhere.jsonld", "--min-count", "0"], "1 or more"),
        (["nowhere.yaml", "--min-count", "2"], "with a graph as SOURCE"),
        (["http://example.org"], "http is not encrypted"),
        (["nowhere.jsonld", "--output", "/"], "the output is a directory"),
    ],
)
def test_mistakes_are_one_block_and_exit_2(arguments, said, capsys):
    code, result, text = run("schema", *arguments, capsys=capsys)
    assert (code, result["status"]) == (2, "failed")
    assert said in text
    assert "Traceback" not in text


def test_a_server_gives_the_schema_of_its_graph(demo_files, capsys, monkeypatch):
    monkeypatch.setenv("UCOTRON_API_KEY", "reader-key")
    _, from_file, _ = run("schema", str(demo_files[0]), capsys=capsys)
    with Server(simulator.make_app(simulator.Settings(keys=KEYS), demo_files[0])) as server:
        code, result, _ = run("schema", server.url, capsys=capsys)
    assert (code, result["content"]) == (0, from_file["content"])


def test_a_table_of_names_that_others_chose_moves_no_cursor(tmp_path, capsys):
    text = 'predicates:\n  "a\\u200eb":\n    aliases: ["c\\u202ed"]\n'
    assert run("schema", str(_written(tmp_path, text)), capsys=capsys)[0] == 0
    cli.main(["schema", str(tmp_path / "s.yaml")])
    assert capsys.readouterr().out.replace("\n", "").isprintable()


def test_proposals_are_plain_values_for_yaml():
    made = Proposal(kind="alias", predicates=["a", "b"], reason="r").model_dump()
    text = schema_file.write(schema_file.default(), [made])
    assert "proposals:\n- kind: alias\n" in text
