"""Base models: what a reference such as `Qwen/Qwen2.5-0.5B-Instruct` or `model.gguf` names, checked and loaded.

Four kinds of reference: a hub name (`org/name` or `org/name@COMMIT`, the only one that reaches for a network), a
directory in the layout of transformers, a `.gguf` file, and `package://NAME/FILE.gguf` or `package://NAME/DIR`, which
an installed Python package carries.
Weights are safetensors or GGUF; nothing is unpickled and no remote code is run.
"""

import logging
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ucotron_ray.core.errors import InputError
from ucotron_ray.core.failures import first_line
from ucotron_ray.core.files import content_hash, file_hash, list_files
from ucotron_ray.models import directory, gguf_tokenizer, packages, pinning
from ucotron_ray.models.precision import Dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_TEXT_PART = {
    r"^language_model\.lm_head\.": "lm_head.",
    r"^language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
}
"""Names of a text model's weights in the files of one that also sees (Gemma 3 and 4, Ministral 3), as its own files
have them. Other names are left as they are."""


@dataclass(frozen=True)
class Located:
    """A reference that was found to exist: all that loading needs. `revision` is of a hub model, and then a commit."""

    reference: str
    kind: Literal["hub", "directory", "gguf"]
    path: Path | None
    revision: str | None = field(default=None, kw_only=True)

    @property
    def loadable(self) -> str:
        """The reference for a worker, with which it loads these very bytes and asks nobody which they are."""
        return str(self.path) if self.path else f"{self.reference}@{self.revision or pinning.MAIN}"

    def fetching(self) -> dict[str, Any]:
        """What `from_pretrained` is told of where the files come from. Code out of a model is never run."""
        own = {"revision": self.revision} if self.revision else {}
        return {**own, "local_files_only": self.path is not None, "trust_remote_code": False}


@dataclass(frozen=True)
class BaseModel(Located):
    """A base whose bytes are known. `identity` goes into recipe hashes: their hash for files, the commit for a hub."""

    identity: str


def located(reference: str, revision: str | None = None) -> Located:
    """What a reference names, without reading its weights or asking the hub. Raises InputError if it names nothing."""
    path = packages.path_of(reference) if reference.startswith(packages.SCHEME) else Path(reference).expanduser()
    name, _, own = reference.partition("@")
    is_file, is_directory = path.suffix == ".gguf" and path.is_file(), path.is_dir()
    if (revision and (is_file or is_directory)) or (revision and own and revision != own):
        raise InputError(
            "two revisions are given" if own else "only a model of the hub has a revision",
            where=reference,
            found=revision,
            next_step="leave --revision (models.fine_tuning.<tier>.revision) away",
        )
    if is_file:
        directory.check_gguf(path)
        return Located(reference, "gguf", path.absolute())
    if is_directory:
        directory.check(path)
        return Located(reference, "directory", path.absolute())
    if path.is_absolute() or reference.startswith((".", "~")) or path.suffix == ".gguf" or name.count("/") != 1:
        raise InputError(
            f"there is no model at '{reference}'",
            expected="a hub name (org/name), a directory with config.json, a .gguf file, or package://NAME/FILE.gguf",
            next_step="check the path given as --model-name or as models.fine_tuning.<tier>.local_model",
        )
    return Located(name, "hub", None, revision=own or revision)


