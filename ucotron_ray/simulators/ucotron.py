"""A SIMULATOR of a Ucotron server, for tests and for trying things out. It is not the server and has no NER model.

It speaks the part of the REST interface that this project uses: export, generate-dataset, health and learn, with bearer
keys, namespaces and the server's error bodies. It chooses its strategy by the `[models]` keys of a `ucotron.toml` as
the server does: `learn` calls the endpoint with exactly the server's body and keeps exactly what the server's parser
would, or guesses by co-occurrence. A GGUF file it only looks for: it has no llama.cpp, so co-occurrence answers while
health says `llm`, as on a server that could not load the file (reference/ucotron.md §1.1).
"""

import json
import logging
import os
import re
import tomllib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from ucotron_ray.core.errors import ConfigError
from ucotron_ray.data.records import Entity, RawRow, Relation, edge_type
from ucotron_ray.data.wire import dataset_messages, parse_answer, server_request_body
from ucotron_ray.graph import cooccurrence
from ucotron_ray.graph.export import read_file

STAND_IN = "simulate-ucotron: a simulator of ucotron_ray, not a Ucotron server"
ENDPOINT_TIMEOUT_SECONDS = 30.0
"""The server's own limit for one call of the endpoint (`relations.rs:773`)."""

NER_CONFIDENCE = cooccurrence.NER_CONFIDENCE
CHUNK_CHARACTERS = 512
"""`ingestion.chunk_size`: sentences are grouped up to so many characters."""

NO_MODEL = ("", "none", "co-occurrence", "cooccurrence")
"""Values of `llm_model` that mean none, in any case."""

log = logging.getLogger(__name__)

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_CAPITALISED = re.compile(r"\b[A-Z]\w+(?:\s+[A-Z]\w+)*")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Memory:
    """What the simulator holds, per namespace; nodes and edges in the export's layout."""

    nodes: list[dict[str, Any]] = field(default_factory=list)
    edges: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Settings:
    """How the simulator behaves. `keys` maps a bearer key to its role; empty = everybody is admin."""

    keys: dict[str, str] = field(default_factory=dict)
    endpoint: str | None = None
    endpoint_model: str = "ucotron-re"
    endpoint_key: str = "none"
    llm_model: str = ""
    models_dir: Path = Path("models")

    @property
    def strategy(self) -> str:
        """`fireworks`, `llm` or `co_occurrence`, decided as the server decides it (`relations.rs:907-968`)."""
        if self.endpoint and self.endpoint_model and self.endpoint_key:
            return "fireworks"
        directory = self.models_dir / self.llm_model
        has_model = self.llm_model.lower() not in NO_MODEL and directory.is_dir() and any(directory.glob("*.gguf"))
        return "llm" if has_model else "co_occurrence"


_ROLES = ("viewer", "reader", "writer", "admin")


def settings_of(config: Path) -> Settings:
    """What a `ucotron.toml` makes of the server. Unknown keys are ignored without a word, as there.

    Raises ConfigError for a file that is no TOML.
    """
    try:
        models = tomllib.loads(config.read_text(encoding="utf-8")).get("models", {})
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError("the server's configuration cannot be read", where=str(config), found=str(error)) from error
    variable = str(models.get("fine_tuned_re_api_key_env", "FIREWORKS_API_KEY"))
    model, key = str(models.get("fine_tuned_re_model", "")), os.environ.get(variable, "")
    if model and not key:
        log.warning("simulate-ucotron: %s is not set, so the endpoint is not used, as on the server", variable)
    return Settings(
        endpoint=str(models.get("fine_tuned_re_endpoint", "https://api.fireworks.ai/inference/v1")),
        endpoint_model=model,
        endpoint_key=key,
        llm_model=str(models.get("llm_model", "Qwen3-4B-GGUF")),
        models_dir=Path(models.get("models_dir", "models")),
    )


