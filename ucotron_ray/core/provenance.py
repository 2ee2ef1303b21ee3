"""What a manifest says of its making: packages, host, commit. Never hashed."""

import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from ucotron_ray.core import variables
from ucotron_ray.core.redaction import redacted

RECORDED_PACKAGES = (
    "ray",
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "accelerate",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "onnxruntime",
    "gguf",
    "libggml-python",
    "mlflow",
    "numpy",
)


def provenance(*, seconds: float) -> dict[str, Any]:
    """Where, when and with what something was made. Never hashed."""
    versions = {}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "commit": _commit(),
        "host": platform.node(),
        "command": command(sys.argv),
        "python": platform.python_version(),
        "packages": versions,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
    }


def command(words: Sequence[str]) -> str:
    """The command as it is kept: without the path of the program, and without any password."""
    shown = " ".join(Path(word).name if index == 0 else word for index, word in enumerate(words))
    return redacted(shown, variables.known_secrets())


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None