def resolve(
    reference: str, revision: str | None = None, *, commits: MutableMapping[str, str] | None = None
) -> BaseModel:
    """What a reference names, with the hash of its bytes or the hub's commit: for the driver, once a model.

    `commits` keeps what the hub said. Raises InputError before anything is loaded if it cannot be used.
    """
    found = located(reference, revision)
    if found.path is not None:
        files = sorted(entry for entry in found.path.rglob("*") if entry.is_file()) or [found.path]
        stats = ((str(entry), entry.stat()) for entry in files)
        seen = tuple((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats)
        return BaseModel(reference, found.kind, found.path, f"{found.kind}:{_hash_of(found.path, seen)}")
    known, name = {} if commits is None else commits, found.loadable
    if name not in known:
        known[name] = pinning.commit_of(found.reference, found.revision)
    identity = f"hub:{found.reference}@{known[name]}"
    return BaseModel(found.reference, "hub", None, identity, revision=known[name])


@cache
def _hash_of(path: Path, seen: tuple[tuple[str, int, int, int], ...]) -> str:
    """The hash of a model's bytes: read once a process while `seen` (name, size, times of each file) stays the same."""
    return content_hash(list_files(path)) if path.is_dir() else file_hash(path)


def settings_of(base: Located) -> Path | None:
    """The directory with a base's config.json and tokenizer.json, of a hub's model fetched; None for a GGUF file."""
    if base.kind != "hub":
        return base.path if base.path is not None and (base.path / "config.json").is_file() else None
    from transformers.utils import cached_file  # noqa: PLC0415 - 2 s, hub models only

    found = [
        cached_file(base.reference, name, revision=base.revision, _raise_exceptions_for_missing_entries=False)
        for name in ("config.json", "tokenizer.json")
    ]
    return Path(found[0]).parent if found[0] else None


def words_of(base: Located) -> int | None:
    """How many tokens the embedding has, as the configuration says; None where it does not, and for a GGUF file."""
    found = settings_of(base)
    settings = directory.read_config(found) if found is not None and (found / directory.CONFIG).is_file() else {}
    words = (settings.get("text_config") or settings).get("vocab_size")
    return int(words) if words else None


def load_tokenizer(base: Located) -> "PreTrainedTokenizerBase":
    """The tokenizer, with an end-of-turn token, a pad token that is not it, and a chat template."""
    tokenizer = _read_tokenizer(base)
    if not tokenizer.encode("a", add_special_tokens=False):
        # transformers makes an empty one of a directory without the words, and every text is then no token at all.
        raise InputError(
            "the tokenizer knows no words",
            where=base.reference,
            expected="tokenizer.json, or the files that it can be made of",
            next_step=directory.FETCH_AGAIN,
        )
    if tokenizer.eos_token_id is None or not tokenizer.chat_template:
        raise InputError(
            "the model has no chat template or no end-of-text token",
            where=base.reference,
            expected="an instruct model: the server asks through the chat template",
            next_step="use the -Instruct variant of this model",
        )
    words = words_of(base)
    if words is not None and tokenizer.eos_token_id >= words:
        raise InputError(
            "the end token lies beyond the model's embedding",
            where=base.reference,
            expected=f"a token id below {words}",
            found=f"{tokenizer.eos_token}, {tokenizer.eos_token_id}",
            next_step="use the tokenizer that belongs to these weights",
        )
    pad = tokenizer.pad_token_id
    if pad is None or pad == tokenizer.eos_token_id or (words is not None and pad >= words):
        # Masks derived from the pad token would hide the end token, and the model would never learn to stop.
        tokenizer.pad_token = _pad_token(tokenizer, words)
    tokenizer.padding_side = "left"
    return tokenizer


def _read_tokenizer(base: Located) -> "PreTrainedTokenizerBase":
    """The tokenizer as its files have it. Raises InputError for files that cannot be read, OSError for a hub's."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: PLC0415 - 2 s; only workers pay for it
    from transformers.utils import cached_file  # noqa: PLC0415

    if base.kind == "gguf":
        assert base.path is not None
        return gguf_tokenizer.load(base.path)
    # AutoTokenizer of transformers 5 builds the tokenizer that is usual for the family, whatever the file says:
    # a Qwen2 model with another way to split texts would be trained on other tokens than it is served with.
    source, fetching = base.path or base.reference, base.fetching()
    asked = {name: value for name, value in fetching.items() if name != "trust_remote_code"}
    try:
        by_file = cached_file(source, "tokenizer.json", _raise_exceptions_for_missing_entries=False, **asked)
        kind = PreTrainedTokenizerFast if by_file else AutoTokenizer
        read: PreTrainedTokenizerBase = kind.from_pretrained(source, **fetching)
    except Exception as error:
        if isinstance(error, OSError) and base.path is None:
            pinning.raise_refusal(base.reference, error)
            raise
        # `tokenizers` raises plain Exceptions, transformers whatever a file that was cut off leads to.
        raise InputError(
            "the tokenizer cannot be read",
            where=base.reference,
            expected="tokenizer.json, or the files that it can be made of",
            found=f"{type(error).__name__}: {first_line(error)}",
            next_step=directory.FETCH_AGAIN,
        ) from error
    return read


def load_model(base: Located, dtype: Dtype) -> "PreTrainedModel":
    """The causal language model in the given precision, on the CPU. Raises InputError for another kind of model."""
    import torch  # noqa: PLC0415

    return loaded_as(base, dtype=torch.bfloat16 if dtype == "bfloat16" else torch.float32)


def loaded_as(base: Located, **arguments: Any) -> "PreTrainedModel":
    """The causal language model with these arguments of `from_pretrained`: of a model that also sees, its text part.

    Raises InputError for another kind of model, and for a file without all of the weights: transformers would go on
    with random ones.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig  # noqa: PLC0415

    if base.kind == "gguf":
        assert base.path is not None
        source = str(base.path.parent)
        # Else the weights stay in their blocks, which can be neither trained nor saved.
        own = {"gguf_file": base.path.name, "quantization_config": GgufConfig(dequantize=True)}
    else:
        source, own = str(base.path) if base.path else base.reference, {}
    own |= base.fetching()
    try:
        if base.kind != "gguf":
            whole = AutoConfig.from_pretrained(source, **own)
            directory.refuse_quantized_part(whole.to_dict(), base.reference)
            config = whole.get_text_config()
            # The head is the whole model's, so whether it is the embedding table is said there.
            config.tie_word_embeddings = whole.tie_word_embeddings
            if (getattr(config, "pad_token_id", None) or 0) >= config.vocab_size:
                # torch refuses a padding row that the embedding has not; which token pads, the tokenizer says.
                config.pad_token_id = None
            own |= {"config": config, "key_mapping": _TEXT_PART, "use_safetensors": True}
        model, found = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **own, **arguments)
    except (ValueError, OSError, ImportError) as error:
        pinning.raise_refusal(base.reference, error)
        raise InputError(
            "the model cannot be loaded",
            where=base.reference,
            expected="a causal language model that the pinned transformers knows, with safetensors weights",
            found=str(error).splitlines()[0],
        ) from error
    if found["missing_keys"]:
        raise InputError(
            "weights of the model are missing",
            where=base.reference,
            expected="every weight of its layers",
            found=f"{len(found['missing_keys'])} that no file has, {min(found['missing_keys'])} for one",
            next_step="fetch the model again, whole",
        )
    loaded: PreTrainedModel = model
    # Else it is saved under the names of the file that it comes from, which a text model's readers do not know.
    loaded._weight_conversions = None
    return loaded


