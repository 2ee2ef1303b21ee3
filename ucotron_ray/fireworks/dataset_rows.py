"""What a file for the vendor holds, checked line by line before anything is sent, and our rows in the vendor's layouts.

Layouts (docs.fireworks.ai, fine-tuning and batch guides): chat rows `{"messages"}` for supervised jobs, preference rows
`{"input", "preferred_output", "non_preferred_output"}`, batch requests `{"custom_id", "body"}`. This project's relation
rows and the guide's `{"prompt", "chosen", "rejected"}` are turned into the first two, in the server's prompt.
"""

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from ucotron_ray.core.errors import InputError
from ucotron_ray.data import wire
from ucotron_ray.data.records import ChatRow, PreferenceRow, RawRow
from ucotron_ray.teacher.lengths import estimate_tokens

Layout = Literal["chat", "preference", "batch"]

FEWEST_ROWS, MOST_ROWS = 3, 3_000_000
"""Of a dataset to train on (docs.fireworks.ai, fine-tuning guides)."""

MAX_ID = 63
EXPECTED = (
    'one JSON object a line: {"messages"}, {"text", "entities", "expected_relations"}, '
    '{"prompt", "chosen", "rejected"}, {"input", "preferred_output", "non_preferred_output"} or {"custom_id", "body"}'
)


@dataclass(frozen=True)
class UploadRows:
    """A file in one of the vendor's layouts. `tokens` is about how many one epoch reads."""

    path: Path
    layout: Layout
    rows: int
    tokens: int
    sha256: str
    converted: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size


