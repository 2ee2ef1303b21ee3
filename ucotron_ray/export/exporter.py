"""A merged model → ONNX with KV cache, with as many logits as a caller asks for."""

import json
import os
from pathlib import Path

from ucotron_ray.models.served import GRAPHS

GRAPH = GRAPHS["fp32"]


def export(model: Path, directory: Path, *, opset: int) -> Path:
    """Write `model.onnx` and `model.onnx_data` as `layout.py` says, with the tokenizer beside them; gives the graph.

    optimum patches torch and transformers globally while it traces: call this once in a process of its own. Its own
    check of the numbers only warns, so it is switched off; `parity.py` is the gate.
    """
    # One layout whatever the size; without it graphs under 2 GB carry their weights inside.
    os.environ["FORCE_ONNX_EXTERNAL_DATA"] = "1"
    from optimum.exporters.onnx import main_export  # noqa: PLC0415 - it reads the variable, and takes 3 s

    main_export(
        str(model),
        output=str(directory),
        task="text-generation-with-past",
        opset=opset,
        device="cpu",
        dtype="fp32",
        do_validation=False,
        local_files_only=True,
        trust_remote_code=False,
    )
    from ucotron_ray.export import layout, surgery  # noqa: PLC0415 - onnx, in the task only

    graph = directory / GRAPH
    proto, weights = layout.read(graph)
    surgery.add_num_logits(proto)
    weights |= {name: array for name, array in layout.read_inside(proto).items() if name not in weights}
    layout.write(graph, proto, weights)
    return graph


def io_contract(graph: Path, config: Path, *, eos: int) -> dict[str, object]:
    """Names, types and shapes of the graph's inputs and outputs, its versions, and the numbers a caller needs."""
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
        "eos_token_id": eos,
        "pad_token_id": settings["pad_token_id"],
        "first_step": "past_key_values.* have a third dimension of 0; attention_mask covers past and new tokens",
        "num_logits": "for how many last tokens of a step there are logits; if it is not given, for all",
    }
