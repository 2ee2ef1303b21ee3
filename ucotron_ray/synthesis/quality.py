"""Which of the accepted rows are new, and which of them are for validation. Plain functions over texts and names."""

import hashlib
import re
from collections.abc import Iterable, Sequence

from datasketch import MinHash, MinHashLSH

from ucotron_ray.records import name_key

NUM_PERMUTATIONS = 128
SHINGLE_WORDS = 5

_WORD = re.compile(r"\w+")


class Duplicates:
    """Remembers texts. `reason` says how a text repeats an earlier one, or None and remembers it.

    Exact: the same words, whatever case and punctuation. Near: Jaccard similarity of word 5-grams by MinHash.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._exact: set[bytes] = set()
        # At 1.0 only exact repeats count, and LSH would have no band to put them in.
        self._near = MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS) if threshold < 1 else None
        self._template = MinHash(num_perm=NUM_PERMUTATIONS)
        self._hashes: dict[int, MinHash] = {}

    def reason(self, text: str) -> str | None:
        """Why this text is a duplicate; None if it is new."""
        words = _WORD.findall(text.casefold())
        digest = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
        if digest in self._exact:
            return "the same text as an earlier row"
        if self._near is not None and self._repeats(shingles(words)):
            return f"nearly the text of an earlier row (similarity ≥ {self._threshold:g})"
        self._exact.add(digest)
        return None

    def _repeats(self, parts: set[str]) -> bool:
        assert self._near is not None
        # A copy keeps the permutations, which are the same for all; making them anew costs more than the hashing.
        minhash = self._template.copy()
        minhash.update_batch([part.encode() for part in parts])
        # LSH finds candidates, also some that are less alike than asked: look at the hashes themselves.
        if any(minhash.jaccard(self._hashes[key]) >= self._threshold for key in self._near.query(minhash)):
            return True
        key = len(self._hashes)
        self._near.insert(key, minhash, check_duplication=False)
        self._hashes[key] = minhash
        return False


def shingles(words: Sequence[str]) -> set[str]:
    """Every run of SHINGLE_WORDS words; of a shorter text, all of it."""
    count = max(1, len(words) - SHINGLE_WORDS + 1)
    return {" ".join(words[start : start + SHINGLE_WORDS]) for start in range(count)}


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
