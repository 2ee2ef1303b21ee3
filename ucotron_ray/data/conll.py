"""CoNLL04 as its authors wrote it, and as multi-head readers rewrote it: a token a line.

Roth and Yih: nine columns, `sentence label number O part-of-speech words O O O`, then `head tail relation` lines.
https://cogcomp.seas.upenn.edu/page/resource_view/43
Bekoulis and others: `#doc N`, then `number token B-Type ['relation'] [number of the other's last token]`.
https://github.com/bekou/multihead_joint_entity_relation_extraction
Both are made into SpERT's objects, which `triples.py` reads.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from ucotron_ray.data.documents import Item

_NINE = re.compile(r"\d+\t\S+\t\d+\t\S+\t\S+\t\S+\t\S+\t\S+\t\S+\s*")
_MULTI_HEAD = re.compile(r"#doc\b")
_WORDS = {"COMMA": ",", "-LRB-": "(", "-RRB-": ")", "-LCB-": "{", "-RCB-": "}"}
HEAD_BYTES = 4096


def is_conll(head: bytes) -> bool:
    """Whether a file begins as one of the two."""
    first = next((line for line in head.decode("utf-8", "replace").splitlines() if line.strip()), "")
    return bool(_NINE.fullmatch(first) or _MULTI_HEAD.match(first))


def sentences(file: BinaryIO) -> Iterator[Item]:
    """Every sentence as an object with `tokens`, `entities` and `relations`, or what keeps it from being one."""
    multi_head = False
    for number, lines in _blocks(file):
        where = f"line {number}"
        cells = [line.split("\t") for line in lines]
        multi_head = multi_head or lines[0].startswith("#doc")
        try:
            value = _multi_head(cells) if multi_head else _nine(cells)
        except (ValueError, IndexError, KeyError) as error:
            yield Item(where, None, f"no sentence of CoNLL04: {error}")
            continue
        yield Item(where, value)


def _blocks(file: BinaryIO) -> Iterator[tuple[int, list[str]]]:
    """Sentences with the number of their first line; in nine columns the relations follow a blank line."""
    block: list[str] = []
    start = number = 0
    for number, raw in enumerate(file, 1):
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        begins = line.startswith("#doc") or (line.count("\t") >= 8 and bool(block) and block[-1].count("\t") < 8)
        begins = begins or (line.count("\t") >= 8 and bool(block) and line.split("\t")[0] != block[0].split("\t")[0])
        if begins and block:
            yield start, block
            block = []
        if line.strip():
            start = start if block else number
            block.append(line)
    if block:
        yield start, block


def _nine(cells: Sequence[Sequence[str]]) -> dict[str, Any]:
    tokens: list[str] = []
    spans: dict[int, int] = {}
    entities: list[dict[str, Any]] = []
    for columns in cells:
        if len(columns) < 9:
            continue
        words = [_WORDS.get(word, word) for word in columns[5].split("/")] if columns[1] != "O" else [columns[5]]
        words = [_WORDS.get(word, word) for word in words if word] or ["/"]
        if columns[1] != "O":
            spans[int(columns[2])] = len(entities)
            entities.append({"type": columns[1], "start": len(tokens), "end": len(tokens) + len(words)})
        tokens += words
    relations = [
        {"type": columns[2].strip(), "head": spans[int(columns[0])], "tail": spans[int(columns[1])]}
        for columns in cells
        if len(columns) == 3
    ]
    return {"tokens": tokens, "entities": entities, "relations": relations}


def _multi_head(cells: Sequence[Sequence[str]]) -> dict[str, Any]:
    rows = [columns for columns in cells if not columns[0].startswith("#doc")]
    tokens = [columns[1] for columns in rows]
    entities: list[dict[str, Any]] = []
    ends: dict[int, int] = {}
    for number, columns in enumerate(rows):
        mark, _, kind = columns[2].partition("-")
        if mark == "B":
            entities.append({"type": kind, "start": number, "end": number + 1})
        elif mark == "I" and entities and entities[-1]["end"] == number:
            entities[-1]["end"] = number + 1
        if entities and entities[-1]["end"] == number + 1:
            ends[number] = len(entities) - 1
    relations = []
    for number, columns in enumerate(rows):
        names = re.findall(r"'([^']+)'", columns[3])
        others = [int(other) for other in re.findall(r"\d+", columns[4])]
        relations += [
            {"type": name, "head": ends[number], "tail": ends[other]}
            for name, other in zip(names, others, strict=True)
            if name != "N"
        ]
    return {"tokens": tokens, "entities": entities, "relations": relations}
