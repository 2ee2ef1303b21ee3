"""The rows that travel between stages, one typed model per JSONL row, and the vocabularies.

Not here: prompts (`wire.py`) and how rows are read from files (`jsonl.py`).
"""

import re
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

NonBlank = Annotated[str, StringConstraints(min_length=1, pattern=r"\S")]

SERVER_LABELS = ("person", "location", "organization", "date", "concept")
"""The default NER labels of the Ucotron server (`ingestion.rs:66`), lower-case: what stands in every prompt."""

LABELS = {
    "human": "person",
    "people": "person",
    "character": "person",
    "fictional character": "person",
    "film character": "person",
    "athlete": "person",
    "president": "person",
    "place": "location",
    "city": "location",
    "country": "location",
    "territory": "location",
    "mountain": "location",
    "mountain range": "location",
    "watercourse": "location",
    "body of water": "location",
    "reservoir": "location",
    "gpe": "location",
    "loc": "location",
    "company": "organization",
    "org": "organization",
    "organisation": "organization",
    "political party": "organization",
    "publisher": "organization",
    "sports club": "organization",
    "sports organization": "organization",
    "film production company": "organization",
    "military unit": "organization",
    "time": "date",
    "year": "date",
    "event": "concept",
    "skill": "concept",
    "product": "concept",
    "entity": "concept",
    "fact": "concept",
}
"""Labels of other sources → the server's own; a label in neither list keeps its lower-cased name."""

EDGE_TYPES = {
    "caused": "CausedBy",
    "caused_by": "CausedBy",
    "leads_to": "CausedBy",
    "conflicts_with": "ConflictsWith",
    "contradicts": "ConflictsWith",
    "follows": "NextEpisode",
    "precedes": "NextEpisode",
    "next": "NextEpisode",
    "has": "HasProperty",
    "has_property": "HasProperty",
    "owns": "HasProperty",
    "supersedes": "Supersedes",
    "replaces": "Supersedes",
}
"""Predicate → edge type, as the server stores it; every other predicate is `RelatesTo` (`ingestion.rs:940`)."""


def server_label(label: str) -> str:
    """The label as the server's NER would write it: lower-case, mapped to its list where we know how."""
    lowered = re.sub(r"[\s_]+", " ", label).strip().lower()
    return LABELS.get(lowered, lowered)


def edge_type(predicate: str) -> str:
    """The edge type under which the server stores a relation with this predicate."""
    return EDGE_TYPES.get(predicate.lower(), "RelatesTo")


def name_key(name: str) -> str:
    """What two spellings of one entity have in common: NFKC, case folded, white space collapsed."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", name)).strip().casefold()


class Row(BaseModel):
    """Base of all rows: immutable; keys that we do not know are dropped, since other tools add their own."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Entity(Row):
    """A mention. `start` and `end` are Python character offsets, end exclusive; -1 where the text has no mention."""

    text: NonBlank
    label: Annotated[str, AfterValidator(server_label)] = "concept"
    start: int = -1
    end: int = -1

    @classmethod
    def located(cls, name: str, label: str, text: str) -> "Entity":
        """The entity with the span of its first mention as a whole word, else of its first occurrence."""
        match = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)
        start = match.start() if match else text.find(name)
        return cls(text=name, label=label, start=start, end=start + len(name) if start >= 0 else -1)


class Relation(Row):
    """One triple. Names are the entities' own strings: the server drops a relation whose name it did not find."""

    subject: NonBlank
    predicate: NonBlank
    object: NonBlank
    confidence: float = Field(default=1.0, ge=0.0, le=1.0)


class RawRow(Row):
    """A text, the entities that NER found in it, and the relations to extract (§9.3 of the server's formats)."""

    text: NonBlank
    entities: list[Entity]
    expected_relations: list[Relation]
    group: str | None = None
    """Which part of a held-out set the row belongs to (`seen` and `unseen` in the demo); scored apart."""


class Message(Row):
    """One turn of a chat row."""

    role: Literal["system", "user", "assistant"]
    content: str


