"""What the simulator says about facts and names: sentences that state a value, and forms of a name. GENERATED DATA.

It knows the layout of this project's prompts, as `simulator_language.py` does.
"""

import json
import random
import re
from functools import lru_cache

FACT_PATTERNS: dict[str, tuple[str, ...]] = {
    "lives_in": (
        "For several years now, {s} has lived in {o} together with two old friends.",
        "Neighbours in {o} know {s} well, who has a flat near the market there.",
        "The letter was sent to {o}, where {s} has a home with a small garden.",
        "After a long search for a flat, {s} settled in {o} for good.",
    ),
    "works_at": (
        "Since the spring, {s} has been working at {o} in the planning department.",
        "The staff list of {o} names {s} among the members of the second team.",
        "On weekdays {s} takes the early bus to the office of {o}.",
        "According to the newsletter, {s} is employed by {o} on a permanent contract.",
    ),
    "job_title": (
        "By profession {s} is a {o}, as the register of the chamber shows.",
        "The brochure introduces {s} as {o} with many years of practice.",
        "Friends say that {s} became {o} after a long apprenticeship abroad.",
        "On the door there is a sign that reads {s}, {o}.",
    ),
    "founded_in": (
        "The company {s} was founded in {o}, as a plaque at the entrance says.",
        "Records in the archive show that {s} has existed since {o}.",
        "It was in {o} that {s} opened its first office with three employees.",
        "The history of {s} began in {o} in a rented workshop.",
    ),
    "headquartered_in": (
        "The head office of {s} stands in {o}, not far from the main station.",
        "From its headquarters in {o}, {s} serves customers on three continents.",
        "Visitors to {s} are welcomed at the main building in {o}.",
        "The board of {s} meets every month at its seat in {o}.",
    ),
    "population": (
        "According to the last count, {s} has {o} inhabitants.",
        "The statistical office gives the population of {s} as {o} people.",
        "About {o} people live in {s}, the yearbook says.",
        "With its {o} residents, {s} is larger than most towns of the area.",
    ),
    "speaks": (
        "At home {s} speaks {o} with the whole family.",
        "The first language of {s} is {o}, learned from both grandparents.",
        "In the interview {s} answered every question in {o}.",
        "Since childhood {s} has spoken {o} without any accent.",
    ),
    "studied_at": (
        "After school {s} studied at {o} for four years.",
        "The degree that hangs on the wall shows that {s} graduated from {o}.",
        "As a student {s} was enrolled at {o} and lived in a dormitory.",
        "The alumni magazine of {o} carries a portrait of {s}.",
    ),
    "ceo": (
        "The chief executive of {s} is {o}, the company announced on Tuesday.",
        "Under the leadership of {o}, {s} has opened two new branches.",
        "Shareholders of {s} confirmed {o} as the head of the company.",
        "In a letter to the staff of {s}, its chief executive {o} thanked everyone.",
    ),
    "capital_of": (
        "The city of {s} is the capital of {o} and the seat of its council.",
        "The parliament of {o} meets in its capital, {s}, twice a year.",
        "On every map of {o} a star marks {s} as the capital.",
        "Road signs call {s} the capital of {o}.",
    ),
    "nationality": (
        "The passport of {s} says that the holder is {o}.",
        "According to the registry office, {s} is {o} by birth.",
        "The programme lists {s} as a {o} participant.",
        "Reporters describe {s} as a {o} citizen with a fondness for travel.",
    ),
    "industry": (
        "For decades {s} has been active in {o} and little else.",
        "The main business of {s} is {o}, its annual report explains.",
        "Investors know {s} as a company in the field of {o}.",
        "Most of the revenue of {s} comes from {o}.",
    ),
}

_WRITE = re.compile(
    r'Property: (?P<p>\w+) .*?\nSubject: "(?P<s>[^\n]+?)" \(\w+\)\nFact A: "(?P<a>[^\n]+)"\nFact B: "(?P<b>[^\n]+)"'
)
_READ = re.compile(
    r'Property: (?P<p>\w+) .*?\nSubject: "(?P<s>[^\n]+)"\nSentence A: (?P<a>[^\n]+)\nSentence B: (?P<b>[^\n]+)'
)
_NAME = re.compile(r'^Name: "(?P<name>[^\n]+)" \((?P<type>\w+)\)\n')
_VARIATION = re.compile(r"\nVariation: (\w+)\Z")
_ALIASES = re.compile(r"\nNot one of its aliases: (.+)\Z")

_SWAPS = (("c", "k"), ("k", "c"), ("ph", "f"), ("f", "ph"), ("y", "i"), ("i", "y"), ("v", "w"), ("w", "v"), ("z", "s"))
_NICKNAMES = {"Camila": "Cami", "Daniel": "Dan", "Elena": "Leni", "Gabriel": "Gabe", "Rafael": "Rafa", "Tomas": "Tom"}


