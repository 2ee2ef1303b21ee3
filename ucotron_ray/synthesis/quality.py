"""Which of the accepted rows are new, and which of them are for validation. Plain functions over texts and names."""

import hashlib
import re
from collections.abc import Iterable, Sequence

from datasketch import MinHash, MinHashLSH

from ucotron_ray.data.records import name_key, server_label

NUM_PERMUTATIONS = 128
SHINGLE_WORDS = 5

LABELS_OF_NAMES = ("person", "organization", "location")
"""What the server calls the things that have a name of their own."""

_WORD = re.compile(r"\w+")


class Duplicates:
    """Remembers texts, by the order in which they came. `earlier` says which one a text repeats, or remembers it.

    Exact: the same words, whatever case and punctuation. Near: Jaccard similarity of word 5-grams by MinHash.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._exact: dict[bytes, int] = {}
        # At 1.0 only exact repeats count, and LSH would have no band to put them in.
        self._near = _index(threshold) if threshold < 1 else None
        self._template = MinHash(num_perm=NUM_PERMUTATIONS)
        self._hashes: dict[int, MinHash] = {}

    def earlier(self, text: str) -> tuple[str, int] | None:
        """`duplicate` or `near_duplicate` with the number of the text that this one repeats; None if it is new.

        Numbers count the texts that were new, from 0.
        """
        words = _WORD.findall(text.casefold())
        digest = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
        if digest in self._exact:
            return "duplicate", self._exact[digest]
        number = len(self._exact)
        if self._near is not None:
            like = self._like(shingles(words), number)
            if like is not None:
                return "near_duplicate", like
        self._exact[digest] = number
        return None

    def _like(self, parts: set[str], number: int) -> int | None:
        assert self._near is not None
        # A copy keeps the permutations, which are the same for all; making them anew costs more than the hashing.
        minhash = self._template.copy()
        minhash.update_batch([part.encode() for part in parts])
        # LSH finds candidates, also some that are less alike than asked: look at the hashes themselves.
        for key in sorted(self._near.query(minhash)):
            if minhash.jaccard(self._hashes[key]) >= self._threshold:
                return int(key)
        self._near.insert(number, minhash, check_duplication=False)
        self._hashes[number] = minhash
        return None


def _index(threshold: float) -> MinHashLSH:
    # 14 bands of 9: of pairs at 0.9 it finds 99.9 %, at 0.8 itself 87 %. The default, 9 of 13, finds 93 % and 40 %.
    return MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS, weights=(0.1, 0.9))


def shingles(words: Sequence[str]) -> set[str]:
    """Every run of SHINGLE_WORDS words; of a shorter text, all of it."""
    count = max(1, len(words) - SHINGLE_WORDS + 1)
    return {" ".join(words[start : start + SHINGLE_WORDS]) for start in range(count)}


def is_name(text: str, label: str) -> bool:
    """Whether an entity is somebody's or something's own name, which must not stand on both sides of the split.

    A common noun ("annual report", "the board") says nothing about a row, whatever its label, and stands in most rows
    of some graphs. A name has an upper-case letter, a digit or a letter of a script without case. In what is no person,
    organization or location the capital of a sentence's first word ("Annual report") makes no name. How often a string
    occurs is no sign: the company that a graph is about stands in most rows too.
    """
    if server_label(label) not in LABELS_OF_NAMES:
        first, *others = text.split() or [""]
        text = " ".join([first[:1].lower() + first[1:], *others]) if others else text
    return any(
        letter.isupper() or letter.isdigit() or (letter.isalpha() and letter.lower() == letter.upper())
        for letter in text
    )


def leaking(rows: Iterable[tuple[int, str, Iterable[str]]]) -> set[int]:
    """Of (number, split, names): the validation rows with a name that also stands in a training row."""
    train: set[str] = set()
    val: list[tuple[int, set[str]]] = []
    for number, split, names in rows:
        keys = {name_key(name) for name in names}
        if split == "val":
            val.append((number, keys))
        else:
            train |= keys
    return {number for number, keys in val if keys & train}
