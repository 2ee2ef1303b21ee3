"""What a failure means: by its status, and by the server's words where one status means two things.

The words of a 429 have been seen to say `invalid_request_error` (github.com/BerriAI/litellm/issues/9779).
"""

import re
from collections.abc import Mapping
from typing import Any

from ucotron_ray.teacher.outcome import OutcomeKind

_KINDS = {
    400: OutcomeKind.POISON,
    401: OutcomeKind.AUTH,
    402: OutcomeKind.BILLING,
    405: OutcomeKind.MISDIRECTED,
    407: OutcomeKind.AUTH,  # the proxy's
    408: OutcomeKind.TRANSIENT,
    409: OutcomeKind.TRANSIENT,
    412: OutcomeKind.BILLING,
    413: OutcomeKind.POISON,
    422: OutcomeKind.POISON,
    425: OutcomeKind.TRANSIENT,
    429: OutcomeKind.RATE_LIMITED,
    503: OutcomeKind.OVERLOADED,
    529: OutcomeKind.OVERLOADED,
}

GATEWAY_ERRORS = (502, 504, 524)
"""A proxy gave up on the server behind it, which may have answered and billed."""

_NO_CREDIT = re.compile(
    r"insufficient[\s_-]*(?:credit|quota|balance|fund)|exceeded your current quota|out of credits?\b"
    r"|(?:credit|balance)s? (?:is|are)? ?(?:too low|exhausted|used up)",
    re.IGNORECASE,
)
_NO_MODEL = re.compile(
    r"model_not_found|\bmodels?\b.{0,200}\b(?:not found|not exist|unknown|not available)|unknown model",
    re.IGNORECASE | re.DOTALL,
)
_WORDS = (
    (re.compile(r"rate.?limit|too many requests", re.IGNORECASE), OutcomeKind.RATE_LIMITED),
    (re.compile(r"overloaded|capacity|unavailable|loading", re.IGNORECASE), OutcomeKind.OVERLOADED),
    (re.compile(r"(?:invalid|incorrect).{0,20}api.?key|unauthorized", re.IGNORECASE), OutcomeKind.AUTH),
    (re.compile(r"invalid_request|context.?length", re.IGNORECASE), OutcomeKind.POISON),
)


def kind_of(status: int, words: str, model: str) -> OutcomeKind:
    """What a status means."""
    if status < 500 and _NO_CREDIT.search(words):
        # OpenAI's `insufficient_quota` comes as a 429, which would be waited for.
        return OutcomeKind.BILLING
    if status == 404 and (_NO_MODEL.search(words) or _names(words, model)):
        return OutcomeKind.MODEL_MISSING
    if status in _KINDS:
        return _KINDS[status]
    if status >= 500:
        return OutcomeKind.TRANSIENT
    return OutcomeKind.REJECTED if status >= 400 else OutcomeKind.MISDIRECTED


def error_in(message: object) -> object | None:
    """The error that stands where an answer should; None if there is none. Gateways answer 200 before they know."""
    if not isinstance(message, dict):
        return None
    choice = _first(message.get("choices"))
    if choice is not None:
        return choice.get("error") or None
    # Older vLLM: {"object": "error", "message": …, "code": 400}.
    return message.get("error") or (message if message.get("object") == "error" else None)


def kind_of_error(error: object, model: str) -> tuple[OutcomeKind, bool, str]:
    """What an error inside of a 200 means, whether it may be billed, and the server's words."""
    known: Mapping[str, Any] = error if isinstance(error, dict) else {"message": error}
    words = " ".join(str(known[key]) for key in ("message", "type", "code", "status") if known.get(key))
    status = next(filter(None, (_status(known.get(key)) for key in ("code", "status", "status_code"))), None)
    if status is not None:
        return kind_of(status, words, model), status in GATEWAY_ERRORS, words
    if _NO_CREDIT.search(words):
        return OutcomeKind.BILLING, False, words
    if _NO_MODEL.search(words):
        return OutcomeKind.MODEL_MISSING, False, words
    kind = next((kind for pattern, kind in _WORDS if pattern.search(words)), OutcomeKind.TRANSIENT)
    return kind, kind is OutcomeKind.TRANSIENT, words


def _names(words: str, model: str) -> bool:
    """Whether a model is named: as a whole word, since names may be as short as `m`."""
    return re.search(rf"(?<![\w<]){re.escape(model)}(?!\w)", words) is not None


def _first(choices: object) -> dict[str, Any] | None:
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else None


def _status(code: object) -> int | None:
    text = str(code)
    return int(text) if re.fullmatch(r"[45]\d\d", text) else None
