"""All that can be known about a model before anything is started on it, without reading its weights."""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucotron_ray.core.errors import InputError
from ucotron_ray.core.failures import first_line
from ucotron_ray.models import base as base_models
from ucotron_ray.models import directory, prompts
from ucotron_ray.models.shape import Shape, shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

NOT_HERE = "not compared: the model's tokenizer is not on this machine"
AS_TRANSFORMERS = "as transformers renders it, character by character"

_WRITES = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$")
"""Classes of transformers that have a head of words."""

_EMBEDDING = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")


def check(base: base_models.Located) -> str:
    """Refuse a model that cannot be loaded or asked; else say in words how its prompt compares with transformers'.

    Reads the configuration, the headers of the weights and the tokenizer, and renders one prompt: about a second for a
    large vocabulary. A hub model that is not on this machine is not fetched for it. Raises InputError.
    """
    found = _on_this_machine(base)
    if found is None:
        return NOT_HERE
    words = None
    if found.kind == "gguf":
        _check_whole(found)
    if found.kind == "directory":
        assert found.path is not None
        _check_kind(found)
        tensors = directory.shapes(found.path) if base.kind == "directory" else {}
        shape = shape_of(found)
        if shape is not None and tensors and "quantization_config" not in directory.read_config(found.path):
            _check_layers(shape, tensors, found.path)
        words = _words(tensors)
    tokenizer = base_models.load_tokenizer(found)
    _check_prompt(tokenizer, base.reference, words)
    return AS_TRANSFORMERS


def check_ids(highest: int, base: base_models.Located) -> None:
    """Raise InputError for rows with a token that the model has no embedding for."""
    words = base_models.words_of(base)
    if words is not None and highest >= words:
        raise _beyond(f"the rows hold token {highest}", base.reference, words)


def _on_this_machine(base: base_models.Located) -> base_models.Located | None:
    """The model as files that are here: of the hub what its cache has, if that is a tokenizer too."""
    if base.path is not None:
        return base
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - hub models only

    name = base.reference.partition("@")[0]
    cached = [
        try_to_load_from_cache(name, file, revision=base.revision)
        for file in (directory.CONFIG, "tokenizer_config.json")
    ]
    here = [Path(file).parent for file in cached if isinstance(file, str)]
    # As a directory: what is asked by name may reach for the hub.
    return replace(base, kind="directory", path=here[-1], revision=None) if isinstance(cached[-1], str) else None


def _check_whole(base: base_models.Located) -> None:
    """Raise InputError for a GGUF file that was cut off."""
    from gguf import GGUFReader  # noqa: PLC0415 - GGUF models only

    try:
        GGUFReader(str(base.path))
    except Exception as error:
        # Where it was cut decides what the reader stumbles over.
        raise InputError(
            "the GGUF file cannot be read whole",
            where=str(base.path),
            expected="every tensor that its header lists",
            found=first_line(error),
            next_step=directory.FETCH_AGAIN,
        ) from error


def _check_kind(base: base_models.Located) -> None:
    """Raise InputError for a configuration that transformers does not know as a language model's."""
    from transformers import AutoConfig  # noqa: PLC0415 - 2 s
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING  # noqa: PLC0415

    assert base.path is not None
    if not (base.path / directory.CONFIG).is_file():
        return
    try:
        config = AutoConfig.from_pretrained(base.path, **base.fetching()).get_text_config()
    except Exception as error:
        # A configuration is checked by its class, with errors of many kinds.
        raise InputError(
            "the model's configuration cannot be read",
            where=str(base.path / directory.CONFIG),
            expected="a language model that the pinned transformers knows",
            found=first_line(error),
            next_step="use a model of another kind, or fetch it again",
        ) from error
    # Some encoders have a class that writes too; what was saved is said beside.
    saved = [str(name) for name in directory.read_config(base.path).get("architectures") or []]
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or (saved and not any(map(_WRITES.search, saved))):
        raise InputError(
            "this is no language model",
            where=str(base.path / directory.CONFIG),
            expected="a causal language model, which writes an answer",
            found=f"model_type {config.model_type}, {', '.join(saved) or 'no class named'}",
            next_step="use an instruct model",
        )


def _check_layers(shape: Shape, tensors: directory.Shapes, path: Path) -> None:
    """Raise InputError where the weights are not those of the layers that the configuration describes."""
    have = {_text_name(name): sizes for name, sizes in tensors.items()}
    wanted: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocab, shape.hidden)}
    for layer in range(shape.layers):
        for name, (inputs, outputs) in shape.linears.items():
            wanted[f"model.layers.{layer}.{name}.weight"] = (outputs, inputs)
    missing = [name for name in wanted if name not in have]
    if missing:
        raise InputError(
            "weights of the model are missing",
            where=str(path),
            expected=f"every weight of its {shape.layers} layers",
            found=f"{len(missing)} that no file has, {missing[0]} for one",
            next_step=directory.FETCH_AGAIN,
        )
    for name, sizes in wanted.items():
        if have[name] != sizes:
            raise InputError(
                "config.json describes another model than the weights are",
                where=str(path),
                expected=f"{name} of {' x '.join(map(str, sizes))}",
                found=" x ".join(map(str, have[name])),
                next_step="correct config.json (vocab_size, hidden_size and the like), or fetch the model again",
            )


def _text_name(name: str) -> str:
    """The name of a weight as a text model has it: of one that also sees its files call it otherwise."""
    for prefix in ("language_model.model.", "model.language_model."):
        if name.startswith(prefix):
            return "model." + name.removeprefix(prefix)
    return name


def _words(tensors: directory.Shapes) -> int | None:
    """How many tokens the embedding has; None where it is not known by its name."""
    return next((sizes[0] for name, sizes in tensors.items() if name.endswith(_EMBEDDING)), None)


def _check_prompt(tokenizer: "PreTrainedTokenizerBase", reference: str, words: int | None) -> None:
    """Raise InputError for a prompt that the model cannot be given. Warns of tokens that no prompt may hold."""
    prompts.check_rendering(tokenizer, reference)
    ids = tokenizer.encode(prompts.example_text(tokenizer), add_special_tokens=False)
    highest = max(tokenizer.get_vocab().values())
    if words is None:
        return
    if max(ids) >= words:
        raise _beyond(f"the chat template writes token {max(ids)}", reference, words)
    if highest >= words:
        beyond: Mapping[str, Any] = {text: number for text, number in tokenizer.get_vocab().items() if number >= words}
        log.warning(
            "%s: the tokenizer has %d token(s) that the model has no embedding for (%s): a text with one fails",
            reference,
            len(beyond),
            ", ".join(sorted(beyond, key=beyond.__getitem__)[:3]),
        )


def _beyond(found: str, reference: str, words: int) -> InputError:
    return InputError(
        "a token lies beyond the model's embedding",
        where=reference,
        expected=f"token ids below {words}, the rows of the embedding",
        found=found,
        next_step="use the tokenizer that belongs to these weights, or weights with a resized embedding",
    )
