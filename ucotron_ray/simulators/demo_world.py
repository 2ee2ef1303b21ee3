"""A made-up world, written as a Ucotron graph export and a held-out set: the input of the demo. GENERATED DATA.

    python -m ucotron_ray.simulators.demo_world DIRECTORY

The same seed writes the same bytes. Twenty predicates have eight sentence patterns each. Six of them are in the graph;
two are kept for the held-out rows that are marked `unseen`. Rows marked `seen` use the graph's patterns. No name of a
held-out row occurs in the graph.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ucotron_ray.data.records import Entity, RawRow, Relation, edge_type
from ucotron_ray.simulators.demo_language import DISTRACTORS, PREDICATES, Predicate
from ucotron_ray.simulators.demo_names import NAMES

EXPORTED_AT = 1_767_225_600
"""2026-01-01T00:00:00Z: a constant, so that the bytes do not depend on the day."""

KEPT_PATTERNS = 2
"""How many of a predicate's eight patterns are kept for the `unseen` rows."""

NUM_RELATIONS_WEIGHTS = {0: 4, 1: 42, 2: 40, 3: 9, 4: 5}
"""How often a held-out row has so many relations, in percent."""

IDLE_SHARE = 0.25
"""Of the held-out rows with relations, that also have a sentence whose names are in none."""

GRAPH_WEIGHTS, GRAPH_IDLE_SHARE = {0: 12, 1: 38, 2: 36, 3: 9, 4: 5}, 0.45
"""The same for the graph. A small model's commonest mistake is a relation for a name that is only mentioned: with the
held-out shares in training as well, about half of its mistakes were of this kind."""

NER_CONFIDENCE = 0.9


@dataclass(frozen=True)
class World:
    """Names by kind, and the predicates with the patterns that may be used."""

    names: dict[str, list[str]]
    predicates: tuple[Predicate, ...]
    num_relations: dict[int, int] = field(default_factory=lambda: NUM_RELATIONS_WEIGHTS)
    idle_share: float = IDLE_SHARE


def graph_world(seed: int) -> World:
    """The names and patterns of the graph."""
    predicates = tuple(p.with_patterns(p.patterns[:-KEPT_PATTERNS]) for p in PREDICATES)
    return World(_names(seed, held_out=False), predicates, GRAPH_WEIGHTS, GRAPH_IDLE_SHARE)


def seen_world(seed: int) -> World:
    """New names, the graph's patterns."""
    return World(_names(seed, held_out=True), tuple(p.with_patterns(p.patterns[:-KEPT_PATTERNS]) for p in PREDICATES))


def unseen_world(seed: int) -> World:
    """New names, patterns that the graph never uses."""
    return World(_names(seed, held_out=True), tuple(p.with_patterns(p.patterns[-KEPT_PATTERNS:]) for p in PREDICATES))


def rows(world: World, count: int, seed: int, group: str | None = None) -> Iterator[RawRow]:
    """`count` rows with distinct texts. Draws are per row, so that a longer run begins with the shorter one's rows."""
    seen: set[str] = set()
    index = 0
    while len(seen) < count:
        rng = random.Random(f"{seed}/{group}/{index}")
        row = _row(world, rng, group)
        index += 1
        if row.text not in seen:
            seen.add(row.text)
            yield row


def export_document(chunks: list[RawRow]) -> dict[str, object]:
    """The rows as `GET /api/v1/export` would print a graph that learned them."""
    nodes: list[dict[str, object]] = []
    edges: list[dict[str, object]] = []
    entity_ids: dict[str, int] = {}

    def add_node(kind: str, content: str, metadata: dict[str, object]) -> int:
        number = len(nodes) + 1
        nodes.append(
            {
                "@id": f"ucotron:node/{number}",
                "@type": kind,
                "content": content,
                "timestamp": EXPORTED_AT + number,
                "metadata": metadata,
            }
        )
        return number

    def add_edge(source: int, target: int, kind: str, weight: float, metadata: dict[str, object]) -> None:
        edges.append(
            {
                "source": f"ucotron:node/{source}",
                "target": f"ucotron:node/{target}",
                "edge_type": kind,
                "weight": weight,
                "metadata": metadata,
            }
        )

    for chunk in chunks:
        chunk_id = add_node("Event", chunk.text, {"source": "generated"})
        for entity in chunk.entities:
            if entity.text not in entity_ids:
                metadata: dict[str, object] = {"entity_label": entity.label, "confidence": NER_CONFIDENCE}
                entity_ids[entity.text] = add_node("Entity", entity.text, metadata)
            add_edge(chunk_id, entity_ids[entity.text], "RelatesTo", NER_CONFIDENCE, {"entity_label": entity.label})
        for relation in chunk.expected_relations:
            add_edge(
                entity_ids[relation.subject],
                entity_ids[relation.object],
                edge_type(relation.predicate),
                relation.confidence,
                {"predicate": relation.predicate, "source_chunk": chunk_id},
            )
    return {
        "@context": {"ucotron": "https://ucotron.dev/schema/", "@vocab": "https://ucotron.dev/schema/"},
        "@type": "ucotron:MemoryGraph",
        "version": "1.0",
        "exported_at": EXPORTED_AT,
        "namespace": "default",
        "generated_by": "ucotron_ray.simulators.demo_world: made-up people, places and events, no real data",
        "nodes": nodes,
        "edges": edges,
        "communities": [],
        "stats": {"total_nodes": len(nodes), "total_edges": len(edges), "has_embeddings": False},
    }


