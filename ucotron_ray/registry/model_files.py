"""What lies beside the bundle of a registered version, so that `mlflow.pyfunc` can load it anywhere.

    MLmodel                                         how it is loaded, what it takes and gives
    requirements.txt, python_env.yaml, conda.yaml   the environment
    input_example.json, serving_input_example.json
    code/ucotron_ray/                               this package
    bundle/                                         the bundle, not a byte changed

The bundle has a folder of its own, as its manifest lists every file: its content hash, `pull` and `serve` know nothing
of the rest.
"""

import os
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import ucotron_ray
from ucotron_ray.core import tracking
from ucotron_ray.core.artifacts import Artifact
from ucotron_ray.data.wire import SERVER_MAX_TOKENS

MLMODEL = "MLmodel"
LOADER = "ucotron_ray.registry.pyfunc"

REQUIREMENTS = ("mlflow", "jinja2", "llguidance", "numpy", "onnxruntime", "pydantic", "tokenizers")
"""What the loader imports, and mlflow, which calls it."""

MODEL_CONFIG = {"variant": "fp32", "num_threads": 0}
"""What `load_model(..., model_config=)` may change: the graph of the bundle; 0 threads = as many as processors."""

EXAMPLE = [
    {
        "text": "Juan moved to Madrid and works at Acme.",
        "entities": [
            {"text": "Juan", "label": "person"},
            {"text": "Madrid", "label": "location"},
            {"text": "Acme", "label": "organization"},
        ],
    }
]


def write(directory: Path, bundle: Artifact) -> None:
    """Write all but the bundle into a directory; MLmodel comes last, so where it is, everything is."""
    aside = directory / f"{os.getpid()}.partial"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        tracking.save_pyfunc(
            aside,
            loader=LOADER,
            # It is on no index, so requirements cannot name it. All of it: `code` comes first on `sys.path`, and with a
            # part of the package nothing else of it could be imported in that process any more.
            package=Path(ucotron_ray.__file__).parent,
            requirements=[_pinned(name) for name in REQUIREMENTS],
            signature=signature(),
            example=EXAMPLE,
            model_config=MODEL_CONFIG,
            metadata={"bundle": bundle.manifest.name, "content": bundle.manifest.content},
        )
        for made in sorted(aside.iterdir(), key=lambda path: path.name == MLMODEL):
            # Of a process that was killed here before.
            shutil.rmtree(directory / made.name, ignore_errors=True)
            os.replace(made, directory / made.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def signature() -> dict[str, list[dict[str, Any]]]:
    """The columns that it takes, the triples that it gives, and the parameters of `predict`, as MLflow spells them."""
    entity = {
        "text": _field("string"),
        "label": _field("string", required=False),
        "start": _field("long", required=False),
        "end": _field("long", required=False),
    }
    triple = {key: _field("string") for key in ("subject", "predicate", "object")} | {"confidence": _field("double")}
    return {
        "inputs": [{"name": "text", **_field("string")}, {"name": "entities", **_list_of(entity)}],
        "outputs": [_list_of(triple)],
        "params": [
            {"name": "decoding", "type": "string", "default": "auto", "shape": None},
            {"name": "max_new_tokens", "type": "long", "default": SERVER_MAX_TOKENS, "shape": None},
        ],
    }


def _field(kind: str, *, required: bool = True) -> dict[str, Any]:
    return {"type": kind, "required": required}


def _list_of(properties: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "object", "properties": properties}, "required": True}


def _pinned(name: str) -> str:
    """The version that is installed here: these answers passed the gates."""
    try:
        return f"{name}=={metadata.version(name)}"
    except metadata.PackageNotFoundError:
        # Installed under another name, such as onnxruntime-gpu.
        return name
