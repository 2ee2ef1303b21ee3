"""Parts of conversations that all tasks share: a whole answer, a parsed answer, one turn of repair."""

import json
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ucotron_ray.synthesis.contents import UNUSABLE, found
from ucotron_ray.synthesis.plan import Answer, Ask, Done, Ended
from ucotron_ray.synthesis.rows import DEFECTS, strings
from ucotron_ray.teacher.outcome import UNANSWERABLE, OutcomeKind
from ucotron_ray.teacher.thinking import ALL_THOUGHT

Value = TypeVar("Value")
Model = TypeVar("Model", bound=BaseModel)
REPAIRED = "repaired"
ASKED_AGAIN = "asked_again"
REPAIR = "-repair"
"""What the step of a turn that mends an answer ends with."""

MAX_REASON_CHARACTERS = 300
MAX_QUOTED_CHARACTERS = 200

_FENCE = re.compile(r"\A```[a-zA-Z]*\s*\n(?P<body>.*?)\n?```\s*\Z", re.DOTALL)
MAX_ANSWER_CHARACTERS = 100_000
"""No answer to one of our requests is as long; a server that sends megabytes is not read further."""


class NotUsable(ValueError):
    """An answer that does not fit. The message is put to the teacher, once, and then into the quarantine."""


def whole(ask: Ask, *, cap: int) -> Generator[Ask, Answer, str]:
    """The text of an answer. One that was cut off is asked for once more with twice the tokens, up to `cap`.

    Ends the sample as quarantined if there is no whole answer.
    """
    answer = yield ask
    if answer.kind is OutcomeKind.TRUNCATED and ask.max_tokens < cap:
        answer = yield replace(ask, max_tokens=min(cap, 2 * ask.max_tokens))
    if answer.kind is not OutcomeKind.ANSWER:
        raise Ended(Done("quarantined", reason=f"{ask.step}: {_why(answer)}"))
    if len(answer.text) > MAX_ANSWER_CHARACTERS:
        raise Ended(Done("quarantined", reason=f"{ask.step}: the answer is longer than {MAX_ANSWER_CHARACTERS}"))
    _keep_out(ask.step, [answer.text])
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
        _keep_out(ask.step, strings(value))
        return read(value), notes
    except NotUsable as error:
        reason = str(error)[:MAX_REASON_CHARACTERS]
    again = replace(
        ask,
        step=f"{ask.step}{REPAIR}",
        messages=(
            *ask.messages,
            ("assistant", text),
            ("user", f"That answer cannot be used: {reason}. Answer again, with the corrected JSON object only."),
        ),
    )
    text = yield from whole(again, cap=cap)
    try:
        value, notes = parse_object(text)
        _keep_out(ask.step, strings(value))
        return read(value), [ASKED_AGAIN, *notes]
    except NotUsable as error:
        reason = str(error)[:MAX_REASON_CHARACTERS]
        raise Ended(Done("quarantined", reason=f"{ask.step}: {reason}", notes=(ASKED_AGAIN,))) from error


def as_model(model: type[Model], value: Mapping[str, Any]) -> Model:
    """The typed reading of an answer's object. Raises NotUsable that says which part does not fit."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise NotUsable(f"{where}: {first['msg']}") from error


def parse_object(text: str) -> tuple[dict[str, Any], list[str]]:
    """The JSON object in an answer, and `repaired` if it had to be mended. Raises NotUsable."""
    fenced = _FENCE.match(text.strip())
    body = fenced["body"] if fenced else text
    for candidate in (body, body[body.find("{") : body.rfind("}") + 1]):
        try:
            value = json.loads(candidate, parse_constant=_refuse, object_pairs_hook=_without_repeats)
        except NotUsable:
            raise
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value, []
    start = body.find("{")
    mended: object = None
    if start >= 0:
        import json_repair  # noqa: PLC0415 - a node that only serves reads recipes too, and has it not

        try:
            mended = json_repair.loads(body[start:], skip_json_loads=True)
        except (ValueError, RecursionError):
            mended = None
    if not isinstance(mended, dict) or not mended:
        raise NotUsable("it holds no JSON object")
    return mended, [REPAIRED]


def alone(text: str, *, longest: int) -> str:
    """A text on one line, without the quotation marks around it. Ends the sample if it is more than that, or too long.

    For requests that want nothing but a text: no title, no list, no remark before it.
    """
    line = " ".join(text.split())
    while len(line) > 1 and line[0] in _QUOTES and line[-1] == _QUOTES[line[0]]:
        line = line[1:-1].strip()
    if len(line) > longest:
        raise Ended(Done("rejected", reason=f"the text is longer than {longest} characters"))
    if _PREAMBLE.match(line) or "```" in line or line.startswith(("{", "[")) or _LIST.match(text):
        raise Ended(Done("rejected", reason="the text is not a text alone", notes=("not_alone",)))
    return line


def _keep_out(step: str, texts: Iterable[str]) -> None:
    """End the sample for an answer with a turn marker, a control character or a key: no further request may hold it."""
    unusable = found(texts, UNUSABLE)
    if unusable:
        raise Ended(Done("quarantined", reason=f"{step}: {DEFECTS[unusable[0]]}", notes=tuple(unusable)))


def _why(answer: Answer) -> str:
    """Why there is no whole answer; of a refused request in the server's own words."""
    if answer.kind is OutcomeKind.TRUNCATED and answer.text == ALL_THOUGHT:
        return ALL_THOUGHT
    why = _WHY[answer.kind]
    if answer.kind not in UNANSWERABLE or not answer.text:
        return why
    # `chat` has taken our own key out; whatever else looks like one comes into no file either.
    unusable = found([answer.text], UNUSABLE)
    said = f"its words hold {DEFECTS[unusable[0]]}" if unusable else answer.text[:MAX_QUOTED_CHARACTERS]
    return f"{why}: {said}"


def _refuse(token: str) -> object:
    raise NotUsable(f"{token} is no JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise NotUsable("a key stands twice in one object")
    return value


_QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»", "‘": "’"}
_PREAMBLE = re.compile(
    r"\A(?:here (?:is|are)|sure[,!]|certainly|of course|text:|sentence:|description:|i am sorry|i cannot|\*\*)",
    re.IGNORECASE,
)
_LIST = re.compile(r"\A\s*(?:\d+[.)]|[-*•])\s")
_WHY = {
    OutcomeKind.TRUNCATED: "the answer was cut off, also with twice the tokens",
    OutcomeKind.REFUSED: "the teacher refused or said nothing",
    OutcomeKind.POISON: "the server does not take this request",
    OutcomeKind.REJECTED: "the server rejects this prompt",
}
