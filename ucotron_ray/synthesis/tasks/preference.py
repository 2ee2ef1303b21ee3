"""Preference pairs: a thorough and a hurried extraction of one text, kept if the first is better by a margin.

Output rows: reference §4. Both answers are scored against the relations of the input row; the pair that trains is
rewritten in the prompt and the answer format of the server (`wire.py`).
"""

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ucotron_ray.core.recipe import Generation
from ucotron_ray.core.sections import Count, Sampling, Share, TaskSettings
from ucotron_ray.data import wire
from ucotron_ray.data.records import PreferenceRow, RawRow, Relation, name_key
from ucotron_ray.synthesis.contents import UNUSABLE, found
from ucotron_ray.synthesis.conversation import NotUsable, as_model, parse_object, parsed, whole
from ucotron_ray.synthesis.generator import GuideFigures, UsualTokens
from ucotron_ray.synthesis.plan import Ask, Conversation, Done, Facts, Task
from ucotron_ray.synthesis.rows import DEFECTS, SPLIT_FILES, VENDOR, RowKind
from ucotron_ray.synthesis.seeds import RELATION_TYPES
from ucotron_ray.synthesis.tasks.relation_extraction import Extraction, extract_ask

NAME = "preference"
VERSION = 2
BUILDS_ON_ROWS = True

GUIDE = GuideFigures(rows=5000, usd=(2, 4), minutes=(20, 20))
USUAL = UsualTokens(requests=2, prompt=560, completion=113)


class Settings(TaskSettings):
    """`generation.tasks.preference`: a careful answer and a hurried one, whose F1 differ by `margin` at least."""

    chosen: Sampling = Sampling(temperature=0.0, max_tokens=300)
    rejected: Sampling = Sampling(temperature=0.7, max_tokens=150)
    target_samples: Count = 5000
    margin: Share = 0.2


MOST_RELATIONS = 40
"""Names of relations in a prompt. A graph may have hundreds: the most frequent ones, and those of the row itself."""

QUICK_SYSTEM = (
    "You skim a text and note the one or two most obvious entities and relations. Answer with one JSON object and "
    'nothing else: {"entities": [{"text": "...", "type": "..."}], "relations": [{"subject": "...", "relation": "...", '
    '"object": "..."}]}'
)


def make_task(generation: Generation, rows: Sequence[RawRow]) -> Task:
    """The task over relation rows, each text once. A number beyond the last row begins another pass over them.

    In an order of the seed: files have the rows for validation at their end, where few pairs would not get to.
    """
    distinct = list({row.text: row for row in reversed(rows)}.values())[::-1]
    random.Random(f"{generation.seed}/{NAME}").shuffle(distinct)
    names = _vocabulary(distinct)
    return Task(NAME, VERSION, partial(_sample, distinct, names), partial(_converse, generation), row_kind())


def row_kind() -> RowKind:
    """Pairs of answers to one text. Their split is that of the rows they build on, and was made by names there."""
    return RowKind(
        name=NAME,
        model=PreferenceRow,
        identity=lambda row: " ".join((row["prompt"], row["chosen"], row["rejected"])),
        labels=lambda row: (),
        defects=lambda row: ["same_answers"] if row["chosen"] == row["rejected"] else [],
        files=lambda row, split: [(SPLIT_FILES[split], row["train"]), (VENDOR, vendor_row(row["train"]))],
        published=lambda row: {key: value for key, value in row.items() if key not in ("train", "scores")},
        # Pairs of one text are alike by nature: only the same answers again make a duplicate.
        repeats_nearly=False,
    )


def answer_relations(extraction: Extraction, facts: Facts) -> list[Relation]:
    """What the server would keep of an extraction: relations between entities that it asked about, each once."""
    given = {name_key(entity["text"]): entity["text"] for entity in facts["entities"]}
    names = {_plain(name): name for name in facts["relations"]}
    kept: dict[tuple[str, str, str], Relation] = {}
    for stated in extraction.relations:
        subject, object_ = given.get(name_key(stated.subject)), given.get(name_key(stated.object))
        predicate = names.get(_plain(stated.relation), _plain(stated.relation))
        if subject and object_ and predicate and subject != object_:
            kept[(subject, predicate, object_)] = Relation(
                subject=subject, predicate=predicate, object=object_, confidence=1.0
            )
    return list(kept.values())


def f1(relations: Sequence[Relation], expected: Sequence[Relation]) -> float:
    """Triple F1 of one answer; two empty sides agree."""
    ours = {(name_key(r.subject), r.predicate, name_key(r.object)) for r in relations}
    theirs = {(name_key(r.subject), r.predicate, name_key(r.object)) for r in expected}
    if not ours and not theirs:
        return 1.0
    return 2 * len(ours & theirs) / (len(ours) + len(theirs))


