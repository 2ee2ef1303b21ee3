"""The tokenizer of a GGUF file."""

from pathlib import Path
from typing import TYPE_CHECKING

from ucotron_ray.models import splitting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


GEMMAS = ("gemma3", "gemma4")
"""Architectures whose words have "▁" for spaces and no splitting before their merges."""


def load(path: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a GGUF file with the file's own special tokens.

    transformers 5.24 splits texts as the file's architecture usually does, whatever `tokenizer.ggml.pre` says: SmolLM2
    gets other tokens for spaces before a number than in its training. So the vocabulary and merges are taken from it,
    and the rest from the file's metadata.
    """
    from gguf import GGUFReader  # noqa: PLC0415
    from tokenizers import decoders, processors  # noqa: PLC0415
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: PLC0415
    from transformers.integrations.gguf import gguf_tokenizer_mapping as by_transformers  # noqa: PLC0415

    fields = GGUFReader(str(path)).fields

    def field(name: str) -> object:
        return fields[name].contents() if name in fields else None

    kind, architecture = field("tokenizer.ggml.model"), str(field("general.architecture"))
    if kind != "gpt2" and architecture not in GEMMAS:
        loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(path.parent), gguf_file=path.name, trust_remote_code=False
        )
        return loaded
    # AutoTokenizer asks for the model's settings too, which transformers reads of few families.
    _, words, _ = by_transformers.get_gguf_tokenizer(str(path))
    backend, _ = by_transformers.convert_gguf_tokenizer(GEMMAS[0] if kind == "llama" else architecture, words)
    if kind == "gpt2":
        # transformers takes the rule of the architecture, whatever the file says.
        backend.pre_tokenizer = splitting.by_name(str(field("tokenizer.ggml.pre"))) or backend.pre_tokenizer
        backend.decoder = decoders.ByteLevel()
        backend.post_processor = processors.ByteLevel(trim_offsets=False)

    def token(name: str) -> str | None:
        number = field(f"tokenizer.ggml.{name}_token_id")
        return backend.id_to_token(number) if isinstance(number, int) else None

    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=token("bos"),
        eos_token=token("eos"),
        unk_token=token("unknown"),
        pad_token=token("padding"),
        chat_template=field("tokenizer.chat_template"),
    )
