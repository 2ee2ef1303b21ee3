"""The directory of a model, as far as it can be known without reading weights: configuration, headers, file kinds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ucotron_ray.core.errors import InputError

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
FETCH_AGAIN = "fetch the model again, whole (git lfs pull in a clone, or hf download NAME)"

_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that stands for one which Git LFS did not fetch (git-lfs, docs/spec.md)."""

Shapes = Mapping[str, tuple[int, ...]]
"""Name of each tensor → its sizes, as the headers of safetensors files have them."""


def check(path: Path) -> None:
    """Refuse a directory that transformers could not load safely, or not whole. Reads headers, no weights.

    Raises InputError: no config.json or code of its own, an adapter, pickled weights only, files that were cut off, a
    shard that is missing, what Git LFS left in the place of a file.
    """
    settings = read_config(path)
    if settings.get("auto_map"):
        raise InputError(
            "the model brings program code of its own",
            where=str(path / CONFIG),
            expected="a model of a kind that transformers knows; code out of a model's directory is never run",
            found=f"auto_map: {', '.join(sorted(map(str, settings['auto_map'])))}",
            next_step="use a model of another kind",
        )
    refuse_quantized_part(settings, str(path / CONFIG))
    if (path / "adapter_config.json").is_file():
        # transformers would load the base that it names, from wherever that is, and not what lies here.
        raise InputError(
            "the directory holds a LoRA adapter beside a config.json",
            where=str(path / "adapter_config.json"),
            expected="a model alone: transformers would load the base that the adapter names",
            found="adapter_config.json",
            next_step="merge it into its base first, or move adapter_config.json away if the weights are merged",
        )
    shapes(path)
    for name in TOKENIZER_FILES:
        if (path / name).is_file():
            refuse_pointer(path / name)


def read_config(path: Path) -> dict[str, Any]:
    """The model's configuration. Raises InputError where there is none that can be read."""
    file = path / CONFIG
    if not file.is_file():
        adapter = (path / "adapter_config.json").is_file()
        raise InputError(
            "the model directory has no config.json",
            where=str(path),
            expected="a model as transformers saves it: config.json, *.safetensors, tokenizer files",
            found="a LoRA adapter that was not merged" if adapter else "no config.json",
            next_step="pass the adapter's artifact name instead, or merge it into its base first"
            if adapter
            else "check the path; a trained adapter is exported by its artifact name",
        )
    return _object(file)


def shapes(path: Path) -> Shapes:
    """Every tensor of the model, from the headers of its safetensors files. Raises InputError if a part is missing."""
    whole, index = path / WEIGHTS, path / INDEX
    if whole.is_file():
        return _header(whole)
    if index.is_file():
        return _sharded(path, _object(index).get("weight_map"))
    others = sorted(entry.name for entry in path.glob("*.safetensors"))
    if others:
        raise InputError(
            "it is not known which of the safetensors files are the model",
            where=str(path),
            expected=f"{WEIGHTS}, or {INDEX} beside its shards",
            found=", ".join(others[:4]),
            next_step=FETCH_AGAIN,
        )
    pickled = [entry.name for entry in path.iterdir() if entry.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    raise InputError(
        "the model directory has no safetensors weights",
        where=str(path),
        expected="*.safetensors; pickled weights can run code when they are loaded and are refused",
        found=", ".join(pickled) or "no weights at all",
        next_step="convert the weights to safetensors with a tool that you trust",
    )


def refuse_pointer(file: Path) -> None:
    """Raise InputError for the few lines that Git LFS leaves in the place of a file which it did not fetch."""
    with file.open("rb") as opened:
        if opened.read(len(_POINTER)) == _POINTER:
            raise InputError(
                "a file of the model was never fetched",
                where=str(file),
                expected="the file itself",
                found=f"a Git LFS pointer of {file.stat().st_size} bytes",
                next_step=FETCH_AGAIN,
            )


def check_gguf(file: Path) -> None:
    """Refuse a file that is called .gguf and is none. Raises InputError."""
    refuse_pointer(file)
    with file.open("rb") as opened:
        begins = opened.read(4)
    if begins != b"GGUF":
        raise InputError(
            "this is no GGUF file", where=str(file), expected="a file that begins with GGUF", found=repr(begins),
            next_step=FETCH_AGAIN,
        )  # fmt: skip


def refuse_quantized_part(settings: Mapping[str, Any], where: str) -> None:
    """Raise InputError for quantized weights of a model that also sees: its text part loses their scales."""
    if settings.get("text_config") and settings.get("quantization_config"):
        raise InputError(
            "the weights of this model are quantized",
            where=where,
            expected="weights in bfloat16, float16 or float32, of which the text part can be loaded",
            found=f"quantization_config, {settings['quantization_config'].get('quant_method')}",
            next_step="use the variant of the model that is not quantized (-BF16, for instance)",
        )


def _object(file: Path) -> dict[str, Any]:
    refuse_pointer(file)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file.name} is no JSON", where=str(file), found=str(error), next_step=FETCH_AGAIN) from error
    if not isinstance(found, dict):
        raise InputError(
            f"{file.name} holds no settings", where=str(file), expected="a JSON object", found=type(found).__name__
        )
    return found


def _header(file: Path) -> Shapes:
    """Of one file: the library compares what its header promises with the length of the file."""
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415 - an installation without models has it not

    refuse_pointer(file)
    try:
        with safe_open(file, framework="numpy") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(
            "a file of the model's weights is damaged",
            where=str(file),
            expected="a whole safetensors file",
            found=f"{file.stat().st_size:,} bytes: {error}",
            next_step=FETCH_AGAIN,
        ) from error


def _sharded(path: Path, listed: object) -> Shapes:
    """Of several files, each tensor where the index says."""
    if not isinstance(listed, dict) or not listed:
        raise InputError(f"{INDEX} lists no weights", where=str(path / INDEX), next_step=FETCH_AGAIN)
    missing = sorted({str(file) for file in listed.values() if not (path / str(file)).is_file()})
    if missing:
        raise InputError(
            "a part of the model's weights is missing",
            where=str(path),
            expected=f"the {len(set(listed.values()))} files that {INDEX} lists",
            found=f"no {', no '.join(missing[:3])}",
            next_step=FETCH_AGAIN,
        )
    have = {name: shape for file in sorted(set(listed.values())) for name, shape in _header(path / str(file)).items()}
    absent = sorted(listed.keys() - have.keys())
    if absent:
        raise InputError(
            "a part of the model's weights is missing",
            where=str(path / INDEX),
            expected=f"{len(listed)} tensors in the files that it lists",
            found=f"{len(absent)} of them in none, {absent[0]} for one",
            next_step=FETCH_AGAIN,
        )
    return have