def convert(base: Located, directory: Path) -> None:
    """Write a GGUF model once as safetensors with a clean tokenizer, for fast loading afterwards."""
    save_model(load_model(base, "float32"), load_tokenizer(base), directory)


def end_tokens(first: int, listed: int | Sequence[int] | None) -> list[int]:
    """What ends an answer: the tokenizer's token, which training teaches, then those of the model's own file."""
    own = [listed] if isinstance(listed, int) else list(listed or ())
    return list(dict.fromkeys([first, *own]))


def save_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", directory: Path) -> None:
    """Save a model whole, as safetensors with its tokenizer; it ends and pads as the tokenizer says."""
    model.config._name_or_path = ""
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        own = _saveable(model.generation_config)
        ends = end_tokens(tokenizer.eos_token_id, own.eos_token_id)
        own.eos_token_id = ends if len(ends) > 1 else ends[0]
        own.pad_token_id = tokenizer.pad_token_id
        model.generation_config = own
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _saveable(settings: Any) -> Any:
    """How a model answers, as transformers saves it: of published settings that contradict each other its tokens alone.

    Flags of sampling beside `do_sample: false` are in many files; transformers 5 reads them with a warning, and writes
    none of them once anything was changed.
    """
    from transformers import GenerationConfig  # noqa: PLC0415

    try:
        settings.validate(strict=True)
    except ValueError:
        return GenerationConfig(bos_token_id=settings.bos_token_id, eos_token_id=settings.eos_token_id)
    return settings


def _pad_token(tokenizer: "PreTrainedTokenizerBase", words: int | None) -> str:
    """A special token of the vocabulary that is neither end nor beginning of a text; never a new token."""
    vocabulary = {text: at for text, at in tokenizer.get_vocab().items() if words is None or at < words}
    candidates = ["<|endoftext|>", "<|pad|>", "<pad>", "<|finetune_right_pad_id|>", "[PAD]", "<unk>"]
    candidates += [tokenizer.unk_token] if tokenizer.unk_token else []
    for candidate in candidates:
        if candidate in vocabulary and vocabulary[candidate] != tokenizer.eos_token_id:
            return candidate
    if tokenizer.bos_token in vocabulary:
        return str(tokenizer.bos_token)
    raise InputError(
        "the tokenizer has no token that can pad",
        expected="a pad token that is not the end token",
        next_step="set pad_token in the model's tokenizer_config.json",
    )
