"""A knowledge graph becomes rows: the demo's world comes back as it was written, and odd graphs are handled in words."""

import json

import pytest

from ucotron_ray.core import config
from ucotron_ray.core.errors import InputError
from ucotron_ray.core.recipe import Graph
from ucotron_ray.data import jsonl, wire
from ucotron_ray.data.records import ChatRow, Entity, RawRow, Relation
from ucotron_ray.graph import dataset, export
from ucotron_ray.simulators import demo_world


def settings(**changes: object) -> Graph:
    return config.load().recipe.graph.model_copy(update={"min_relations": 0, **changes})


def graph_of(rows: list[RawRow]) -> export.KnowledgeGraph:
    return export.parse(demo_world.export_document(rows), where="test")


def row(text: str, *triples: tuple[str, str, str], labels: str = "person") -> RawRow:
    names = list(dict.fromkeys(name for triple in triples for name in (triple[0], triple[2])))
    return RawRow(
        text=text,
        entities=[Entity.located(name, labels, text) for name in names],
        expected_relations=[Relation(subject=s, predicate=p, object=o) for s, p, o in triples],
    )


def test_rows_of_the_demo_export_are_the_rows_that_it_was_written_from():
    written = list(demo_world._storable(demo_world.rows(demo_world.graph_world(5), 200, seed=5)))
    split = dataset.rows_of_graph(graph_of(written), settings(train_ratio=1.0))
    relations = lambda rows: {row.text: {r.model_dump_json() for r in row.expected_relations} for row in rows}  # noqa: E731
    entities = lambda rows: {row.text: {e.model_dump_json() for e in row.entities} for row in rows}  # noqa: E731
    assert relations(split.train) == relations(written)
    assert entities(split.train) == entities(written)


def test_demo_world_has_the_shape_that_it_promises():
    chunks = list(demo_world._storable(demo_world.rows(demo_world.graph_world(42), 1000, seed=42)))
    counts = [len(chunk.expected_relations) for chunk in chunks]
    assert len(chunks) >= 800
    assert len({r.predicate for chunk in chunks for r in chunk.expected_relations}) == 20
    assert max(counts) == 4
    assert 0 < counts.count(0) < 0.15 * len(counts)
    assert counts.count(1) + counts.count(2) > 0.7 * len(counts)
    ends = [{name for r in chunk.expected_relations for name in (r.subject, r.object)} for chunk in chunks]
    assert any({entity.text for entity in chunk.entities} - used for chunk, used in zip(chunks, ends, strict=True))
    assert all(len(predicate.patterns) == 8 for predicate in demo_world.PREDICATES)


