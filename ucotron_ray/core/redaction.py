"""Keys and passwords out of what is printed, logged or kept: the last line of defence, behind code that is silent.

Secrets are known by their value (variables of the environment) or by where they stand: the user's part of an address,
parameters of a query, settings and flags whose name says so.
"""

import base64
import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from types import TracebackType
from urllib.parse import quote, quote_plus

HIDDEN = "***"

_NAMES = r"(?:token|password|passwd|pwd|secret|api_?key|access_?key|key|sig|signature|credentials?|auth|sas)"
_IN_ADDRESS = re.compile(r"(://[^\s/@:\"'<>]*:)[^\s\"'<>]*(?=@)|(://)[^\s/@:\"'<>]+(?=@)")
"""A password, or a token in the place of a user. Greedy: a password may hold `@`, `/` and `:` as it is."""
_IN_QUERY = re.compile(rf"(?i)([?&;](?:[a-z0-9]+[-_.])*{_NAMES}=)[^\s&;\"'<>#]+")
"""`?token=`, `&X-Amz-Signature=`, `;password=`."""

_SECRET_PARTS = {"KEY", "KEYS", "APIKEY", "TOKEN", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "PWD", "CREDENTIAL"}
_SECRET_PARTS |= {"CREDENTIALS", "AUTH"}
_NO_SECRETS = ("_FILE", "_PATH", "_VARIABLE")
"""Ends of names that say where a secret is."""
_VENDORS = re.compile(r"^(sk-|fw[-_]|hf_|gh[pousr]_|xox[abp]-|AKIA|ASIA|eyJ[\w-]+\.|Bearer |-----BEGIN )")
"""Beginnings that vendors give their keys."""
_RANDOM = re.compile(r"^(?=.*\d)(?=.*[a-z])(?=.*[A-Z])[A-Za-z0-9+=]{24,}$")
"""Letters of both kinds and digits without a break. A sha256, as artifacts have it in names, is lower case."""


def is_secret_name(name: str) -> bool:
    """Whether what has this name would hold a secret. `TOKENIZERS_PARALLELISM` and `RAY_AUTH_MODE` would not."""
    upper = name.upper().replace("-", "_")
    if upper in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH") or upper.endswith(_NO_SECRETS):
        return False
    return bool(_SECRET_PARTS & set(re.split(r"[^A-Z]+", upper)))


def is_secret_value(value: str) -> bool:
    """Whether this looks like a key, a token or an address with a password."""
    return bool(_VENDORS.match(value) or _RANDOM.match(value)) or in_places(value) != value


def in_places(text: str) -> str:
    """The text with *** for what stands where an address has its password: before its host, or in its query."""
    without = _IN_ADDRESS.sub(lambda found: (found[1] or found[2]) + HIDDEN, text)
    return _IN_QUERY.sub(lambda found: found[1] + HIDDEN, without)


def arguments(words: Sequence[str]) -> list[str]:
    """Words of a command line as they may be kept: no secret in `--flag=value`, `--set key=value`, `--flag value`."""
    kept: list[str] = []
    is_next = False
    for word in words:
        name, equals, value = word.partition("=")
        if is_next and not word.startswith("--"):
            kept.append(HIDDEN)
        elif equals and (is_secret_name(name.rpartition(".")[2].lstrip("-")) or _VENDORS.match(value)):
            kept.append(f"{name}={HIDDEN}")
        else:
            kept.append(HIDDEN if _VENDORS.match(word) else in_places(word))
        is_next = word.startswith("--") and not equals and is_secret_name(word.lstrip("-"))
    return kept


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
    """The text with *** for every secret, whatever its form, and for passwords of addresses."""
    for secret in secrets:
        for form in forms(secret):
            text = text.replace(form, HIDDEN)
    return in_places(text)


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