class Turn(Message):
    """One turn of a row to learn from. An answer of weight 0 is read and not trained."""

    weight: Literal[0] | None = None


class ChatRow(Row):
    """The guide's SFT row. Every answer without weight 0 is trained."""

    messages: list[Turn] = Field(min_length=2)

    def trained(self) -> list[int]:
        """The numbers of the answers to learn."""
        return [n for n, turn in enumerate(self.messages) if turn.role == "assistant" and turn.weight is None]


class PreferenceRow(Row):
    """The guide's DPO row."""

    prompt: NonBlank
    chosen: NonBlank
    rejected: NonBlank
    turns: list[Message] | None = None
    """The conversation that is answered, where it is more than a user's turn; `prompt` is then its users' text."""
    ground_truth: str | None = None
    """JSON of {"entities", "relations"}: with it a prompt without entities can be put into the server's layout."""


class TypedEntity(Row):
    """An entity of a generated row: one of the generator's own types, offsets as in `Entity`."""

    text: NonBlank
    type: NonBlank
    start: int
    end: int


class TypedRelation(Row):
    """A relation of a generated row, with the types of its ends."""

    subject: NonBlank
    subject_type: NonBlank
    relation: NonBlank
    object: NonBlank
    object_type: NonBlank


class GeneratedRow(Row):
    """A row of the relation generator (reference §3.3): what `RawRow` is in the generator's own words."""

    text: NonBlank
    entities: list[TypedEntity]
    relations: list[TypedRelation]
    metadata: dict[str, Any] = {}

    def raw(self) -> RawRow:
        """The same with the server's labels; what a generator states, it states with confidence 1."""
        entities = [Entity(text=e.text, label=server_label(e.type), start=e.start, end=e.end) for e in self.entities]
        relations = [
            Relation(subject=r.subject, predicate=r.relation, object=r.object, confidence=1.0) for r in self.relations
        ]
        return RawRow(text=self.text, entities=entities, expected_relations=relations)


class StatedFact(Row):
    """One side of a pair of facts. `timestamp` in seconds since 1970."""

    subject: NonBlank
    predicate: NonBlank
    object: NonBlank
    text: NonBlank
    confidence: float = Field(ge=0.0, le=1.0)
    timestamp: int


class ContradictionRow(Row):
    """Two facts and what the server makes of them (reference §5)."""

    fact_a: StatedFact
    fact_b: StatedFact
    label: Literal["supersedes", "contradicts", "ambiguous", "agrees"]
    resolution_strategy: Literal["temporal", "confidence", "ambiguous", "none"]
    metadata: dict[str, Any] = {}


class EntityPairRow(Row):
    """Two names and whether they mean one entity (reference §6)."""

    canonical: NonBlank
    variant: NonBlank
    is_duplicate: bool
    entity_type: NonBlank
    variation_type: NonBlank
    metadata: dict[str, Any] = {}


class PathRow(Row):
    """A path through a graph with its reward and the parts of it (reference §7.4)."""

    source_id: int
    target_id: int
    source_content: str
    target_content: str
    path_node_ids: list[int] = Field(min_length=1)
    edge_types: list[str]
    hop_count: int = Field(ge=0)
    reward_total: float = Field(ge=0.0, le=1.0)
    reward_hop_decay: float = Field(ge=0.0, le=1.0)
    reward_coherence: float = Field(ge=0.0, le=1.0)
    reward_centrality: float = Field(ge=0.0, le=1.0)
    metadata: dict[str, Any] = {}


class DescriptionRow(Row):
    """A description of an image that nobody took (reference §8); encoding it is another stage."""

    description: NonBlank
    category: NonBlank


class ModelRow(Row):
    """A training row as the model sees it: what is given, what is to be learned, and how the prompt is laid out.

    `chat` prompts go through the model's chat template; `raw` prompts are the text alone, as the server's GGUF path
    sends them.
    """

    layout: Literal["chat", "raw"]
    prompt: list[Message] = Field(min_length=1)
    completion: str
