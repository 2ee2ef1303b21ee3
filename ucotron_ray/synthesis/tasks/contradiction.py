"""Contradictions: two sentences that state drawn values, and what the Ucotron server would make of them.

Rows and labels: reference §5. What the older generator did wrong, and what is checked here instead: both sentences hold
the subject and their own value and not the other one's; a second request reads the values back without knowing them;
times and confidences make the server decide as the label says.
"""

import json
import random
import re
from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict

from ucotron_ray.core.recipe import Generation
from ucotron_ray.core.sections import Count, SampledTask, Sampling, Temperature
from ucotron_ray.data.records import ContradictionRow, RawRow, name_key
from ucotron_ray.synthesis.conversation import alone, as_model, parsed
from ucotron_ray.synthesis.facts import (
    LABELS,
    NAME_KINDS,
    PREDICATE_NAMES,
    PREDICATES,
    STRATEGIES,
    decision,
    label_cycle,
    times_and_confidences,
    values,
)
from ucotron_ray.synthesis.generator import GuideFigures, UsualTokens
from ucotron_ray.synthesis.plan import Ask, Conversation, Done, Ended, Facts, Task
from ucotron_ray.synthesis.rows import Fields, RowKind
from ucotron_ray.synthesis.seeds import KINDS, STYLES, is_held_out, names

NAME = "contradiction"
VERSION = 1
BUILDS_ON_ROWS = False

GUIDE = GuideFigures(rows=3000, usd=(1, 2), minutes=(10, 10))
USUAL = UsualTokens(requests=1, prompt=250, completion=256)


class Settings(SampledTask):
    """`generation.tasks.contradiction`: pairs of facts, written; then `read`: the values are read back."""

    temperature: Temperature = 0.7
    max_tokens: Count = 1024
    target_samples: Count = 3000
    read: Sampling = Sampling(temperature=0.0, max_tokens=256)


MAX_TEXT_CHARACTERS = 300

WRITE_SYSTEM = (
    "You write pairs of sentences for training data. You are given a subject, a property, and a value for each of two "
    "sentences. Write for each one factual sentence of 10 to 30 words that states that value as the subject's, with "
    "subject and value exactly as given, and that mentions no other value. Word the two sentences differently. Answer "
    'with one JSON object and nothing else: {"fact_a": "...", "fact_b": "..."}'
)
READ_SYSTEM = (
    "You read one value out of each of two sentences: the value that the sentence states for the given property of the "
    "given subject, copied character for character, or null if it states none. Answer with one JSON object and nothing "
    'else: {"value_a": "...", "value_b": "..."}'
)


