"""What a reasoning model thinks aloud, cut off from what it answers.

Most servers put it into a field of its own; one that is started without its reasoning parser, and most gateways, leave
it in the text: in a block, or with the closing mark only where the chat template has written the opening one.
"""

import re

_NAMES = r"(?:seed:)?think(?:ing)?|thought|reasoning"
_MARK = re.compile(
    rf"(?P<open><(?:{_NAMES})>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|begin_of_thought\|>|<\|channel>thought)"
    rf"|</(?:{_NAMES})>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>|<\|end_of_thought\|>|<channel\|>",
    re.IGNORECASE,
)
"""DeepSeek, Qwen, GLM and most others; Seed-OSS; Magistral; Kimi-VL; Command A; Sky-T1; Gemma 4."""

_CHANNEL = re.compile(r"<\|channel\|>\s*(?P<name>\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
_CHANNEL_END = re.compile(r"(?:<\|(?:return|end|call)\|>.*)?\Z", re.DOTALL)
"""gpt-oss: `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…<|return|>`
(cookbook.openai.com/articles/openai-harmony)."""

_WITHOUT_MARKS = re.compile(r"\Aanalysis(?=\S).*?assistantfinal", re.DOTALL)
"""The same after a server has taken the special tokens out of it."""

ALL_THOUGHT = (
    "all tokens of the answer went into reasoning: give it room (api.hidden_tokens), "
    "or turn it off (api.reasoning_effort, api.extra_body)"
)


def without_thinking(text: str) -> tuple[str, str]:
    """The answer in a text, and what was thought in it. No answer ("") where the thinking does not end."""
    answer = _of_channels(text)
    if answer is None:
        leaked = _WITHOUT_MARKS.match(text)
        answer = text[leaked.end() :] if leaked else _of_blocks(text)
    if answer == text:
        return text, ""
    return answer.strip(), text[: len(text) - len(answer)]


def _of_channels(text: str) -> str | None:
    """The last final channel; "" where there is none; None for a text without channels."""
    found = list(_CHANNEL.finditer(text))
    if not found:
        return None
    if found[-1]["name"] != "final":
        return ""
    answer = text[found[-1].end() :]
    end = _CHANNEL_END.search(answer)
    return answer[: end.start()] if end else answer


def _of_blocks(text: str) -> str:
    """The text between blocks. A mark that closes nothing ends what began before the text."""
    answer: list[str] = []
    begin: int | None = 0
    for mark in _MARK.finditer(text):
        if mark["open"]:
            if begin is not None:
                answer.append(text[begin : mark.start()])
            begin = None
            continue
        if begin is not None:
            answer.clear()
        begin = mark.end()
    return "".join([*answer, text[begin:] if begin is not None else ""])
