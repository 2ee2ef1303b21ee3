"""How a graph and its weights lie on disk, whatever the model's size and head: `NAME.onnx` beside `NAME.onnx_data`.

Every initializer of 1 KiB or more is in the data file, at a multiple of 4,096 bytes (a page, so that a runtime can map
it), in the order of the graph; the others are in the graph. Two initializers may name the same bytes. Weights are read
as memory maps and written one by one, so that a model need not fit into memory twice.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray

Array = NDArray[Any]

PAGE, MIN_BYTES = 4096, 1024


def data_file(graph: Path) -> Path:
    """The file with a graph's weights."""
    return graph.with_name(f"{graph.name}_data")


def size_of(graph: Path) -> int:
    """Bytes of a graph and its weights."""
    return graph.stat().st_size + data_file(graph).stat().st_size


def read(graph: Path) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A graph, and its weights by name: memory maps of those that lie outside of it."""
    proto = onnx.load(str(graph), load_external_data=False)
    _bring_in(proto.graph, graph.parent)
    outside = {tensor.name: _mapped(tensor, graph.parent) for tensor in proto.graph.initializer if _is_outside(tensor)}
    return proto, {**read_inside(proto), **outside}


def read_inside(proto: onnx.ModelProto) -> dict[str, Array]:
    """The weights that lie in the graph itself."""
    inside = [tensor for tensor in proto.graph.initializer if not _is_outside(tensor)]
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in inside}


def _bring_in(graph: onnx.GraphProto, directory: Path) -> None:
    """Put constants of nodes into the graph: onnx can write those outside too, and only initializers are moved."""
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.HasField("t") and _is_outside(attribute.t):
            array = np.array(_mapped(attribute.t, directory))
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(array, attribute.t.name))
        if attribute.HasField("g"):
            _bring_in(attribute.g, directory)


def _is_outside(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _mapped(tensor: onnx.TensorProto, directory: Path) -> Array:
    where = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    shape = tuple(tensor.dims)
    return np.memmap(
        directory / where["location"], dtype=dtype, mode="r", offset=int(where.get("offset", 0)), shape=shape
    )


class DataFile:
    """Weights on their way to disk; `add` gives what stands for them in the graph."""

    def __init__(self, file: BinaryIO, location: str) -> None:
        self._file = file
        self._location = location
        self._places: dict[str, tuple[int, int]] = {}

    def add(self, name: str, array: Array) -> onnx.TensorProto:
        """Write an array, or put a small one into the tensor itself."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        if array.nbytes < MIN_BYTES:
            tensor: onnx.TensorProto = onnx.numpy_helper.from_array(array, name)
            return tensor
        offset = -(-self._file.tell() // PAGE) * PAGE
        self._file.write(b"\0" * (offset - self._file.tell()))
        self._file.write(array.data)
        self._places[name] = (offset, array.nbytes)
        return self._tensor(name, name, array.dtype, array.shape)

    def again(self, name: str, of: str, array: Array) -> onnx.TensorProto:
        """Another view of bytes that were written as `of`; a small array stands for itself."""
        if of not in self._places:
            return self.add(name, array)
        return self._tensor(name, of, array.dtype, array.shape)

    def _tensor(self, name: str, of: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> onnx.TensorProto:
        offset, length = self._places[of]
        tensor = onnx.TensorProto(
            name=name,
            data_type=onnx.helper.np_dtype_to_tensor_dtype(dtype),
            dims=shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for key, value in (("location", self._location), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        return tensor


@contextmanager
def writing(graph: Path, proto: onnx.ModelProto) -> Iterator[DataFile]:
    """In the block give `proto` its initializers; at its end graph and weights replace what stood there."""
    new_graph, new_data = graph.with_name(f"{graph.name}.new"), data_file(graph).with_name(f"{graph.name}_data.new")
    with new_data.open("wb") as file:
        yield DataFile(file, data_file(graph).name)
    new_graph.write_bytes(proto.SerializeToString())
    new_data.replace(data_file(graph))
    new_graph.replace(graph)


def write(graph: Path, proto: onnx.ModelProto, weights: Mapping[str, Array]) -> None:
    """Write a graph with these weights, those of its initializers that it has."""
    with writing(graph, proto) as data:
        tensors = [data.add(tensor.name, weights[tensor.name]) for tensor in proto.graph.initializer]
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(tensors)
