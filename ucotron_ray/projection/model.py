"""The projection layer: 512 → 1024 → 512 → 384, and its files.

A checkpoint is `model.safetensors`, whose header holds the configuration too. The bare `state_dict` of the existing
trainer (`projection_layer.pt`, keys 0, 1, 4, 5, 8) is the only pickled file that is read, by torch's loader for plain
tensors, and its shapes are checked.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ucotron_ray.core.errors import InputError
from ucotron_ray.core.files import write_json
from ucotron_ray.projection.pairs import CLIP_DIM, TEXT_DIM

WEIGHTS, CONFIG = "model.safetensors", "config.json"

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class LayerConfig:
    """What a checkpoint says about itself. `split` and `encoders` are empty where it does not know."""

    hidden_dim: int
    dropout: float = 0.0
    input_dim: int = CLIP_DIM
    output_dim: int = TEXT_DIM
    split: Mapping[str, float] | None = None
    """`seed`, `val` and `test` of `pairs.split`: which descriptions it was not trained on."""
    encoders: Mapping[str, str] | None = None


def build(hidden_dim: int, dropout: float) -> nn.Sequential:
    """The stack of the existing trainer, x [N, 512] → [N, 384] in (-1, 1); its keys are those of an old checkpoint."""
    return nn.Sequential(
        nn.Linear(CLIP_DIM, hidden_dim),
        nn.LayerNorm(hidden_dim),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(hidden_dim, CLIP_DIM),
        nn.LayerNorm(CLIP_DIM),
        nn.GELU(),
        nn.Dropout(dropout),
        nn.Linear(CLIP_DIM, TEXT_DIM),
        nn.Tanh(),
    )


def shapes(hidden_dim: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a state dict."""
    return {
        "0.weight": (hidden_dim, CLIP_DIM),
        "0.bias": (hidden_dim,),
        "1.weight": (hidden_dim,),
        "1.bias": (hidden_dim,),
        "4.weight": (CLIP_DIM, hidden_dim),
        "4.bias": (CLIP_DIM,),
        "5.weight": (CLIP_DIM,),
        "5.bias": (CLIP_DIM,),
        "8.weight": (TEXT_DIM, CLIP_DIM),
        "8.bias": (TEXT_DIM,),
    }


def fold(state: Tensors, mean: torch.Tensor, whitening: torch.Tensor) -> dict[str, torch.Tensor]:
    """A layer for x, from one that was trained on (x - mean) @ whitening: W' = W whiteningᵀ, b' = b - W' mean."""
    weight = state["0.weight"].cpu().double() @ whitening.double().T
    bias = state["0.bias"].cpu().double() - weight @ mean.double()
    folded = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    return {**folded, "0.weight": weight.float(), "0.bias": bias.float()}


def save(directory: Path, state: Tensors, config: LayerConfig) -> None:
    """Write the weights with the configuration in their header, and the configuration once more for people."""
    values = asdict(config)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt", "config": json.dumps(values, sort_keys=True)})
    write_json(directory / CONFIG, values)


def load(path: Path) -> tuple[nn.Sequential, LayerConfig]:
    """The layer in evaluation mode: from an artifact's directory, a `.safetensors` file, or an old `.pt` file.

    Raises InputError if the file holds anything else.
    """
    file = path / WEIGHTS if path.is_dir() else path
    state, config = _read_pickled(file) if file.suffix in {".pt", ".pth"} else _read_safetensors(file)
    _check(state, file)
    hidden_dim = int(state["0.weight"].shape[0])
    layer = build(hidden_dim, 0.0).eval()
    layer.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return layer, LayerConfig(**config) if config else LayerConfig(hidden_dim)


def _read_safetensors(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            return {name: opened.get_tensor(name) for name in opened.keys()}, json.loads(metadata.get("config", "{}"))  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise _not_a_layer(file, str(error)) from error


def _read_pickled(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        raise _not_a_layer(file, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise _not_a_layer(file, type(state).__name__)
    return state, {}


def _check(state: Tensors, file: Path) -> None:
    first = state.get("0.weight")
    hidden_dim = int(first.shape[0]) if first is not None and first.dim() == 2 else 0
    expected, found = shapes(hidden_dim), {name: tuple(tensor.shape) for name, tensor in state.items()}
    different = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    if different:
        name = different[0]
        raise _not_a_layer(file, f"{name}: {found.get(name, 'absent')} instead of {expected.get(name, 'nothing')}")


def _not_a_layer(file: Path, found: str) -> InputError:
    return InputError(
        "the checkpoint holds no projection layer",
        where=str(file),
        expected="a directory or .safetensors file of `projection train`, or the existing trainer's state dict (.pt) "
        "with the keys 0, 1, 4, 5, 8",
        found=found,
        next_step="check --checkpoint",
    )
