"""A STAND-IN for a Ucotron server, for tests and for trying things out. It is not the server and has no NER model.

It speaks the part of the REST interface that this project uses: export, generate-dataset, health and learn, with bearer
keys, namespaces and the server's error bodies. `learn` calls the configured endpoint with exactly the server's body
and keeps exactly what the server's parser would.
"""

import json
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from ucotron_ray.errors import ConfigError
from ucotron_ray.graph.export import read_file
from ucotron_ray.records import Entity, RawRow, Relation, edge_type, name_key
from ucotron_ray.wire import dataset_messages, parse_answer, server_request_body

STAND_IN = "simulate-ucotron: a stand-in of ucotron_ray, not a Ucotron server"
ENDPOINT_TIMEOUT_SECONDS = 30.0
"""The server's own limit for one call of the endpoint (`relations.rs:773`)."""

NER_CONFIDENCE = 0.9

_CAPITALISED = re.compile(r"\b[A-Z]\w+(?:\s+[A-Z]\w+)*")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Memory:
    """What the stand-in holds, per namespace; nodes and edges in the export's layout."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    edges: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Settings:
    """How the stand-in behaves. `keys` maps a bearer key to its role; empty = everybody is admin."""

    keys: dict[str, str] = field(default_factory=dict)
    endpoint: str | None = None
    endpoint_model: str = "ucotron-re"
    endpoint_key: str = "none"


_ROLES = ("viewer", "reader", "writer", "admin")


def serve(
    *, port: int, graph: Path | None, api_key_variable: str | None, endpoint: str | None, endpoint_model: str
) -> None:
    """Serve on loopback until stopped; prints one line when it is ready."""
    keys = {}
    if api_key_variable is not None:
        key = os.environ.get(api_key_variable)
        if not key:
            raise ConfigError(
                f"the environment variable {api_key_variable} is not set", next_step=f"export {api_key_variable}=..."
            )
        keys = {key: "admin"}
    application = make_app(Settings(keys=keys, endpoint=endpoint, endpoint_model=endpoint_model), graph)

    def ready(text: str) -> None:
        if "Running on" in text:
            print(f"{STAND_IN}; listening on http://127.0.0.1:{port}", flush=True)

    web.run_app(application, host="127.0.0.1", port=port, print=ready)


def make_app(settings: Settings, graph: Path | None = None) -> web.Application:
    """The application, with a graph in namespace `default`. Raises InputError if the file cannot be read."""
    memories: dict[str, Memory] = {}
    if graph is not None:
        read_file(graph)
        document = json.loads(graph.read_text(encoding="utf-8"))
        memories["default"] = Memory(document["nodes"], document["edges"])

    @web.middleware
    async def authorise(request: web.Request, handler: Handler) -> web.StreamResponse:
        if settings.keys and request.path != "/api/v1/health":
            header = str(request.headers.get("Authorization") or "")
            role = settings.keys.get(header.removeprefix("Bearer ")) if header.startswith("Bearer ") else None
            if not header:
                return _error(401, "UNAUTHORIZED", "Missing API key")
            if role is None:
                return _error(401, "INVALID_API_KEY", "Invalid API key")
            needed = _needed_role(request)
            if _ROLES.index(role) < _ROLES.index(needed):
                return _error(403, "FORBIDDEN", f"This endpoint requires the {needed} role")
        return await handler(request)

    def memory(request: web.Request) -> Memory:
        return memories.setdefault(request.headers.get("X-Ucotron-Namespace", "default"), Memory())

    async def health(_: web.Request) -> web.Response:
        strategy = "fireworks" if settings.endpoint else "co_occurrence"
        models = {"relation_strategy": strategy, "llm_loaded": False, "llm_model": "", "stand_in": STAND_IN}
        return web.json_response({"status": "ok", "models": models})

    async def export(request: web.Request) -> web.Response:
        namespace = str(request.query.get("namespace") or request.headers.get("X-Ucotron-Namespace") or "default")
        held = memories.get(namespace, Memory())
        return web.json_response(
            {
                "@context": {"ucotron": "https://ucotron.dev/schema/"},
                "@type": "ucotron:MemoryGraph",
                "version": "1.0",
                "namespace": namespace,
                "generated_by": STAND_IN,
                "nodes": held.nodes,
                "edges": held.edges,
                "communities": [],
                "stats": {"total_nodes": len(held.nodes), "total_edges": len(held.edges)},
            }
        )

    async def generate_dataset(request: web.Request) -> web.Response:
        try:
            body = await request.json()
        except ValueError:
            return _error(400, "BAD_REQUEST", "JSON body required")
        # As the server does: of all namespaces, whatever the header says.
        every = Memory(
            [node for held in memories.values() for node in held.nodes],
            [edge for held in memories.values() for edge in held.edges],
        )
        return web.json_response(_bare_name_dataset(every, body))

    async def learn(request: web.Request) -> web.Response:
        body = await request.json()
        text = str(body.get("output", ""))
        if not text.strip():
            return _error(400, "BAD_REQUEST", "output must not be empty")
        entities = [Entity.located(name, "concept", text) for name in dict.fromkeys(_CAPITALISED.findall(text))]
        relations = await _ask_endpoint(settings, text, entities) if len(entities) > 1 else []
        _remember(memory(request), RawRow(text=text, entities=entities, expected_relations=relations))
        return web.json_response(
            {"memories_created": 1, "entities_found": len(entities), "conflicts_found": 0}, status=201
        )

    application = web.Application(middlewares=[authorise], client_max_size=50 * 1024**2)
    application.router.add_get("/api/v1/health", health)
    application.router.add_get("/api/v1/export", export)
    application.router.add_post("/api/v1/finetune/generate-dataset", generate_dataset)
    application.router.add_post("/api/v1/learn", learn)
    return application


async def _ask_endpoint(settings: Settings, text: str, entities: list[Entity]) -> list[Relation]:
    """One call as the server makes it. On an error the server falls back to co-occurrence; the stand-in to nothing."""
    if settings.endpoint is None:
        return []
    headers = {"Authorization": f"Bearer {settings.endpoint_key}"}
    timeout = aiohttp.ClientTimeout(total=ENDPOINT_TIMEOUT_SECONDS)
    body = server_request_body(settings.endpoint_model, text, entities)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=headers) as session,
            # The endpoint is concatenated: a trailing slash in it would break the address, as it does on the server.
            session.post(f"{settings.endpoint}/chat/completions", json=body) as response,
        ):
            response.raise_for_status()
            answer = await response.json()
            content = answer["choices"][0]["message"].get("content") or "[]"
    except (aiohttp.ClientError, TimeoutError, KeyError, IndexError, ValueError):
        return []
    names = {name_key(entity.text): entity.text for entity in entities}
    return [
        relation.model_copy(
            update={"subject": names[name_key(relation.subject)], "object": names[name_key(relation.object)]}
        )
        for relation in parse_answer(content) or []
        if name_key(relation.subject) in names and name_key(relation.object) in names
    ]


def _remember(memory: Memory, row: RawRow) -> None:
    def node(kind: str, content: str, metadata: dict[str, Any]) -> str:
        identity = f"ucotron:node/{len(memory.nodes) + 1}"
        memory.nodes.append({"@id": identity, "@type": kind, "content": content, "timestamp": 0, "metadata": metadata})
        return identity

    chunk = node("Event", row.text, {"source": "learn"})
    number = int(chunk.rpartition("/")[2])
    ids = {entity.text: node("Entity", entity.text, {"entity_label": entity.label}) for entity in row.entities}
    for entity in row.entities:
        metadata: dict[str, Any] = {"entity_label": entity.label}
        memory.edges.append(
            {
                "source": chunk,
                "target": ids[entity.text],
                "edge_type": "RelatesTo",
                "weight": NER_CONFIDENCE,
                "metadata": metadata,
            }
        )
    for relation in row.expected_relations:
        memory.edges.append(
            {
                "source": ids[relation.subject],
                "target": ids[relation.object],
                "edge_type": edge_type(relation.predicate),
                "weight": relation.confidence,
                "metadata": {"predicate": relation.predicate, "source_chunk": number},
            }
        )


def _bare_name_dataset(memory: Memory, body: dict[str, Any]) -> dict[str, Any]:
    """What the server's generator gives: the entity's name as the text, `related_to` for nearly every predicate."""
    names = {node["@id"]: node["content"] for node in memory.nodes if node["@type"] == "Entity"}
    outgoing: dict[str, list[str]] = {}
    for edge in memory.edges:
        if edge["source"] in names and edge["target"] in names:
            outgoing.setdefault(edge["source"], []).append(edge["target"])
    samples: list[dict[str, Any]] = []
    for source, targets in outgoing.items():
        if len(targets) < int(body.get("min_relations", 1)) or len(samples) >= int(body.get("max_samples", 10_000)):
            continue
        text = names[source]
        entities = [Entity(text=name, label="entity") for name in dict.fromkeys([text, *(names[t] for t in targets)])]
        relations = [Relation(subject=text, predicate="related_to", object=names[t], confidence=0.9) for t in targets]
        samples.append({"messages": dataset_messages(text, entities, relations)})
    cut = round(len(samples) * float(body.get("train_ratio", 0.8)))
    return {
        "train_samples": samples[:cut],
        "validation_samples": samples[cut:],
        "total_entities": len(names),
        "total_edges": len(memory.edges),
        "skipped": len(names) - len(outgoing),
    }


def _needed_role(request: web.Request) -> str:
    if request.path.endswith("/generate-dataset"):
        return "admin"
    return "writer" if request.method == "POST" else "reader"


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"code": code, "message": message}, status=status)
