"""Relation extraction: the teacher writes a text that states a drawn relation, then extracts what the text states.

Output rows and vocabularies: reference §3. What the older generator did wrong, and what is checked here instead: the
text must hold both names, the drawn relation must be among those extracted, types and relations must be of the
vocabulary, spans are whole words with the text's own spelling.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ucotron_ray.config import Generation
from ucotron_ray.errors import ConfigError
from ucotron_ray.records import Entity, RawRow, Relation, name_key, server_label
from ucotron_ray.synthesis.conversation import SPECIAL_TOKEN, NotUsable, parsed, whole
from ucotron_ray.synthesis.plan import Ask, Conversation, Done, Ended, Facts, Task
from ucotron_ray.synthesis.seeds import (
    ENTITY_TYPES,
    KINDS,
    RELATION_TYPES,
    STYLES,
    TEMPLATES,
    Template,
    is_held_out,
    names,
)

NAME = "relation_extraction"
VERSION = 1

MAX_TEXT_CHARACTERS = 1200
WRITE_MAX_TOKENS = 512
"""Of the first call (reference §3.2); the recipe's `max_tokens` bounds it from above."""

SECOND_RELATION_SHARE = 0.5
"""Of the samples, where the subject's kind has another relation."""

WRITE_SYSTEM = (
    "You write short, natural texts for training data. You are given one or two relations between names. Write one to "
    "three sentences that mention the names exactly as given and clearly state each relation. Vary wording and "
    "sentence structure. Mention no other names of people, organisations or places. Answer with the text only: no "
    "title, no quotes, no comment."
)
EXTRACT_SYSTEM = (
    "You extract entities and relations from a text. Answer with one JSON object and nothing else:\n"
    '{"entities": [{"text": "...", "type": "..."}], "relations": [{"subject": "...", "subject_type": "...", '
    '"relation": "...", "object": "...", "object_type": "..."}]}\n'
    f"Entity types: {', '.join(ENTITY_TYPES)}.\n"
    f"Relations: {', '.join(RELATION_TYPES)}.\n"
    "The text of an entity is copied from the text, character for character. Subject and object of a relation are the "
    "texts of two different entities of the list. State only what the text states, and all that it states."
)
_PREAMBLE = re.compile(r"\A(?:here (?:is|are)|sure[,!]|certainly|of course|text:|sentence:|\*\*)", re.IGNORECASE)


