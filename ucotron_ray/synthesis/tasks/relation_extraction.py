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

from pydantic import BaseModel, ConfigDict, Field

from ucotron_ray.core.recipe import Generation
from ucotron_ray.core.sections import Count, SampledTask, Sampling, Temperature, Text
from ucotron_ray.data import wire
from ucotron_ray.data.records import ChatRow, GeneratedRow, RawRow, name_key
from ucotron_ray.synthesis.conversation import alone, as_model, parsed, whole
from ucotron_ray.synthesis.generator import GuideFigures, UsualTokens
from ucotron_ray.synthesis.plan import Ask, Conversation, Done, Ended, Facts, Task
from ucotron_ray.synthesis.quality import is_name
from ucotron_ray.synthesis.rows import SPLIT_FILES, VENDOR, Fields, RowKind
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
from ucotron_ray.synthesis.vocabulary import Pools, Vocabulary, pools, vocabulary_of

NAME = "relation_extraction"
VERSION = 1
BUILDS_ON_ROWS = False

GUIDE = GuideFigures(rows=10000, usd=(2, 5), minutes=(30, 30))
USUAL = UsualTokens(requests=2, prompt=366, completion=384)


class Settings(SampledTask):
    """`generation.tasks.relation_extraction`: a text, then its relations. `relations` None = all twenty are drawn."""

    temperature: Temperature = 0.7
    max_tokens: Count = 2048
    target_samples: Count = 10000
    relations: list[Text] | None = None
    extract: Sampling = Sampling(temperature=0.1, max_tokens=1024)


MAX_TEXT_CHARACTERS = 1200
WRITE_MAX_TOKENS = 512
"""Of the first call (reference §3.2); the recipe's `max_tokens` bounds it from above."""

SECOND_RELATION_SHARE = 0.5
"""Of the samples, where the subject's kind has another relation."""

_TYPE_KEYS = ("subject_type", "object_type")

WRITE_SYSTEM = (
    "You write short, natural texts for training data. You are given one or two relations between names. Write one to "
    "three sentences that mention the names exactly as given and clearly state each relation. Vary wording and "
    "sentence structure. Mention no other names of people, organisations or places. Answer with the text only: no "
    "title, no quotes, no comment."
)
_EXTRACT_SYSTEM = (
    "You extract entities and relations from a text. Answer with one JSON object and nothing else:\n"
    '{"entities": [{"text": "...", "type": "..."}], "relations": [{"subject": "...", "subject_type": "...", '
    '"relation": "...", "object": "...", "object_type": "..."}]}\n'
    "Entity types: TYPES.\n"
    "Relations: RELATIONS\n"
    "The text of an entity is copied from the text, character for character. Subject and object of a relation are the "
    "texts of two different entities of the list. State only what the text states, and all that it states."
)


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


def make_task(generation: Generation, rows: Sequence[RawRow] = ()) -> Task:
    """The task for these settings; it builds on no rows.

    Raises ConfigError for a relation that is not of the vocabulary, or a type of a schema that has no names.
    """
    words = vocabulary_of(generation)
    sample = partial(_sample, generation)
    if words.schema is not None:
        drawing = pools(words, seed=generation.seed, val_ratio=generation.val_ratio)
        sample = partial(_sample_of_schema, generation, words, drawing)
    converse = partial(_converse, generation, words)
    return Task(NAME, VERSION, sample, converse, row_kind(words), schema=words.schema)


def row_kind(words: Vocabulary = Vocabulary()) -> RowKind:  # noqa: B008 — it is frozen
    """Texts with entities and relations of a vocabulary; they train in the server's prompt."""
    return RowKind(
        name=NAME,
        model=GeneratedRow,
        identity=lambda row: str(row["text"]),
        labels=lambda row: [relation["relation"] for relation in row["relations"]],
        vocabulary=words.drawn,
        names=lambda row: [e["text"] for e in row["entities"] if is_name(e["text"], e["type"])],
        defects=partial(_defects, words),
        files=_files,
    )


def extract_ask(
    text: str,
    *,
    temperature: float,
    max_tokens: int,
    top_p: float | None,
    step: str = "extract",
    relations: Sequence[str] = RELATION_TYPES,
    words: Vocabulary | None = None,
) -> Ask:
    """The request that extracts entities and relations, of these names or those of a schema, from a text."""
    types = ", ".join(words.types if words else ENTITY_TYPES)
    # The lines of a schema have an end of their own.
    names = ("\n" + words.lines()) if words and words.schema else ", ".join(relations) + "."
    system = _EXTRACT_SYSTEM.replace("TYPES", types).replace("RELATIONS", names)
    messages = (("system", system), ("user", f"Text:\n{text}"))
    return Ask(step, messages, temperature, max_tokens, top_p, json_mode=True)


def located(words: Vocabulary, text: str, found: Sequence[FoundEntity]) -> list[dict[str, Any]]:
    """The entities of known types that stand in the text as whole words, spelled as there, with offsets."""
    kept: dict[str, dict[str, Any]] = {}
    for entity in found:
        kind = words.type_named(entity.type)
        match = _mention(entity.text, text)
        if kind and match and match["text"] not in kept:
            kept[match["text"]] = {"text": match["text"], "type": kind, "start": match["start"], "end": match["end"]}
    return sorted(kept.values(), key=lambda entity: (entity["start"], entity["end"]))


