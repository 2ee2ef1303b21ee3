"""What keeps a row from being learned from, though it fits its model. `validate` and the trainings ask this alike."""

from ucotron_ray.data.records import ChatRow, RawRow, Row

UNANSWERED, EMPTY = "unanswered", "empty_answer"

WORDS = {
    UNANSWERED: "the last message of a row is not the assistant's, so there is nothing to learn",
    EMPTY: "an answer is empty, so there is no answer to learn; no relation is written as []",
}
"""Defect → what is wrong, in words."""


def unlearnable(row: Row) -> tuple[str, str] | None:
    """The defect that keeps a row from being trained on, and what was found; None where there is none."""
    if not isinstance(row, ChatRow):
        return None
    if row.messages[-1].role != "assistant":
        return UNANSWERED, ", ".join(turn.role for turn in row.messages)
    empty = next((number for number in row.trained() if not row.messages[number].content.strip()), None)
    return None if empty is None else (EMPTY, f"messages.{empty}.content: {row.messages[empty].content!r}")


def wrong_span(row: Row) -> str | None:
    """The entity that does not stand where a relation row says, or the end that is no entity; None if all hold.

    Rows may leave spans out; a span that is there must hold. Such rows train, since spans are no part of the prompt.
    """
    if not isinstance(row, RawRow):
        return None
    for entity in row.entities:
        there = row.text[entity.start : entity.end]
        if entity.start >= 0 and there != entity.text:
            return f"{entity.text!r} at {entity.start} to {entity.end}, where {there!r} stands"
    known = {entity.text for entity in row.entities}
    ends = (name for relation in row.expected_relations for name in (relation.subject, relation.object))
    return next((f"{name!r} is an end of a relation and no entity" for name in ends if name not in known), None)
