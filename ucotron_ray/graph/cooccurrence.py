"""Relations without a model, as the Ucotron server guesses them: names that stand near each other, and words between.

The server answers this way where it has no model, or where a call of the model fails (reference/ucotron.md §1.6): what
a trained model has to beat. Rules, labels, boosts and the formula are the server's; the lists of words are our own, so
figures of the real server can differ a little.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ucotron_ray.data.records import Entity, Relation, name_key

MAX_DISTANCE = 200
"""Bytes of UTF-8 between two mentions, as Rust counts."""

MIN_CONFIDENCE = 0.1
NER_CONFIDENCE = 0.9
"""The server multiplies in what its NER model is sure of; rows do not have it, so one value stands for all."""

DEFAULT_PREDICATE = "related_to"
PERSON_TO_PLACE = ("lives_in", "moved_to", "moved_from", "born_in", "traveled_to", "located_in")

RULES: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("lives_in", 0.3, ("lives in", "living in", "resides in", "home in", "vive en", "reside en")),
    ("moved_to", 0.3, ("moved to", "moving to", "relocated to", "se mudó a")),
    ("moved_from", 0.3, ("moved from", "relocated from", "came from", "se mudó de")),
    ("born_in", 0.3, ("born in", "born at", "native of", "nació en")),
    ("traveled_to", 0.2, ("traveled to", "travelled to", "trip to", "visited", "flew to", "viajó a")),
    ("works_at", 0.3, ("works at", "working at", "worked at", "employed at", "job at", "trabaja en")),
    ("works_for", 0.3, ("works for", "working for", "worked for", "employed by", "trabaja para")),
    ("founded", 0.3, ("founded", "co-founded", "established", "started the company", "fundó")),
    ("leads", 0.25, ("leads", "heads", "manages", "runs", "directs", "dirige")),
    ("joined", 0.25, ("joined", "became a member", "se unió a")),
    # The server's next rule looks for «CEO of» in lower-cased text and so never fires.
    ("married_to", 0.3, ("married", "wife of", "husband of", "spouse", "wed ", "casado con", "casada con")),
    ("friend_of", 0.2, ("friend", "befriended", "amigo", "amiga")),
    ("sibling_of", 0.3, ("brother", "sister", "sibling", "hermano", "hermana")),
    ("child_of", 0.3, ("son of", "daughter of", "child of", "hijo de", "hija de")),
    ("parent_of", 0.3, ("father of", "mother of", "parent of", "padre de", "madre de")),
    ("owns", 0.15, ("owns", "owned", "bought", "possesses", "posee")),
    ("acquired", 0.25, ("acquired", "took over", "purchased", "adquirió")),
    ("authored", 0.25, ("wrote", "authored", "published", "author of", "escribió")),
    ("caused_by", 0.25, ("caused by", "because of", "due to", "result of", "causado por")),
    ("follows", 0.1, ("after", "followed", "later", "después")),
    ("precedes", 0.1, ("before", "prior to", "antes")),
    ("met", 0.2, ("met ", "meets", "meeting with", "conoció a")),
    ("contacted", 0.2, ("called", "emailed", "contacted", "wrote to", "llamó a")),
    ("communicated_with", 0.1, ("talked", "spoke", "said", "told", "habló con")),
    ("ate", 0.2, ("ate", "dined", "lunch", "dinner", "comió")),
    ("associated_with", 0.05, ("with", "together", "associated", "junto a")),
    # A bare letter stands among the server's words for this one, so it takes nearly all that is left.
    ("located_in", 0.05, ("located", "based in", " in ", " at ", "a")),
)
"""Label, boost and words; the first rule with a word in the lower-cased text between the two mentions holds."""

PREDICATES = (DEFAULT_PREDICATE, *(label for label, _, _ in RULES))


@dataclass(frozen=True)
class _Mention:
    """An entity with the bytes of its first mention, end exclusive."""

    entity: Entity
    start: int
    end: int


def relations(text: str, entities: Sequence[Entity]) -> list[Relation]:
    """The guesses, the surest first, one a subject and object."""
    located = (entity if entity.start >= 0 else Entity.located(entity.text, entity.label, text) for entity in entities)
    mentions = sorted(
        (
            _Mention(entity, _bytes_before(text, entity.start), _bytes_before(text, entity.end))
            for entity in located
            if entity.start >= 0
        ),
        key=lambda mention: (mention.start, mention.end),
    )
    best: dict[tuple[str, str], Relation] = {}
    for index, first in enumerate(mentions):
        for second in mentions[index + 1 :]:
            distance = second.start - first.end
            if not 0 <= distance <= MAX_DISTANCE or name_key(first.entity.text) == name_key(second.entity.text):
                continue
            guess = _guess(text, first.entity, second.entity, distance)
            key = (guess.subject, guess.object)
            if guess.confidence >= MIN_CONFIDENCE and (key not in best or best[key].confidence < guess.confidence):
                best[key] = guess
    return sorted(best.values(), key=lambda relation: -relation.confidence)


def _guess(text: str, first: Entity, second: Entity, distance: int) -> Relation:
    between = text[first.end : second.start].lower()
    predicate, boost = next(
        ((label, boost) for label, boost, words in RULES if any(word in between for word in words)),
        (DEFAULT_PREDICATE, 0.0),
    )
    subject, object_ = (second, first) if _prefers_second(predicate, first, second) else (first, second)
    # 0.2 times the geometric mean of the two NER confidences, which are one value here.
    confidence = min(1.0, 0.5 * (1 - distance / MAX_DISTANCE) + boost + 0.2 * NER_CONFIDENCE)
    return Relation(subject=subject.text, predicate=predicate, object=object_.text, confidence=confidence)


def _prefers_second(predicate: str, first: Entity, second: Entity) -> bool:
    """Whether the later mention is the subject: a person comes first, for some predicates only before a place."""
    if first.label == "person" or second.label != "person":
        return False
    return predicate not in PERSON_TO_PLACE or first.label == "location"


def _bytes_before(text: str, position: int) -> int:
    return len(text[:position].encode())