def connected(
    words: Vocabulary, entities: Sequence[Mapping[str, Any]], found: Sequence[FoundRelation]
) -> list[dict[str, str]]:
    """The relations of the vocabulary between two different ones of these entities, each once."""
    by_key = {name_key(str(entity["text"])): entity for entity in entities}
    kept: dict[tuple[str, str, str], dict[str, str]] = {}
    by_text = {entity["text"]: entity for entity in entities}
    for relation in found:
        ends = by_key.get(name_key(relation.subject)), by_key.get(name_key(relation.object))
        if ends[0] is None or ends[1] is None or ends[0] is ends[1]:
            continue
        said = words.written(ends[0]["text"], relation.relation, ends[1]["text"])
        if said is None:
            continue
        subject, object_ = by_text[said[0]], by_text[said[2]]
        kept[said] = {
            "subject": subject["text"],
            "subject_type": subject["type"],
            "relation": said[1],
            "object": object_["text"],
            "object_type": object_["type"],
        }
    return list(kept.values())


def _defects(words: Vocabulary, row: Fields) -> list[str]:
    """Spans that do not hold, ends that are no entity, words that are not of the vocabulary."""
    text, entities, relations = row["text"], row["entities"], row["relations"]
    known = {entity["text"] for entity in entities}
    ends = {relation[side] for relation in relations for side in ("subject", "object")}
    defects = []
    if any(text[e["start"] : e["end"]] != e["text"] or e["start"] < 0 for e in entities) or not ends <= known:
        defects.append("wrong_span")
    types = {entity["type"] for entity in entities} | {r[side] for r in relations for side in _TYPE_KEYS}
    named = {relation["relation"] for relation in relations}
    if not types <= set(words.types) or not named <= set(words.relations):
        defects.append("outside_vocabulary")
    # A count, and no limit: of right rows of a real graph 9 % have such an end.
    if words.schema and not all(
        words.schema.allows(r["subject_type"], r["relation"], r["object_type"]) for r in relations
    ):
        defects.append("wrong_types")
    return defects


def _files(row: Fields, split: str) -> list[tuple[str, Any]]:
    raw = GeneratedRow.model_validate(row).raw()
    answer = {"role": "assistant", "content": wire.format_answer(raw.expected_relations)}
    messages = [*wire.chat_messages(raw.text, raw.entities), answer]
    trained = raw.model_dump(exclude_none=True)
    return [
        (SPLIT_FILES[split], trained),
        (VENDOR, ChatRow.model_validate({"messages": messages}).model_dump(exclude_none=True)),
    ]


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


def _sample_of_schema(generation: Generation, words: Vocabulary, drawing: Mapping[bool, Pools], number: int) -> Facts:
    rng = random.Random(f"{generation.seed}/{NAME}/{number}")
    held_out = is_held_out(number, seed=generation.seed, val_ratio=generation.val_ratio)
    # Too few names to keep any for validation: then there is none.
    held_out = held_out and bool(drawing[True].ends)
    relations = drawing[held_out].draw(rng, words, SECOND_RELATION_SHARE)
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
    chosen = generation.task(NAME).relations
    return [template for template in TEMPLATES if not chosen or template.relation in chosen]


def _converse(generation: Generation, words: Vocabulary, facts: Facts) -> Conversation:
    task, defaults, cap = generation.task(NAME), generation.defaults, generation.max_answer_tokens
    top_p = task.top_p if task.top_p is not None else defaults.top_p
    messages = (("system", WRITE_SYSTEM), ("user", _request(words, facts)))
    max_tokens = min(task.max_tokens, WRITE_MAX_TOKENS)
    written = yield from whole(Ask("write", messages, task.temperature, max_tokens, top_p), cap=cap)
    text = alone(written, longest=MAX_TEXT_CHARACTERS)
    main = facts["relations"][0]
    _check_names(text, main)
    extract = task.extract
    top_p = extract.top_p if extract.top_p is not None else defaults.top_p
    ask = extract_ask(text, temperature=extract.temperature, max_tokens=extract.max_tokens, top_p=top_p, words=words)
    extraction, notes = yield from parsed(ask, partial(as_model, Extraction), cap=cap)
    entities = located(words, text, extraction.entities)
    relations = connected(words, entities, extraction.relations)
    drawn = (name_key(main["subject"]), main["relation"], name_key(main["object"]))
    triples = {(name_key(r["subject"]), r["relation"], name_key(r["object"])) for r in relations}
    notes += _left_out(words, text, extraction)
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


def _request(words: Vocabulary, facts: Facts) -> str:
    lines = [
        f'- "{r["subject"]}" ({r["subject_type"]}) {r["relation"]} "{r["object"]}" ({r["object_type"]})'
        + (f": {said}" if (said := words.described(r["relation"])) else "")
        for r in facts["relations"]
    ]
    return "\n".join([f"Style: {facts['style']}", "Relations:", *lines])


def _check_names(text: str, relation: Mapping[str, str]) -> None:
    if not all(_word(relation[side], text) for side in ("subject", "object")):
        raise Ended(Done("rejected", reason="the text does not hold the name as given", notes=("unstated",)))


def _left_out(words: Vocabulary, text: str, extraction: Extraction) -> list[str]:
    """What of an extraction could not be taken, in the words of DEFECTS."""
    notes = []
    if any(_mention(entity.text, text) is None for entity in extraction.entities):
        notes.append("wrong_span")
    if any(words.type_named(entity.type) is None for entity in extraction.entities) or any(
        words.relation_named(relation.relation) is None for relation in extraction.relations
    ):
        notes.append("outside_vocabulary")
    return notes


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