def serve(
    *,
    port: int,
    graph: Path | None,
    api_key_variable: str | None,
    endpoint: str | None,
    endpoint_model: str,
    config: Path | None = None,
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
    settings = settings_of(config) if config else Settings(endpoint=endpoint, endpoint_model=endpoint_model)
    application = make_app(replace(settings, keys=keys), graph)

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
        # The server's `llm_loaded` is no more than this either (`handlers/mod.rs:115`).
        strategy = settings.strategy
        models = {"relation_strategy": strategy, "llm_loaded": strategy == "llm", "llm_model": settings.llm_model}
        return web.json_response({"status": "ok", "models": {**models, "stand_in": STAND_IN}})

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
        rows = [await _extracted(settings, chunk) for chunk in _chunks(text)]
        _remember(memory(request), rows)
        found = {entity.text for row in rows for entity in row.entities}
        return web.json_response(
            {"memories_created": len(rows), "entities_found": len(found), "conflicts_found": 0}, status=201
        )

    application = web.Application(middlewares=[authorise], client_max_size=50 * 1024**2)
    application.router.add_get("/api/v1/health", health)
    application.router.add_get("/api/v1/export", export)
    application.router.add_post("/api/v1/finetune/generate-dataset", generate_dataset)
    application.router.add_post("/api/v1/learn", learn)
    return application


def _chunks(text: str) -> list[str]:
    """Sentences, grouped up to the server's chunk size."""
    chunks: list[str] = []
    for sentence in _SENTENCE_END.split(text.strip()):
        if chunks and len(chunks[-1]) + 1 + len(sentence) <= CHUNK_CHARACTERS:
            chunks[-1] += f" {sentence}"
        else:
            chunks.append(sentence)
    return chunks


async def _extracted(settings: Settings, text: str) -> RawRow:
    """A chunk with what stands for NER, and its relations by the strategy; fewer than two names have none."""
    entities = [Entity.located(name, "concept", text) for name in dict.fromkeys(_CAPITALISED.findall(text))]
    relations: list[Relation] | None = []
    if len(entities) > 1:
        relations = await _ask_endpoint(settings, text, entities) if settings.strategy == "fireworks" else None
        if relations is None:
            relations = cooccurrence.relations(text, entities)
    return RawRow(text=text, entities=entities, expected_relations=relations or [])


async def _ask_endpoint(settings: Settings, text: str, entities: list[Entity]) -> list[Relation] | None:
    """One call as the server makes it: no retry. None on an error, after which the server guesses by co-occurrence."""
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
            answer = json.loads(await response.read())
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        log.warning("simulate-ucotron: the endpoint failed (%s); co-occurrence answers", type(error).__name__)
        return None
    return parse_answer(_content(answer)) or []


def _content(answer: Any) -> str:
    """`choices[0].message.content`; `[]` where there is none."""
    try:
        content = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return "[]"
    return content if isinstance(content, str) else "[]"


def _remember(memory: Memory, rows: list[RawRow]) -> None:
    """The nodes and edges of one ingest call. A relation stays if both its names are names of this call."""

    def node(kind: str, content: str, metadata: dict[str, Any]) -> str:
        identity = f"ucotron:node/{len(memory.nodes) + 1}"
        memory.nodes.append({"@id": identity, "@type": kind, "content": content, "timestamp": 0, "metadata": metadata})
        return identity

    chunks = [node("Event", row.text, {"source": "learn"}) for row in rows]
    ids: dict[str, str] = {}
    for chunk, row in zip(chunks, rows, strict=True):
        for entity in row.entities:
            key = _key(entity.text)
            if key not in ids:
                ids[key] = node("Entity", entity.text, {"entity_label": entity.label})
            metadata: dict[str, Any] = {"entity_label": entity.label}
            memory.edges.append(_edge(chunk, ids[key], "RelatesTo", NER_CONFIDENCE, metadata))
    # Source, target and type are the server's key of an edge: a second one takes the first one's place.
    kept: dict[tuple[str, str, str], dict[str, Any]] = {}
    for chunk, row in zip(chunks, rows, strict=True):
        number = int(chunk.rpartition("/")[2])
        for relation in row.expected_relations:
            subject, object_ = ids.get(_key(relation.subject)), ids.get(_key(relation.object))
            if subject is None or object_ is None:
                continue
            metadata = {"predicate": relation.predicate, "source_chunk": number}
            kind = edge_type(relation.predicate)
            kept[subject, object_, kind] = _edge(subject, object_, kind, relation.confidence, metadata)
    memory.edges += kept.values()


def _edge(source: str, target: str, kind: str, weight: float, metadata: dict[str, Any]) -> dict[str, Any]:
    return {"source": source, "target": target, "edge_type": kind, "weight": weight, "metadata": metadata}


def _key(name: str) -> str:
    """How the server compares a relation's names with those of NER."""
    return name.strip().lower()


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
