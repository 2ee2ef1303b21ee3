"""What the contradiction generator draws from: twelve predicates, the values that each can have, and the server's rule.

Names come from `seeds.py`, split between training and validation; plain values (years, professions) stand in both.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ucotron_ray.synthesis.seeds import names

Label = Literal["supersedes", "contradicts", "ambiguous", "agrees"]

LABELS: dict[str, float] = {"supersedes": 0.35, "contradicts": 0.30, "ambiguous": 0.20, "agrees": 0.15}
"""Share of each label (reference §5)."""

STRATEGIES = {"supersedes": "temporal", "contradicts": "confidence", "ambiguous": "ambiguous", "agrees": "none"}

YEAR_SECONDS = 31_557_600
"""Of 365.25 days: facts further apart than that are a matter of time to the server (reference §1.11)."""

CONFIDENCE_GAP = 0.3
"""Facts whose confidences differ by more than that are a matter of confidence to the server."""

BASE_TIME = 1_704_067_200
"""2024-01-01T00:00:00Z, as in the older generator."""

_SHORT_YEAR = 31_536_000


@dataclass(frozen=True)
class Predicate:
    """A property that has one value at a time. `kind` names the values' list; `description` goes into the prompt."""

    name: str
    subject: str
    value_type: str
    kind: str
    description: str


PREDICATES = (
    Predicate("lives_in", "person", "Location", "city", "the city where the person lives"),
    Predicate("works_at", "person", "Organization", "organization", "the organisation that employs the person"),
    Predicate("job_title", "person", "free_text", "job", "the profession of the person"),
    Predicate("founded_in", "organization", "free_text", "year", "the year in which the organisation was founded"),
    Predicate("headquartered_in", "organization", "Location", "city", "the city of the organisation's head office"),
    Predicate("population", "city", "free_text", "population", "the number of inhabitants of the city"),
    Predicate("speaks", "person", "free_text", "language", "the first language of the person"),
    Predicate("studied_at", "person", "free_text", "university", "where the person studied"),
    Predicate("ceo", "organization", "Person", "person", "the chief executive of the organisation"),
    Predicate("capital_of", "city", "free_text", "region", "the region whose capital the city is"),
    Predicate("nationality", "person", "free_text", "nationality", "the nationality of the person"),
    Predicate("industry", "organization", "free_text", "industry", "the industry of the organisation"),
)
PREDICATE_NAMES = tuple(predicate.name for predicate in PREDICATES)

NAME_KINDS = ("person", "organization", "university", "city")
"""Kinds of values that are names, and split between training and validation."""

_VALUES = {
    "job": (
        "architect|baker|bookkeeper|carpenter|cartographer|choreographer|civil engineer|dentist|editor|electrician|"
        "florist|geologist|glassblower|graphic designer|harbour pilot|history teacher|interpreter|journalist|"
        "landscape gardener|librarian|marine biologist|midwife|notary|optician|pastry chef|patent attorney|pharmacist|"
        "photographer|physiotherapist|piano tuner|plumber|radio presenter|restorer|sculptor|statistician|surgeon|"
        "surveyor|tax adviser|translator|upholsterer|veterinarian|watchmaker|web developer|winemaker"
    ),
    "region": (
        "Aldermark|Brennland|Calder Province|Dunholm County|Eastmoor|Farrow District|Glenmark|Harrowdale|Inverland|"
        "Jarrow County|Kelland|Lowmarch|Merrowland|Norvale|Ostermark|Penhallow|Quillmark|Ravensmoor|Southmere|Tarnland|"
        "Upperdale|Vellmark|Westerfold|Yarrow Province"
    ),
    "nationality": (
        "Argentinian|Australian|Austrian|Belgian|Brazilian|Canadian|Chilean|Colombian|Croatian|Danish|Dutch|Egyptian|"
        "Finnish|Ghanaian|Greek|Hungarian|Icelandic|Indian|Indonesian|Irish|Italian|Japanese|Kenyan|Lebanese|Mexican|"
        "Moroccan|Nigerian|Norwegian|Peruvian|Polish|Portuguese|Romanian|Senegalese|Slovenian|Swedish|Turkish|"
        "Ukrainian|Uruguayan|Vietnamese"
    ),
    "industry": (
        "aerospace|agriculture|automotive parts|banking|biotechnology|book publishing|brewing|catering|cement|"
        "chemicals|construction|cosmetics|dairy products|education software|fashion|film production|fishing|forestry|"
        "freight transport|furniture|glassmaking|hospitality|insurance|logistics|machine tools|medical devices|mining|"
        "packaging|paper|pharmaceuticals|renewable energy|shipbuilding|steel|telecommunications|textiles|tourism|"
        "video games|water treatment|wine"
    ),
}


def values(kind: str, *, held_out: bool, seed: int, val_ratio: float) -> Sequence[str]:
    """The values of a kind; names only those of the split."""
    if kind == "year":
        return [str(year) for year in range(1862, 2024)]
    if kind == "population":
        return [f"{thousands},{rest:03d}" for thousands in range(41, 990, 13) for rest in (150, 420, 780)]
    if kind in _VALUES:
        return _VALUES[kind].split("|")
    return names(kind, held_out=held_out, seed=seed, val_ratio=val_ratio)


def times_and_confidences(label: str, rng: random.Random) -> tuple[tuple[int, int], tuple[float, float]]:
    """Seconds and confidences of facts a and b that make the server decide as the label says; b is never older.

    Confidences are drawn in hundredths, so that rounding cannot close the gap.
    """
    first = BASE_TIME + rng.randint(0, _SHORT_YEAR)
    later, (one, two) = 0, (rng.randint(50, 95), rng.randint(50, 95))
    if label == "supersedes":
        later = YEAR_SECONDS + rng.randint(1, _SHORT_YEAR)
    elif label == "contradicts":
        later = rng.randint(0, _SHORT_YEAR // 2)
        high = rng.randint(75, 98)
        low = max(5, high - rng.randint(31, 50))
        one, two = (high, low) if rng.random() < 0.5 else (low, high)
    elif label == "ambiguous":
        later = rng.randint(0, _SHORT_YEAR // 4)
        one = rng.randint(50, 85)
        two = min(99, max(10, one + rng.randint(-20, 20)))
    else:
        later = rng.randint(0, _SHORT_YEAR)
    return (first, first + later), (one / 100, two / 100)


def decision(times: tuple[int, int], confidences: tuple[float, float]) -> str:
    """What the server makes of two facts with different objects (reference §1.11)."""
    if abs(times[1] - times[0]) > YEAR_SECONDS:
        return "supersedes"
    # Compared in hundredths: 0.65 - 0.35 is more than 0.3 in binary, and not in the server's single precision.
    if round(abs(confidences[1] - confidences[0]) * 100) > round(CONFIDENCE_GAP * 100):
        return "contradicts"
    return "ambiguous"


def label_cycle(seed: int) -> list[str]:
    """Twenty labels with exactly the shares of LABELS, in an order of the seed: every twentieth sample repeats it."""
    cycle = [label for label, share in LABELS.items() for _ in range(round(share * 20))]
    random.Random(f"{seed}/labels").shuffle(cycle)
    return cycle
