"""Which packages a stage needs, asked before it starts."""

import importlib.util

from ucotron_ray.core.errors import MissingPackage

PACKAGES = {
    "ray": "ray[data,train,tune,default,serve]",
    "torch": "torch",
    "transformers": "transformers",
    "trl": "trl",
    "peft": "peft",
    "datasets": "datasets",
    "accelerate": "accelerate",
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "onnxscript": "onnxscript",
    "onnxruntime": "onnxruntime",
    "llguidance": "llguidance",
    "tokenizers": "tokenizers",
    "jinja2": "jinja2",
    "mlflow": "mlflow",
    "aiohttp": "aiohttp",
    "gguf": "gguf",
    "libggml": "libggml-python",
    "datasketch": "datasketch",
    "json_repair": "json-repair",
    "matplotlib": "matplotlib",
}
"""Module → what to install for it."""

TRAINING = ("ray", "torch", "transformers", "trl", "peft", "datasets", "accelerate", "gguf")
EXPORT = ("onnx", "onnx_ir", "onnxscript", "onnxruntime", "libggml", "llguidance")

OPTIONAL = {
    "optuna": ("optuna", "tuning.search=optuna"),
    "rdflib": ("rdflib", "schema FILE.ttl or FILE.owl"),
    "bitsandbytes": ("bitsandbytes", "training.sft.<tier>.quantize=nf4, on a GPU"),
    "liger_kernel": ("liger-kernel", "workers.liger, on a GPU"),
    # Built against the torch that is there, and not pinned.
    "flash_attn": ("flash-attn", "workers.attention=flash_attention_2, on a GPU"),
}
"""Module → what to install for it, and the setting or command that asks for it."""


def require_packages(*modules: str) -> None:
    """Raise MissingPackage with the install line if a module of these is not installed. Imports nothing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        install = {**PACKAGES, **{module: package for module, (package, _) in OPTIONAL.items()}}
        raise MissingPackage(
            f"Missing Python dependencies for training: {', '.join(missing)}",
            expected="the packages of pyproject.toml at the versions of constraints.txt",
            next_step="pip install -c constraints.txt " + " ".join(install[module] for module in missing),
        )
