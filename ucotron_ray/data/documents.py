"""JSON objects out of text: one a line, items of an array, the list that an object holds, objects over several lines.

A place that cannot be read is an item with a problem, not an exception: the caller decides whether it stops there.
"""

import io
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, BinaryIO

from ucotron_ray.data.encodings import MAX_TEXT_BYTES

MAX_LINE_BYTES = 4 * 1024**2
"""No row is as long: a line beyond that is skipped, and not held in memory."""

_SPACE = re.compile(r"\s*")


@dataclass(frozen=True)
class Item:
    """One object and where it stands, or what keeps it from being one; `within`: the key of the list that held it."""

    where: str
    value: dict[str, Any] | None
    problem: str | None = None
    within: str | None = None


def parse(text: str) -> tuple[dict[str, Any] | None, str | None]:
    """The object of a line, or why it is none: JSON without NaN, without a key twice, not too deep, an object."""
    try:
        value = _strict().decode(text)
    except RecursionError:
        return None, "it is nested too deep"
    except ValueError as error:
        return None, _with_comma(text) or str(error)
    return _as_object(value)


def parse_value(text: str) -> Any:
    """Any JSON value, as strict as `parse`. Raises ValueError."""
    try:
        return _strict().decode(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def objects(file: BinaryIO, is_row: Callable[[dict[str, Any]], bool]) -> Iterator[Item]:
    """Every object of a text in UTF-8. `is_row`: whether an object is a row itself, and no wrapper around rows."""
    blank = 0
    while (first := file.readline(MAX_LINE_BYTES + 1)) and not first.strip():
        blank += 1
    start = first.lstrip()[:1]
    if start == b"[" or (start == b"{" and _goes_on(first)):
        whole = first + file.read(MAX_TEXT_BYTES)
        found = _document(whole, blank, is_row)
        yield from _lines(b"", io.BytesIO(whole), blank) if found is None else found
        return
    second = b""
    if start == b"{":
        # One line alone may be an object around a list of rows.
        while (second := file.readline(MAX_LINE_BYTES + 1)) and not second.strip():
            first += second
        if not second:
            value, _ = parse(_text(first) or "")
            if value is not None and not is_row(value):
                yield from _unwrapped(value, f"line {blank + 1}", is_row)
                return
    yield from _lines(first + second, file, blank)


def _lines(before: bytes, file: BinaryIO, number: int) -> Iterator[Item]:
    """One object a line; `before` are lines that have been read, behind `number` blank ones."""
    for source in (io.BytesIO(before), file):
        while line := source.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"line {number}"
            if len(line) > MAX_LINE_BYTES:
                rest = line
                while not rest.endswith(b"\n") and (
                    rest := source.readline(MAX_LINE_BYTES) or file.readline(MAX_LINE_BYTES)
                ):
                    pass
                yield Item(where, None, f"the line is longer than {MAX_LINE_BYTES} bytes")
            elif line.strip():
                yield _line(line, where)


def _line(line: bytes, where: str) -> Item:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return Item(where, None, f"not UTF-8: {error.reason} at byte {error.start}")
    # Files that were put behind one another bring their marks along.
    value, problem = parse(text.removeprefix("\ufeff"))
    return Item(where, value, problem)


def _goes_on(line: bytes) -> bool:
    """Whether a first line is the beginning of an object that ends in a later one, or that is too long for a line."""
    if len(line) > MAX_LINE_BYTES:
        return True
    text = (_text(line) or "").strip()
    try:
        json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text)
    except RecursionError:
        return False
    return False


def _document(whole: bytes, blank: int, is_row: Callable[[dict[str, Any]], bool]) -> Iterator[Item] | None:
    """The items of an array, or of objects that follow one another; None if the text does not begin with either."""
    text = _text(whole)
    if text is None:
        return None
    if text.lstrip().startswith("["):
        return _array(text, blank)
    try:
        value, end = _strict().raw_decode(text, _skip(text, 0))
    except (ValueError, RecursionError):
        return None
    if not text[end:].strip() and isinstance(value, dict) and not is_row(value):
        return _unwrapped(value, f"line {blank + 1}", is_row)
    return _sequence(text, blank)


def _array(text: str, blank: int) -> Iterator[Item]:
    at = text.index("[") + 1
    number, line, counted = 0, blank + 1, 0
    while (at := _skip(text, at)) < len(text) and text[at] != "]":
        comma = text[at] == ","
        at = _skip(text, at + 1) if number and comma else at
        line, counted = line + text.count("\n", counted, at), at
        number += 1
        where = f"line {line}, item {number}"
        if number > 1 and (not comma or text[at : at + 1] == "]"):
            found = "a comma behind the last item" if comma else "no comma before it"
            yield Item(where, None, f"{found}: an array has commas between its items only; mend it at this place")
            return
        try:
            value, at = _strict().raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield Item(where, None, f"{error}; what follows in the array was not read")
            return
        yield Item(where, *_as_object(value))
    if text[at + 1 :].strip() or at >= len(text):
        found = "text behind the array" if at < len(text) else "the array does not end: is the file whole?"
        yield Item(f"behind item {number}", None, found)


def _sequence(text: str, blank: int) -> Iterator[Item]:
    """Objects over several lines, as `jq .` prints them."""
    at, line, counted = 0, blank + 1, 0
    while (at := _skip(text, at)) < len(text):
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = _strict().raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield Item(f"line {line}", None, f"{error}; what follows was not read")
            return
        yield Item(f"line {line}", *_as_object(value))


def _unwrapped(value: dict[str, Any], where: str, is_row: Callable[[dict[str, Any]], bool]) -> Iterator[Item]:
    """The rows in an object's lists: it holds one list of objects, or lists that are named as splits are."""
    lists = {
        key: rows
        for key, rows in value.items()
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows)
    }
    if not lists or (len(lists) > 1 and not all(is_row(rows[0]) for rows in lists.values())):
        yield Item(where, value)
        return
    for key, rows in lists.items():
        for number, row in enumerate(rows, 1):
            yield Item(f"{key}, item {number}", row, within=key)


def _as_object(value: Any) -> tuple[dict[str, Any] | None, str | None]:
    return (value, None) if isinstance(value, dict) else (None, f"a {type(value).__name__}, no object")


def _with_comma(text: str) -> str | None:
    """Words for lines that were cut out of an array."""
    bare = text.strip()
    if not bare.endswith(","):
        return None
    try:
        json.loads(bare.removesuffix(","))
    except (ValueError, RecursionError):
        return None
    return (
        "a comma behind the object: the lines of JSONL stand alone; remove the comma at the end of every line, "
        "or put [ before the first row and ] behind the last one"
    )


def _text(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _refuse(token: str) -> object:
    raise ValueError(f"{token} is no JSON")


def _finite(token: str) -> float:
    value = float(token)
    if not math.isfinite(value):
        raise ValueError(f"{token[:20]} is no finite number")
    return value


def _bounded(token: str) -> int:
    if len(token) > 30:
        raise ValueError("a number of more than 30 digits")
    return int(token)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:40]!r} stands twice in one object")
    return value


@lru_cache(maxsize=1)
def _strict() -> json.JSONDecoder:
    return json.JSONDecoder(
        parse_constant=_refuse, parse_float=_finite, parse_int=_bounded, object_pairs_hook=_without_repeats
    )