def write_demo(directory: Path, *, num_chunks: int, num_held_out: int, seed: int) -> tuple[Path, Path]:
    """Write `graph_export.jsonld`, `relations_test.jsonl` and as many `relations_dev.jsonl`; return the first two.

    The held-out rows are half `seen`, half `unseen`. Claims are made on the test rows, choices and gates on the others.
    """
    directory.mkdir(parents=True, exist_ok=True)
    graph_path, test_path = directory / "graph_export.jsonld", directory / "relations_test.jsonl"
    document = export_document(list(_storable(rows(graph_world(seed), num_chunks, seed))))
    graph_path.write_text(json.dumps(document, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    half = num_held_out // 2
    seen = list(rows(seen_world(seed), 2 * half, seed, "seen"))
    unseen = list(rows(unseen_world(seed), 2 * (num_held_out - half), seed, "unseen"))
    _write_rows(test_path, [*seen[:half], *unseen[: num_held_out - half]])
    _write_rows(directory / "relations_dev.jsonl", [*seen[half:], *unseen[num_held_out - half :]])
    return graph_path, test_path


def _write_rows(path: Path, held_out: list[RawRow]) -> None:
    path.write_text("".join(row.model_dump_json() + "\n" for row in held_out), encoding="utf-8")


def _storable(chunks: Iterator[RawRow]) -> Iterator[RawRow]:
    """Leave out chunks whose relations the server would lose: it stores one edge per (source, target, type)."""
    stored: set[tuple[str, str, str]] = set()
    for chunk in chunks:
        keys = {(r.subject, r.object, edge_type(r.predicate)) for r in chunk.expected_relations}
        if not keys & stored:
            stored |= keys
            yield chunk


def _row(world: World, rng: random.Random, group: str | None) -> RawRow:
    num_relations = rng.choices(list(world.num_relations), weights=list(world.num_relations.values()))[0]
    pick = _picker(world, rng)
    sentences: list[str] = []
    mentioned: list[tuple[str, str]] = []
    relations: list[Relation] = []
    anchor: tuple[str, str] | None = None
    for predicate in rng.sample(world.predicates, num_relations):
        subject = (
            anchor if anchor and anchor[1] == predicate.subject and rng.random() < 0.6 else pick(predicate.subject)
        )
        object_ = pick(predicate.object)
        pattern = rng.choice(predicate.patterns)
        sentences.append(pattern.format(s=subject[0], o=object_[0]))
        in_order = (subject, object_) if pattern.index("{s}") < pattern.index("{o}") else (object_, subject)
        mentioned.extend(name for name in in_order if name not in mentioned)
        relations.append(Relation(subject=subject[0], predicate=predicate.name, object=object_[0], confidence=1.0))
        anchor = subject
    # The server does not ask about fewer than two entities, so a chunk without relations gets at least two idle ones.
    num_idle_sentences = 2 if num_relations == 0 else int(rng.random() < world.idle_share)
    for pattern, kinds in rng.sample(DISTRACTORS, num_idle_sentences):
        idle = [pick(kind) for kind in kinds]
        sentences.append(pattern.format(*(name for name, _ in idle)))
        mentioned.extend(idle)
    text = " ".join(sentences)
    entities = [Entity.located(name, kind, text) for name, kind in mentioned]
    return RawRow(text=text, entities=entities, expected_relations=relations, group=group)


def _picker(world: World, rng: random.Random) -> Callable[[str], tuple[str, str]]:
    """Draws names of a kind, none of them twice within one row."""
    used: set[str] = set()

    def pick(kind: str) -> tuple[str, str]:
        while (name := rng.choice(world.names[kind])) in used:
            pass
        used.add(name)
        return name, kind

    return pick


def _names(seed: int, *, held_out: bool) -> dict[str, list[str]]:
    """Every kind's names, a fifth of them for the held-out rows and the rest for the graph, chosen by the seed."""
    split: dict[str, list[str]] = {}
    for kind, (first, second) in NAMES.items():
        every = [f"{a} {b}" for a in first for b in second]
        random.Random(f"{seed}/{kind}").shuffle(every)
        cut = len(every) // 5
        split[kind] = every[:cut] if held_out else every[cut:]
    return split


def main() -> None:
    """Command line of the generator."""
    parser = argparse.ArgumentParser(description="Write the demo's generated knowledge graph and held-out set.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--chunks", type=int, default=1000)
    parser.add_argument("--held-out", type=int, default=600, help="test rows, and as many dev rows")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    for path in write_demo(args.directory, num_chunks=args.chunks, num_held_out=args.held_out, seed=args.seed):
        print(path)


if __name__ == "__main__":
    main()
