"""Names and sentence patterns of the demo's made-up world. `{s}` is the subject, `{o}` the object of the relation."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Predicate:
    """A relation with the kinds of its two ends and eight ways to say it; the last two are kept for the test."""

    name: str
    subject: str
    object: str
    patterns: tuple[str, ...]

    def with_patterns(self, patterns: tuple[str, ...]) -> "Predicate":
        """The same relation, said only in these ways."""
        return replace(self, patterns=patterns)


PERSON, ORGANIZATION, LOCATION, PRODUCT, EVENT = "person", "organization", "location", "product", "event"


PREDICATES: tuple[Predicate, ...] = (
    Predicate(
        "works_at",
        PERSON,
        ORGANIZATION,
        (
            "{s} works at {o}.",
            "{s} is employed by {o}.",
            "{s} has a job at {o}.",
            "{s} joined the staff of {o}.",
            "{s} works for {o} as an analyst.",
            "{o} employs {s}.",
            "{s} has been working for {o} since last year.",
            "{s} has a new job at {o}.",
        ),
    ),
    Predicate(
        "lives_in",
        PERSON,
        LOCATION,
        (
            "{s} lives in {o}.",
            "{s} resides in {o}.",
            "{s} has a home in {o}.",
            "{s} lives in an apartment in {o}.",
            "{s} is a resident of {o}.",
            "{o} is where {s} lives.",
            "{s} currently lives in the centre of {o}.",
            "{s} and the family live in {o}.",
        ),
    ),
    Predicate(
        "born_in",
        PERSON,
        LOCATION,
        (
            "{s} was born in {o}.",
            "{s} is a native of {o}.",
            "The birthplace of {s} is {o}.",
            "Born in {o}, {s} was the youngest of three.",
            "{s} was born near the harbour of {o}.",
            "{s} was born and raised in {o}.",
            "{s} was born at a small hospital in {o}.",
            "It was in {o} that {s} was born.",
        ),
    ),
    Predicate(
        "moved_to",
        PERSON,
        LOCATION,
        (
            "{s} moved to {o}.",
            "{s} relocated to {o} last spring.",
            "Last year {s} moved to {o}.",
            "{s} packed everything and moved to {o}.",
            "{s} decided to move to {o}.",
            "{s} left home and moved to {o}.",
            "{s} has just moved to {o}.",
            "In May, {s} relocated to {o}.",
        ),
    ),
    Predicate(
        "studied_at",
        PERSON,
        ORGANIZATION,
        (
            "{s} studied at {o}.",
            "{s} graduated from {o}.",
            "{s} earned a degree at {o}.",
            "{s} studied chemistry at {o}.",
            "{s} was a student at {o}.",
            "{o} is where {s} studied.",
            "{s} studied law at {o} for four years.",
            "{s} completed a degree at {o}.",
        ),
    ),
    Predicate(
        "married_to",
        PERSON,
        PERSON,
        (
            "{s} is married to {o}.",
            "{s} married {o}.",
            "{s} is the husband of {o}.",
            "{s} is the wife of {o}.",
            "{s} wed {o} in a small chapel.",
            "{s} and {o} are married.",
            "{s} has been married to {o} for ten years.",
            "{s} got married to {o} in June.",
        ),
    ),
    Predicate(
        "friend_of",
        PERSON,
        PERSON,
        (
            "{s} is a friend of {o}.",
            "{s} is friends with {o}.",
            "{s} has been a friend of {o} since school.",
            "{s} and {o} are good friends.",
            "{s} made friends with {o}.",
            "{s} is a close friend of {o}.",
            "{s} is an old friend of {o}.",
            "{s} has been friends with {o} for years.",
        ),
    ),
    Predicate(
        "child_of",
        PERSON,
        PERSON,
        (
            "{s} is the child of {o}.",
            "{s} is the son of {o}.",
            "{s} is the daughter of {o}.",
            "{s} is the only child of {o}.",
            "{s} is a son of {o}.",
            "{s} is the oldest daughter of {o}.",
            "{s} is the eldest child of {o}.",
            "{s} is the youngest son of {o}.",
        ),
    ),
    Predicate(
        "manages",
        PERSON,
        ORGANIZATION,
        (
            "{s} manages {o}.",
            "{s} is the director of {o}.",
            "{s} leads {o} as chief executive.",
            "{s} runs {o}.",
            "{s} is the manager of {o}.",
            "{o} is managed by {s}.",
            "{s} is the managing director of {o}.",
            "{o} is led by {s}.",
        ),
    ),
    Predicate(
        "founded",
        PERSON,
        ORGANIZATION,
        (
            "{s} founded {o}.",
            "{s} is the founder of {o}.",
            "{o} was founded by {s}.",
            "{s} established {o} twenty years ago.",
            "{s} started {o} in a garage.",
            "{s} co-founded {o}.",
            "{s} founded {o} with a small loan.",
            "The founder of {o} is {s}.",
        ),
    ),
    Predicate(
        "created",
        PERSON,
        PRODUCT,
        (
            "{s} created the {o}.",
            "{s} invented the {o}.",
            "The {o} was created by {s}.",
            "{s} designed the {o}.",
            "{s} is the creator of the {o}.",
            "{s} is the inventor of the {o}.",
            "The {o} was designed by {s}.",
            "{s} created the first {o}.",
        ),
    ),
    Predicate(
        "owns",
        PERSON,
        PRODUCT,
        (
            "{s} owns a {o}.",
            "{s} is the owner of a {o}.",
            "{s} bought a {o}.",
            "{s} has a {o} at home.",
            "{s} owns a new {o}.",
            "A {o} is owned by {s}.",
            "{s} owns an old {o}.",
            "{s} is the proud owner of a {o}.",
        ),
    ),
    Predicate(
        "located_in",
        ORGANIZATION,
        LOCATION,
        (
            "{s} is located in {o}.",
            "{s} is based in {o}.",
            "{s} has its headquarters in {o}.",
            "The offices of {s} are in {o}.",
            "{s} is situated in {o}.",
            "The headquarters of {s} are in {o}.",
            "The headquarters of {s} are located in {o}.",
            "{s} is a company based in {o}.",
        ),
    ),
    Predicate(
        "part_of",
        ORGANIZATION,
        ORGANIZATION,
        (
            "{s} is part of {o}.",
            "{s} is a division of {o}.",
            "{s} is a subsidiary of {o}.",
            "{s} belongs to {o}.",
            "{s} is a unit of {o}.",
            "{s} is a branch of {o}.",
            "{s} is now part of the {o} group.",
            "{s} operates as a subsidiary of {o}.",
        ),
    ),
    Predicate(
        "acquired",
        ORGANIZATION,
        ORGANIZATION,
        (
            "{s} acquired {o}.",
            "{s} bought {o} for an undisclosed sum.",
            "{o} was acquired by {s}.",
            "{s} took over {o}.",
            "{s} purchased {o}.",
            "{s} completed the acquisition of {o}.",
            "{s} has acquired all shares of {o}.",
            "{s} announced that it acquired {o}.",
        ),
    ),
    Predicate(
        "invested_in",
        ORGANIZATION,
        ORGANIZATION,
        (
            "{s} invested in {o}.",
            "{s} is an investor in {o}.",
            "{s} put money into {o}.",
            "{s} invested ten million in {o}.",
            "{s} made an investment in {o}.",
            "{o} received an investment from {s}.",
            "{s} has invested heavily in {o}.",
            "{s} is a major investor in {o}.",
        ),
    ),
    Predicate(
        "competes_with",
        ORGANIZATION,
        ORGANIZATION,
        (
            "{s} competes with {o}.",
            "{s} is a competitor of {o}.",
            "{s} is a rival of {o}.",
            "{s} is in competition with {o}.",
            "{s} and {o} are rivals.",
            "The main competitor of {s} is {o}.",
            "{s} competes directly with {o}.",
            "{s} is the biggest rival of {o}.",
        ),
    ),
    Predicate(
        "produces",
        ORGANIZATION,
        PRODUCT,
        (
            "{s} produces the {o}.",
            "{s} manufactures the {o}.",
            "{s} makes the {o}.",
            "{s} is the manufacturer of the {o}.",
            "{s} builds the {o}.",
            "The {o} is made by {s}.",
            "The {o} is manufactured by {s}.",
            "{s} is the maker of the {o}.",
        ),
    ),
    Predicate(
        "attended",
        PERSON,
        EVENT,
        (
            "{s} attended the {o}.",
            "{s} went to the {o}.",
            "{s} was a guest at the {o}.",
            "{s} was present at the {o}.",
            "{s} took part in the {o}.",
            "{s} visited the {o}.",
            "{s} attended the {o} with great interest.",
            "{s} was among the guests of the {o}.",
        ),
    ),
    Predicate(
        "held_in",
        EVENT,
        LOCATION,
        (
            "The {s} was held in {o}.",
            "The {s} took place in {o}.",
            "The {s} is held every year in {o}.",
            "The {s} opened in {o}.",
            "The {s} was organised in {o}.",
            "{o} hosted the {s}.",
            "The {s} will be held in {o}.",
            "This year the {s} takes place in {o}.",
        ),
    ),
)

DISTRACTORS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("The weather report mentioned {0}.", (LOCATION,)),
    ("{0} declined to comment.", (PERSON,)),
    ("A photograph of {0} hung on the wall.", (PERSON,)),
    ("Nobody asked about {0}.", (ORGANIZATION,)),
    ("The report names {0} and {1} without further detail.", (ORGANIZATION, LOCATION)),
    ("Tickets for the {0} are sold out.", (EVENT,)),
    ("The price of the {0} has not changed.", (PRODUCT,)),
    ("The weather in {0} was mild.", (LOCATION,)),
)
"""Sentences that state no relation, with the kinds of the names in them."""
