"""What the relation generator draws from: names by kind, and which relations can hold between which kinds.

Made-up people and organisations, real places, plain concepts. Names are composed, so that ten thousand samples hardly
repeat a pair.
"""

import hashlib
import random
from dataclasses import dataclass
from functools import lru_cache

ENTITY_TYPES = ("Person", "Organization", "Location", "Event", "Concept", "Skill")
"""The six types of the generator's rows (reference §3.1)."""

RELATION_TYPES = (
    "works_at", "lives_in", "born_in", "founded", "located_in", "part_of", "caused_by", "relates_to", "has_property",
    "studied_at", "created", "manages", "collaborates_with", "married_to", "child_of", "friend_of", "competitor_of",
    "acquired", "invested_in", "speaks",
)  # fmt: skip
"""The twenty relations of the generator's rows (reference §3.1)."""


@dataclass(frozen=True)
class Template:
    """A relation between two kinds of names. A person founds an organisation, not the other way round."""

    relation: str
    subject: str
    object: str


TEMPLATES = (
    Template("works_at", "person", "organization"),
    Template("studied_at", "person", "university"),
    Template("manages", "person", "organization"),
    Template("founded", "person", "organization"),
    Template("lives_in", "person", "city"),
    Template("born_in", "person", "city"),
    Template("collaborates_with", "person", "person"),
    Template("married_to", "person", "person"),
    Template("child_of", "person", "person"),
    Template("friend_of", "person", "person"),
    Template("created", "person", "work"),
    Template("speaks", "person", "language"),
    Template("has_property", "person", "skill"),
    Template("located_in", "organization", "city"),
    Template("located_in", "event", "city"),
    Template("part_of", "organization", "organization"),
    Template("competitor_of", "organization", "organization"),
    Template("acquired", "organization", "organization"),
    Template("invested_in", "organization", "organization"),
    Template("relates_to", "concept", "concept"),
    Template("caused_by", "event", "concept"),
)

KINDS = {
    "person": "Person",
    "organization": "Organization",
    "university": "Organization",
    "city": "Location",
    "event": "Event",
    "work": "Concept",
    "language": "Concept",
    "concept": "Concept",
    "skill": "Skill",
}
"""Kind of name → entity type."""

STYLES = ("a news report", "an e-mail", "a chat message", "a company announcement", "meeting notes", "an encyclopedia")

_PARTS: dict[str, tuple[str, ...]] = {
    "person": (
        "Aisha Amara Anders Anika Aron Beatriz Benno Camila Chen Dalia Daniel Devika Elif Elena Emeka Esteban Fatima "
        "Finn Gabriel Greta Hana Henrik Ines Ivan Jamal Joana Kamil Keiko Lara Leon Lucia Malik Marek Mei Miriam Nadia "
        "Niko Noor Oskar Paloma Pavel Priya Rafael Rania Ravi Rosa Sami Selma Sofia Tariq Tomas Ulla Vera Wei Yara Yusuf "
        "Zoltan Adele Bogdan Cecilia",
        "Abara Almeida Anderssen Arslan Bauer Bianchi Bondarenko Castro Cohen Dahl Diallo Duarte Eriksen Farouk Ferrari "
        "Fontaine Garcia Gruber Haddad Hansen Hoffmann Ito Ivanova Jansen Kaya Kim Kowalski Kumar Larsen Leclerc Lindgren "
        "Lopez Mancini Mbeki Mehta Moreau Mori Nagy Navarro Novak Okafor Olsen Ortega Park Petrov Popescu Rahman Rossi "
        "Santos Sato Schmidt Silva Singh Sorensen Tanaka Toth Vargas Virtanen Wagner Yilmaz",
    ),
    "organization": (
        "Albatross Amberline Arcadia Basalt Beacon Borealis Bramble Cascade Cinder Cobalt Corvid Delphi Driftwood Ember "
        "Fathom Fernhill Flint Foxglove Glacier Halcyon Hazel Heron Indigo Juniper Kestrel Lantern Larkspur Lumen Magnolia "
        "Marble Meridian Nimbus Obsidian Orchard Osprey Paragon Pinnacle Quarry Quill Raven Saffron Sequoia Sparrow Tamarack "
        "Tidewater Umbra Vantage Verdant Willow Zephyr",
        "Analytics Biotech Capital Chemicals Consulting Electronics Energy Foods Foundation Group Industries Instruments "
        "Insurance Laboratories Logistics Media Mining Networks Partners Pharma Press Robotics Shipping Software Steel "
        "Studios Textiles Therapeutics Ventures Works",
    ),
    "university": (
        "Alder Ashford Birch Carlow Eastvale Elmstead Fairmont Granby Holloway Kingsmere Lakeview Linden Marsden Northam "
        "Oakfield Redcliff Riverton Stanmore Thornbury Westmere",
        "College|Institute of Technology|Medical School|Polytechnic|School of Economics|University",
    ),
    "event": (
        "Baltic Coastal Continental Global Harbour Highland Metropolitan Midsummer National Nordic Pacific Regional Spring "
        "Transatlantic Winter",
        "Book Fair|Chess Open|Climate Summit|Design Week|Film Festival|Flood|Food Festival|Genomics Congress|Jazz Festival|"
        "Marathon|Power Outage|Rail Strike|Robotics Expo|Sailing Cup|Stock Market Crash|Trade Conference",
    ),
    "work": (
        "Amber Broken Crimson Distant Electric Forgotten Gentle Hollow Invisible Last Midnight Paper Quiet Restless Silver",
        "Archive|Bridge|Carousel|Engine|Garden|Harbour|Lighthouse|Mirror|Orchestra|Passenger|River|Sonata|Staircase|Theatre",
    ),
}  # fmt: skip

