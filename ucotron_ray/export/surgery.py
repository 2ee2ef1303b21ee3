"""One change of an exported graph: logits for as many last tokens as the caller asks for, instead of for all.

A prompt of 500 tokens over SmolLM2's 49,152 words makes 98 MB of logits of which one row is read, and the head is a
fifth of the model's work. The input `num_logits` has a default, so that a caller that does not know it gets what it
got before: logits of every token.
"""

import numpy as np
import onnx

from ucotron_ray.core.errors import StageFailed
from ucotron_ray.models.runner import NUM_LOGITS

LOGITS = "logits"
_ALL = 2**63 - 1
_ELEMENTWISE = {"Mul", "Div", "Tanh"}


def add_num_logits(proto: onnx.ModelProto) -> None:
    """Cut the head's input to its last `num_logits` tokens. Raises StageFailed if the head is no product.

    Some families scale the head's output (Granite) or cap it (Gemma): such steps stay behind it.
    """
    graph = proto.graph
    makers = {output: node for node in graph.node for output in node.output}
    head = makers.get(LOGITS)
    while head is not None and head.op_type in _ELEMENTWISE:
        head = makers.get(head.input[0])
    if head is None or head.op_type != "MatMul":
        raise StageFailed(
            "the graph's logits are not made by one product",
            expected="MatMul → logits",
            found=head.op_type if head is not None else "no output named logits",
        )
    names = {"start": f"{NUM_LOGITS}_start", "end": f"{NUM_LOGITS}_end", "axis": f"{NUM_LOGITS}_axis"}
    last = f"{NUM_LOGITS}_hidden"
    added = [
        onnx.helper.make_node("Neg", [NUM_LOGITS], [names["start"]], name="num_logits/Neg"),
        onnx.helper.make_node(
            "Slice", [head.input[0], names["start"], names["end"], names["axis"]], [last], name="num_logits/Slice"
        ),
    ]
    head.input[0] = last
    at = list(graph.node).index(head)
    nodes = [*graph.node[:at], *added, *graph.node[at:]]
    del graph.node[:]
    graph.node.extend(nodes)
    for name, value in ((NUM_LOGITS, _ALL), (names["end"], _ALL), (names["axis"], 1)):
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([value], dtype=np.int64), name))
    # An initializer that is an input too is the input's default (ONNX IR 4 and later).
    graph.input.append(onnx.helper.make_tensor_value_info(NUM_LOGITS, onnx.TensorProto.INT64, [1]))
    output = next(value for value in graph.output if value.name == LOGITS)
    output.type.tensor_type.shape.dim[1].dim_param = "logits_length"
