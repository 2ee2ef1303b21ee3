"""The prompt that the Ucotron server sends, the parser that it applies, and nothing else.

Training, evaluation, export and serving all build their prompts here, so that the model is trained on exactly the
bytes that it will be asked at inference. The layouts are the wire format of the Ucotron server, commit d4448b0
(`ucotron_extraction/src/relations.rs` lines 485-559 and 773-864, `fine_tuning.rs`).
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ucotron_ray.data.records import ChatRow, Entity, RawRow, Relation

CHAT_SYSTEM = (
    "You are a relation extraction model. Extract relationships between entities and output ONLY a JSON array."
)
"""System line of the chat call that the server makes (`relations.rs`, the OpenAI-compatible endpoint)."""

DATASET_SYSTEM = (
    "You are a relation extraction assistant. Given a text and a list of entities found in it, extract all "
    "relationships between the entities. Output ONLY a JSON array of objects with fields: subject, predicate, "
    "object, confidence."
)
"""System line of the rows that `POST /api/v1/finetune/generate-dataset` returns (`fine_tuning.rs`)."""

SERVER_MAX_TOKENS = 512
SERVER_TEMPERATURE = 0.1

_PROMPT_HEAD = 'Extract all relationships between the entities found in the following text.\n\nText: "'
_PROMPT_MIDDLE = '"\n\nEntities found:\n'
_PROMPT_TAIL = """

For each relationship, provide:
- subject: the entity that is the subject
- predicate: the relationship type (e.g., "lives_in", "works_at", "moved_to", "born_in", "married_to", "owns", \
"founded", "related_to")
- object: the entity that is the object
- confidence: your confidence in this relationship (0.0 to 1.0)

Output ONLY a JSON array. No explanation. Example format:
[{"subject": "Juan", "predicate": "lives_in", "object": "Madrid", "confidence": 0.95}]

JSON output:"""

_DATASET_HEAD = 'Extract all relationships from the following text.\n\nText: "'

# The guide prints an abbreviated layout: any instruction line, then `Text: "..."`, then `Entities:` or
# `Entities found:`, with one or two line feeds between the parts.
_LOOSE_PROMPT = re.compile(
    r'\A(?:[^\n]*\n{1,2})?Text: "(?P<text>.*)"\n{1,2}Entities(?: found)?:\n?'
    r'(?P<entities>(?:- "[^\n]*" \([^\n]*\)(?:\n|\Z))*)\Z',
    re.DOTALL,
)
_ENTITY_LINE = re.compile(r'- "(?P<text>.*)" \((?P<label>.*)\)')

_SERDE_MAX_DEPTH = 127
"""serde_json refuses documents nested deeper than this (its `RECURSION_LIMIT` is 128, the array itself counted)."""


def user_prompt(text: str, entities: Iterable[Entity]) -> str:
    """The user content of the server's call, and the whole prompt of its GGUF path. Nothing is escaped."""
    lines = "\n".join(f'- "{entity.text}" ({entity.label})' for entity in entities)
    return f"{_PROMPT_HEAD}{text}{_PROMPT_MIDDLE}{lines}{_PROMPT_TAIL}"


def chat_messages(text: str, entities: Iterable[Entity], examples: Sequence[RawRow] = ()) -> list[dict[str, str]]:
    """The two messages of the server's `POST {endpoint}/chat/completions`.

    The server gives no examples. With `examples` each is asked and answered before the question, in the same words.
    """
    return [
        {"role": "system", "content": CHAT_SYSTEM},
        *(
            turn
            for row in examples
            for turn in (
                {"role": "user", "content": user_prompt(row.text, row.entities)},
                {"role": "assistant", "content": format_answer(row.expected_relations)},
            )
        ),
        {"role": "user", "content": user_prompt(text, entities)},
    ]


def server_request_body(model: str, text: str, entities: Iterable[Entity]) -> dict[str, Any]:
    """The JSON body that the server posts. The temperature is an f32 that went through JSON."""
    return {
        "model": model,
        "messages": chat_messages(text, entities),
        "max_tokens": SERVER_MAX_TOKENS,
        "temperature": 0.10000000149011612,
    }


def dataset_messages(text: str, entities: Iterable[Entity], relations: Iterable[Relation]) -> list[dict[str, str]]:
    """One row of `generate-dataset`: another system line and another user layout than the server's inference call."""
    lines = "\n".join(f'- "{entity.text}" ({entity.label})' for entity in entities)
    return [
        {"role": "system", "content": DATASET_SYSTEM},
        {"role": "user", "content": f"{_DATASET_HEAD}{text}{_PROMPT_MIDDLE}{lines}"},
        {"role": "assistant", "content": format_answer(relations)},
    ]


