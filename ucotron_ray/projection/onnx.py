"""The projection as one ONNX file that the server's loader takes, compared with PyTorch before it is bundled.

The loader (`cross_modal.rs`, ort 2.0.0-rc.11 over ONNX Runtime 1.23) wants one self-contained file, an input named
`input` [batch, 512] float32 and a first output [batch, 384] float32, with a dynamic batch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from ucotron_ray.core.errors import StageFailed
from ucotron_ray.core.files import write_json, write_text
from ucotron_ray.projection.model import LayerConfig
from ucotron_ray.projection.pairs import CLIP_DIM, TEXT_DIM, Floats
from ucotron_ray.projection.retrieval import unit

GRAPH, PARITY, IO_CONTRACT, CARD = "projection_layer.onnx", "parity.json", "io_contract.json", "MODEL_CARD.md"
INPUT, OUTPUT, BATCH = "input", "output", "batch"

PARITY_BATCHES = (1, 4, 16, 257)
MAX_DIFFERENCE = 1e-4
NEWEST_IR = 10
"""That of ONNX 1.16, which ONNX Runtime reads since 1.18; opset 17 gives IR 8."""


def export(layer: nn.Module, directory: Path, *, opset: int) -> Path:
    """Write the graph. Raises StageFailed if it is not what the server's loader asks for."""
    path = directory / GRAPH
    torch.onnx.export(
        layer.eval(),
        (torch.zeros(2, CLIP_DIM),),
        str(path),
        input_names=[INPUT],
        output_names=[OUTPUT],
        dynamic_axes={INPUT: {0: BATCH}, OUTPUT: {0: BATCH}},
        opset_version=opset,
        # The newer exporter writes opset 18 and converts it down, which may fail; the same graph takes 5 s, here 0.1 s.
        dynamo=False,
    )
    check(path)
    return path


def check(path: Path) -> None:
    """Raise StageFailed unless names, types, shapes, versions and packaging are those of the contract."""
    proto = onnx.load(str(path), load_external_data=False)
    outside = [tensor.name for tensor in proto.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
    found = {
        "inputs": [_entry(value) for value in proto.graph.input],
        "outputs": [_entry(value) for value in proto.graph.output],
        "weights in other files": outside,
        "IR version is read by ONNX Runtime 1.23": proto.ir_version <= NEWEST_IR,
    }
    expected = {
        "inputs": [(INPUT, onnx.TensorProto.FLOAT, [BATCH, CLIP_DIM])],
        "outputs": [(OUTPUT, onnx.TensorProto.FLOAT, [BATCH, TEXT_DIM])],
        "weights in other files": [],
        "IR version is read by ONNX Runtime 1.23": True,
    }
    if found != expected:
        raise StageFailed(
            "the graph is not what the server loads", where=str(path), expected=str(expected), found=str(found)
        )
    onnx.checker.check_model(proto, full_check=True)


def compare(layer: nn.Module, path: Path, *, seed: int = 0) -> dict[str, float]:
    """Largest difference to PyTorch over batches of 1, 4, 16 and 257 unit vectors, in all and by batch."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    random = np.random.default_rng(seed)
    figures: dict[str, float] = {}
    for size in PARITY_BATCHES:
        x: Floats = unit(random.standard_normal((size, CLIP_DIM)).astype(np.float32))
        with torch.inference_mode():
            reference = layer(torch.from_numpy(x)).numpy()
        (answer,) = session.run([OUTPUT], {INPUT: x})
        same_shape = answer.shape == reference.shape
        figures[f"max_difference_{size}"] = float(np.abs(answer - reference).max()) if same_shape else float("inf")
    # `max` passes over a NaN that is not first.
    return {"max_difference": float(np.max(list(figures.values()))), **figures}


def missed(figures: Mapping[str, float]) -> list[str]:
    """Why the parity gate is not passed; empty if it is. A NaN does not pass."""
    largest = figures["max_difference"]
    return [] if largest < MAX_DIFFERENCE else [f"max_difference {largest:.3g}, allowed {MAX_DIFFERENCE:.0e}"]


def write_contracts(
    directory: Path, name: str, config: LayerConfig, figures: Mapping[str, float], facts: Mapping[str, str]
) -> list[str]:
    """Write parity, IO contract and card beside the graph; return what the parity gate says."""
    problems = missed(figures)
    proto = onnx.load(str(directory / GRAPH), load_external_data=False)
    io = {
        "inputs": [
            {"name": INPUT, "type": "float32", "shape": [BATCH, CLIP_DIM], "rows": "length 1, CLIP's joint space"}
        ],
        "outputs": [
            {"name": OUTPUT, "type": "float32", "shape": [BATCH, TEXT_DIM], "rows": "to be brought to length 1"}
        ],
        "opset": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        "ir_version": proto.ir_version,
    }
    finite = {key: value if np.isfinite(value) else str(value) for key, value in figures.items()}
    write_json(directory / PARITY, {"figures": finite, "missed": problems, "allowed": MAX_DIFFERENCE})
    write_json(directory / IO_CONTRACT, io)
    write_text(directory / CARD, _card(name, config, figures, problems, facts))
    return problems


def _card(
    name: str, config: LayerConfig, figures: Mapping[str, float], problems: Sequence[str], facts: Mapping[str, str]
) -> str:
    verdict = "passed" if not problems else "FAILED: " + "; ".join(problems)
    encoders = dict(config.encoders or {"clip": "unknown", "text": "unknown"})
    lines = [
        f"# {name}",
        "",
        f"The layer of Ucotron's cross-modal search: {CLIP_DIM} → {config.hidden_dim} → {CLIP_DIM} → {TEXT_DIM}.",
        "",
        "| fact | value |",
        "|---|---|",
        *(f"| encoder ({side}) | {encoder} |" for side, encoder in encoders.items()),
        *(f"| {key} | {value} |" for key, value in facts.items()),
        f"| parity with PyTorch | {verdict}, largest difference {figures['max_difference']:.1e} |",
        "",
        "## Use",
        "",
        f"Copy `{GRAPH}` into the server's models directory (`models_dir` in `ucotron.toml`). It wants CLIP's",
        "projected vectors at length 1; the server brings the output to length 1 itself.",
        "",
        "The server at commit d4448b0 has the loader (`ProjectionLayerPipeline`) and its tests, but no part of it",
        "calls the loader: `query_type=image_to_text` answers 500 until it does.",
        "",
        "## Limits",
        "",
        "Trained on texts, it takes images as far as CLIP brings both together: measure on images first.",
        "",
    ]
    if any("STAND-IN" in encoder for encoder in encoders.values()):
        lines.insert(2, "**Not for use with real images: CLIP's place was taken by a STAND-IN.**\n")
    return "\n".join(lines)


def _entry(value: Any) -> tuple[str, int, list[str | int]]:
    kind = value.type.tensor_type
    return value.name, kind.elem_type, [dim.dim_param or dim.dim_value for dim in kind.shape.dim]
