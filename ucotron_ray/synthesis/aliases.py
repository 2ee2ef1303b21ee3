"""Whether two names can mean one entity: the rules by which a pair is refused as «different», or as a variation.

Rules, not knowledge: made-up names have no list of aliases, so every form that one name can take counts as known.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from ucotron_ray.data.records import name_key

_DROPPED = (
    "the", "of", "and", "for", "dr", "prof", "professor", "mr", "mrs", "ms", "miss", "sir", "dame", "inc",
    "incorporated", "ltd", "limited", "llc", "plc", "corp", "corporation", "co", "company", "gmbh", "ag", "sa", "city",
    "town",
)  # fmt: skip
"""Words that titles, legal forms and articles add to a name."""

_NICKNAMES = (
    "adele|addie", "alexander|alex|sasha", "anika|ani", "beatriz|bea", "bogdan|bogdi", "camila|cami",
    "cecilia|ceci|cece", "daniel|dan|danny", "elena|leni|lena", "esteban|steve", "fatima|fati", "gabriel|gabe|gabi",
    "greta|gretel|margareta", "henrik|henk|rik", "ines|nessa", "ivan|vanya", "jamal|jay", "joana|jo|joanie",
    "kamil|kam", "keiko|kei", "lucia|lucy", "marek|mark", "miriam|miri|mimi", "nadia|nadi", "oskar|ossi",
    "paloma|loma", "pavel|pasha", "rafael|rafa", "ravi|rav", "rosa|rosie", "sofia|sofi|sophie", "tomas|tom|tommy",
    "ulla|ulrika", "vera|veronika", "yara|yaya", "yusuf|joe|joseph", "zoltan|zoli", "robert|bob|rob|bobby",
    "elizabeth|liz|beth|lizzy", "william|bill|will", "katherine|kate|katie", "michael|mike", "jonathan|jon|john",
    "richard|dick|rick", "margaret|maggie|peggy",
)  # fmt: skip
"""First names with what their bearers are called; each string is one name."""

TYPO_DISTANCE = 1
"""Two names so few keystrokes apart are more likely one name with a slip."""


def nicknames(first_name: str) -> tuple[str, ...]:
    """What the bearer of a first name is also called, lower-case."""
    key = first_name.lower()
    for line in _NICKNAMES:
        forms = line.split("|")
        if key in forms:
            return tuple(form for form in forms if form != key)
    return ()


def known_aliases(name: str) -> list[str]:
    """Forms that a name is known to take: initials, its parts, nicknames. For the prompt of a negative."""
    words = name.split()
    found = []
    if len(words) > 1:
        letters = [word[0] for word in words if word[0].isupper()]
        found += ["".join(letters), words[-1], f"{words[0][0]}. {words[-1]}"]
        found += [" ".join((form.title(), *words[1:])) for form in nicknames(words[0])]
    return list(dict.fromkeys(form for form in found if len(form) > 1 and form != name))


def can_be_one(name: str, other: str) -> bool:
    """Whether two names can mean one entity: the same words, a part of them, initials, a nickname or a slip."""
    if name_key(name) == name_key(other):
        return True
    ours, theirs = _words(name), _words(other)
    if not ours or not theirs:
        return True
    if set(ours) <= set(theirs) or set(theirs) <= set(ours):
        return True
    if _is_initials(ours, theirs) or _is_initials(theirs, ours) or _matches_word_by_word(ours, theirs):
        return True
    return distance(" ".join(ours), " ".join(theirs), at_most=TYPO_DISTANCE) <= TYPO_DISTANCE


def distance(one: str, other: str, *, at_most: int) -> int:
    """Keystrokes between two strings: insert, delete, replace, swap neighbours (optimal string alignment).

    Gives `at_most` + 1 as soon as it is more than `at_most`.
    """
    if abs(len(one) - len(other)) > at_most:
        return at_most + 1
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        row = [i]
        for j, right in enumerate(other, 1):
            cost = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (left != right))
            if i > 1 and j > 1 and left == other[j - 2] and one[i - 2] == right:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        if min(row) > at_most:
            return at_most + 1
        before, last = last, row
    return last[-1]


def folded(name: str) -> str:
    """Lower-case without accents: `Malmö` and `malmo` are one."""
    decomposed = unicodedata.normalize("NFKD", name.casefold())
    return "".join(char for char in decomposed if not unicodedata.combining(char))


@lru_cache(maxsize=20_000)
def _words(name: str) -> tuple[str, ...]:
    dotless = re.sub(r"(?<=\b\w)\.(?=\w\b)", "", folded(name))
    words = re.findall(r"\w+", dotless)
    return tuple(word for word in words if word not in _DROPPED) or tuple(words)


def _is_initials(words: Sequence[str], short: Sequence[str]) -> bool:
    """`albatross analytics` and `aa`, or `a a`."""
    return len(words) > 1 and "".join(short) == "".join(word[0] for word in words)


def _matches_word_by_word(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """As many words, each the same, an initial of the other, or its nickname; at least one of them the same."""
    if len(ours) != len(theirs) or not set(ours) & set(theirs):
        return False
    return all(_is_form(one, other) or _is_form(other, one) for one, other in zip(ours, theirs, strict=True))


def _is_form(word: str, form: str) -> bool:
    return word == form or (len(form) == 1 and word.startswith(form)) or form in nicknames(word)


def shared_words(one: str, other: str) -> set[str]:
    """Words that two names have in common."""
    return set(_words(one)) & set(_words(other))


def near_names(name: str, names: tuple[str, ...]) -> list[str]:
    """Names that share a word with this one and cannot mean the same: what a matcher that looks at words gets wrong."""
    by_word = _by_word(names)
    sharing = dict.fromkeys(other for word in _words(name) for other in by_word.get(word, ()))
    return [other for other in sharing if not can_be_one(name, other)]


@lru_cache(maxsize=16)
def _by_word(names: tuple[str, ...]) -> dict[str, list[str]]:
    index: dict[str, list[str]] = {}
    for name in names:
        for word in _words(name):
            index.setdefault(word, []).append(name)
    return index
