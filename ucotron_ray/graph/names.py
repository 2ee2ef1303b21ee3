"""Where a name stands in a text, also where the two are written differently: NFC, white space, apostrophes.

The entity is the text's own writing of the name, since that is what the server's NER finds in it.
"""

import unicodedata

from ucotron_ray.data.records import Entity

APOSTROPHES = "'’‘ʼ＇`´"
"""All that people and keyboards put for an apostrophe; the first one stands for them."""


def located(name: str, label: str, text: str) -> tuple[Entity, bool]:
    """The entity with the span of its first mention (-1: there is none), and whether folding was needed to find it."""
    exact = Entity.located(name, label, text)
    if exact.start >= 0:
        return exact, False
    folded, offsets = _folded(text)
    found = Entity.located(_folded(name)[0].strip(), label, folded)
    if found.start < 0:
        return exact, False
    start, end = offsets[found.start], offsets[found.end]
    return Entity(text=text[start:end], label=label, start=start, end=end), True


def _folded(text: str) -> tuple[str, list[int]]:
    """The text folded, and where each of its characters begins in the original; one more for the end."""
    made: list[str] = []
    offsets: list[int] = []
    at = 0
    while at < len(text):
        end = at + 1
        if text[at].isspace():
            while end < len(text) and text[end].isspace():
                end += 1
            piece = " "
        else:
            while end < len(text) and _continues(text[end]):
                end += 1
            piece = unicodedata.normalize("NFC", text[at:end])
            piece = APOSTROPHES[0] if piece in APOSTROPHES else piece
        made.append(piece)
        offsets += [at] * len(piece)
        at = end
    return "".join(made), [*offsets, len(text)]


def _continues(character: str) -> bool:
    """Whether a character is written onto the one before it: marks, vowels and finals of decomposed Hangul."""
    return unicodedata.combining(character) != 0 or "\u1160" <= character <= "\u11ff"
