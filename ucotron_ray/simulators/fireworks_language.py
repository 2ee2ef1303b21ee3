"""What the simulator of the teacher can say and read: sentence patterns, written out and recognised again.

It knows the layout of this project's prompts, and answers them from the patterns alone: GENERATED DATA.
"""

import json
import random
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from ucotron_ray.data.schema import snake_case
from ucotron_ray.simulators.demo_language import PREDICATES
from ucotron_ray.simulators.demo_world import KEPT_PATTERNS

Relation = tuple[str, str, str, str, str]
"""Subject, its type, relation, object, its type."""

OWN_PATTERNS: dict[str, tuple[str, ...]] = {
    "collaborates_with": (
        "{s} collaborates with {o}.",
        "{s} and {o} work together.",
        "{s} is working on a project with {o}.",
        "{s} has teamed up with {o}.",
        "{s} often works side by side with {o}.",
    ),
    "competitor_of": (
        "{s} competes with {o}.",
        "{s} is a competitor of {o}.",
        "{s} is a rival of {o}.",
        "{s} is in competition with {o}.",
        "The main competitor of {s} is {o}.",
    ),
    "relates_to": (
        "{s} is closely related to {o}.",
        "Experts link {s} to {o}.",
        "There is a connection between {s} and {o}.",
        "{s} has much to do with {o}.",
    ),
    "caused_by": (
        "The {s} was caused by {o}.",
        "{o} led to the {s}.",
        "The {s} was a consequence of {o}.",
        "Investigators blamed {o} for the {s}.",
    ),
    "has_property": (
        "{s} is skilled in {o}.",
        "{s} is known for {o}.",
        "{s} has a talent for {o}.",
        "{s} has mastered {o}.",
    ),
    "speaks": (
        "{s} speaks {o}.",
        "{s} is fluent in {o}.",
        "{s} speaks {o} at home.",
        "{s} learned {o} as a child.",
    ),
}

OWN_NAMES = {"competes_with": "competitor_of"}
"""Relations that the demo's graph calls otherwise than the generator's vocabulary."""

OPENINGS = (
    "On Monday", "Last spring", "According to a spokesperson", "In a short note", "For the first time", "This week",
    "After long talks", "In the annual report", "Early this year", "As expected", "Without much notice", "In public",
    "At a small ceremony", "On the radio", "During lunch", "In an interview",
)  # fmt: skip
REMARKS = (
    "the news was received calmly", "nobody seemed surprised", "the details were kept short", "many people took note",
    "the announcement drew applause", "a longer report will follow", "the neighbours talked about it for days",
    "several newspapers wrote about it", "the matter was settled quickly", "questions remained open",
    "the mood was cheerful", "the rain did not stop anyone", "the room fell silent", "the coffee went cold",
)  # fmt: skip

_TYPES = {
    "person": "Person",
    "organization": "Organization",
    "location": "Location",
    "event": "Event",
    "product": "Concept",
}
_RELATION_LINE = re.compile(r'^- "(.+?)" \((.+?)\) (\S.*?) "(.+?)" \(([^"]+?)\)(?:: .*)?$', re.MULTILINE)
_NAME = r"[^.,;:]+?"


def write_text(prompt: str, rng: random.Random) -> str | None:
    """A text that states the relations listed in the prompt; None if it lists none."""
    relations = [match.groups() for match in _RELATION_LINE.finditer(prompt)]
    patterns = known_patterns()
    sentences = [
        rng.choice(patterns.get(relation) or plain_patterns(relation)).format(s=subject, o=object_)
        for subject, _, relation, object_, _ in relations
    ]
    if not sentences:
        return None
    if rng.random() < 0.5:
        sentences.insert(rng.randrange(len(sentences) + 1), f"{rng.choice(OPENINGS)}, {rng.choice(REMARKS)}.")
    return " ".join(sentences)


Reader = tuple[int, re.Pattern[str], str, tuple[str, str]]
"""How much of a pattern is not names, the expression, its relation and the types of the two names."""


def read_text(text: str, readers: Sequence[Reader] | None = None) -> list[Relation]:
    """The relations that a text of these patterns states, in its order; without any, of our own patterns."""
    found: list[Relation] = []
    for sentence in re.split(r"(?<=[.])\s+", text.strip()):
        best: tuple[int, Relation] | None = None
        for size, pattern, relation, types in _readers() if readers is None else readers:
            match = pattern.fullmatch(sentence)
            if match and (best is None or size > best[0]):
                best = size, (match["s"], types[0], relation, match["o"], types[1])
        if best:
            found.append(best[1])
    return found