def test_held_out_names_and_unseen_patterns_do_not_occur_in_the_graph():
    chunks = list(demo_world.rows(demo_world.graph_world(42), 500, seed=42))
    known = {entity.text for chunk in chunks for entity in chunk.entities}
    for world in (demo_world.seen_world(42), demo_world.unseen_world(42)):
        held_out = list(demo_world.rows(world, 100, seed=42, group="x"))
        assert not known & {entity.text for row in held_out for entity in row.entities}
    patterns = {pattern for predicate in demo_world.graph_world(42).predicates for pattern in predicate.patterns}
    unseen = {pattern for predicate in demo_world.unseen_world(42).predicates for pattern in predicate.patterns}
    assert len(unseen) == 40
    assert not patterns & unseen


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path):
    paths = [
        demo_world.write_demo(tmp_path / name, num_chunks=30, num_held_out=6, seed=seed)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    contents = [[path.read_bytes() for path in pair] for pair in paths]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_true_predicates_and_entity_labels_and_edge_weight_arrive():
    document = demo_world.export_document([row("Ann owns a Kite.", ("Ann", "owns", "Kite"))])
    document["edges"][-1]["weight"] = 0.8765  # type: ignore[index]
    assert document["edges"][-1]["edge_type"] == "HasProperty"  # type: ignore[index]
    split = dataset.rows_of_graph(export.parse(document, where="test"), settings())
    assert split.train[0].expected_relations == [
        Relation(subject="Ann", predicate="owns", object="Kite", confidence=0.88)
    ]
    assert split.train[0].entities[0] == Entity(text="Ann", label="person", start=0, end=3)


def test_equal_texts_become_one_row_and_no_text_is_on_both_sides():
    rows = [row("Ann met Bo.", ("Ann", "met", "Bo")), row("Ann  met Bo.", ("Ann", "knows", "Bo"))]
    split = dataset.rows_of_graph(graph_of([*rows, row("Cy met Di.", ("Cy", "met", "Di"))]), settings(train_ratio=0.5))
    assert split.counts["duplicate_texts"] == 1
    assert sorted(len(row.expected_relations) for row in [*split.train, *split.val]) == [1, 2]
    assert not {row.text for row in split.train} & {row.text for row in split.val}


def test_the_cap_takes_a_sample_and_not_the_beginning_of_the_storage():
    rows = [row(f"Ann{i} met Bo{i}.", (f"Ann{i}", "met", f"Bo{i}")) for i in range(50)]
    split = dataset.rows_of_graph(graph_of(rows), settings(max_samples=10))
    kept = {row.text for row in [*split.train, *split.val]}
    assert len(kept) == 10
    assert kept != {row.text for row in rows[:10]}
    assert split.counts["over_max_samples"] == 40


def test_a_long_text_is_cut_at_a_space_and_loses_what_is_beyond():
    text = "Ann met Bo. " + "word " * 10 + "Cy met Di."
    graph = graph_of([row(text, ("Ann", "met", "Bo"), ("Cy", "met", "Di"))])
    split = dataset.rows_of_graph(graph, settings(max_text_length=20))
    assert split.train[0].text == "Ann met Bo. word"
    assert [entity.text for entity in split.train[0].entities] == ["Ann", "Bo"]
    assert len(split.train[0].expected_relations) == 1


def test_chunks_that_the_server_would_not_ask_about_are_left_out_and_counted():
    rows = [
        row("Ann met Bo.", ("Ann", "met", "Bo")),
        RawRow(text="Only Cy.", entities=[Entity.located("Cy", "person", "Only Cy.")], expected_relations=[]),
    ]
    split = dataset.rows_of_graph(graph_of(rows), settings())
    assert split.counts["fewer_than_two_entities"] == 1
    with pytest.raises(InputError, match="no training row"):
        dataset.rows_of_graph(graph_of(rows[1:]), settings())


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("{", "line 1"),
        ("[]", "list"),
        ('{"nodes": 3}', "nodes"),
        ('{"nodes": [{"@id": "ucotron:node/x", "@type": "Event", "content": "a"}], "edges": []}', r"nodes\[0\]"),
        ('{"nodes": [], "edges": [{"source": 1}]}', r"edges\[0\]"),
    ],
)
def test_a_file_that_is_no_graph_is_refused_with_the_place(tmp_path, content, found):
    path = tmp_path / "graph.jsonld"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=found):
        export.read_file(path)


def test_chat_rows_of_the_guide_are_read_back_and_foreign_ones_are_not():
    guide = {
        "messages": [
            {"role": "system", "content": "You are a relation extraction assistant..."},
            {
                "role": "user",
                "content": 'Extract all relationships from...\nText: "Alice works at Google"\nEntities:\n- "Alice" (person)\n- "Google" (organization)',
            },
            {
                "role": "assistant",
                "content": '[{"subject": "Alice", "predicate": "works_at", "object": "Google", "confidence": 0.95}]',
            },
        ]
    }
    parsed = wire.relations_of_chat(ChatRow.model_validate(guide))
    assert parsed is not None
    assert parsed.text == "Alice works at Google"
    assert parsed.expected_relations[0].predicate == "works_at"
    foreign = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    assert wire.relations_of_chat(ChatRow.model_validate(foreign)) is None


def test_generate_dataset_rows_come_with_a_note_of_how_little_they_say():
    entities = [Entity(text="Alice", label="entity"), Entity(text="Google", label="entity")]
    relations = [Relation(subject="Alice", predicate="related_to", object="Google", confidence=0.9)]
    sample = {"messages": wire.dataset_messages("Alice", entities, relations)}
    answer = {"train_samples": [sample], "validation_samples": [], "skipped": 1}
    split = dataset.rows_of_generate_dataset(answer, settings())
    assert (split.counts["bare_name_texts"], split.counts["related_to"]) == (1, 1)
    assert "1 have a bare entity name" in split.notes[0]


def test_real_graph_gives_its_rows_and_predicates(shared_data):
    graph = export.read_file(shared_data / "graph_export.jsonld")
    split = dataset.rows_of_graph(graph, config.load().recipe.graph)
    assert split.counts["rows"] >= 2900
    assert split.counts["predicates"] >= 80
    held_out = jsonl.read_relations(shared_data / "relations_test.jsonl")
    assert not {row.text for row in held_out} & {row.text for row in split.train}
    assert json.loads(held_out[0].model_dump_json())["entities"][0]["label"] == "person"
