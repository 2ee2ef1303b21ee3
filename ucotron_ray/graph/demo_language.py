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

NAMES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    PERSON: (
        (
            "Alma Bruno Carla Diego Edith Felix Greta Hugo Irene Jonas Karin Leo Marta Nils Olga Pablo Rosa Simon Tessa "
            "Victor Wanda Xavier Yvonne Zora Adrian Bianca Cesar Doris Emil Fiona"
        ).split(),
        (
            "Abbott Barnes Castillo Dalton Ellison Fischer Grant Harper Ibarra Jensen Keller Lambert Moreno Norton "
            "Osborne Palmer Quintana Reyes Sutton Turner Underwood Vargas Walker Young"
        ).split(),
    ),
    ORGANIZATION: (
        (
            "Northgate Silverline Bluefield Redwood Ironbridge Clearwater Sunrise Oakmont Stonehill Brightside Harbor "
            "Summit Evergreen Crossroads Lakeside Westbrook Golden Falcon Granite Meadow"
        ).split(),
        "Systems Foods Motors Bank Labs Media Airlines Energy Robotics Textiles Logistics Institute".split(),
    ),
    LOCATION: (
        "Port New Lake Mount Fort East South Old Saint Grand".split(),
        (
            "Averill Benton Corden Dunmore Elwood Fairview Galena Hadley Iverness Juneau Kinsley Lorne Marlow Newbury "
            "Ormond Preston Quincy Rowan Selby Tilden"
        ).split(),
    ),
    PRODUCT: (
        "Atlas Beacon Comet Delta Echo Flare Glide Halo Jet Kite Lumen Nova Orbit Pulse Quartz Swift".split(),
        "Phone Tablet Scooter Camera Engine Watch Drone Printer Speaker Battery".split(),
    ),
    EVENT: (
        "Spring Summer Autumn Winter Coastal Harvest Riverside Midnight Lantern Jubilee Pioneer Heritage".split(),
        "Festival Summit Marathon Fair Conference Parade Regatta Concert".split(),
    ),
}
"""Kind → two lists whose pairs are the names."""

PREDICATES: tuple[Predicate, ...] = (
    Predicate(
        "works_at",
        PERSON,
        ORGANIZATION,
        (
            "{s} works at {o}.",
            "{s} is employed by {o}.",
            "{s} has a job at {o}.",
            "At {o}, {s} is one of the engineers.",
            "{s} joined the staff of {o} as an analyst.",
            "{o} employs {s} in its sales team.",
            "{s} has been working for {o} since last year.",
            "{o} hired {s} as an accountant.",
        ),
    ),
    Predicate(
        "lives_in",
        PERSON,
        LOCATION,
        (
            "{s} lives in {o}.",
            "{s} resides in {o}.",
            "The home of {s} is in {o}.",
            "{s} has an apartment in {o}.",
            "{o} is where {s} lives today.",
            "{s} and the children live in {o}.",
            "{s} is a resident of {o}.",
            "{s} currently lives in the centre of {o}.",
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
            "{o} is the town where {s} was born.",
            "Born in {o}, {s} was the youngest of three.",
            "{s} came into the world in {o}.",
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
            "{o} is the city that {s} moved to.",
            "{s} left home and relocated to {o}.",
            "{s} has just moved to {o}.",
            "In May, {s} relocated to {o} with the family.",
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
            "{o} is where {s} studied chemistry.",
            "{s} was a student at {o}.",
            "{s} completed a doctorate at {o}.",
            "{s} studied law at {o} for four years.",
            "As a student, {s} attended classes at {o}.",
        ),
    ),
    Predicate(
        "married_to",
        PERSON,
        PERSON,
        (
            "{s} is married to {o}.",
            "{s} married {o}.",
            "{s} and spouse {o} celebrated their wedding anniversary.",
            "{s} is the husband of {o}.",
            "{s} is the wife of {o}.",
            "{s} wed {o} in a small chapel.",
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
            "{s} has been a close friend of {o} since school.",
            "{s} and {o} are good friends.",
            "{s} made friends with {o}.",
            "{s} calls {o} a dear friend.",
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
            "{o} is the mother of {s}.",
            "{o} is the father of {s}.",
            "{s} was raised by a parent, {o}.",
            "{s} is the eldest child of {o}.",
            "{s} is the youngest daughter of {o}.",
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
            "{o} is managed by {s}.",
            "{o} is headed by {s}.",
            "{s} runs {o}.",
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
            "{o} was established by {s}.",
            "{s} started {o} in a garage.",
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
            "The {o} was invented by {s}.",
            "{s} is the creator of the {o}.",
            "The inventor of the {o} is {s}.",
            "The {o} was designed by {s}.",
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
            "The {o} belongs to {s}.",
            "{s} has a {o} at home.",
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
            "{o} is home to the headquarters of {s}.",
            "{s} is situated in {o}.",
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
            "{o} includes {s} as one of its divisions.",
            "{s} is a unit of {o}.",
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
            "{s} completed the takeover of {o}.",
            "{s} purchased {o}.",
            "{o} was bought by {s}.",
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
            "{o} received an investment from {s}.",
            "{s} put money into {o}.",
            "{s} invested ten million in {o}.",
            "{o} raised funds from {s}.",
            "{s} has invested heavily in {o}.",
            "{s} made an investment in {o}.",
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
            "{s} and its rival {o} fight for customers.",
            "The main competitor of {s} is {o}.",
            "{s} is in competition with {o}.",
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
            "The {o} is made by {s}.",
            "The {o} is produced by {s}.",
            "{s} makes the {o}.",
            "{s} is the manufacturer of the {o}.",
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
            "Among the visitors of the {o} was {s}.",
            "{s} took part in the {o}.",
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
            "{o} hosted the {s}.",
            "The {s} is held every year in {o}.",
            "The {s} opened in {o}.",
            "{o} was the host of the {s}.",
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
    ("{0} read a book about {1}.", (PERSON, LOCATION)),
)
"""Sentences that state no relation, with the kinds of the names in them."""
