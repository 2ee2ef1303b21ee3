"""Parts of conversations that all tasks share: a whole answer, a parsed answer, one turn of repair."""

import json
import re
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any, TypeVar

import json_repair

from ucotron_ray.fireworks.chat import Kind
from ucotron_ray.synthesis.plan import Answer, Ask, Done, Ended

Value = TypeVar("Value")
REPAIRED = "repaired"
ASKED_AGAIN = "asked_again"
MAX_REASON_CHARACTERS = 300

_FENCE = re.compile(r"\A```[a-zA-Z]*\s*\n(?P<body>.*?)\n?```\s*\Z", re.DOTALL)
SPECIAL_TOKEN = re.compile(r"<\|[^|>]{1,40}\|>|</?s>|\[/?INST\]")
"""Turn markers of chat templates: as text in a row they would break the prompt open."""


class NotUsable(ValueError):
    """An answer that does not fit. The message is put to the teacher, once, and then into the quarantine."""


def whole(ask: Ask, *, cap: int) -> Generator[Ask, Answer, str]:
    """The text of an answer. One that was cut off is asked for once more with twice the tokens, up to `cap`.

    Ends the sample as quarantined if there is no whole answer.
    """
    answer = yield ask
    if answer.kind is Kind.TRUNCATED and ask.max_tokens < cap:
        answer = yield replace(ask, max_tokens=min(cap, 2 * ask.max_tokens))
    if answer.kind is not Kind.ANSWER:
        raise Ended(Done("quarantined", reason=f"{ask.step}: {_WHY[answer.kind]}"))
    return answer.text.strip()


def parsed(
    ask: Ask, read: Callable[[dict[str, Any]], Value], *, cap: int
) -> Generator[Ask, Answer, tuple[Value, list[str]]]:
    """What `read` makes of an answer in JSON, and notes on how it was got. `read` raises NotUsable with the reason.

    The ladder: parse, strip fences, cut out the object, mend the JSON (noted), the typed reading; then one more turn
    that tells the teacher what was wrong. Ends the sample as quarantined if that does not help.
    """
    text = yield from whole(ask, cap=cap)
    try:
        value, notes = parse_object(text)
        return read(value), notes
    except NotUsable as error:
        reason = str(error)[:MAX_REASON_CHARACTERS]
    again = replace(
        ask,
        step=f"{ask.step}-repair",
        messages=(
            *ask.messages,
            ("assistant", text),
            ("user", f"That answer cannot be used: {reason}. Answer again, with the corrected JSON object only."),
        ),
    )
    text = yield from whole(again, cap=cap)
    try:
        value, notes = parse_object(text)
        return read(value), [ASKED_AGAIN, *notes]
    except NotUsable as error:
        reason = str(error)[:MAX_REASON_CHARACTERS]
        raise Ended(Done("quarantined", reason=f"{ask.step}: {reason}", notes=(ASKED_AGAIN,))) from error


def parse_object(text: str) -> tuple[dict[str, Any], list[str]]:
    """The JSON object in an answer, and `repaired` if it had to be mended. Raises NotUsable."""
    fenced = _FENCE.match(text.strip())
    body = fenced["body"] if fenced else text
    for candidate in (body, body[body.find("{") : body.rfind("}") + 1]):
        try:
            value = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value, []
    start = body.find("{")
    mended: object = None
    if start >= 0:
        try:
            mended = json_repair.loads(body[start:], skip_json_loads=True)
        except (ValueError, RecursionError):
            mended = None
    if not isinstance(mended, dict) or not mended:
        raise NotUsable("it holds no JSON object")
    return mended, [REPAIRED]


_WHY = {
    Kind.TRUNCATED: "the answer was cut off, also with twice the tokens",
    Kind.REFUSED: "the teacher refused or said nothing",
    Kind.POISON: "the server does not take this request",
}
