"""What a manifest says of its making: packages, host, commit. Never hashed."""

import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

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
        "command": " ".join(Path(part).name if index == 0 else part for index, part in enumerate(sys.argv)),
        "python": platform.python_version(),
        "packages": versions,
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
    }


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except OSError:
        return None
    return answer.stdout.strip() or None
