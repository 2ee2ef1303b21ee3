"""A row → the prompt that the server would send for it, and its token ids. Training, scores and export ask alike."""

from typing import TYPE_CHECKING

from ucotron_ray.data.records import Message, ModelRow, RawRow
from ucotron_ray.data.wire import chat_messages, format_answer, user_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def server_row(row: RawRow, layout: str) -> ModelRow:
    """The row in the prompt that the server sends: `chat` to an endpoint, `raw` to a GGUF model."""
    completion = format_answer(row.expected_relations)
    if layout == "raw":
        prompt = Message(role="user", content=user_prompt(row.text, row.entities))
        return ModelRow(layout="raw", prompt=[prompt], completion=completion)
    messages = [Message.model_validate(message) for message in chat_messages(row.text, row.entities)]
    return ModelRow(layout="chat", prompt=messages, completion=completion)


def prompt_ids(row: ModelRow, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids of the prompt, up to where the model begins to answer.

    Raw prompts begin with BOS if the tokenizer has one, since llama.cpp adds it (`AddBos::Always`). Templates that know
    a thinking mode get it switched off: the server never asks for it.
    """
    if row.layout == "raw":
        head = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
        return [*head, *tokenizer.encode(row.prompt[0].content, add_special_tokens=False)]
    messages = [message.model_dump() for message in row.prompt]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    return list(tokenizer.encode(str(text), add_special_tokens=False))
