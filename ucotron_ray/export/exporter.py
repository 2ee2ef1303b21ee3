"""A language model → one ONNX graph with a cache, with as many logits as a caller asks for.

transformers' own exporter traces the model's own code, so that a family which transformers can run needs nothing of its
own here. Its defaults are for any model; three things are set for ours (SmolLM2 135M, docs/exporters.md):

- the shapes that vary are said instead of searched for (`dynamic_shapes`);
- attention is `grouped_attention`: a step of eight rows takes half the time that it takes with `ort_fusions="cpu"`;
- the graph is tidied by six passes instead of onnxscript's rewriting (0.6 s against 20 s, the same speed afterwards).
"""

import gc
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from ucotron_ray.core.errors import InputError
from ucotron_ray.models import base as base_models
from ucotron_ray.models.runner import LONGEST_STEP, SLIDING_WINDOW
from ucotron_ray.models.served import GRAPHS

if TYPE_CHECKING:
    import onnx_ir
    from transformers import PreTrainedModel

GRAPH = GRAPHS["fp32"]

ATTENTION = "grouped"
"""The name of `grouped_attention` among transformers' ways to attend."""

_SAMPLES = ((2, 5, 3), (3, 7, 4))
"""Rows, past and new tokens of two example steps: what differs between them may vary in the graph."""

_DELTA_CHUNK = 64
"""Tokens of a chunk of the gated delta rule (`torch_chunk_gated_delta_rule` in transformers). The tracer unrolls the
loop over chunks, so that a graph reads one chunk at a time; for longer inputs it is wrong, and nothing says so."""

_CACHED = re.compile(r".*\.layers\.(?P<layer>\d+)\.(?P<kind>keys|values|conv_states|recurrent_states)(\.0)?")

_KINDS = {"keys": "key", "values": "value", "conv_states": "conv", "recurrent_states": "recurrent"}
"""The words of the graph's names for the tensors of a layer's cache, by transformers' words."""


def export(model: Path, directory: Path, *, opset: int) -> Path:
    """Write `model.onnx` and `model.onnx_data` as `layout.py` says, with the model's config; gives the graph.

    Raises InputError for a family that the exporter cannot trace with a cache. transformers patches torch while it
    traces and takes its patches back afterwards; whether the numbers are right is for `parity.py` to say.
    """
    from ucotron_ray.export import layout, surgery  # noqa: PLC0415 - onnx, in the task only

    loaded = load(model)
    traced = _traced(loaded, opset)
    directory.mkdir(parents=True, exist_ok=True)
    graph = directory / GRAPH
    _save(traced, graph)
    loaded.config.save_pretrained(directory)
    del loaded, traced
    # The tracer's objects hold each other, and with them every weight.
    gc.collect()
    proto, weights = layout.read(graph)
    surgery.add_num_logits(proto)
    weights |= {name: array for name, array in layout.read_inside(proto).items() if name not in weights}
    layout.write(graph, proto, weights)
    return graph


def load(model: Path) -> "PreTrainedModel":
    """The model in float32, attending in groups."""
    from transformers import AttentionInterface, AttentionMaskInterface  # noqa: PLC0415 - 2 s
    from transformers.masking_utils import eager_mask  # noqa: PLC0415

    AttentionInterface.register(ATTENTION, grouped_attention)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
    loaded = base_models.load_model(base_models.located(str(model)), "float32").eval()
    loaded.set_attn_implementation(ATTENTION)
    return loaded


