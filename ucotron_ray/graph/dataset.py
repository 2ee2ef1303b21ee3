"""A knowledge graph → relation rows: chunk texts with the entity labels and the true predicates, de-duplicated."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ucotron_ray.core.errors import InputError
from ucotron_ray.core.recipe import Graph
from ucotron_ray.data.records import ChatRow, Entity, RawRow, Relation, name_key
from ucotron_ray.data.wire import relations_of_chat
from ucotron_ray.graph.export import Edge, KnowledgeGraph

MIN_ENTITIES = 2
"""With fewer the server does not call the model at all (`relations.rs`), so there is nothing to learn."""


@dataclass(frozen=True)
class Split:
    """Rows for training and for validation, with no text in both, and what was left out why."""

    train: list[RawRow]
    val: list[RawRow]
    counts: dict[str, int]
    notes: list[str]


def rows_of_graph(graph: KnowledgeGraph, settings: Graph) -> Split:
    """Rows of all chunks. Raises InputError if there is not one."""
    mentions: dict[int, list[Edge]] = defaultdict(list)
    relations: dict[int, list[Edge]] = defaultdict(list)
    for edge in graph.edges:
        chunk = edge.metadata.get("source_chunk")
        if "predicate" in edge.metadata and isinstance(chunk, int):
            relations[chunk].append(edge)
        elif "entity_label" in edge.metadata:
            mentions[edge.source].append(edge)
    left_out: Counter[str] = Counter()
    rows: list[RawRow] = []
    for number in sorted({*mentions, *relations}):
        if number not in graph.nodes:
            left_out["chunks_missing"] += 1
            continue
        row, reason = _row(graph, number, mentions[number], relations[number], settings)
        if row is None:
            left_out[reason] += 1
        else:
            rows.append(row)
    unique = _merge_equal_texts(rows)
    left_out["duplicate_texts"] = len(rows) - len(unique)
    if not unique:
        raise InputError(
            "the graph gives no training row",
            expected="chunks with `entity_label` edges, and edges with `metadata.predicate` and `source_chunk`",
            found=f"{len(graph.nodes)} nodes, {len(graph.edges)} edges; left out: {dict(left_out)}",
            next_step="let the server learn texts first, or lower graph.min_relations",
        )
    return split(unique, settings, dict(left_out))


def rows_of_generate_dataset(answer: Any, settings: Graph) -> Split:
    """What `generate-dataset` gives, and how little that is. Raises InputError on another shape."""
    try:
        chats = [ChatRow.model_validate(row) for row in [*answer["train_samples"], *answer["validation_samples"]]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            "the answer of generate-dataset has another shape",
            expected='{"train_samples": [{"messages": [...]}], "validation_samples": [...]}',
            found=str(error).splitlines()[0],
        ) from error
    rows = _merge_equal_texts([row for chat in chats if (row := relations_of_chat(chat)) is not None])
    if not rows:
        raise InputError(
            "generate-dataset gave no usable row",
            found=f"{len(chats)} rows, {answer.get('skipped', 0)} skipped by the server",
            next_step="use --source export, which has the texts and the true predicates",
        )
    num_relations = sum(len(row.expected_relations) for row in rows)
    bare = sum(row.text in {entity.text for entity in row.entities} for row in rows)
    vague = sum(relation.predicate == "related_to" for row in rows for relation in row.expected_relations)
    note = (
        f"generate-dataset gave {len(rows)} rows: {bare} have a bare entity name as their text, and {vague} of "
        f"{num_relations} relations are `related_to`; --source export has the sentences and the true predicates"
    )
    result = split(rows, settings, {"unparsed": len(chats) - len(rows), "bare_name_texts": bare, "related_to": vague})
    return Split(result.train, result.val, result.counts, [note])


def split(rows: Sequence[RawRow], settings: Graph, left_out: dict[str, int]) -> Split:
    """Shuffle by the seed, then cap, then cut: the cap takes a sample, not the beginning of the storage."""
    shuffled = sorted(rows, key=lambda row: name_key(row.text))
    random.Random(settings.seed).shuffle(shuffled)
    kept = shuffled[: settings.max_samples]
    num_train = max(1, round(len(kept) * settings.train_ratio))
    train, val = kept[:num_train], kept[num_train:]
    counts = {
        "rows": len(kept),
        "train": len(train),
        "val": len(val),
        "relations": sum(len(row.expected_relations) for row in kept),
        "predicates": len({relation.predicate for row in kept for relation in row.expected_relations}),
        "over_max_samples": len(shuffled) - len(kept),
        **{reason: count for reason, count in left_out.items() if count},
    }
    return Split(train, val, counts, [])


def _row(
    graph: KnowledgeGraph, number: int, mentions: Iterable[Edge], edges: Iterable[Edge], settings: Graph
) -> tuple[RawRow | None, str]:
    """The row of one chunk, or None and why there is none."""
    text = _cut(graph.nodes[number].content.strip(), settings.max_text_length)
    labels = {edge.target: str(edge.metadata["entity_label"]) for edge in mentions}
    entities: dict[str, Entity] = {}

    def entity(node_number: int) -> Entity | None:
        node = graph.nodes.get(node_number)
        if node is None or not node.content.strip():
            return None
        label = labels.get(node_number) or str(node.metadata.get("entity_label") or node.kind)
        found = Entity.located(node.content.strip(), label, text)
        return entities.setdefault(name_key(found.text), found) if found.start >= 0 else None

    for target in labels:
        entity(target)
    relations: dict[tuple[str, str, str], Relation] = {}
    for edge in edges:
        subject, object_, predicate = entity(edge.source), entity(edge.target), str(edge.metadata["predicate"]).strip()
        if subject is None or object_ is None or subject == object_ or not predicate:
            continue
        relation = Relation(
            subject=subject.text,
            predicate=predicate,
            object=object_.text,
            confidence=round(min(1.0, max(0.0, edge.weight)), 2),
        )
        relations.setdefault((relation.subject, relation.predicate, relation.object), relation)
    if not text:
        return None, "blank_texts"
    if len(entities) < MIN_ENTITIES:
        return None, "fewer_than_two_entities"
    if len(relations) < settings.min_relations:
        return None, "too_few_relations"
    in_order = sorted(entities.values(), key=lambda found: (found.start, found.end))
    first = {found.text: found.start for found in in_order}
    by_mention = sorted(relations.values(), key=lambda r: min(first[r.subject], first[r.object]))
    return RawRow(text=text, entities=in_order, expected_relations=by_mention), ""


def _cut(text: str, limit: int) -> str:
    """At most `limit` characters, cut at the last space before the limit, else hard."""
    if len(text) <= limit:
        return text
    space = text.rfind(" ", 0, limit + 1)
    return text[:space].rstrip() if space > 0 else text[:limit]


def _merge_equal_texts(rows: Iterable[RawRow]) -> list[RawRow]:
    """One row a text; entities and relations of further rows with the same text are added to the first."""
    merged: dict[str, RawRow] = {}
    for row in rows:
        key = name_key(row.text)
        first = merged.get(key)
        if first is None:
            merged[key] = row
            continue
        entities = {name_key(entity.text): entity for entity in [*row.entities, *first.entities]}
        relations = {
            (r.subject, r.predicate, r.object): r for r in [*first.expected_relations, *row.expected_relations]
        }
        merged[key] = RawRow(
            text=first.text,
            entities=sorted(entities.values(), key=lambda found: (found.start, found.end)),
            expected_relations=list(relations.values()),
            group=first.group,
        )
    return list(merged.values())