def format_answer(relations: Iterable[Relation]) -> str:
    """The answer to learn: a compact JSON array, key order of the server build, confidence with two decimals."""
    rows = [
        {
            "subject": relation.subject,
            "predicate": relation.predicate,
            "object": relation.object,
            "confidence": round(relation.confidence, 2),
        }
        for relation in relations
    ]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":"))


def parse_answer(answer: str) -> list[Relation] | None:
    """What the server's parser takes from an answer; None where it finds no JSON array (it then goes on with []).

    `relations.rs:518-559`: trim, slice from the first `[` to the last `]`, parse, keep the items whose subject,
    predicate and object are strings; a confidence that is absent or no number becomes 0.5; clamp to [0, 1].
    """
    items = answer_items(answer)
    return None if items is None else [relation for item in items if (relation := _relation(item)) is not None]


def answer_items(answer: str) -> list[object] | None:
    """The items of the JSON array that the server finds in an answer, whatever they are; None where it finds none."""
    body = answer.strip()
    start, end = body.find("["), body.rfind("]")
    if 0 <= start < end:
        body = body[start : end + 1]
    items = _strict_json(body)
    return items if isinstance(items, list) else None


def parse_prompt(prompt: str) -> tuple[str, list[Entity]] | None:
    """Text and entities of a prompt in the server's layout, its dataset layout or the guide's; None for any other."""
    if prompt.startswith(_PROMPT_HEAD) and prompt.endswith(_PROMPT_TAIL):
        body = prompt[len(_PROMPT_HEAD) : len(prompt) - len(_PROMPT_TAIL)]
        # The text is not escaped and may itself contain the separator: the last one is the server's.
        text, middle, lines = body.rpartition(_PROMPT_MIDDLE)
        return _text_and_entities(text, lines.split("\n") if lines else []) if middle else None
    match = _LOOSE_PROMPT.match(prompt)
    if match is None:
        return None
    return _text_and_entities(match["text"], match["entities"].splitlines())


def _text_and_entities(text: str, lines: Sequence[str]) -> tuple[str, list[Entity]] | None:
    entities = []
    for line in lines:
        match = _ENTITY_LINE.fullmatch(line)
        if match is None or not match["text"].strip():
            return None
        entities.append(Entity.located(match["text"], match["label"], text))
    return text, entities


def _relation(item: object) -> Relation | None:
    if not isinstance(item, dict):
        return None
    parts = [item.get(key) for key in ("subject", "predicate", "object")]
    # The server keeps blank names here and drops them one step later, as no entity has such a name.
    if not all(isinstance(part, str) and part.strip() for part in parts):
        return None
    confidence = item.get("confidence")
    if isinstance(confidence, bool) or not isinstance(confidence, (int, float)):
        confidence = 0.5
    subject, predicate, object_ = (str(part) for part in parts)
    return Relation(
        subject=subject, predicate=predicate, object=object_, confidence=min(1.0, max(0.0, float(confidence)))
    )


def _strict_json(body: str) -> object:
    """JSON as serde_json reads it: no NaN, no infinity, no half of a character, a bounded depth.

    None for anything that it refuses.
    """

    def refuse(token: str) -> object:
        raise ValueError(token)

    def finite(token: str) -> float:
        value = float(token)
        if value in (float("inf"), float("-inf")):
            raise ValueError(token)
        return value

    def whole(token: str) -> int:
        # Beyond 64 bits serde_json reads a float.
        finite(token)
        return int(token)

    try:
        value = json.loads(body, parse_constant=refuse, parse_float=finite, parse_int=whole)
        # `"\ud83d"` is half of a character: Python reads it, UTF-8 has no bytes for it (a ValueError too).
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        return None
    return value if _depth(value) <= _SERDE_MAX_DEPTH else None


def _depth(value: object) -> int:
    deepest, stack = 0, [(value, 1)]
    while stack:
        node, depth = stack.pop()
        if isinstance(node, (list, dict)):
            deepest = max(deepest, depth)
            children = node.values() if isinstance(node, dict) else node
            stack.extend((child, depth + 1) for child in children)
    return deepest


def relations_of_chat(row: ChatRow) -> RawRow | None:
    """A chat row read back into text, entities and triples; None if its prompt or its answer is in another layout."""
    if row.trained() != [len(row.messages) - 1]:
        return None
    users = [message.content for message in row.messages if message.role == "user"]
    parsed = parse_prompt(users[0]) if len(users) == 1 else None
    relations = parse_answer(row.messages[-1].content)
    if parsed is None or relations is None or not parsed[0].strip():
        return None
    return RawRow(text=parsed[0], entities=parsed[1], expected_relations=relations)
