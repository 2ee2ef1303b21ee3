"""YAML of users, read as plain values: no tags that make objects, no key twice, nothing that unfolds without end."""

from collections.abc import Hashable, Iterator
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode, SequenceNode

MAX_CHARACTERS = 1024**2
MAX_DEPTH = 40
MAX_VALUES = 100_000
"""With every alias unfolded. The longest recipe of ours has about 300."""

_MERGE = "tag:yaml.org,2002:merge"


KeyPath = tuple[str | int, ...]
"""The keys and indices that lead to a value."""


def read(text: str, *, max_characters: int = MAX_CHARACTERS, max_values: int = MAX_VALUES) -> Any:
    """The plain values of one document. Raises yaml.YAMLError with the line of what is wrong."""
    if len(text) > max_characters:
        raise yaml.YAMLError(f"longer than {max_characters} characters: this is no settings file")
    loader = _Strict(text, max_values)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def lines(text: str, *, max_values: int = MAX_VALUES) -> dict[KeyPath, int]:
    """The line, from 1, on which each key and each item of a document stands that `read` takes."""
    loader = _Strict(text, max_values)
    try:
        node = loader.get_single_node()
    finally:
        loader.dispose()
    return dict(_lines(node, ())) if node is not None else {}


def _lines(node: Node, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    if isinstance(node, MappingNode):
        parts = [(key.value, key, value) for key, value in node.value if isinstance(key, ScalarNode)]
    elif isinstance(node, SequenceNode):
        parts = [(index, value, value) for index, value in enumerate(node.value)]
    else:
        parts = []
    for name, mark, value in parts:
        yield (*path, name), mark.start_mark.line + 1
        yield from _lines(value, (*path, name))


class _Strict(yaml.SafeLoader):
    """The safe loader, with limits where it has none."""

    def __init__(self, text: str, max_values: int) -> None:
        super().__init__(text)
        self._max_values = max_values
        self._depth = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            mark = self.get_mark()
            raise ComposerError(None, None, f"nested deeper than {MAX_DEPTH}", mark)
        node: Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[Hashable] = set()
        for key, _ in node.value:
            if isinstance(key, ScalarNode) and key.tag != _MERGE:
                if key.value in seen:
                    raise ComposerError(None, None, f"the key `{key.value}` stands here twice", key.start_mark)
                seen.add(key.value)
        self._weigh(node, [part for pair in node.value for part in pair])
        return node

    def compose_sequence_node(self, anchor: Any) -> SequenceNode:
        node = super().compose_sequence_node(anchor)
        self._weigh(node, node.value)
        return node

    def _weigh(self, node: CollectionNode, parts: list[Node]) -> None:
        """Count what the node unfolds to. A part that has no count yet is one that we are still inside of."""
        if any(isinstance(part, CollectionNode) and id(part) not in self._sizes for part in parts):
            raise ComposerError(None, None, "an alias of what it stands in", node.start_mark)
        self._sizes[id(node)] = 1 + sum(self._sizes.get(id(part), 1) for part in parts)
        if self._sizes[id(node)] > self._max_values:
            raise ComposerError(
                None, None, f"its aliases unfold to more than {self._max_values} values", node.start_mark
            )