_LISTS: dict[str, str] = {
    "city": (
        "Accra|Adelaide|Algiers|Amsterdam|Antwerp|Athens|Auckland|Baku|Bangkok|Barcelona|Basel|Beirut|Belgrade|Bergen|"
        "Bilbao|Bogotá|Bologna|Bordeaux|Bratislava|Brisbane|Brussels|Bucharest|Budapest|Cairo|Calgary|Cape Town|Casablanca|"
        "Chennai|Cologne|Copenhagen|Dakar|Denver|Dhaka|Dresden|Dublin|Durban|Edinburgh|Florence|Frankfurt|Geneva|Genoa|"
        "Ghent|Glasgow|Gothenburg|Graz|Guadalajara|Hamburg|Hanoi|Havana|Helsinki|Istanbul|Jakarta|Kampala|Kyoto|Lagos|Leeds|"
        "Leipzig|Lima|Lisbon|Ljubljana|Lyon|Madrid|Malmö|Manila|Marseille|Medellín|Melbourne|Milan|Montevideo|Montreal|"
        "Mumbai|Munich|Nairobi|Naples|Nice|Osaka|Oslo|Ottawa|Palermo|Porto|Prague|Quito|Riga|Rotterdam|Santiago|Sapporo|"
        "Seoul|Seville|Singapore|Sofia|Stockholm|Strasbourg|Tallinn|Tampere|Tbilisi|Toronto|Toulouse|Tunis|Turin|Utrecht|"
        "Valencia|Vancouver|Vienna|Vilnius|Warsaw|Yokohama|Zagreb|Zurich"
    ),
    "language": (
        "Amharic|Arabic|Basque|Bengali|Bulgarian|Catalan|Croatian|Czech|Danish|Dutch|Estonian|Finnish|French|German|Greek|"
        "Hebrew|Hindi|Hungarian|Icelandic|Italian|Japanese|Korean|Latvian|Malay|Mandarin|Norwegian|Persian|Polish|Portuguese|"
        "Romanian|Russian|Spanish|Swahili|Swedish|Tamil|Thai|Turkish|Ukrainian|Urdu|Vietnamese"
    ),
    "skill": (
        "accounting|beekeeping|bookbinding|calligraphy|carpentry|cartography|ceramics|chess|cryptography|data analysis|"
        "drone piloting|event planning|fencing|first aid|fundraising|glassblowing|graphic design|landscape photography|"
        "machine translation|negotiation|network security|pattern making|playwriting|public speaking|rock climbing|"
        "sign language|soldering|sound engineering|statistics|technical writing|video editing|violin making|welding|"
        "wood carving"
    ),
    "concept": (
        "acoustic resonance|antibiotic resistance|biodiversity loss|carbon pricing|circular economy|coastal erosion|"
        "collective bargaining|crop rotation|cyber security|data privacy|deforestation|digital identity|drought|"
        "energy storage|equipment failure|exchange rates|food security|gene editing|groundwater depletion|heat waves|"
        "human error|inflation|labour shortage|land reform|market speculation|microplastics|monetary policy|noise pollution|"
        "ocean acidification|open standards|poor maintenance|public health|quantum computing|rural migration|soil fertility|"
        "supply chain delays|tax reform|urban planning|vaccination|water scarcity|zoning law"
    ),
}


@lru_cache(maxsize=64)
def names(kind: str, *, held_out: bool, seed: int, val_ratio: float) -> tuple[str, ...]:
    """The names of a kind that may stand in validation rows, or in training rows; no name in both."""
    every = every_name(kind)
    random.Random(f"{seed}/{kind}").shuffle(every)
    cut = max(2, round(len(every) * val_ratio)) if val_ratio else 0
    return tuple(every[:cut] if held_out else every[cut:])


def every_name(kind: str) -> list[str]:
    """All names of a kind."""
    if kind in _LISTS:
        return _LISTS[kind].split("|")
    first, second = _PARTS[kind]
    separator = "|" if "|" in second else " "
    return [f"{a} {b}" for a in first.split(" ") for b in second.split(separator)]


def is_held_out(number: int, *, seed: int, val_ratio: float) -> bool:
    """Whether a sample is for validation: decided by its number alone."""
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64 < val_ratio
