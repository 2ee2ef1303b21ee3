"""Which packages a stage needs, asked before it starts."""

import importlib.util

from ucotron_ray.errors import MissingPackage

PACKAGES = {
    "ray": "ray[data,train,tune,default,serve]",
    "torch": "torch",
    "transformers": "transformers",
    "trl": "trl",
    "peft": "peft",
    "datasets": "datasets",
    "accelerate": "accelerate",
    "optimum": "optimum optimum-onnx",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "llguidance": "llguidance",
    "mlflow": "mlflow",
    "aiohttp": "aiohttp",
    "gguf": "gguf",
    "datasketch": "datasketch",
    "json_repair": "json-repair",
    "matplotlib": "matplotlib",
    # The extra `optuna`.
    "optuna": "optuna",
    # Only where a place or a recipe asks for them, on a GPU. liger-kernel 0.8.5 wants transformers 5; flash-attn is
    # built against the torch that is there, and not pinned.
    "bitsandbytes": "bitsandbytes",
    "liger_kernel": "liger-kernel",
    "flash_attn": "flash-attn",
}
"""Module → what to install for it."""


def require_packages(*modules: str) -> None:
    """Raise MissingPackage with the install line if a module of these is not installed. Imports nothing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingPackage(
            f"Missing Python dependencies for training: {', '.join(missing)}",
            expected="the packages of pyproject.toml at the versions of constraints.txt",
            next_step="pip install -c constraints.txt " + " ".join(PACKAGES[module] for module in missing),
        )
