"""Strings that no row may hold, or that should be counted: turn markers, control characters, keys, personal data."""

import re
from collections.abc import Iterable

SPECIAL_TOKEN = re.compile(
    r"<\|[^|>\n]{1,40}\|>|</?s>|\[/?INST\]|<<SYS>>|<(?:start|end)_of_turn>|<\|?(?:bos|eos|pad)\|?>"
    r"|(?i:</?(?:(?:seed:)?think(?:ing)?|thought|reasoning)>|\[/?think\])|◁/?think▷|<\|?channel\|?>"
)
"""Turn markers of chat templates: as text in a row they would break the prompt open. And marks of reasoning."""

_JOINED = r"[^\x00-@\[-`{-\x7f\s\u200b-\u200f\u2060-\u2064\ufeff]"
"""A letter, or any sign beyond ASCII: what joiners stand between in Persian, in Indic scripts and in emoji."""

CONTROL_CHARACTER = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f]"
    f"|(?<!{_JOINED})[\u200c\u200d]|[\u200c\u200d](?!{_JOINED})"
)
"""Controls but tab and line ends, bidirectional marks, and what is not seen: zero-width and tag characters.

The zero-width joiner and non-joiner are among them where they join nothing.
"""

SECRET = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\b(?:sk|pk|rk)[-_](?:live|test|proj|ant)?[-_]?[A-Za-z0-9]{16,}"
    r"|\bfw[-_][A-Za-z0-9]{12,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"
    r"|\bhf_[A-Za-z0-9]{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bAIza[\w-]{30,}|\bglpat-[\w-]{16,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]+"
    r"|(?i:\b(?:password|passwd|api[_-]?key|secret|access[_-]?token)\s*[:=]\s*['\"]?[^\s'\"]{8,})"
)
"""Keys by the prefixes that their issuers give them, private keys, and assignments to a variable of such a name."""

PERSONAL_DATA = re.compile(
    r"\b[\w.+-]{1,64}@[\w-]{1,63}\.[\w.-]{2,63}\b"
    r"|(?<![\w.])\+\d{1,3}[ .-]?(?:\(?\d{2,4}\)?[ .-]?){2,4}\d{2,4}\b"
    r"|\b\d{3}-\d{2}-\d{4}\b"
    r"|\b(?:\d{4}[ -]){3}\d{4}\b"
    r"|\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}\b"
)
"""E-mail, telephone with country code, US social security number, card number in groups, IBAN."""

_HINTS = {
    "secret": (
        "private key", "sk-", "sk_", "pk-", "pk_", "rk-", "rk_", "fw-", "fw_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_",
        "github_pat_", "hf_", "xox", "aiza", "glpat-", "akia", "asia", "eyj", "passw", "api_key", "api-key", "apikey",
        "secret", "token",
    ),
    "personal_data": ("@", *"0123456789"),
}  # fmt: skip
"""One of these stands in every text that the pattern finds, in lower case: without one the pattern, which takes thirty
times as long, is not tried."""

_PATTERNS = {
    "special_token": SPECIAL_TOKEN,
    "control_character": CONTROL_CHARACTER,
    "secret": SECRET,
    "personal_data": PERSONAL_DATA,
}

UNUSABLE = ("special_token", "control_character", "secret")
"""What puts a row into the quarantine; personal data is counted, since made-up texts hold made-up addresses."""


def found(texts: Iterable[str], names: Iterable[str] = tuple(_PATTERNS)) -> list[str]:
    """Which of the patterns occur in any of the texts."""
    whole = "\n".join(texts)
    lowered = whole.lower()
    return [
        name
        for name in names
        if (name not in _HINTS or any(hint in lowered for hint in _HINTS[name])) and _PATTERNS[name].search(whole)
    ]