def grouped_attention(
    module: torch.nn.Module,
    query_BHSD: torch.Tensor,
    key_BKTD: torch.Tensor,
    value_BKTD: torch.Tensor,
    mask_B1ST: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention whose keys and values are not copied for each query head: the heads of a group are rows of a product.

    Suffixes: B rows, H query heads, K key heads, S new tokens, T all tokens, D head dimension. Gives [B, S, H, D].
    """
    num_rows, num_heads, num_new, head_dim = query_BHSD.shape
    num_groups = num_heads // key_BKTD.shape[1]
    query = query_BHSD.reshape(num_rows, key_BKTD.shape[1], num_groups * num_new, head_dim)
    scores = torch.matmul(query, key_BKTD.transpose(2, 3)) * (head_dim**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask_B1ST is not None:
        scores = scores + mask_B1ST.repeat(1, 1, num_groups, 1)
    mixed = torch.matmul(torch.softmax(scores, dim=-1), value_BKTD)
    return mixed.reshape(num_rows, num_heads, num_new, -1).transpose(1, 2), None


def _traced(model: "PreTrainedModel", opset: int) -> "onnx_ir.Model":
    from transformers.exporters.exporter_dynamo import register_cache_pytrees_for_model  # noqa: PLC0415
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter  # noqa: PLC0415 - onnxscript, 2 s

    register_cache_pytrees_for_model(model)
    one, other = (_step(model, *sample) for sample in _SAMPLES)
    # The graph is tidied below, see above.
    config = OnnxConfig(dynamic_shapes=_varying(one, other), opset_version=opset, optimize=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            exported = OnnxExporter().export(model, one, config)
        except Exception as error:
            raise refusal(model.config.model_type, error) from error
    graph: onnx_ir.Model = exported.program
    _fix(graph, tree_leaves(one["cache"]))
    _turn(graph)
    _tidy(graph)
    _name(graph)
    window, kinds = getattr(model.config, "sliding_window", None), getattr(model.config, "layer_types", None)
    # Without kinds of layers (Mistral 7B) every layer has the window.
    if window and (kinds is None or "sliding_attention" in kinds):
        graph.metadata_props[SLIDING_WINDOW] = str(window)
    if "linear_attention" in (kinds or ()):
        graph.metadata_props[LONGEST_STEP] = str(_DELTA_CHUNK)
    return graph


def refusal(family: str, error: Exception) -> InputError:
    """What is said of a family that no graph can be made of."""
    return InputError(
        "this family cannot be exported to ONNX: the tracer refuses it",
        where=family,
        expected="a model whose step with a cache torch.export can trace",
        found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        next_step="train and serve it without a bundle: pipeline --skip-export, serve with the transformers backend",
    )


@torch.no_grad()
def _step(model: "PreTrainedModel", rows: int, past: int, new: int) -> dict[str, Any]:
    """The arguments of a step that goes on from a cache."""
    ids_BT = torch.zeros(rows, past + new, dtype=torch.long)
    cache = model(input_ids=ids_BT[:, :past], use_cache=True).cache
    positions_S = torch.arange(past, past + new)
    return {
        "input_ids": ids_BT[:, past:],
        "attention_mask": torch.ones_like(ids_BT),
        "position_ids": positions_S.expand(rows, new),
        "cache": cache,
    }


def _varying(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The dimensions that differ between two steps, as torch.export wants them said: a cache is a list of tensors."""
    return {name: _differing(one[name], other[name]) for name in one}


def _differing(one: Any, other: Any) -> Any:
    if isinstance(one, torch.Tensor):
        pairs = enumerate(zip(one.shape, other.shape, strict=True))
        return {axis: torch.export.Dim.DYNAMIC for axis, (left, right) in pairs if left != right}
    return [_differing(left, right) for left, right in zip(tree_leaves(one), tree_leaves(other), strict=True)]


def _fix(model: "onnx_ir.Model", cache: Sequence[torch.Tensor]) -> None:
    """Make constants of the cache's tensors without dimensions, such as the width of a sliding window."""
    import onnx_ir  # noqa: PLC0415

    graph = model.graph
    for value, tensor in zip(list(graph.inputs)[-len(cache) :], cache, strict=True):
        if tensor.ndim == 0:
            graph.inputs.remove(value)
            value.const_value = onnx_ir.tensor(tensor.numpy(), name=value.name)
            graph.register_initializer(value)
    for value in [output for output in graph.outputs if output.shape is not None and len(output.shape) == 0]:
        graph.outputs.remove(value)


def _turn(model: "onnx_ir.Model") -> None:
    """Turn the weights of products round once, under their own names; the folding below would give them numbers.

    A head that is the embedding table stays as it is: the table is read as it lies.
    """
    import onnx_ir  # noqa: PLC0415

    for node in list(model.graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or not weight.is_initializer() or weight.const_value is None or len(weight.uses()) > 1:
            continue
        tensor = weight.const_value
        if len(tensor.shape) == 2:
            node.outputs[0].replace_all_uses_with(weight)
            model.graph.remove(node, safe=True)
            # Turned when it is written, one at a time: turned now, every weight would lie in memory twice.
            weight.const_value = onnx_ir.LazyTensor(
                partial(_turned, tensor),
                dtype=tensor.dtype,
                shape=onnx_ir.Shape(reversed(list(tensor.shape))),
                name=weight.name,
            )
            weight.shape = weight.const_value.shape


def _turned(tensor: "onnx_ir.TensorProtocol") -> "onnx_ir.TensorProtocol":
    import onnx_ir  # noqa: PLC0415

    return onnx_ir.tensor(np.ascontiguousarray(tensor.numpy().T), name=tensor.name)


def _tidy(model: "onnx_ir.Model") -> None:
    """Fold constants, and keep one of equal computations: of SmolLM2's 7,525 nodes 1,800 are left."""
    import onnx_ir.passes.common as passes  # noqa: PLC0415
    import onnxscript.optimizer  # noqa: PLC0415

    passes.InlinePass()(model)
    onnxscript.optimizer.fold_constants(model)
    for tidying in (
        passes.IdentityEliminationPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(),
    ):
        tidying(model)


def _name(model: "onnx_ir.Model") -> None:
    """Give inputs and outputs the names that `runner.py` reads, which onnxruntime-genai has too."""
    for side, values in (("past_key_values", model.graph.inputs), ("present", model.graph.outputs)):
        for value in values:
            found = _CACHED.fullmatch(value.name or "")
            if found is not None:
                value.name = f"{side}.{found['layer']}.{_KINDS[found['kind']]}"


def _save(model: "onnx_ir.Model", graph: Path) -> None:
    import onnx_ir  # noqa: PLC0415

    onnx_ir.save(model, str(graph), external_data=f"{graph.name}_data")


def io_contract(graph: Path, config: Path, *, eos: Sequence[int]) -> dict[str, object]:
    """Names, types and shapes of the graph's inputs and outputs, its versions, and the numbers a caller needs.

    `eos`: what ends an answer, the tokenizer's own token first.
    """
    import onnx  # noqa: PLC0415
    import onnxruntime  # noqa: PLC0415

    settings = json.loads(config.read_text(encoding="utf-8"))
    proto = onnx.load(str(graph), load_external_data=False)
    options = onnxruntime.SessionOptions()
    # Below errors it says that an input with a default cannot be folded, which is what a default is for.
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])

    def entry(value: onnxruntime.NodeArg) -> dict[str, object]:
        return {"name": value.name, "type": value.type, "shape": list(value.shape)}

    return {
        "inputs": [entry(value) for value in session.get_inputs()],
        "optional_inputs": [entry(value) for value in session.get_overridable_initializers()],
        "outputs": [entry(value) for value in session.get_outputs()],
        "opset": {opset.domain or "ai.onnx": opset.version for opset in proto.opset_import},
        "ir_version": proto.ir_version,
        "num_layers": settings["num_hidden_layers"],
        "vocabulary": settings["vocab_size"],
        "eos_token_id": list(eos) if len(eos) > 1 else eos[0],
        "pad_token_id": settings["pad_token_id"],
        "first_step": "past_key_values.* have a third dimension of 0; attention_mask covers past and new tokens",
        "num_logits": "for how many last tokens of a step there are logits; if it is not given, for all",
    }
