"""How large a bundle becomes and what memory making it takes, from the model's sizes alone: nothing is loaded."""

from dataclasses import asdict, dataclass

from ucotron_ray.core.errors import ResourceError
from ucotron_ray.core.recipe import Export
from ucotron_ray.models.shape import Shape

GB = 1e9

COPIES = 4.0
"""How often the float32 weights lie in memory at the worst moment: the model, the traced graph, and the weights turned
round for it. An upper bound of what was seen, see `peak_bytes` in a bundle's figures."""

LIBRARIES = 1.5 * GB
"""torch, transformers and ONNX Runtime, and the logits of the longest comparison."""

SCALE = 4
"""Bytes of a block's scale."""

_GGUF_BYTES = {"f16": 2.0, "q8_0": 34 / 32, "q4_k_m": 4.9 / 8}
"""A weight's. A block of Q8_0 is 32 weights and a half float; Q4_K_M is 4.9 bits on average where rows are multiples of
256, and up to 5.9 where they are not."""


@dataclass(frozen=True)
class Plan:
    """Bytes, all of them. A weight of the float32 graph has four."""

    parameters: int
    tied: bool
    files: dict[str, float]
    """Of the merged model, each graph and each GGUF file."""
    memory: float
    disk: float

    def as_dict(self) -> dict[str, object]:
        """For printing."""
        return asdict(self)


def plan(shape: Shape, settings: Export) -> Plan:
    """What exporting a model of this shape takes."""
    weights = 4.0 * shape.total
    files = {"merged model": weights, "onnx fp32": weights}
    table = shape.head
    # An untied model's table is a lookup only: it is rounded to eight bits like a tied one.
    rest = shape.body + (0 if shape.tied else shape.head)
    for variant in settings.variants:
        bits = int(variant.removeprefix("int"))
        per_weight = bits / 8 + SCALE / settings.block + (0.5 / settings.block if bits == 4 else 0.0)
        files[f"onnx {variant}"] = rest * per_weight + table * (1 + SCALE / settings.block)
    for kind in settings.gguf:
        files[f"gguf {kind}"] = shape.total * _GGUF_BYTES[kind]
    return Plan(shape.total, shape.tied, files, COPIES * weights + LIBRARIES, sum(files.values()))


def check_memory(needed: Plan | None, available: float | None) -> None:
    """Raise ResourceError where it could only end in the kernel's killer. Unknown sizes are let through."""
    if needed is None or available is None or needed.memory <= available:
        return
    raise ResourceError(
        "no node has the memory to export this model",
        where="workers.memory_gb",
        expected=f"{needed.memory / GB:.1f} GB on one node: {needed.parameters / 1e9:.2f} billion parameters in "
        f"float32, {COPIES:g} times while they are traced",
        found=f"{available / GB:.1f} GB",
        next_step="join a node with more memory, or serve the adapter with the transformers backend",
    )


def described(made: Plan) -> list[str]:
    """The plan in lines for a person."""
    lines = [f"parameters  {made.parameters / 1e6:,.0f} million, {'tied' if made.tied else 'untied'} head"]
    lines += [f"{name:<12}{size / GB:.2f} GB" for name, size in made.files.items()]
    lines.append(f"memory      {made.memory / GB:.1f} GB on one node, disk {made.disk / GB:.1f} GB")
    return [*lines, "layout      weights of every graph in NAME.onnx_data beside it, whatever the size"]