class _Lenient(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class FoundEntity(_Lenient):
    """An entity as the teacher names it."""

    text: str = Field(min_length=1)
    type: str


class FoundRelation(_Lenient):
    """A relation as the teacher names it."""

    subject: str
    relation: str
    object: str


class Extraction(_Lenient):
    """What the teacher found in a text."""

    entities: list[FoundEntity]
    relations: list[FoundRelation]


def make_task(generation: Generation) -> Task:
    """The task for these settings. Raises ConfigError for a relation that is not of the vocabulary."""
    chosen = generation.tasks.relation_extraction.relations
    unknown = sorted(set(chosen or ()) - set(RELATION_TYPES))
    if unknown:
        raise ConfigError(
            f"'{unknown[0]}' is no relation of the generator",
            where="generation.tasks.relation_extraction.relations",
            expected=", ".join(RELATION_TYPES),
        )
    return Task(NAME, VERSION, partial(_sample, generation), partial(_converse, generation))


def extract_ask(text: str, *, temperature: float, max_tokens: int, top_p: float | None, step: str = "extract") -> Ask:
    """The request that extracts entities and relations from a text."""
    messages = (("system", EXTRACT_SYSTEM), ("user", f"Text:\n{text}"))
    return Ask(step, messages, temperature, max_tokens, top_p, json_mode=True)


def read_extraction(value: Mapping[str, Any]) -> Extraction:
    """The typed extraction of an answer's object. Raises NotUsable that says which part does not fit."""
    try:
        return Extraction.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise NotUsable(f"{where}: {first['msg']}") from error


def located(text: str, found: Sequence[FoundEntity]) -> list[dict[str, Any]]:
    """The entities that are of the six types and stand in the text as whole words, spelled as there, with offsets."""
    kept: dict[str, dict[str, Any]] = {}
    types = {name.lower(): name for name in ENTITY_TYPES}
    for entity in found:
        kind = types.get(entity.type.strip().lower())
        match = _mention(entity.text, text)
        if kind and match and match["text"] not in kept:
            kept[match["text"]] = {"text": match["text"], "type": kind, "start": match["start"], "end": match["end"]}
    return sorted(kept.values(), key=lambda entity: (entity["start"], entity["end"]))


def connected(entities: Sequence[Mapping[str, Any]], found: Sequence[FoundRelation]) -> list[dict[str, str]]:
    """The relations of the vocabulary between two different ones of these entities, each once."""
    by_key = {name_key(str(entity["text"])): entity for entity in entities}
    kept: dict[tuple[str, str, str], dict[str, str]] = {}
    for relation in found:
        name = re.sub(r"[\s-]+", "_", relation.relation.strip().lower())
        subject, object_ = by_key.get(name_key(relation.subject)), by_key.get(name_key(relation.object))
        if subject is None or object_ is None or subject is object_ or name not in RELATION_TYPES:
            continue
        kept[(subject["text"], name, object_["text"])] = {
            "subject": subject["text"],
            "subject_type": subject["type"],
            "relation": name,
            "object": object_["text"],
            "object_type": object_["type"],
        }
    return list(kept.values())


def raw_row(row: Mapping[str, Any]) -> RawRow:
    """A generated row as a training row: the server's labels, its predicates, confidence 1.0."""
    entities = [
        Entity(text=e["text"], label=server_label(e["type"]), start=e["start"], end=e["end"]) for e in row["entities"]
    ]
    relations = [
        Relation(subject=r["subject"], predicate=r["relation"], object=r["object"], confidence=1.0)
        for r in row["relations"]
    ]
    return RawRow(text=row["text"], entities=entities, expected_relations=relations)


def _sample(generation: Generation, number: int) -> Facts:
    seed, ratio = generation.seed, generation.val_ratio
    rng = random.Random(f"{seed}/{NAME}/{number}")
    held_out = is_held_out(number, seed=seed, val_ratio=ratio)
    pick = partial(names, held_out=held_out, seed=seed, val_ratio=ratio)
    templates = _templates(generation)
    relation = rng.choice(sorted({template.relation for template in templates}))
    template = rng.choice([template for template in templates if template.relation == relation])
    subject = rng.choice(pick(template.subject))
    relations = [_draw(rng, template, subject, pick)]
    others = [t for t in templates if t.subject == template.subject and t.relation != relation]
    if others and rng.random() < SECOND_RELATION_SHARE:
        relations.append(_draw(rng, rng.choice(others), subject, pick))
    return {
        "number": number,
        "relations": relations,
        "style": rng.choice(STYLES),
        "split": "val" if held_out else "train",
    }


def _draw(rng: random.Random, template: Template, subject: str, pick: Callable[[str], Sequence[str]]) -> dict[str, str]:
    return {
        "subject": subject,
        "subject_type": KINDS[template.subject],
        "relation": template.relation,
        "object": rng.choice([name for name in pick(template.object) if name != subject]),
        "object_type": KINDS[template.object],
    }


def _templates(generation: Generation) -> list[Template]:
    chosen = generation.tasks.relation_extraction.relations
    return [template for template in TEMPLATES if not chosen or template.relation in chosen]


def _converse(generation: Generation, facts: Facts) -> Conversation:
    task, defaults, cap = generation.tasks.relation_extraction, generation.defaults, generation.max_answer_tokens
    top_p = task.top_p if task.top_p is not None else defaults.top_p
    messages = (("system", WRITE_SYSTEM), ("user", _request(facts)))
    max_tokens = min(task.max_tokens, WRITE_MAX_TOKENS)
    text = yield from whole(Ask("write", messages, task.temperature, max_tokens, top_p), cap=cap)
    text = " ".join(text.split())
    main = facts["relations"][0]
    _check_text(text, main)
    extract = task.extract
    top_p = extract.top_p if extract.top_p is not None else defaults.top_p
    ask = extract_ask(text, temperature=extract.temperature, max_tokens=extract.max_tokens, top_p=top_p)
    extraction, notes = yield from parsed(ask, read_extraction, cap=cap)
    entities = located(text, extraction.entities)
    relations = connected(entities, extraction.relations)
    drawn = (name_key(main["subject"]), main["relation"], name_key(main["object"]))
    triples = {(name_key(r["subject"]), r["relation"], name_key(r["object"])) for r in relations}
    if drawn not in triples:
        return Done("rejected", reason="the drawn relation was not extracted", notes=tuple(notes))
    row = {
        "text": text,
        "entities": entities,
        "relations": relations,
        "metadata": {
            "seed_subject": main["subject"],
            "seed_object": main["object"],
            "seed_relation": main["relation"],
        },
    }
    return Done("accepted", row=row, notes=tuple(notes))


def _request(facts: Facts) -> str:
    lines = [
        f'- "{r["subject"]}" ({r["subject_type"]}) {r["relation"]} "{r["object"]}" ({r["object_type"]})'
        for r in facts["relations"]
    ]
    return "\n".join([f"Style: {facts['style']}", "Relations:", *lines])


def _check_text(text: str, relation: Mapping[str, str]) -> None:
    reason: str | None = None
    if SPECIAL_TOKEN.search(text):
        raise Ended(Done("quarantined", reason="write: the text holds a turn marker of a chat template"))
    if len(text) > MAX_TEXT_CHARACTERS:
        reason = f"the text is longer than {MAX_TEXT_CHARACTERS} characters"
    elif _PREAMBLE.match(text) or "```" in text:
        reason = "the text is not a text alone"
    else:
        missing = [name for name in (relation["subject"], relation["object"]) if not _word(name, text)]
        if missing:
            reason = "the text does not hold the name as given"
    if reason:
        raise Ended(Done("rejected", reason=reason))


def _word(name: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def _mention(name: str, text: str) -> dict[str, Any] | None:
    """The first whole-word mention, spelled as in the text."""
    name = " ".join(name.split())
    if not name:
        return None
    pattern = rf"(?<!\w){re.escape(name)}(?!\w)"
    match = re.search(pattern, text) or re.search(pattern, text, re.IGNORECASE)
    return {"text": match.group(), "start": match.start(), "end": match.end()} if match else None