def write_facts(prompt: str, rng: random.Random) -> str | None:
    """The two sentences that are asked for, as JSON; None if nothing of the kind is."""
    asked = _WRITE.search(prompt)
    if asked is None or asked["p"] not in FACT_PATTERNS:
        return None
    one, two = rng.sample(FACT_PATTERNS[asked["p"]], 2)
    facts = {"fact_a": one.format(s=asked["s"], o=asked["a"]), "fact_b": two.format(s=asked["s"], o=asked["b"])}
    return json.dumps(facts, ensure_ascii=False)


def one_fact_twice(prompt: str, rng: random.Random) -> str | None:
    """Two sentences that both state the first value, where two values were asked for."""
    asked = _WRITE.search(prompt)
    if asked is None or asked["a"] == asked["b"]:
        return None
    return write_facts(prompt.replace(f'Fact B: "{asked["b"]}"', f'Fact B: "{asked["a"]}"'), rng)


def read_values(prompt: str) -> str | None:
    """The values that two sentences of our own patterns state, as JSON; None if nothing of the kind is asked."""
    asked = _READ.search(prompt)
    if asked is None:
        return None
    found = {f"value_{side}": _value(asked["p"], asked["s"], asked[side]) for side in ("a", "b")}
    return json.dumps(found, ensure_ascii=False)


def name_form(prompt: str, rng: random.Random) -> str | None:
    """A variation of a name, or the name of another entity; None if none is asked."""
    asked, variation = _NAME.match(prompt), _VARIATION.search(prompt)
    if asked is None:
        return None
    name = asked["name"]
    if variation is None:
        return _another(name, rng) if _ALIASES.search(prompt) else None
    return _varied(name, asked["type"], variation[1], rng)


def alias_of(prompt: str, rng: random.Random) -> str | None:
    """An alias of the name whose opposite was asked for."""
    asked, aliases = _NAME.match(prompt), _ALIASES.search(prompt)
    if asked is None or aliases is None:
        return None
    known: list[str] = re.findall(r'"([^"]+)"', aliases[1])
    return rng.choice([*known, str(asked["name"]).upper()])


def _value(predicate: str, subject: str, sentence: str) -> str | None:
    best: tuple[int, str] | None = None
    for pattern in _fact_readers(predicate):
        match = re.fullmatch(pattern.replace("SUBJECT", re.escape(subject)), sentence)
        if match and (best is None or len(pattern) > best[0]):
            best = len(pattern), str(match["o"])
    return best[1] if best else None


@lru_cache(maxsize=32)
def _fact_readers(predicate: str) -> tuple[str, ...]:
    return tuple(
        re.escape(pattern).replace(r"\{s\}", "SUBJECT").replace(r"\{o\}", "(?P<o>.+?)")
        for pattern in FACT_PATTERNS.get(predicate, ())
    )


def _varied(name: str, kind: str, variation: str, rng: random.Random) -> str:
    words = name.split()
    if variation == "typo":
        place = rng.randrange(1, len(name) - 1)
        slips = (name[:place] + name[place + 1 :], name[:place] + name[place] + name[place:])
        return rng.choice([slip for slip in slips if slip.casefold() != name.casefold()])
    if variation == "abbreviation":
        return rng.choice(
            (" ".join(word[0] + "." for word in words), f"{words[0][0]}. {words[-1]}", f"{words[0][:4]}.")
        )
    if variation == "nickname":
        return " ".join((_NICKNAMES.get(words[0], words[0][:3] + rng.choice(("i", "o", "y"))), *words[1:]))
    if variation == "partial":
        return rng.choice(words)
    if variation == "formal":
        forms = {
            "Person": ("Dr. {}", "Ms {}", "Prof. {}", "Mr {}", "{}, PhD"),
            "Organization": ("{}, Inc.", "{} Ltd.", "{} GmbH", "The {} Company", "{} Corporation"),
        }
        return rng.choice(forms.get(kind, ("City of {}", "Municipality of {}", "Greater {} Area"))).format(name)
    changed = [name.replace(old, new, 1) for old, new in _SWAPS if old in name]
    return rng.choice(changed or [name.replace("a", "ah", 1).replace("o", "oh", 1) + "e"])


def _another(name: str, rng: random.Random) -> str:
    words = name.split()
    if len(words) == 1:
        return f"{rng.choice(('New', 'Port', 'Fort', 'Mount', 'Lake'))} {_stem(name, rng)}"
    ends = ("Holm", "Keller", "Brandt", "Quarters", "Mills", "Partnership", "Works", "Union", "Torres", "Osei", "Lind")
    return f"{words[0]} {rng.choice([end for end in ends if end != words[-1]])}"


def _stem(name: str, rng: random.Random) -> str:
    """A made-up place that begins like the name."""
    return name[: max(2, len(name) // 2)] + rng.choice(("burn", "wick", "mere", "stead", "ford"))
