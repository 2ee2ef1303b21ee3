"""A `Modelfile` for Ollama beside the GGUF files: the prompt of training, and the server's limits.

Ollama reads no Jinja template: the rendered prompt stands in it with Go's fields for what is asked. Format:
docs.ollama.com/modelfile. `ollama create NAME -f Modelfile`, in the bundle's directory.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ucotron_ray.core.files import write_text
from ucotron_ray.data.wire import CHAT_SYSTEM, SERVER_MAX_TOKENS, SERVER_TEMPERATURE
from ucotron_ray.models.prompts import chat_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODELFILE = "Modelfile"

_SMALLEST_FIRST = ("q4_k_m", "q8_0", "f16")


def write(directory: Path, tokenizer: "PreTrainedTokenizerBase", files: dict[str, Path], stops: Sequence[str]) -> None:
    """Write the file for the smallest of these GGUF files, by their kinds; nothing if there is none."""
    kind = next((kind for kind in _SMALLEST_FIRST if kind in files), None)
    if kind is not None:
        write_text(directory / MODELFILE, text(files[kind].relative_to(directory), tokenizer, stops))


def text(file: Path, tokenizer: "PreTrainedTokenizerBase", stops: Sequence[str]) -> str:
    """The contents: model, template, system message, limits and end tokens."""
    fields = [{"role": "system", "content": "{{ .System }}"}, {"role": "user", "content": "{{ .Prompt }}"}]
    template = chat_text(fields, tokenizer)
    if tokenizer.bos_token and template.startswith(tokenizer.bos_token):
        # The file says that BOS comes first, and Ollama puts it there.
        template = template.removeprefix(str(tokenizer.bos_token))
    lines = [
        f"FROM ./{file.as_posix()}",
        f'TEMPLATE """{template}{{{{ .Response }}}}"""',
        f'SYSTEM """{CHAT_SYSTEM}"""',
        f"PARAMETER temperature {SERVER_TEMPERATURE:g}",
        f"PARAMETER num_predict {SERVER_MAX_TOKENS}",
        *(f'PARAMETER stop "{stop}"' for stop in stops),
    ]
    return "\n".join(lines) + "\n"