class _Written(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    fact_a: str
    fact_b: str


class _Values(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    value_a: str | None
    value_b: str | None


def make_task(generation: Generation, rows: Sequence[RawRow] = ()) -> Task:
    """The task for these settings; it builds on no rows."""
    converse = partial(_converse, generation)
    return Task(NAME, VERSION, partial(_sample, generation), converse, row_kind(), stand_in=_stand_in)


def row_kind() -> RowKind:
    """Pairs of facts; the shares of the four labels are exact."""
    return RowKind(
        name=NAME,
        model=ContradictionRow,
        identity=lambda row: f"{row['fact_a']['text']} {row['fact_b']['text']}",
        labels=lambda row: [row["label"]],
        vocabulary=tuple(LABELS),
        names=_names,
        defects=_defects,
        shares=LABELS,
    )


def _names(row: Fields) -> list[str]:
    kinds = {predicate.name: predicate.kind for predicate in PREDICATES}
    found = [row["fact_a"]["subject"]]
    if kinds.get(row["fact_a"]["predicate"]) in NAME_KINDS:
        found += [row["fact_a"]["object"], row["fact_b"]["object"]]
    return found


def _defects(row: Fields) -> list[str]:
    """What the server would not make of it, or what the sentences do not say."""
    one, two, label = row["fact_a"], row["fact_b"], row["label"]
    defects = []
    if one["predicate"] not in PREDICATE_NAMES or two["predicate"] not in PREDICATE_NAMES:
        defects.append("outside_vocabulary")
    if not all(states(fact["text"], fact["object"]) for fact in (one, two)):
        defects.append("unstated")
    equal = name_key(one["object"]) == name_key(two["object"])
    if label != "agrees" and (equal or name_key(one["text"]) == name_key(two["text"])):
        defects.append("same_fact")
    times, confidences = (one["timestamp"], two["timestamp"]), (one["confidence"], two["confidence"])
    same_thing = name_key(one["subject"]) == name_key(two["subject"]) and one["predicate"] == two["predicate"]
    follows = equal if label == "agrees" else decision(times, confidences) == label
    if not same_thing or not follows or row["resolution_strategy"] != STRATEGIES[label]:
        defects.append("wrong_label")
    return defects


def states(text: str, value: str) -> bool:
    """Whether a text holds a value as whole words, whatever its case."""
    return re.search(rf"(?<!\w){re.escape(value.strip())}(?!\w)", text, re.IGNORECASE) is not None


def _sample(generation: Generation, number: int) -> Facts:
    seed, ratio = generation.seed, generation.val_ratio
    rng = random.Random(f"{seed}/{NAME}/{number}")
    held_out = is_held_out(number, seed=seed, val_ratio=ratio)
    cycle = label_cycle(seed)
    label = cycle[number % len(cycle)]
    predicate = rng.choice(PREDICATES)
    subject = rng.choice(names(predicate.subject, held_out=held_out, seed=seed, val_ratio=ratio))
    pool = values(predicate.kind, held_out=held_out, seed=seed, val_ratio=ratio)
    first = _another(rng, pool, subject)
    second = first if label == "agrees" else _another(rng, pool, subject, first)
    times, confidences = times_and_confidences(label, rng)
    return {
        "number": number,
        "label": label,
        "predicate": predicate.name,
        "description": predicate.description,
        "subject": subject,
        "subject_type": KINDS[predicate.subject],
        "value_type": predicate.value_type,
        "values": [first, second],
        "times": list(times),
        "confidences": list(confidences),
        "style": rng.choice(STYLES),
        "split": "val" if held_out else "train",
    }


def _another(rng: random.Random, pool: Sequence[str], *others: str) -> str:
    """A value that has nothing in common with the others."""
    while True:
        value = rng.choice(pool)
        if not any(_overlap(value, other) for other in others):
            return value


def _overlap(one: str, other: str) -> bool:
    """Whether one value stands in the other: then a sentence that states the longer one holds both."""
    return states(one, other) or states(other, one)


def _converse(generation: Generation, facts: Facts) -> Conversation:
    task, cap = generation.task(NAME), generation.max_answer_tokens
    head = f'Property: {facts["predicate"]} ({facts["description"]})\nSubject: "{facts["subject"]}"'
    first, second = facts["values"]
    user = f'Style: {facts["style"]}\n{head} ({facts["subject_type"]})\nFact A: "{first}"\nFact B: "{second}"'
    messages = (("system", WRITE_SYSTEM), ("user", user))
    ask = Ask("write", messages, task.temperature, task.max_tokens, task.top_p, json_mode=True)
    written, notes = yield from parsed(ask, partial(as_model, _Written), cap=cap)
    texts = [alone(text, longest=MAX_TEXT_CHARACTERS) for text in (written.fact_a, written.fact_b)]
    _check_texts(texts, facts, notes)
    user = f"{head}\nSentence A: {texts[0]}\nSentence B: {texts[1]}"
    messages = (("system", READ_SYSTEM), ("user", user))
    read = task.read
    ask = Ask("read", messages, read.temperature, read.max_tokens, read.top_p, json_mode=True)
    found, more = yield from parsed(ask, partial(as_model, _Values), cap=cap)
    notes += more
    for stated, value in zip((found.value_a, found.value_b), facts["values"], strict=True):
        if name_key(stated or "") != name_key(value):
            return Done("rejected", reason="a reader finds another value", notes=(*notes, "unstated"))
    return Done("accepted", row=_row(facts, texts), notes=tuple(notes))


def _stand_in(facts: Facts, ask: Ask) -> str:
    """Two sentences that can be read back."""
    first, second = (f"{facts['subject']}: {value}" for value in facts["values"])
    return json.dumps({"fact_a": first, "fact_b": f"Of {second}"})


def _check_texts(texts: Sequence[str], facts: Facts, notes: Sequence[str]) -> None:
    first, second = facts["values"]
    differ = facts["label"] != "agrees"
    if not all(states(text, facts["subject"]) for text in texts):
        raise Ended(Done("rejected", reason="a sentence does not hold the subject", notes=(*notes, "unstated")))
    if differ and (states(texts[1], first) or states(texts[0], second)):
        raise Ended(Done("rejected", reason="both sentences state one value", notes=(*notes, "same_fact")))
    if not (states(texts[0], first) and states(texts[1], second)):
        raise Ended(Done("rejected", reason="a sentence does not state its value", notes=(*notes, "unstated")))
    if name_key(texts[0]) == name_key(texts[1]):
        raise Ended(Done("rejected", reason="both sentences are the same", notes=(*notes, "same_fact")))


def _row(facts: Facts, texts: Sequence[str]) -> dict[str, Any]:
    pair = [
        {
            "subject": facts["subject"],
            "predicate": facts["predicate"],
            "object": facts["values"][side],
            "text": texts[side],
            "confidence": facts["confidences"][side],
            "timestamp": facts["times"][side],
        }
        for side in (0, 1)
    ]
    return {
        "fact_a": pair[0],
        "fact_b": pair[1],
        "label": facts["label"],
        "resolution_strategy": STRATEGIES[facts["label"]],
        "metadata": {
            "subject_type": facts["subject_type"],
            "predicate": facts["predicate"],
            "value_type": facts["value_type"],
        },
    }
