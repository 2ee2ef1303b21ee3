"""A row → the prompt that the server would send for it, and its token ids. Training, scores and export ask alike."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from ucotron_ray.core.errors import InputError
from ucotron_ray.data.records import Entity, Message, ModelRow, RawRow
from ucotron_ray.data.wire import chat_messages, format_answer, user_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ucotron_ray.models.templates import Messages

EXAMPLE = 'Zoë O\'Neil joined  "R&D <Lab>".'
"""A text with what templates escape, strip or join when they should not."""

SHOWN = 40
"""Characters on either side of the place where two prompts part."""


def server_row(row: RawRow, layout: str, examples: Sequence[RawRow] = ()) -> ModelRow:
    """The row in the prompt that the server sends: `chat` to an endpoint, `raw` to a GGUF model.

    `examples` stand before a chat question, which the server does not do: a baseline.
    """
    completion = format_answer(row.expected_relations)
    if layout == "raw":
        prompt = Message(role="user", content=user_prompt(row.text, row.entities))
        return ModelRow(layout="raw", prompt=[prompt], completion=completion)
    messages = [Message.model_validate(message) for message in chat_messages(row.text, row.entities, examples)]
    return ModelRow(layout="chat", prompt=messages, completion=completion)


def prompt_ids(row: ModelRow, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids of the prompt, up to where the model begins to answer.

    Raw prompts begin with BOS if the tokenizer has one, since llama.cpp adds it (`AddBos::Always`).
    """
    if row.layout == "raw":
        head = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        return [*head, *tokenizer.encode(row.prompt[0].content, add_special_tokens=False)]
    return chat_ids([message.model_dump() for message in row.prompt], tokenizer)


def chat_ids(messages: "Messages", tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids of a conversation, as a bundle has them."""
    return list(tokenizer.encode(chat_text(messages, tokenizer), add_special_tokens=False))


def chat_text(messages: "Messages", tokenizer: "PreTrainedTokenizerBase", *, now: datetime | None = None) -> str:
    """A conversation through the tokenizer's own template, as a bundle renders it. Raises as `templates.render`."""
    from ucotron_ray.models import templates  # noqa: PLC0415 - jinja2, which an installation without models has not

    template = templates.template(templates.default_of(tokenizer.chat_template))
    return templates.render(template, messages, tokenizer.special_tokens_map, now=now or templates.DATE)


def check_rendering(tokenizer: "PreTrainedTokenizerBase", where: str) -> None:
    """Raise InputError where the server's prompt is another one than transformers makes of it on the same day."""
    messages = _example()
    found = chat_text(messages, tokenizer, now=datetime.now())
    expected = _by_transformers(messages, tokenizer)
    if found == expected:
        return
    pairs = enumerate(zip(found, expected, strict=False))
    same = next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(found), len(expected)))
    part = slice(max(0, same - SHOWN), same + SHOWN)
    raise InputError(
        "the chat template is not rendered here as transformers renders it",
        where=f"{where}, character {same} of the server's prompt",
        expected=repr(expected[part]),
        found=repr(found[part]),
        next_step="report it with this model's name: its bundle would be asked another prompt than people know",
    )


def example_text(tokenizer: "PreTrainedTokenizerBase") -> str:
    """One prompt as the server sends it. Raises as `chat_text`, and InputError for one without the text in it."""
    found = chat_text(_example(), tokenizer)
    # A word, for a template may well write the text as JSON.
    if EXAMPLE.split()[2] not in found:
        raise InputError(
            "the chat template leaves the text out",
            where="the tokenizer's chat template",
            expected="a prompt with what the user says in it",
            found=repr(found[:SHOWN]),
            next_step="use a model whose chat template is its own",
        )
    return found


def _example() -> list[dict[str, str]]:
    entities = [Entity(text="Zoë O'Neil", label="person"), Entity(text="R&D <Lab>", label="organization")]
    return chat_messages(EXAMPLE, entities)


def _by_transformers(messages: Sequence[dict[str, str]], tokenizer: "PreTrainedTokenizerBase") -> str:
    from jinja2 import TemplateError  # noqa: PLC0415 - as above

    from ucotron_ray.models.templates import without_system  # noqa: PLC0415

    def rendered(asked: "Messages") -> str:
        return str(
            tokenizer.apply_chat_template(
                list(asked), tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        )

    try:
        return rendered(messages)
    except TemplateError:
        return rendered(without_system(messages))
