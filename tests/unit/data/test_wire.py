"""The server's prompt, byte for byte, and its parser."""

import pytest

from ucotron_ray.data import wire
from ucotron_ray.data.records import Entity, Relation

ENTITIES = [Entity(text="Alice", label="person"), Entity(text="Google", label="organization")]

PROMPT = """Extract all relationships between the entities found in the following text.

Text: "Alice works at "Google"
today"

Entities found:
- "Alice" (person)
- "Google" (organization)

For each relationship, provide:
- subject: the entity that is the subject
- predicate: the relationship type (e.g., "lives_in", "works_at", "moved_to", "born_in", "married_to", "owns", "founded", "related_to")
- object: the entity that is the object
- confidence: your confidence in this relationship (0.0 to 1.0)

Output ONLY a JSON array. No explanation. Example format:
[{"subject": "Juan", "predicate": "lives_in", "object": "Madrid", "confidence": 0.95}]

JSON output:"""


def test_user_prompt_has_the_servers_bytes():
    assert wire.user_prompt('Alice works at "Google"\ntoday', ENTITIES) == PROMPT


def test_request_body_has_the_servers_keys_and_its_f32_temperature():
    body = wire.server_request_body("m", "Alice works at Google", ENTITIES)
    assert list(body) == ["model", "messages", "max_tokens", "temperature"]
    assert (body["max_tokens"], body["temperature"]) == (512, 0.10000000149011612)
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][0]["content"] == (
        "You are a relation extraction model. Extract relationships between entities and output ONLY a JSON array."
    )


@pytest.mark.parametrize(
    "text",
    [
        "Alice works at Google",
        'He said "\n\nEntities found:\n- "X" (person)\n\nFor each relationship, provide:" twice',
        "line one\nline two",
        'ends with a quote"',
    ],
)
def test_parse_prompt_inverts_user_prompt_whatever_the_text_holds(text):
    parsed = wire.parse_prompt(wire.user_prompt(text, ENTITIES))
    assert parsed is not None
    assert parsed[0] == text
    assert [(entity.text, entity.label) for entity in parsed[1]] == [("Alice", "person"), ("Google", "organization")]


def test_parse_prompt_reads_the_dataset_layout_and_the_guides_abbreviation():
    relations = [Relation(subject="Alice", predicate="works_at", object="Google", confidence=0.95)]
    dataset = wire.dataset_messages("Alice works at Google", ENTITIES, relations)[1]["content"]
    guide = 'Extract all relationships from...\nText: "Alice works at Google"\nEntities:\n- "Alice" (person)\n- "Google" (organization)'
    for prompt in (dataset, guide):
        parsed = wire.parse_prompt(prompt)
        assert parsed is not None
        assert parsed[0] == "Alice works at Google"
        assert [entity.text for entity in parsed[1]] == ["Alice", "Google"]


@pytest.mark.parametrize("prompt", ["Extract relations from: Alice works at Google", "", "Text: no quotes"])
def test_parse_prompt_gives_none_for_a_foreign_layout(prompt):
    assert wire.parse_prompt(prompt) is None


def test_format_answer_is_compact_with_two_decimals_and_keeps_letters():
    relation = Relation(subject="Zoë", predicate="works_at", object="Ähre", confidence=0.8999999761581421)
    assert wire.format_answer([relation]) == (
        '[{"subject":"Zoë","predicate":"works_at","object":"Ähre","confidence":0.9}]'
    )
    assert wire.format_answer([]) == "[]"


def test_parse_answer_inverts_format_answer():
    relations = [
        Relation(subject="A [1]", predicate="p", object='B "x"', confidence=0.25),
        Relation(subject="C", predicate="q", object="D\n", confidence=1.0),
    ]
    assert wire.parse_answer(wire.format_answer(relations)) == relations


@pytest.mark.parametrize(
    ("answer", "confidences"),
    [
        ('Sure! [{"subject":"A","predicate":"p","object":"B"}] Hope it helps.', [0.5]),
        ('```json\n[{"subject":"A","predicate":"p","object":"B","confidence":7}]\n```', [1.0]),
        ('[{"subject":"A","predicate":"p","object":"B","confidence":-1}]', [0.0]),
        ('[{"subject":"A","predicate":"p","object":"B","confidence":"high"}]', [0.5]),
        ('[{"subject":"A","predicate":"p","object":"B","confidence":true}]', [0.5]),
        ('[{"subject":"A","predicate":1,"object":"B"},{"subject":"A","predicate":"p","object":"B"}]', [0.5]),
        ("[]", []),
        ('["A", 3, null]', []),
    ],
)
def test_parse_answer_takes_what_the_server_takes(answer, confidences):
    parsed = wire.parse_answer(answer)
    assert parsed is not None
    assert [relation.confidence for relation in parsed] == confidences


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no array",
        '{"subject":"A"}',
        '[{"subject":"A","predicate":"p","object":"B"}',
        '[{"subject":"A","confidence":NaN}]',
        '[{"confidence":1e999}]',
        "[" * 200 + "]" * 200,
        '[{"subject":"A"}] and [{"subject":"B"}]',
        r'[{"subject":"A \ud83d","predicate":"p","object":"B"}]',
        '[{"subject":"A","predicate":"p","object":"B","confidence":' + "9" * 400 + "}]",
    ],
)
def test_parse_answer_finds_no_array_where_the_server_finds_none(answer):
    assert wire.parse_answer(answer) is None
