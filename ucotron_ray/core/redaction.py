"""Keys out of what is printed: the last line of defence, behind code that does not print them."""

import base64
import json
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from urllib.parse import quote, quote_plus

HIDDEN = "***"


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
    return text


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
