"""Weight-only int8 and int4 of an exported graph, by operators that ONNX Runtime has on the CPU since 1.23.

Dynamic int8, which rounds activations per tensor, wrecks language models (microsoft/onnxruntime#18430); here weights
are rounded, in blocks along the input dimension with a scale each. A product becomes `com.microsoft.MatMulNBits`, the
embedding table `com.microsoft.GatherBlockQuantized`; a head that is tied to the table reads the very same bytes.

int8 is symmetric around 128, the zero point that both operators assume. int4 has a zero point a block, by `gptq.py`
where that has rounded a weight, and leaves the embedding table, and with it a tied head, in int8: that is where four
bits cost most. ONNX Runtime's own quantizers keep a copy of a tied table for the head (SmolLM2: 28 MB more).

Suffixes: N outputs, K inputs, G blocks of a row.
"""

from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from ucotron_ray.export import layout
from ucotron_ray.export.gptq import Rounded
from ucotron_ray.models.runner import Floats

Bytes = NDArray[np.uint8]

DOMAIN = "com.microsoft"
SMALLEST_BLOCK = 16
"""Both operators take powers of two from 16 on."""

INT8_ACTIVATIONS = 4
"""`accuracy_level` of MatMulNBits: products in int8, the activations rounded per block as they come."""


@dataclass(frozen=True)
class Site:
    """A node that reads a weight, and how the weight is to be rounded."""

    node: int
    weight: str
    outputs_first: bool
    """Whether the weight lies as [N, K]; else it is [K, N]."""
    bits: int
    block: int


def quantize(
    source: Path, target: Path, *, bits: int, block: int, rounded: Mapping[str, Rounded] | None = None
) -> dict[str, float]:
    """Write the graph of `source` with weights of `bits` bits as `target`.

    `rounded` are weights that are in four bits already, in blocks of `block`, by their names; others then have eight.

    Returns:
        `bytes` of graph and weights, `rounded_share`: the share of the parameters that were rounded.
    """
    proto, weights = layout.read(source)
    sites = [_with_bits(site, rounded) for site in _sites(proto.graph, weights, bits=bits, block=block)]
    shapes = {site.weight: _outputs_first(weights[site.weight], site).shape for site in sites}
    for site in sites:
        proto.graph.node[site.node].CopyFrom(_node(proto.graph.node[site.node], site, shapes[site.weight]))
    _drop_unused(proto.graph, {site.weight for site in sites})
    proto.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    read = {name for node in proto.graph.node for name in node.input}
    with layout.writing(target, proto) as data:
        tensors = [data.add(tensor.name, weights[tensor.name]) for tensor in proto.graph.initializer]
        for site in {site.weight: site for site in sites}.values():
            ready = (rounded or {}).get(site.weight) if site.bits == 4 and site.block == block else None
            tensors += _packed(data, _outputs_first(weights[site.weight], site), site, read, ready)
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(tensors)
    every = sum(array.size for array in weights.values() if array.dtype == np.float32)
    packed = sum(weights[name].size for name in {site.weight for site in sites})
    return {"bytes": float(layout.size_of(target)), "rounded_share": packed / every}


def _sites(graph: onnx.GraphProto, weights: Mapping[str, layout.Array], *, bits: int, block: int) -> Iterator[Site]:
    matrices = {name for name, array in weights.items() if array.ndim == 2 and array.dtype == np.float32}
    tables = {node.input[0] for node in graph.node if node.op_type == "Gather"} & matrices
    turned = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Transpose" and node.input[0] in matrices
    }
    for index, node in enumerate(graph.node):
        if node.op_type == "Gather" and node.input[0] in tables:
            weight, outputs_first = node.input[0], True
        elif node.op_type == "MatMul" and node.input[1] in turned:
            weight, outputs_first = turned[node.input[1]], True
        elif node.op_type == "MatMul" and node.input[1] in matrices:
            weight, outputs_first = node.input[1], False
        else:
            continue
        num_inputs = weights[weight].shape[1 if outputs_first else 0]
        fitting = _block(num_inputs, block)
        if fitting is not None:
            yield Site(index, weight, outputs_first, 8 if weight in tables else bits, fitting)


def _with_bits(site: Site, rounded: Mapping[str, Rounded] | None) -> Site:
    return replace(site, bits=8) if rounded and site.weight not in rounded else site


