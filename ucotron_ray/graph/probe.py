"""Does a Ucotron server use the model? Let it learn a sentence, read the graph back, and look at who answered.

The health field cannot tell (reference/ucotron.md §1.1): it repeats the configuration, whatever answers.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ucotron_ray.core.errors import ServerRefused
from ucotron_ray.data.records import Entity, RawRow, Relation, name_key
from ucotron_ray.graph import cooccurrence
from ucotron_ray.graph.export import KnowledgeGraph, call, fetch, node_number

SENTENCES = "Marta Ruiz studied at Lisbon Polytechnic. Nils Berg works at Kite Labs and was born in Oslo."
"""Co-occurrence has no word for the first sentence; the second one it guesses, with a confidence of its own formula."""

CONFIDENCE_TOLERANCE = 1e-3
"""The server keeps weights as f32."""

Verdict = Literal["model", "co-occurrence", "nothing", "unproven"]


@dataclass(frozen=True)
class Learned:
    """What the server made of the sentences: the chunk as it would be asked about, with the relations in its graph."""

    namespace: str
    rows: list[RawRow]
    health: dict[str, Any]

    @property
    def relations(self) -> list[Relation]:
        """All relations of all chunks."""
        return [relation for row in self.rows for relation in row.expected_relations]


def learn(url: str, *, api_key: str | None, namespace: str | None = None) -> Learned:
    """Let the server learn the sentences, in a namespace of their own unless one is given.

    Raises ServerRefused, and InputError for an export that is none.
    """
    url = url.rstrip("/")
    namespace = namespace or f"ucotron-ray-probe-{uuid.uuid4().hex[:8]}"
    health = call(url, "GET", "/api/v1/health", api_key=api_key, namespace=namespace)
    call(url, "POST", "/api/v1/learn", api_key=api_key, namespace=namespace, body={"output": SENTENCES})
    rows = _rows(fetch(url, api_key=api_key, namespace=namespace))
    if not rows:
        raise ServerRefused(
            "the server learned the sentences and exports none of their text",
            where=url,
            expected=f"nodes of type Event with {SENTENCES[:30]!r}… in namespace {namespace}",
            next_step="check that UCOTRON_API_KEY may read this namespace",
        )
    models = health.get("models") if isinstance(health, Mapping) else None
    return Learned(namespace, rows, dict(models) if isinstance(models, Mapping) else {})


def verdict(learned: Learned, expected: Sequence[Relation] | None) -> tuple[Verdict, str]:
    """Who answered, and why that can be said. `expected`: the model's own answers to the same prompts, if known.

    A relation is the model's if it is one of these with its confidence, or if co-occurrence has no such predicate.
    """
    relations = learned.relations
    if not relations:
        return (
            "nothing",
            "the graph has no relation of the sentences: the model answered [], or no two names were found",
        )
    own = [relation for relation in relations if _is_among(relation, expected or ())]
    if own:
        return "model", f"the model's own answer is in the graph: {shown(own[0])}"
    foreign = [relation for relation in relations if relation.predicate not in cooccurrence.PREDICATES]
    if foreign:
        return "model", f"co-occurrence has no predicate {foreign[0].predicate!r}: {shown(foreign[0])}"
    if expected is None:
        return "unproven", f"co-occurrence could have said it too: {shown(relations[0])}"
    return (
        "co-occurrence",
        f"no answer of the model's is in the graph, and co-occurrence could say {shown(relations[0])}",
    )


def shown(relation: Relation) -> str:
    """A relation in one line."""
    return f"{relation.subject} -{relation.predicate} {relation.confidence:.3f}-> {relation.object}"


def _is_among(relation: Relation, others: Sequence[Relation]) -> bool:
    return any(
        name_key(relation.subject) == name_key(other.subject)
        and name_key(relation.object) == name_key(other.object)
        and relation.predicate == other.predicate
        and abs(relation.confidence - other.confidence) <= CONFIDENCE_TOLERANCE
        for other in others
    )


def _rows(graph: KnowledgeGraph) -> list[RawRow]:
    """The chunks of the sentences with the names that NER found, in their order, and the relations of each."""
    rows = []
    for number, node in graph.nodes.items():
        if node.kind != "Event" or not node.content.strip() or node.content.strip() not in SENTENCES:
            continue
        names = [
            Entity.located(graph.nodes[edge.target].content, str(edge.metadata["entity_label"]), node.content)
            for edge in graph.edges
            if edge.source == number and "entity_label" in edge.metadata and edge.target in graph.nodes
        ]
        relations = [
            Relation(
                subject=graph.nodes[edge.source].content,
                predicate=str(edge.metadata["predicate"]),
                object=graph.nodes[edge.target].content,
                confidence=min(1.0, max(0.0, edge.weight)),
            )
            for edge in graph.edges
            if node_number(edge.metadata.get("source_chunk")) == number and "predicate" in edge.metadata
        ]
        rows.append(RawRow(text=node.content, entities=names, expected_relations=relations))
    return rows