def vendor_row(pair: Mapping[str, str]) -> dict[str, Any]:
    """A training pair in the vendor's layout for preference jobs, in the chat layout of the server's call."""
    messages = [{"role": "system", "content": wire.CHAT_SYSTEM}, {"role": "user", "content": pair["prompt"]}]
    return {
        "input": {"messages": messages},
        "preferred_output": [{"role": "assistant", "content": pair["chosen"]}],
        "non_preferred_output": [{"role": "assistant", "content": pair["rejected"]}],
    }


def _vocabulary(rows: Sequence[RawRow]) -> tuple[str, ...]:
    """The relations that the rows know, frequent ones first; the generator's own where they know no others."""
    counts = Counter(relation.predicate for row in rows for relation in row.expected_relations)
    if counts.keys() <= set(RELATION_TYPES):
        return RELATION_TYPES
    return tuple(sorted(counts, key=lambda name: (-counts[name], name)))


def _plain(name: str) -> str:
    return "_".join(name.lower().split())


def _sample(rows: Sequence[RawRow], names: Sequence[str], number: int) -> Facts:
    row = rows[number % len(rows)]
    usual = names[:MOST_RELATIONS]
    own = {relation.predicate for relation in row.expected_relations}
    return {
        "relations": [*usual, *sorted(own - set(usual))],
        "pass": number // len(rows),
        "text": row.text,
        "entities": [entity.model_dump() for entity in row.entities],
        "expected": [relation.model_dump() for relation in row.expected_relations],
        "split": row.group or "train",
    }


def _converse(generation: Generation, facts: Facts) -> Conversation:
    task, cap = generation.task(NAME), generation.max_answer_tokens
    text = facts["text"]
    # Of somebody's own file, perhaps: it was never looked at.
    unusable = found([text], UNUSABLE)
    if unusable:
        return Done("quarantined", reason=f"the input: {DEFECTS[unusable[0]]}", notes=tuple(unusable))
    thorough = extract_ask(
        text,
        temperature=task.chosen.temperature,
        max_tokens=task.chosen.max_tokens,
        top_p=task.chosen.top_p,
        step="chosen",
        relations=facts["relations"],
    )
    chosen, notes = yield from parsed(thorough, partial(as_model, Extraction), cap=cap)
    quick = Ask(
        "rejected",
        (("system", QUICK_SYSTEM), ("user", f"Text:\n{text}")),
        task.rejected.temperature,
        task.rejected.max_tokens,
        task.rejected.top_p,
        json_mode=True,
    )
    # A worse answer is what is wanted here: one that cannot be read is no reason to ask again, but it trains nothing.
    hurried_text = yield from whole(quick, cap=cap)
    try:
        value, _ = parse_object(hurried_text)
        hurried = as_model(Extraction, value)
    except NotUsable as error:
        return Done("rejected", reason=f"rejected: {error}", notes=tuple(notes))
    return _judged(task.margin, facts, chosen, hurried, notes)


def _judged(margin: float, facts: Facts, chosen: Extraction, hurried: Extraction, notes: list[str]) -> Done:
    expected = [Relation.model_validate(relation) for relation in facts["expected"]]
    good, bad = answer_relations(chosen, facts), answer_relations(hurried, facts)
    good_f1, bad_f1 = f1(good, expected), f1(bad, expected)
    if good_f1 - bad_f1 < margin:
        return Done("rejected", reason=f"chosen is not better by {margin:g} F1", notes=tuple(notes))
    truth = {"entities": facts["entities"], "relations": facts["expected"]}
    row = {
        "prompt": f"Extract entities and relations from: {facts['text']}",
        "chosen": json.dumps(chosen.model_dump(), ensure_ascii=False),
        "rejected": json.dumps(hurried.model_dump(), ensure_ascii=False),
        "ground_truth": json.dumps(truth, ensure_ascii=False),
        "metadata": {"source": "re_dataset", "text_length": len(facts["text"])},
        # What trains: the server's prompt and answers (written to a file of its own).
        "train": {
            "prompt": wire.user_prompt(facts["text"], RawRow.model_validate(_as_raw(facts)).entities),
            "chosen": wire.format_answer(good),
            "rejected": wire.format_answer(bad),
        },
        "scores": {"chosen_f1": round(good_f1, 4), "rejected_f1": round(bad_f1, 4)},
    }
    return Done("accepted", row=row, notes=tuple(notes))


def _as_raw(facts: Facts) -> Mapping[str, Any]:
    return {"text": facts["text"], "entities": facts["entities"], "expected_relations": facts["expected"]}
