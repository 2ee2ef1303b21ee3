"""Entity resolution: pairs of names that mean one entity, or two that are easily mixed up.

Rows: reference §6. What the older generator did wrong, and what is done here instead: variations of case are made by
rule (a check «differs from the original» throws them away); a negative that can be an alias is refused; half of the
negatives are near names of the same list; both classes have exactly their share; no pair occurs twice.
"""

import difflib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from ucotron_ray.core.recipe import Generation
from ucotron_ray.core.sections import Count, SampledTask, Share, Temperature
from ucotron_ray.data.records import EntityPairRow, RawRow, name_key
from ucotron_ray.synthesis.aliases import can_be_one, distance, folded, known_aliases, near_names, shared_words
from ucotron_ray.synthesis.conversation import alone, whole
from ucotron_ray.synthesis.generator import GuideFigures, UsualTokens
from ucotron_ray.synthesis.plan import Ask, Conversation, Done, Facts, Task
from ucotron_ray.synthesis.rows import Fields, RowKind
from ucotron_ray.synthesis.seeds import KINDS, is_held_out, names

NAME = "entity_resolution"
VERSION = 1
BUILDS_ON_ROWS = False

GUIDE = GuideFigures(rows=2000, usd=(0.5, 1), minutes=(5, 5))
USUAL = UsualTokens(requests=1, prompt=180, completion=128)


class Settings(SampledTask):
    """`generation.tasks.entity_resolution`: pairs of names. `positive_share` is exact."""

    temperature: Temperature = 0.8
    max_tokens: Count = 512
    target_samples: Count = 2000
    positive_share: Share = 0.6


DIFFERENT = "different_entity"
VARIATIONS = {
    "typo": "with one slip of the typist: a letter missing, doubled, wrong or swapped",
    "abbreviation": "abbreviated: initials, or words cut short",
    "nickname": "as friends or the press would call it, with at least one word of it kept",
    "case_variation": "in another case",
    "partial": "in part: one or several of its words, left as they are",
    "formal": "in full form: with a title, a legal form or an official addition",
    "transliteration": "as another language or spelling tradition would write it",
}
"""Variation types (reference §6) and how they are asked for. Variations of case are made without asking."""

NAME_KINDS = ("person", "organization", "city")
LONG_NAME_KINDS = ("person", "organization")
"""Whose names have several words, so that there is something to leave out."""

NEAR_SHARE = 0.5
"""Of the negatives, that are near names of the same list: no teacher is asked for them."""

MAX_NAME_CHARACTERS = 80
LIKENESS = 0.5
"""Of a transliteration, by difflib's ratio over accentless letters; another script is taken as it is."""

SYSTEM = (
    "You make up training data for matching names. Answer with one name and nothing else: no quotation marks, no "
    "explanation."
)


def make_task(generation: Generation, rows: Sequence[RawRow] = ()) -> Task:
    """The task for these settings; it builds on no rows."""
    share = generation.task(NAME).positive_share
    return Task(NAME, VERSION, partial(_sample, generation), partial(_converse, generation), row_kind(share))


def row_kind(positive_share: float | None = None) -> RowKind:
    """Pairs of names; with a share, both classes are exact."""
    shares = None if positive_share is None else {"duplicate": positive_share, "different": 1 - positive_share}
    return RowKind(
        name=NAME,
        model=EntityPairRow,
        # Without the label: one pair cannot be both.
        identity=lambda row: " | ".join(sorted((name_key(row["canonical"]), row["variant"]))),
        labels=lambda row: ["duplicate" if row["is_duplicate"] else "different", row["variation_type"]],
        vocabulary=("duplicate", "different", *VARIATIONS, DIFFERENT),
        # A variant is a name of its own where it is another's.
        names=lambda row: [row["canonical"], *([] if row["is_duplicate"] else [row["variant"]])],
        defects=_defects,
        shares=shares,
        repeats_nearly=False,
    )


def _defects(row: Fields) -> list[str]:
    defects = []
    known = VARIATIONS if row["is_duplicate"] else (DIFFERENT,)
    if row["variation_type"] not in known or row["entity_type"] not in KINDS.values():
        defects.append("outside_vocabulary")
    if not row["is_duplicate"] and can_be_one(row["canonical"], row["variant"]):
        defects.append("alias_as_negative")
    if row["is_duplicate"] and row["canonical"] == row["variant"]:
        defects.append("wrong_label")
    return defects


def _sample(generation: Generation, number: int) -> Facts:
    seed, ratio = generation.seed, generation.val_ratio
    share = generation.task(NAME).positive_share
    rng = random.Random(f"{seed}/{NAME}/{number}")
    held_out = is_held_out(number, seed=seed, val_ratio=ratio)
    # Of the first n samples, n times the share are positive: never further off than one.
    before, after = int(number * share), int((number + 1) * share)
    positive = after > before
    variation = tuple(VARIATIONS)[before % len(VARIATIONS)] if positive else DIFFERENT
    kind = rng.choice(LONG_NAME_KINDS if variation in ("abbreviation", "partial", "nickname") else NAME_KINDS)
    pool = names(kind, held_out=held_out, seed=seed, val_ratio=ratio)
    name = rng.choice(pool)
    near = near_names(name, pool) if not positive and rng.random() < NEAR_SHARE else []
    return {
        "number": number,
        "name": name,
        "kind": kind,
        "entity_type": KINDS[kind],
        "is_duplicate": positive,
        "variation": variation,
        "near": rng.choice(near) if near else None,
        "split": "val" if held_out else "train",
    }


