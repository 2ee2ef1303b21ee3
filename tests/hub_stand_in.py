"""A STAND-IN for the Hugging Face hub on loopback: commits are directories, and branches can be moved. No real hub."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote


@dataclass
class HubStandIn:
    """What it holds of its one model, and what it was asked for. With a `token` the model is gated."""

    name: str
    commits: dict[str, Path]
    branches: dict[str, str]
    token: str | None = None
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def commit(self, revision: str) -> str | None:
        """The commit of a branch, a tag or a commit."""
        return self.branches.get(revision, revision if revision in self.commits else None)

    def answer(self, path: str, authorization: str | None) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers for a path."""
        if self.token and authorization != f"Bearer {self.token}":
            return 401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
        api, files = f"/api/models/{self.name}/revision/", f"/{self.name}/resolve/"
        if path.startswith(api):
            commit = self.commit(path.removeprefix(api))
            said = {"id": self.name, "sha": commit, "tags": [], "siblings": []}
            return (
                (200, json.dumps(said).encode(), {}) if commit else (404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            )
        revision, _, name = path.removeprefix(files).partition("/")
        commit = self.commit(revision) if path.startswith(files) else None
        if commit is None or not (self.commits[commit] / name).is_file():
            return 404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit or ""}
        body = (self.commits[commit] / name).read_bytes()
        return 200, body, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": commit}


@contextmanager
def standing_in(hub: HubStandIn) -> Iterator[HubStandIn]:
    """Answers for the time of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(self.path.partition("?")[0])
            hub.asked.append(f"{self.command} {path}")
            status, body, headers = hub.answer(path, self.headers.get("Authorization"))
            self.send_response(status)
            sent = {"Server-Is": "a stand-in for the hub", "Content-Length": str(len(body)), **headers}
            for name, value in sent.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
