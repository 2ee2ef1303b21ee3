"""import-graph against a server, over real HTTP on loopback; the server is the simulator."""

import asyncio
import json
import threading
from collections.abc import Iterator

import pytest
from aiohttp import web

from ucotron_ray import cli
from ucotron_ray.core.errors import ServerRefused
from ucotron_ray.data.records import Entity
from ucotron_ray.data.wire import server_request_body
from ucotron_ray.graph import export
from ucotron_ray.simulators import ucotron as simulator


class Server:
    """An aiohttp application on a free port of loopback, in a thread of its own."""

    def __init__(self, application: web.Application) -> None:
        self._loop = asyncio.new_event_loop()
        self._application = application
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.url = ""

    def __enter__(self) -> "Server":
        self._thread.start()
        assert self._ready.wait(20)
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = web.AppRunner(self._application)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()


KEYS = {"admin-key": "admin", "reader-key": "reader"}


@pytest.fixture
def server(demo_files) -> Iterator[Server]:
    with Server(simulator.make_app(simulator.Settings(keys=KEYS), demo_files[0])) as running:
        yield running


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict, str]:
    code = cli.main([*arguments, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]), err


def test_import_from_a_server_gives_the_same_rows_as_from_its_export_file(
    server, demo_files, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("UCOTRON_SERVER_URL", server.url)
    monkeypatch.setenv("UCOTRON_API_KEY", "reader-key")
    store = f"store={tmp_path}"
    assert run("import-graph", "--name", "live", "--set", store, capsys=capsys)[0] == 0
    assert run("import-graph", str(demo_files[0]), "--name", "file", "--set", store, capsys=capsys)[0] == 0
    for name in ("train.jsonl", "val.jsonl"):
        assert (tmp_path / "dataset/live" / name).read_bytes() == (tmp_path / "dataset/file" / name).read_bytes()


def test_a_namespace_holds_only_its_own_texts(server):
    graph = export.fetch(server.url, api_key="reader-key", namespace="elsewhere")
    assert graph.nodes == {}


@pytest.mark.parametrize(
    ("arguments", "key", "said"),
    [
        ([], None, "401 UNAUTHORIZED"),
        ([], "wrong", "401 INVALID_API_KEY"),
        (["--source", "generate-dataset"], "reader-key", "admin role"),
        (["--source", "generate-dataset", "--namespace", "team-a"], "admin-key", "--all-namespaces"),
    ],
)
def test_a_refusal_ends_with_exit_2_and_the_servers_words(server, tmp_path, monkeypatch, capsys, arguments, key, said):
    if key:
        monkeypatch.setenv("UCOTRON_API_KEY", key)
    code, result, err = run("import-graph", server.url, *arguments, "--set", f"store={tmp_path}", capsys=capsys)
    assert (code, result["status"]) == (2, "failed")
    assert said in err
    assert key is None or key not in err


def test_generate_dataset_is_taken_and_its_poverty_is_said(server, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setenv("UCOTRON_API_KEY", "admin-key")
    arguments = [
        "--source",
        "generate-dataset",
        "--namespace",
        "team-a",
        "--all-namespaces",
        "--set",
        f"store={tmp_path}",
    ]
    code, result, err = run("import-graph", server.url, *arguments, capsys=capsys)
    assert code == 0, err
    assert result["bare_name_texts"] == result["rows"] > 0
    assert "bare entity name" in caplog.text


def test_no_server_is_said_in_one_block(tmp_path, monkeypatch, capsys):
    code, _, err = run("import-graph", "http://127.0.0.1:9", "--set", f"store={tmp_path}", capsys=capsys)
    assert code == 2
    assert "cannot be reached" in err


def test_the_key_does_not_follow_a_redirect():
    received: list[str] = []

    async def elsewhere(request: web.Request) -> web.Response:
        received.append(request.headers.get("Authorization", ""))
        return web.json_response({"nodes": [], "edges": []})

    async def redirect(_: web.Request) -> web.Response:
        raise web.HTTPFound("/stolen")

    application = web.Application()
    application.router.add_get("/stolen", elsewhere)
    application.router.add_get("/api/v1/export", redirect)
    with Server(application) as running, pytest.raises(ServerRefused, match="302"):
        export.fetch(running.url, api_key="secret", namespace="default")
    assert received == []


def test_learn_asks_the_endpoint_as_the_server_does_and_keeps_what_its_parser_keeps():
    asked: list[dict] = []
    headers: list[str] = []

    async def endpoint(request: web.Request) -> web.Response:
        asked.append(await request.json())
        headers.append(request.headers["Authorization"])
        content = (
            'Here: [{"subject":"Ann Lee","predicate":"works_at","object":"Kite Labs","confidence":0.9},'
            '{"subject":"Ann Lee","predicate":"met","object":"Nobody"}]'
        )
        return web.json_response({"choices": [{"message": {"content": content}}]})

    model = web.Application()
    model.router.add_post("/v1/chat/completions", endpoint)
    text = "Ann Lee works at Kite Labs."
    with Server(model) as serving:
        settings = simulator.Settings(endpoint=f"{serving.url}/v1", endpoint_model="m", endpoint_key="k")
        with Server(simulator.make_app(settings)) as running:
            learned = export.call(
                running.url, "POST", "/api/v1/learn", api_key=None, namespace="n", body={"output": text}
            )
            graph = export.fetch(running.url, api_key=None, namespace="n")
            health = export.call(running.url, "GET", "/api/v1/health", api_key=None, namespace="n")
    entities = [Entity.located("Ann Lee", "concept", text), Entity.located("Kite Labs", "concept", text)]
    assert asked == [server_request_body("m", text, entities)]
    assert headers == ["Bearer k"]
    assert learned["entities_found"] == 2
    relations = [edge for edge in graph.edges if "predicate" in edge.metadata]
    assert [(edge.metadata["predicate"], edge.weight) for edge in relations] == [("works_at", 0.9)]
    assert "simulator" in health["models"]["stand_in"]


def test_an_answer_that_comes_in_pieces_is_read_to_its_end():
    document = json.dumps({"nodes": [], "edges": [], "filler": "x" * 200_000}).encode()

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for start in range(0, len(document), 20_000):
            await response.write(document[start : start + 20_000])
            # Let the piece go out alone.
            await asyncio.sleep(0.01)
        return response

    application = web.Application()
    application.router.add_get("/api/v1/export", slow)
    with Server(application) as server:
        assert export.fetch(server.url, api_key=None, namespace="default").nodes == {}
