"""Relation rows in other tools' layouts: tokens with spans (SpERT), triplets, heads and tails, a triple a line."""

from collections.abc import Mapping, Sequence
from typing import Any

from ucotron_ray.data.conversations import NotUsable
from ucotron_ray.data.records import Entity, name_key

Fields = dict[str, Any]

LABELS = {"peop": "person", "per": "person", "org": "organization", "loc": "location", "other": "concept"}
"""Types of CoNLL04 and its kin → the server's labels; other types are mapped as everywhere (`records.LABELS`)."""

_HEAD, _TAIL = ("head", "subject"), ("tail", "object")
_TYPE = ("type", "relation", "predicate", "label", "rel")
_LABEL = ("label", "type", "entity_type", "ner")


def is_spert(value: Mapping[str, Any]) -> bool:
    """`tokens` and `entities` with spans of tokens, as SpERT's files of CoNLL04, SciERC and ADE have them."""
    return isinstance(value.get("tokens"), list) and isinstance(value.get("entities"), list)


def spert(value: Fields) -> Fields:
    """Tokens joined by spaces; spans end-exclusive, relations between numbers of entities.

    https://github.com/lavis-nlp/spert, `data/datasets/conll04`.
    """
    tokens = value["tokens"]
    if not tokens or not all(isinstance(token, str) and token for token in tokens):
        raise NotUsable("tokens: a list of words")
    starts = [0]
    for token in tokens:
        starts.append(starts[-1] + len(token) + 1)
    text = " ".join(tokens)
    entities = []
    for number, entry in enumerate(value["entities"]):
        kind, first, end = _span(entry, f"entities.{number}")
        if not 0 <= first < end <= len(tokens):
            raise NotUsable(f"entities.{number}: tokens {first} to {end}, and there are {len(tokens)}")
        begin, stop = starts[first], starts[end] - 1
        entities.append({"text": text[begin:stop], "label": label(kind), "start": begin, "end": stop})
    names = [str(entity["text"]) for entity in entities]
    return _row(text, entities, [_relation(entry, names, at) for at, entry in _numbered(value)])


def is_triplets(value: Mapping[str, Any]) -> bool:
    """`text` and a list of triplets."""
    return isinstance(value.get("text"), str) and isinstance(value.get("triplets", value.get("triples")), list)


def triplets(value: Fields) -> Fields:
    """Relations by their names; what they stand between are the entities, unless the row lists them itself."""
    key = "triplets" if "triplets" in value else "triples"
    entities = [_entity(entry, value["text"], f"entities.{n}") for n, entry in enumerate(value.get("entities", ()))]
    names = [entity["text"] for entity in entities]
    relations = [_relation(entry, names, f"{key}.{number}") for number, entry in enumerate(value[key])]
    ends = [(name, _end_label(entry, side)) for entry, r in zip(value[key], relations, strict=True)
            for side, name in (("head", r["subject"]), ("tail", r["object"]))]  # fmt: skip
    known = {name_key(entity["text"]) for entity in entities}
    for name, kind in ends:
        if name_key(name) not in known:
            known.add(name_key(name))
            entities.append(Entity.located(name, kind, value["text"]).model_dump())
    if "entities" not in value:
        entities.sort(key=lambda entity: (entity["start"] < 0, entity["start"]))
    return _row(value["text"], entities, relations)


def is_head_tail(value: Mapping[str, Any]) -> bool:
    """`text`, `entities` and relations by head and tail, or by subject and object without their types."""
    relations, entities = value.get("relations"), value.get("entities")
    if not (isinstance(value.get("text"), str) and isinstance(relations, list) and isinstance(entities, list)):
        return False
    if relations:
        return all(isinstance(entry, dict) and "subject_type" not in entry for entry in relations)
    # A generator's row without relations has spans and types.
    return not all(isinstance(entry, dict) and {"type", "start", "end"} <= set(entry) for entry in entities)


def head_tail(value: Fields) -> Fields:
    """Relations whose ends are names, or numbers of entities."""
    entities = [_entity(entry, value["text"], f"entities.{n}") for n, entry in enumerate(value["entities"])]
    names = [entity["text"] for entity in entities]
    return _row(value["text"], entities, [_relation(entry, names, at) for at, entry in _numbered(value)])


def is_columns(value: Mapping[str, Any]) -> bool:
    """A relation's parts beside the text."""
    return {"text", "subject", "predicate", "object"} <= set(value) and "expected_relations" not in value