def _converse(generation: Generation, facts: Facts) -> Conversation:
    if facts["variation"] == "case_variation":
        return _made(facts, _other_case(facts), "rule")
    if facts["near"] is not None:
        return _made(facts, facts["near"], "near_name")
    task = generation.task(NAME)
    messages = (("system", SYSTEM), ("user", _request(facts)))
    ask = Ask("name", messages, task.temperature, task.max_tokens, task.top_p)
    answer = alone((yield from whole(ask, cap=generation.max_answer_tokens)), longest=MAX_NAME_CHARACTERS)
    if not facts["is_duplicate"]:
        if can_be_one(facts["name"], answer):
            reason = "the other name can be an alias of the first"
            return Done("rejected", reason=reason, notes=("alias_as_negative",))
        return _made(facts, answer, "llm_negative")
    if len(answer) < 2 or not _FITS[facts["variation"]](facts["name"], answer):
        return Done("rejected", reason=f"it is no {facts['variation']} of the name", notes=("wrong_label",))
    if name_key(answer) != name_key(facts["name"]) and name_key(answer) in _every_name(generation, facts["kind"]):
        return Done("rejected", reason="the variation is another entity's name", notes=("wrong_label",))
    return _made(facts, answer, "llm_variation")


def _request(facts: Facts) -> str:
    head = f'Name: "{facts["name"]}" ({facts["entity_type"]})'
    if facts["is_duplicate"]:
        return f"{head}\nWrite the same name {VARIATIONS[facts['variation']]}.\nVariation: {facts['variation']}"
    aliases = ", ".join(f'"{alias}"' for alias in known_aliases(facts["name"])) or "none"
    return (
        f"{head}\nWrite the name of a different entity of the same type that is easily mixed up with it: a shared word "
        f"or a similar spelling, one to five words.\nNot one of its aliases: {aliases}"
    )


def _made(facts: Facts, variant: str, method: str) -> Done:
    row: dict[str, Any] = {
        "canonical": facts["name"],
        "variant": variant,
        "is_duplicate": facts["is_duplicate"],
        "entity_type": facts["entity_type"],
        "variation_type": facts["variation"],
        "metadata": {"generation_method": method},
    }
    return Done("accepted", row=row)


def _other_case(facts: Facts) -> str:
    name: str = facts["name"]
    forms = [name.upper(), name.lower(), name.swapcase(), name.capitalize()]
    return random.Random(f"{facts['number']}/{name}").choice([form for form in forms if form != name])


@lru_cache(maxsize=8)
def _names_of(kind: str, seed: int, val_ratio: float) -> frozenset[str]:
    both = [*names(kind, held_out=True, seed=seed, val_ratio=val_ratio)]
    both += names(kind, held_out=False, seed=seed, val_ratio=val_ratio)
    return frozenset(name_key(name) for name in both)


def _every_name(generation: Generation, kind: str) -> frozenset[str]:
    return _names_of(kind, generation.seed, generation.val_ratio)


def _is_typo(name: str, form: str) -> bool:
    return 1 <= distance(name.casefold(), form.casefold(), at_most=2) <= 2


def _is_abbreviation(name: str, form: str) -> bool:
    letters = re.sub(r"\W", "", folded(form))
    rest = iter(re.sub(r"\W", "", folded(name)))
    return len(letters) < len(folded(name)) and bool(letters) and all(letter in rest for letter in letters)


def _is_nickname(name: str, form: str) -> bool:
    return name_key(name) != name_key(form) and bool(shared_words(name, form) or folded(name)[:2] == folded(form)[:2])


def _is_part(name: str, form: str) -> bool:
    words, kept = folded(name).split(), folded(form).split()
    return 0 < len(kept) < len(words) and set(kept) <= set(words)


def _is_formal(name: str, form: str) -> bool:
    return set(folded(name).split()) < set(re.findall(r"\w+", folded(form)))


def _is_transliteration(name: str, form: str) -> bool:
    if name == form:
        return False
    if not re.search(r"[a-z]", folded(form)):
        return any(char.isalpha() for char in form)
    return difflib.SequenceMatcher(None, folded(name), folded(form)).ratio() >= LIKENESS


_FITS: Mapping[str, Callable[[str, str], bool]] = {
    "typo": _is_typo,
    "abbreviation": _is_abbreviation,
    "nickname": _is_nickname,
    "partial": _is_part,
    "formal": _is_formal,
    "transliteration": _is_transliteration,
}