def extraction(relations: Iterable[Relation]) -> dict[str, Any]:
    """The object that the extraction prompt asks for."""
    entities: dict[str, str] = {}
    rows = []
    for subject, subject_type, relation, object_, object_type in relations:
        entities.setdefault(subject, subject_type)
        entities.setdefault(object_, object_type)
        row = {"subject": subject, "subject_type": subject_type, "relation": relation}
        rows.append({**row, "object": object_, "object_type": object_type})
    return {"entities": [{"text": name, "type": kind} for name, kind in entities.items()], "relations": rows}


def hurried(
    relations: list[Relation],
    rng: random.Random,
    mistakes: Sequence[str] = ("relates_to", "part_of", "friend_of"),
) -> list[Relation]:
    """What a quick look leaves of the relations: some are missed, some mistaken for one of these."""
    kept = []
    for subject, subject_type, relation, object_, object_type in relations:
        draw = rng.random()
        if draw < 0.4:
            continue
        wrong = rng.choice(mistakes)
        kept.append((subject, subject_type, wrong if draw < 0.8 else relation, object_, object_type))
    return kept


def judged(prompt: str, rng: random.Random) -> str | None:
    """Marks for a row, as JSON; None if none are asked. It does not read the row: a simulator has no opinion."""
    if not prompt.startswith("Row of kind "):
        return None
    return json.dumps({"score": rng.choice((4, 4, 5)), "reason": "a simulator's mark"})


def garbled(answer: str, rng: random.Random) -> str:
    """An answer with something wrong, as models give them: fences, prose around it, broken or foreign JSON."""
    whole = "{" in answer
    ways = (
        f"```json\n{answer}\n```",
        f"Here is the result:\n{answer}\nLet me know if you need more.",
        answer.replace("}]", "},]") if whole else f"Here is a text: {answer}",
        answer[: len(answer) // 2],
        json.dumps({"result": answer}),
        answer.replace('"relation"', '"predicate"') if whole else answer.upper(),
        "I am sorry, but I cannot help with that.",
    )
    return rng.choice(ways)


@lru_cache(maxsize=1)
def known_patterns() -> dict[str, tuple[str, ...]]:
    """How each relation is said. The demo's patterns, but for those that its `unseen` test rows are made of."""
    demo = {p.name: p.patterns[:-KEPT_PATTERNS] for p in PREDICATES if p.name not in OWN_NAMES}
    return {**demo, **OWN_PATTERNS}


def plain_patterns(relation: str) -> tuple[str, ...]:
    """How a relation is said that there are no sentences for: with the words of its name."""
    words = (snake_case(relation).replace("_", " ") or relation).replace("{", "{{").replace("}", "}}")
    said = "{s} " + words + " {o}"
    return (f"{said}.", f"It is known that {said}.", f"The files show that {said}.", f"As the records say, {said}.")


def expression(pattern: str) -> re.Pattern[str]:
    """What reads a sentence of a pattern: groups `s` and `o`."""
    escaped = re.escape(pattern).replace(r"\{s\}", f"(?P<s>{_NAME})").replace(r"\{o\}", f"(?P<o>{_NAME})")
    return re.compile(re.sub(r"[Tt]he\\ (?=\(\?P)", r"(?:[Tt]he )?", escaped), re.IGNORECASE)


@lru_cache(maxsize=1)
def own_types() -> dict[str, tuple[str, str]]:
    """The types of the two ends of each of our own relations."""
    types = {p.name: (_TYPES[p.subject], _TYPES[p.object]) for p in PREDICATES}
    return types | {
        "collaborates_with": ("Person", "Person"),
        "competitor_of": ("Organization", "Organization"),
        "relates_to": ("Concept", "Concept"),
        "caused_by": ("Event", "Concept"),
        "has_property": ("Person", "Skill"),
        "speaks": ("Person", "Concept"),
    }


@lru_cache(maxsize=1)
def _readers() -> list[Reader]:
    """Patterns as expressions, with the length of what they hold beside the names, and the types of the two names."""
    types = own_types()
    readers = []
    for relation, patterns in known_patterns().items():
        for pattern in patterns:
            readers.append((len(pattern), expression(pattern), relation, types[relation]))
    return readers
