"""What the simulator sees: descriptions of scenes from patterns with slots. GENERATED DATA.

A description has three sentences of six patterns each with slots of dozens of words, so that tens of thousands of them
share hardly a sentence.
"""

import random
import re

_ASKED = re.compile(
    r"^Scene: (?P<scene>[^\n]+)\nIn it: (?P<one>[^\n;]+); (?P<two>[^\n]+)\nLight: (?P<light>[^\n]+)\n"
    r"Weather: (?P<weather>[^\n]+)\nMood: (?P<mood>[^\n]+)\nSeen: (?P<seen>[^\n]+)\Z"
)

_COLOURS = (
    "amber", "apricot", "ash-grey", "beige", "blue", "bottle-green", "brass", "brick-red", "bronze", "chalk-white",
    "charcoal", "cobalt", "copper", "coral", "cream", "crimson", "emerald", "indigo", "ivory", "lilac", "lime",
    "maroon", "mint", "mustard", "navy", "ochre", "olive", "peach", "pearl", "plum", "rose", "ruby", "rust-brown",
    "saffron", "sand-coloured", "scarlet", "silver", "slate", "teal", "turquoise", "umber", "violet", "walnut-brown",
    "yellow",
)  # fmt: skip
_MATERIALS = (
    "bamboo", "brick", "canvas", "cardboard", "clay", "cork", "cotton", "enamel", "felt", "glass", "granite", "iron",
    "lace", "leather", "limestone", "linen", "marble", "oak", "paper", "pine", "plaster", "plastic", "porcelain",
    "rope", "rubber", "sandstone", "silk", "slate", "steel", "straw", "tin", "velvet", "wax", "wicker", "wood",
    "wool",
)  # fmt: skip
_THINGS = (
    "awning", "bag", "barrel", "basket", "bench", "blanket", "bottle", "bowl", "box", "bucket", "cart", "chair",
    "clock", "coat", "cup", "curtain", "door", "fence", "flag", "frame", "hat", "jar", "kettle", "ladder", "lantern",
    "mat", "mirror", "net", "pillar", "plate", "pot", "rail", "ribbon", "rug", "sack", "screen", "shelf", "shutter",
    "sign", "stool", "table", "tarpaulin", "tray", "trunk", "vase", "wall", "wheel", "window frame",
)  # fmt: skip
_PLACES = (
    "at the left edge", "behind it", "beside a puddle", "beside a low wall", "between two posts", "by the entrance",
    "half in shadow", "in the corner", "in the foreground", "in the middle", "near the far side", "next to a drain",
    "on a narrow ledge", "on the ground", "on the right", "under a beam", "under an arch", "at the very back",
    "against the railing", "a few steps away", "just out of reach", "along the kerb", "in a patch of light",
    "upside down",
)  # fmt: skip
_STATES = (
    "chipped", "cracked", "crumpled", "dented", "dripping", "dusty", "faded", "folded", "freshly painted", "frayed",
    "gleaming", "half empty", "half open", "leaning", "mended", "muddy", "neatly stacked", "new", "overturned",
    "patched", "peeling", "polished", "rusty", "scratched", "spotless", "stained", "sun-bleached", "swaying", "torn",
    "wet",
)  # fmt: skip
_FIRST = (
    "Seen {seen}, {one} stands out against {a} {c1} {t1} in {light}.",
    "{light_up} falls on {one}, and {a} {s1} {t1} of {m1} rests {p1}.",
    "{one_up} fills most of the view {seen}, with {a} {c1} {t1} {p1}.",
    "In {light}, {one} casts a long shadow over {a} {s1} {m1} {t1}.",
    "A {mood} {scene} scene: {one} and {a} {c1} {m1} {t1} {p1}.",
    "Close to {one} lies {a} {s1} {c1} {t1}, lit by {light}.",
)
_SECOND = (
    "{two_up} appears {p2}, its edges picked out in {c2} and {c3}.",
    "{p2_up}, {two} leans towards {b} {s2} {t2} of {m2}.",
    "Further on there is {two}, partly hidden by {b} {c2} {t2}.",
    "{b_up} {s2} {m2} {t2} separates it from {two} {p2}.",
    "{two_up} repeats the {c2} of {b} {m2} {t2} {p2}.",
    "Past {b} {c2} {t2}, {two} comes into sight {p2}.",
)
_THIRD = (
    "The weather is {weather}, and a {c4} {t3} of {m3} looks {s3}.",
    "Everything feels {mood}, down to the {s3} {t3} {p3}.",
    "A {s3} {c4} {t3} {p3} tells of {weather}.",
    "The air is {weather}; somebody has left a {m3} {t3} {p3}.",
    "With {weather} around it, the place seems {mood}, its {m3} {t3} {s3}.",
    "Drops and specks of {c4} cover a {s3} {m3} {t3}.",
)


def describe(prompt: str, rng: random.Random) -> str | None:
    """A description of the scene that is asked for; None if none is."""
    asked = _ASKED.match(prompt)
    if asked is None:
        return None
    slots = dict(asked.groupdict())
    for name, words in (("c", _COLOURS), ("t", _THINGS), ("m", _MATERIALS), ("p", _PLACES), ("s", _STATES)):
        slots |= {f"{name}{number}": word for number, word in enumerate(rng.sample(words, 4), 1)}
    slots |= {"a": "a", "b": "a"}
    for name in ("one", "two", "light", "p2", "b"):
        slots[f"{name}_up"] = slots[name][0].upper() + slots[name][1:]
    pattern = " ".join((rng.choice(_FIRST), rng.choice(_SECOND), rng.choice(_THIRD)))
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", pattern.format(**slots))