def columns(value: Fields) -> Fields:
    """One relation a line, as tables have it."""
    kinds = {side: value[f"{side}_type"] for side in ("subject", "object") if f"{side}_type" in value}
    entry = {"head": value["subject"], "tail": value["object"], "type": value["predicate"]}
    entry |= {f"{'head' if side == 'subject' else 'tail'}_type": kind for side, kind in kinds.items()}
    entry |= {"confidence": value["confidence"]} if "confidence" in value else {}
    return triplets({"text": value["text"], "triplets": [entry]})


def merged(rows: Sequence[Fields]) -> Fields:
    """Rows of one text as one: each entity and each relation once, in their order."""
    entities = {name_key(entity["text"]): entity for row in reversed(rows) for entity in row["entities"]}
    relations = {(r["subject"], r["predicate"], r["object"]): r for row in rows for r in row["expected_relations"]}
    in_order = sorted(entities.values(), key=lambda entity: (entity["start"] < 0, entity["start"]))
    return {"text": rows[0]["text"], "entities": in_order, "expected_relations": list(relations.values())}


def label(kind: str) -> str:
    """A type of an entity as a label."""
    return LABELS.get(kind.lower(), kind)


def _row(text: str, entities: Sequence[Fields], relations: Sequence[Fields]) -> Fields:
    """The server asks for every name once: of several mentions the first one stands."""
    once: dict[str, Fields] = {}
    for entity in entities:
        once.setdefault(entity["text"], entity)
    unique = {(r["subject"], r["predicate"], r["object"]): r for r in relations}
    return {"text": text, "entities": list(once.values()), "expected_relations": list(unique.values())}


def _numbered(value: Fields) -> list[tuple[str, Any]]:
    return [(f"relations.{number}", entry) for number, entry in enumerate(value.get("relations", ()))]


def _span(entry: Any, at: str) -> tuple[str, int, int]:
    if isinstance(entry, list) and len(entry) == 3:
        entry = {"start": entry[0], "end": entry[1], "type": entry[2]}
    if not isinstance(entry, dict):
        raise NotUsable(f"{at}: an object with type, start and end")
    kind, first, end = _first(entry, _LABEL), entry.get("start"), entry.get("end")
    if not isinstance(kind, str) or not _is_number(first) or not _is_number(end):
        raise NotUsable(f"{at}: type as text, start and end as numbers of tokens")
    assert isinstance(first, int)
    assert isinstance(end, int)
    return kind, first, end


def _entity(entry: Any, text: str, at: str) -> Fields:
    if isinstance(entry, str):
        entry = {"text": entry}
    name = _first(entry, ("text", "name", "mention", "entity")) if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise NotUsable(f"{at}: an entity has a text")
    kind = _first(entry, _LABEL)
    kind = "concept" if kind is None else kind
    if not isinstance(kind, str):
        raise NotUsable(f"{at}: its type is a {type(kind).__name__}, no text")
    if _is_number(entry.get("start")) and _is_number(entry.get("end")):
        return {"text": name, "label": label(kind), "start": entry["start"], "end": entry["end"]}
    return Entity.located(name, label(kind), text).model_dump()


def _relation(entry: Any, names: Sequence[str], at: str) -> Fields:
    if isinstance(entry, list) and len(entry) == 3:
        entry = {"head": entry[0], "type": entry[1], "tail": entry[2]}
    if not isinstance(entry, dict):
        raise NotUsable(f"{at}: an object with head, type and tail")
    predicate = _first(entry, _TYPE)
    if not isinstance(predicate, str) or not predicate.strip():
        raise NotUsable(f"{at}: its type is {predicate!r}, and a predicate is a text")
    subject, object_ = (_end(_first(entry, keys), names, f"{at}.{keys[0]}") for keys in (_HEAD, _TAIL))
    made = {"subject": subject, "predicate": predicate, "object": object_}
    return made | ({"confidence": entry["confidence"]} if "confidence" in entry else {})


def _end(end: Any, names: Sequence[str], at: str) -> str:
    if _is_number(end):
        if not 0 <= end < len(names):
            raise NotUsable(f"{at}: entity {end}, and there are {len(names)}")
        return str(names[end])
    name: object = end.get("text", end.get("name")) if isinstance(end, dict) else end
    if not isinstance(name, str) or not name.strip():
        raise NotUsable(f"{at}: {end!r}, and an end is a name or the number of an entity")
    return name


def _end_label(entry: Any, side: str) -> str:
    if not isinstance(entry, dict):
        return "concept"
    other = "subject" if side == "head" else "object"
    inner = entry.get(side)
    kind = _first(entry, (f"{side}_type", f"{other}_type"))
    kind = _first(inner, _LABEL) if kind is None and isinstance(inner, dict) else kind
    return label(kind) if isinstance(kind, str) and kind.strip() else "concept"


def _first(entry: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((entry[key] for key in keys if key in entry), None)


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
