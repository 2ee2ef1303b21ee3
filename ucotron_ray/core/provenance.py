"""What a manifest says of its making: packages, host, commit. Never hashed."""

import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ucotron_ray.core import redaction

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
        "command": " ".join([Path(sys.argv[0]).name, *redaction.arguments(sys.argv[1:])]),
        "python": platform.python_version(),
        "packages": versions,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
    }


def cleaned(made: Mapping[str, Any]) -> dict[str, Any]:
    """What an older manifest says, without passwords in its command: until 2026 it was kept as it was given."""
    command = str(made.get("command", ""))
    kept = " ".join(redaction.arguments(command.split(" ")))
    return {**made, "command": kept} if kept != command else dict(made)


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None
