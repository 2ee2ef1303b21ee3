"""Keys out of what is printed: the last line of defence, behind code that does not print them."""

import base64
import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote, quote_plus

from ucotron_ray.core.files import write_json

HIDDEN = "***"

_IN_USERINFO = re.compile(r"(?P<before>[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@'\"]*:)[^\s/'\"]+(?=@)")
"""The password of `scheme://user:PASSWORD@host` (RFC 3986, 3.2.1). One with a slash in it has to be percent-encoded."""

_NAMES = r"pass(?:word|wd)?|pwd|token|secret|sig(?:nature)?|(?:api|access|private|account|subscription)?[-_.]?key"
_IN_QUERY = re.compile(rf"(?P<before>[?&;](?:[\w.-]*[-_.])?(?:{_NAMES})=)[^\s&;#'\"]+", re.IGNORECASE)
_IN_FLAG = re.compile(
    r"(?P<before>(?:^|\s)--?(?:[\w-]+[-_.])?(?:pass(?:word|wd)?|token|secret|api[-_]?key)(?:=|\s+))[^\s-]\S*",
    re.IGNORECASE,
)


def forms(secret: str) -> list[str]:
    """How a secret can stand in a text, the longest first: as it is, escaped for JSON or a URL, in base64."""
    raw = secret.encode()
    found = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    found |= {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    for before in range(3):
        # Base64 of a longer text that holds the secret depends on where it begins. What stands beside the secret
        # changes the characters at both ends, which are cut off.
        encoded = base64.b64encode(b"\0" * before + raw).decode().rstrip("=")
        whole = (before + len(raw)) // 3 * 4
        inner = encoded[(0, 2, 3)[before] : whole]
        found |= {inner, inner.replace("+", "-").replace("/", "_")}
    return sorted((form for form in found if len(form) >= 6), key=len, reverse=True)


def redacted(text: str, secrets: Sequence[str]) -> str:
    """The text with *** for every secret, whatever its form."""
    for secret in secrets:
        for form in forms(secret):
            text = text.replace(form, HIDDEN)
    return without_passwords(text)


def without_passwords(text: str) -> str:
    """The text with *** for what stands where addresses and flags have passwords: userinfo, queries, `--token X`."""
    for pattern in (_IN_USERINFO, _IN_QUERY, _IN_FLAG):
        text = pattern.sub(lambda found: found["before"] + HIDDEN, text)
    return text


def cleaned(value: Any, secrets: Sequence[str] = ()) -> Any:
    """A value of JSON with `redacted` for every string in it, keys left as they are."""
    if isinstance(value, str):
        return redacted(value, secrets)
    if isinstance(value, dict):
        return {key: cleaned(entry, secrets) for key, entry in value.items()}
    return [cleaned(entry, secrets) for entry in value] if isinstance(value, (list, tuple)) else value


def clean_manifest(path: Path) -> None:
    """Take passwords out of a manifest of before, which kept the command that made it as it was typed.

    What a manifest says of its making is part of no hash.
    """
    kept = json.loads(path.read_text(encoding="utf-8"))
    made = cleaned(kept.get("provenance"))
    if made != kept.get("provenance"):
        write_json(path, {**kept, "provenance": made})


class Redacting(logging.Formatter):
    """What another formatter makes of a record, tracebacks included, without the secrets."""

    def __init__(self, inner: logging.Formatter, secrets: Sequence[str]) -> None:
        super().__init__()
        self._inner = inner
        self._secrets = tuple(secrets)

    def format(self, record: logging.LogRecord) -> str:
        return redacted(self._inner.format(record), self._secrets)


def hook(secrets: Sequence[str]) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """An excepthook that prints the traceback without the secrets."""

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace)), secrets))

    return show
