"""A Ucotron knowledge graph, from an export file or from a live server (`GET /api/v1/export`).

The export is the only interface that has true edge types, predicates, entity labels and source chunks.
"""

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import aiohttp

from ucotron_ray.core.errors import InputError, ServerRefused
from ucotron_ray.data import encodings

TIMEOUT_SECONDS = 120.0
MAX_BYTES = 2 * 1024**3
"""A longer answer than this is refused; the export is one document and is held in memory."""

_NODE_PREFIX = "ucotron:node/"


@dataclass(frozen=True)
class Node:
    """A node: an `Event` is a chunk of text, an `Entity` a name."""

    number: int
    kind: str
    content: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Edge:
    """A directed edge. `metadata` has `predicate` and `source_chunk`, or `entity_label`."""

    source: int
    target: int
    kind: str
    weight: float
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class KnowledgeGraph:
    """Nodes by number, edges in the order of the export."""

    nodes: dict[int, Node]
    edges: list[Edge]
    namespace: str | None


def is_server(source: str) -> bool:
    """Whether a source is a URL rather than a file."""
    return source.startswith(("http://", "https://"))


def read_file(path: Path) -> KnowledgeGraph:
    """A graph from a file in the export's layout. Raises InputError that says what is wrong and where."""
    try:
        with encodings.opened(path) as file:
            document = json.loads(file.read())
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(
            "the graph export is no JSON document",
            where=str(path),
            expected='a document with "nodes" and "edges", as `GET /api/v1/export` prints it',
            found=str(error),
        ) from error
    return parse(document, where=str(path))


def fetch(url: str, *, api_key: str | None, namespace: str) -> KnowledgeGraph:
    """A graph from a live server. Raises ServerRefused with the server's own message."""
    params = {"namespace": namespace, "format": "jsonld", "include_embeddings": "false"}
    document = call(url, "GET", "/api/v1/export", api_key=api_key, namespace=namespace, params=params)
    return parse(document, where=f"{url}/api/v1/export")


def call(
    url: str,
    method: str,
    path: str,
    *,
    api_key: str | None,
    namespace: str,
    params: Mapping[str, str] | None = None,
    body: Mapping[str, Any] | None = None,
) -> Any:
    """One request to a Ucotron server and its JSON answer. The key goes into the header and nowhere else."""
    import aiohttp  # noqa: PLC0415 - 0.1 s, and who reads a file asks nobody

    headers = {"X-Ucotron-Namespace": namespace}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"

    async def request() -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS, connect=10.0)
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            # A redirect would carry the key to a host that nobody named.
            session.request(
                method, url.rstrip("/") + path, params=params, json=body, allow_redirects=False
            ) as response,
        ):
            return response.status, await _whole_body(response, url + path)

    try:
        status, raw = asyncio.run(request())
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise ServerRefused(
            "the Ucotron server cannot be reached",
            where=url + path,
            found=f"{type(error).__name__}: {error}",
            next_step="start it, or name it with UCOTRON_SERVER_URL or as SOURCE",
        ) from error
    if status >= 300:
        raise _refused(url + path, status, raw)
    try:
        return json.loads(raw)
    except ValueError as error:
        raise ServerRefused(
            "the server's answer is no JSON", where=url + path, found=raw[:120].decode("utf-8", "replace")
        ) from error


async def _whole_body(response: "aiohttp.ClientResponse", where: str) -> bytes:
    """The body to its end: `content.read(n)` gives what has arrived. Raises ServerRefused for one without end."""
    parts: list[bytes] = []
    size = 0
    async for part in response.content.iter_chunked(1024 * 1024):
        parts.append(part)
        size += len(part)
        if size > MAX_BYTES:
            raise ServerRefused("the server's answer is too large", where=where, expected=f"at most {MAX_BYTES} bytes")
    return b"".join(parts)


def parse(document: object, *, where: str) -> KnowledgeGraph:
    """An export document as a graph. Raises InputError that names the first entry that does not fit."""
    if not isinstance(document, dict) or not isinstance(document.get("nodes"), list):
        found = ", ".join(list(document)[:8]) if isinstance(document, dict) else type(document).__name__
        raise InputError(
            "this is no Ucotron graph export",
            where=where,
            expected='an object with the lists "nodes" and "edges"',
            found=found or "an empty object",
        )
    position = ""
    try:
        nodes = {}
        for index, entry in enumerate(document["nodes"]):
            position = f"nodes[{index}]"
            content = "" if entry["content"] is None else str(entry["content"])
            node = Node(_number(entry["@id"]), str(entry["@type"]), content, _metadata(entry))
            nodes[node.number] = node
        edges = []
        for index, entry in enumerate(document.get("edges") or []):
            position = f"edges[{index}]"
            source, target = _number(entry["source"]), _number(entry["target"])
            edges.append(Edge(source, target, str(entry["edge_type"]), _weight(entry.get("weight")), _metadata(entry)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            "an entry of the graph export does not fit",
            where=f"{where}, {position}",
            expected='nodes with "@id", "@type", "content"; edges with "source", "target", "edge_type", "weight"',
            found=f"{type(error).__name__}: {error}",
        ) from error
    namespace = document.get("namespace")
    return KnowledgeGraph(nodes, edges, namespace if isinstance(namespace, str) else None)


def node_number(reference: object) -> int | None:
    """The number of a node by a reference to it, as a number, a text or an address; None for anything else."""
    try:
        return _number(reference)
    except (ValueError, TypeError):
        return None


def _number(reference: object) -> int:
    if isinstance(reference, float) and reference.is_integer():
        return int(reference)
    if isinstance(reference, bool) or not isinstance(reference, (int, str)):
        raise TypeError(f"{reference!r} is no number of a node")
    return int(reference.strip().removeprefix(_NODE_PREFIX)) if isinstance(reference, str) else reference


def _weight(value: Any) -> float:
    """A weight, 1.0 where there is none. Raises ValueError for one that is no finite number."""
    weight = 1.0 if value is None else float(value)
    if not math.isfinite(weight):
        raise ValueError(f"weight: {weight} is no finite number")
    return weight


def _metadata(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What is noted of a node or an edge; null is as if it were not there."""
    return {key: value for key, value in (entry.get("metadata") or {}).items() if value is not None}


def _refused(where: str, status: int, raw: bytes) -> ServerRefused:
    try:
        body = json.loads(raw)
        found = f"HTTP {status} {body['code']}: {body['message']}"
    except (ValueError, KeyError, TypeError):
        found = f"HTTP {status}: {raw[:120].decode('utf-8', 'replace')}"
    hints = {
        401: "set UCOTRON_API_KEY to a key of this server",
        403: "use a key with the admin role for generate-dataset (reader for export), or with access to this namespace",
        404: "check the address: the server's API begins with /api/v1",
    }
    return ServerRefused(
        "the Ucotron server refused the request",
        where=where,
        found=found,
        next_step=hints.get(status, "look into the server's log"),
    )