def _block(num_inputs: int, wanted: int) -> int | None:
    """The largest block up to the wanted one that divides the inputs; None if the operators take none that does."""
    sizes = [size for size in (256, 128, 64, 32, SMALLEST_BLOCK) if size <= wanted and num_inputs % size == 0]
    return sizes[0] if sizes else None


def _outputs_first(weight: layout.Array, site: Site) -> layout.Array:
    return weight if site.outputs_first else weight.T


def _node(node: onnx.NodeProto, site: Site, shape: tuple[int, ...]) -> onnx.NodeProto:
    """What reads the packed weight instead."""
    common = {"name": node.name, "domain": DOMAIN, "bits": site.bits, "block_size": site.block}
    scales, outputs = f"{site.weight}_scales", list(node.output)
    if node.op_type == "Gather":
        inputs = [f"{site.weight}_rows", node.input[1], scales]
        return onnx.helper.make_node("GatherBlockQuantized", inputs, outputs, gather_axis=0, quantize_axis=1, **common)
    inputs = [node.input[0], f"{site.weight}_codes", scales, *([f"{site.weight}_zeros"] if site.bits == 4 else [])]
    return onnx.helper.make_node(
        "MatMulNBits", inputs, outputs, N=shape[0], K=shape[1], accuracy_level=INT8_ACTIVATIONS, **common
    )


def _drop_unused(graph: onnx.GraphProto, packed: set[str]) -> None:
    """Take out the turning of tied heads that nothing reads any more, and the float weights."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    nodes = [node for node in graph.node if not (node.op_type == "Transpose" and node.output[0] not in read)]
    del graph.node[:]
    graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in graph.initializer if tensor.name in read or tensor.name not in packed]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


def _packed(
    data: layout.DataFile, weight_NK: layout.Array, site: Site, read: AbstractSet[str], ready: Rounded | None
) -> list[onnx.TensorProto]:
    name, num_outputs = site.weight, len(weight_NK)
    blocks_NGB = np.ascontiguousarray(weight_NK).reshape(num_outputs, -1, site.block)
    zeros = None
    if ready is not None:
        codes, scales_NG, zeros = _pairs(ready.codes_NGb), ready.scales_NG, _pairs(_even(ready.zeros_NG))
    elif site.bits == 4:
        codes, scales_NG, zeros = quantize_int4(blocks_NGB)
    else:
        codes, scales_NG = quantize_int8(blocks_NGB)
    views = {f"{name}_codes": codes, f"{name}_rows": codes.reshape(num_outputs, -1)}
    wanted = [view for view in views if view in read]
    tensors = [data.add(wanted[0], views[wanted[0]])]
    tensors += [data.again(view, wanted[0], views[view]) for view in wanted[1:]]
    tensors += [data.add(f"{name}_zeros", zeros)] if zeros is not None else []
    return [*tensors, data.add(f"{name}_scales", scales_NG)]


def quantize_int8(blocks_NGB: Floats) -> tuple[Bytes, Floats]:
    """Codes and scales with weight = (code - 128) · scale."""
    scales_NG = np.abs(blocks_NGB).max(axis=2) / 127
    codes_NGB = np.round(blocks_NGB / _nonzero(scales_NG)[..., None]) + 128
    return codes_NGB.astype(np.uint8), scales_NG.astype(np.float32)


def quantize_int4(blocks_NGB: Floats) -> tuple[Bytes, Floats, Bytes]:
    """Codes (two a byte, the first in the low half), scales and zero points with weight = (code - zero) · scale."""
    low_NG = np.minimum(blocks_NGB.min(axis=2), 0)
    scales_NG = (np.maximum(blocks_NGB.max(axis=2), 0) - low_NG) / 15
    zeros_NG = np.clip(np.round(-low_NG / _nonzero(scales_NG)), 0, 15)
    codes_NGB = np.round(blocks_NGB / _nonzero(scales_NG)[..., None]) + zeros_NG[..., None]
    return _pairs(np.clip(codes_NGB, 0, 15)), scales_NG.astype(np.float32), _pairs(_even(zeros_NG))


def _even(zeros_NG: NDArray[Any]) -> NDArray[Any]:
    return np.pad(zeros_NG, ((0, 0), (0, zeros_NG.shape[1] % 2)))


def _pairs(values: NDArray[Any]) -> Bytes:
    codes = values.astype(np.uint8)
    paired: Bytes = np.bitwise_or(codes[..., 0::2], codes[..., 1::2] * np.uint8(16)).astype(np.uint8)
    return paired


def _nonzero(scales: Floats) -> Floats:
    return np.where(scales == 0, np.float32(1), scales)
