"""A knowledge graph → relation rows: chunk texts with the entity labels and the true predicates, de-duplicated."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any

from ucotron_ray.core.errors import InputError
from ucotron_ray.core.recipe import Graph
from ucotron_ray.data.records import ChatRow, Entity, RawRow, Relation, name_key
from ucotron_ray.data.wire import relations_of_chat
from ucotron_ray.graph.export import Edge, KnowledgeGraph, node_number
from ucotron_ray.graph.names import located

MIN_ENTITIES = 2
"""With fewer the server does not call the model at all (`relations.rs`), so there is nothing to learn."""


@dataclass(frozen=True)
class Split:
    """Rows for training and for validation, with no text in both, and what was left out why.

    `reading` names what makes the rows others than earlier versions read from the same export.
    """

    train: list[RawRow]
    val: list[RawRow]
    counts: dict[str, int]
    notes: list[str]
    reading: tuple[str, ...] = ()


LOST = {
    "relations_without_chunk": "have no `source_chunk` that is a node's number",
    "relations_of_missing_chunks": "are of chunks that the export does not have",
    "relations_without_predicate": "have no predicate that is a text",
    "relations_with_missing_end": "have an end that the export does not have, or that has no name",
    "relations_not_in_text": "have an end whose name does not stand in the text",
    "relations_behind_the_cut": "have an end whose name stands behind graph.max_text_length",
    "relations_to_itself": "have one name at both ends",
    "relations_repeated": "state again what the row states",
    "relations_in_left_out_rows": "are of chunks that give no row",
    "relations_over_max_samples": "are of rows beyond graph.max_samples",
}
"""Why a relation of the export is in no row, by the name under which it is counted."""


def rows_of_graph(graph: KnowledgeGraph, settings: Graph) -> Split:
    """Rows of all chunks. Every relation of the export is in a row or is counted in LOST.

    Raises InputError if there is not one row, or not one relation where the export has some.
    """
    mentions: dict[int, list[Edge]] = defaultdict(list)
    relations: dict[int, list[Edge]] = defaultdict(list)
    left_out: Counter[str] = Counter()
    reading: set[str] = set()
    stated = 0
    for edge in graph.edges:
        if "predicate" in edge.metadata:
            stated += 1
            chunk = node_number(edge.metadata.get("source_chunk"))
            if chunk is None:
                left_out["relations_without_chunk"] += 1
                continue
            reading |= set() if isinstance(edge.metadata["source_chunk"], int) else {"chunks as text"}
            relations[chunk].append(edge)
        elif "entity_label" in edge.metadata:
            mentions[edge.source].append(edge)
    rows: list[RawRow] = []
    for number in sorted({*mentions, *relations}):
        if number not in graph.nodes:
            left_out["chunks_missing"] += 1
            left_out["relations_of_missing_chunks"] += len(relations[number])
            continue
        chunk_row = _row(graph, number, mentions[number], relations[number], settings)
        left_out.update(chunk_row.left_out)
        reading |= chunk_row.reading
        rows += [chunk_row.row] if chunk_row.row is not None else []
    unique = _merge_equal_texts(rows)
    left_out["duplicate_texts"] = len(rows) - len(unique)
    left_out["relations_repeated"] += _num_relations(rows) - _num_relations(unique)
    _refuse_nothing(graph, unique, stated, left_out)
    made = split(unique, settings, dict(left_out))
    return replace(made, reading=tuple(sorted(reading)))


def lost(counts: Mapping[str, int]) -> str | None:
    """Which relations are in no row and why, in words; None if all are."""
    parts = [f"{counts[name]} {words}" for name, words in LOST.items() if counts.get(name)]
    total = sum(counts.get(name, 0) for name in LOST)
    return f"{total} relations of the export are in no row: " + "; ".join(parts) if parts else None


def _refuse_nothing(graph: KnowledgeGraph, rows: Sequence[RawRow], stated: int, left_out: Counter[str]) -> None:
    if rows and (_num_relations(rows) or not stated):
        return
    none = "not one relation of the graph stands in a row" if rows else "the graph gives no training row"
    raise InputError(
        none,
        expected="chunks with `entity_label` edges, and edges with `metadata.predicate` and `source_chunk`",
        found=f"{len(graph.nodes)} nodes, {len(graph.edges)} edges; left out: {dict(+left_out)}",
        next_step="let the server learn texts first, or lower graph.min_relations",
    )


def _num_relations(rows: Iterable[RawRow]) -> int:
    return sum(len(row.expected_relations) for row in rows)


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
        "relations": _num_relations(kept),
        "predicates": len({relation.predicate for row in kept for relation in row.expected_relations}),
        "over_max_samples": len(shuffled) - len(kept),
        **({"relations_over_max_samples": over} if (over := _num_relations(shuffled[len(kept) :])) else {}),
        **{reason: count for reason, count in left_out.items() if count},
    }
    return Split(train, val, counts, [])


@dataclass(frozen=True)
class _ChunkRow:
    """The row of one chunk, or None; what was left out why, and what had to be read otherwise than before."""

    row: RawRow | None
    left_out: Counter[str]
    reading: set[str]


def _row(
    graph: KnowledgeGraph, number: int, mentions: Iterable[Edge], edges: Sequence[Edge], settings: Graph
) -> _ChunkRow:
    whole = graph.nodes[number].content.strip()
    text = _cut(whole, settings.max_text_length)
    labels = {edge.target: str(edge.metadata["entity_label"]) for edge in mentions}
    entities: dict[str, Entity] = {}
    left_out: Counter[str] = Counter()
    reading: set[str] = set()

    def entity(reference: int) -> Entity | str:
        """The entity of a node, or why there is none."""
        node = graph.nodes.get(reference)
        if node is None or not node.content.strip():
            return "relations_with_missing_end"
        label = labels.get(reference) or str(node.metadata.get("entity_label") or node.kind)
        found, folded = located(node.content.strip(), label, text)
        if found.start < 0:
            behind = len(text) < len(whole) and located(node.content.strip(), label, whole)[0].start >= 0
            return "relations_behind_the_cut" if behind else "relations_not_in_text"
        reading.update({"names folded"} if folded else ())
        return entities.setdefault(name_key(found.text), found)

    for target in labels:
        entity(target)
    relations: dict[tuple[str, str, str], Relation] = {}
    for edge in edges:
        relation = _relation(edge, entity(edge.source), entity(edge.target))
        if isinstance(relation, str):
            left_out[relation] += 1
            # Numbers were once taken for texts.
            reading.update(() if isinstance(edge.metadata["predicate"], str) else {"predicates"})
            continue
        key = (relation.subject, relation.predicate, relation.object)
        left_out["relations_repeated"] += key in relations
        relations.setdefault(key, relation)
    reason = _no_row(text, entities, relations, settings)
    if reason is not None:
        left_out.update({reason: 1, "relations_in_left_out_rows": len(relations)})
        return _ChunkRow(None, left_out, reading)
    in_order = sorted(entities.values(), key=lambda found: (found.start, found.end))
    first = {found.text: found.start for found in in_order}
    by_mention = sorted(relations.values(), key=lambda r: min(first[r.subject], first[r.object]))
    return _ChunkRow(RawRow(text=text, entities=in_order, expected_relations=by_mention), left_out, reading)


def _relation(edge: Edge, subject: Entity | str, object_: Entity | str) -> Relation | str:
    """The relation of an edge between two entities, or why there is none."""
    predicate = edge.metadata["predicate"]
    if not isinstance(predicate, str) or not predicate.strip():
        return "relations_without_predicate"
    if isinstance(subject, str):
        return subject
    if isinstance(object_, str):
        return object_
    if subject == object_:
        return "relations_to_itself"
    confidence = round(min(1.0, max(0.0, edge.weight)), 2)
    return Relation(subject=subject.text, predicate=predicate.strip(), object=object_.text, confidence=confidence)


def _no_row(text: str, entities: Sized, relations: Sized, settings: Graph) -> str | None:
    """Why a chunk gives no row; None if it gives one."""
    if not text:
        return "blank_texts"
    if len(entities) < MIN_ENTITIES:
        return "fewer_than_two_entities"
    return "too_few_relations" if len(relations) < settings.min_relations else None


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
