"""How the simulator of the teacher reads texts with the vocabulary of a schema, as the prompt gives it. GENERATED DATA.

It knows the layout of a prompt of a schema (`synthesis/vocabulary.py`), and names nothing that is not in it.
"""

import re
from functools import lru_cache

from ucotron_ray.simulators import fireworks_language as language

_TYPES = re.compile(r"^Entity types: (.+)\.$", re.MULTILINE)
_PREDICATE = re.compile(r"^- (.+?) \((.+?) → (.+?)(?:, in either direction)?\)(?:: .*)?$", re.MULTILINE)


@lru_cache(maxsize=4)
def readers_of(system: str) -> tuple[language.Reader, ...]:
    """What reads texts in the vocabulary of a prompt; empty if it lists no schema.

    Ends of an own pattern have the pattern's types where the schema allows them, other ends the first that it allows.
    """
    types, known = _TYPES.search(system), language.known_patterns()
    if types is None:
        return ()
    own = language.own_types()
    readers: list[language.Reader] = []
    for match in _PREDICATE.finditer(system):
        relation, *sides = match.groups()
        allowed = [(types[1].split(", ") if side == "any" else side.split(" or ")) for side in sides]
        usual = own.get(relation, ("", ""))
        ends = [
            next((t for t in side if t.lower() == u.lower()), side[0]) for side, u in zip(allowed, usual, strict=True)
        ]
        for pattern in known.get(relation) or language.plain_patterns(relation):
            readers.append((len(pattern), language.expression(pattern), relation, (ends[0], ends[1])))
    return tuple(readers)