@contextmanager
def prepared(path: Path) -> Iterator[UploadRows]:
    """The file as the vendor takes it: itself, or a converted copy for the time of the block.

    Raises InputError with the line number of the first line that cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="ucotron-upload-") as folder:
        yield _prepare(path, Path(folder) / f"{path.stem}.jsonl")


def stable_id(stem: str, sha256: str) -> str:
    """An id that the vendor accepts (lower case, digits, `-`, a letter first, at most 63), equal for equal bytes."""
    slug = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")
    slug = slug if slug[:1].isalpha() else f"d-{slug}".rstrip("-")
    return f"{slug[: MAX_ID - 13].rstrip('-')}-{sha256[:12]}"


def _prepare(path: Path, copy: Path, *, convert: bool = False) -> UploadRows:
    """Check every line. A copy is written only from the first row on that is converted, or from the start if asked."""
    layout: Layout | None = None
    rows = tokens = 0
    converted = convert
    digest = hashlib.sha256()
    seen: set[str] = set()
    with copy.open("w", encoding="utf-8") as out:
        for number, line in _lines(path):
            value = _object(line, path, number)
            kind, changed = _checked(value, path, number)
            if layout not in (None, kind):
                raise _bad(path, number, f"a {kind} row after {layout} rows", "rows of one layout")
            layout = kind
            if kind == "batch":
                _unique(value["custom_id"], seen, path, number)
            if changed is not None and rows and not converted:
                # Rows of our own behind rows of the vendor's: those before belong into the copy too.
                return _prepare(path, copy, convert=True)
            converted = converted or changed is not None
            text = line.rstrip("\n") + "\n" if changed is None else json.dumps(changed, ensure_ascii=False) + "\n"
            rows, tokens = rows + 1, tokens + estimate_tokens(text)
            if converted:
                out.write(text)
                digest.update(text.encode())
    if layout is None:
        raise InputError("the file has no rows", where=str(path), expected=EXPECTED, found="an empty file")
    if layout != "batch" and not FEWEST_ROWS <= rows <= MOST_ROWS:
        raise InputError(
            "the vendor trains on no such number of rows",
            where=str(path),
            expected=f"{FEWEST_ROWS} to {MOST_ROWS:,} rows",
            found=f"{rows}",
        )
    if converted:
        return UploadRows(copy, layout, rows, tokens, digest.hexdigest(), True)
    with path.open("rb") as file:
        return UploadRows(path, layout, rows, tokens, hashlib.file_digest(file, "sha256").hexdigest(), False)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise InputError("the file is not UTF-8", where=str(path), found=str(error)) from error
    except OSError as error:
        raise InputError(
            "the file cannot be read", where=str(path), found=error.strerror, next_step="check the path"
        ) from error


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _bad(path, number, f"no JSON ({error})") from error
    if not isinstance(value, dict):
        raise _bad(path, number, type(value).__name__)
    return value


def _checked(value: dict[str, Any], path: Path, number: int) -> tuple[Layout, dict[str, Any] | None]:
    """The row's layout, and the row that is sent instead of it where it is one of our own."""
    try:
        if "custom_id" in value:
            _check_messages(value.get("body", {}).get("messages"), answered=False)
            return "batch", None
        if "messages" in value:
            _check_messages(value["messages"], answered=True)
            return "chat", None
        if "preferred_output" in value:
            _check_preference(value)
            return "preference", None
        if "expected_relations" in value:
            return "chat", chat_row(RawRow.model_validate(value))
        if "chosen" in value:
            return "preference", preference_row(PreferenceRow.model_validate(value))
    except ValidationError as error:
        first = error.errors()[0]
        raise _bad(path, number, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    except (ValueError, AttributeError, TypeError) as error:
        raise _bad(path, number, str(error)) from error
    raise _bad(path, number, "an object with the keys " + ", ".join(sorted(value)[:8]))


def chat_row(row: RawRow) -> dict[str, Any]:
    """A relation row as the guide's chat row, in the prompt that the server sends."""
    turns = wire.chat_messages(row.text, row.entities)
    return {"messages": [*turns, {"role": "assistant", "content": wire.format_answer(row.expected_relations)}]}


def preference_row(row: PreferenceRow) -> dict[str, Any]:
    """The guide's pair in the vendor's layout; a prompt in the server's layout gets the server's system line."""
    system = [{"role": "system", "content": wire.CHAT_SYSTEM}] if wire.parse_prompt(row.prompt) else []
    asked = [turn.model_dump() for turn in row.turns or ()] or [*system, {"role": "user", "content": row.prompt}]
    return {
        "input": {"messages": asked},
        "preferred_output": [{"role": "assistant", "content": row.chosen}],
        "non_preferred_output": [{"role": "assistant", "content": row.rejected}],
    }


def _check_messages(messages: object, *, answered: bool) -> None:
    row = ChatRow.model_validate({"messages": messages}) if answered else None
    if not isinstance(messages, list) or not messages:
        raise ValueError("messages: a list of turns")
    roles = [message.get("role") for message in messages]
    if any(role not in ("system", "user", "assistant") for role in roles):
        raise ValueError(f"messages: roles {roles}")
    if "system" in roles[1:]:
        raise ValueError("messages: the system turn is not the first")
    if row is not None and (row.messages[-1].role != "assistant" or not row.messages[-1].content.strip()):
        raise ValueError("messages: the last turn is no answer of the assistant's")


def _check_preference(value: dict[str, Any]) -> None:
    _check_messages(value["input"]["messages"] if isinstance(value.get("input"), dict) else None, answered=False)
    answers = []
    for key in ("preferred_output", "non_preferred_output"):
        turns = value.get(key)
        if not (isinstance(turns, list) and len(turns) == 1 and turns[0].get("role") == "assistant"):
            raise ValueError(f"{key}: a list with one turn of the assistant's")
        answers.append(turns[0].get("content"))
    if answers[0] == answers[1]:
        raise ValueError("preferred_output and non_preferred_output are equal")


def _unique(name: object, seen: set[str], path: Path, number: int) -> None:
    if not isinstance(name, str) or name in seen:
        raise _bad(
            path, number, f"custom_id {name!r} a second time, or no text", "a custom_id of its own in every line"
        )
    seen.add(name)


def _bad(path: Path, number: int, found: str, expected: str = EXPECTED) -> InputError:
    return InputError(
        "a line cannot be used as a row",
        where=f"{path}, line {number}",
        expected=expected,
        found=found,
        next_step="correct or remove this line; nothing was sent",
    )
