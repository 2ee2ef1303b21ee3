"""A running `ucotron-ray serve`, and clients that ask it as the Ucotron server does. One process makes all the load."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from ucotron_ray.data.records import RawRow
from ucotron_ray.data.wire import server_request_body

ROOT = Path(__file__).parents[1]
READY_SECONDS = 180
REPLICA = "ray::ServeReplica:ucotron:model"


class Service:
    """A serving process. Its two streams are read as they come, so that it never waits for us."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.command = command
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)
        self.url = ""
        self.log: list[str] = []
        """Its lines on stderr so far."""
        self._out: list[str] = []
        self._changed = threading.Event()
        streams = ((self.process.stdout, self._out), (self.process.stderr, self.log))
        self._readers = [threading.Thread(target=self._read, args=stream, daemon=True) for stream in streams]
        for reader in self._readers:
            reader.start()

    def ready(self) -> None:
        """Wait for its first line, which has the address."""
        deadline = time.monotonic() + READY_SECONDS
        while not self._out and self.process.poll() is None and time.monotonic() < deadline:
            self._changed.wait(0.5)
            self._changed.clear()
        match = re.search(r" on (http://\S+)", self._out[0] if self._out else "")
        assert match, "".join(self.log)[-3000:]
        self.url = match[1]

    def stop(self, number: int = signal.SIGTERM, timeout: float = 120) -> tuple[int, dict[str, Any]]:
        """Ask it to stop; its exit code and the JSON object of its last line."""
        self.process.send_signal(number)
        code = self.process.wait(timeout)
        return code, self.result()

    def result(self) -> dict[str, Any]:
        """The JSON object of its last line, once it has ended."""
        for reader in self._readers:
            reader.join(30)
        return dict(json.loads(self._out[-1]))

    def replicas(self) -> list[psutil.Process]:
        """The replicas of the model on this machine, whoever started their cluster."""
        return [entry for entry in psutil.process_iter(["cmdline"]) if _is_replica(entry.info["cmdline"])]

    def _read(self, stream: Iterable[str], lines: list[str]) -> None:
        for line in stream:
            lines.append(line)
            self._changed.set()


def _is_replica(command_line: list[str] | None) -> bool:
    return " ".join(command_line or []).startswith(REPLICA)


@contextmanager
def serving(*arguments: str, environment: dict[str, str] | None = None, port: int) -> Iterator[Service]:
    """`ucotron-ray serve` from its first line on; stopped at the end if the block did not."""
    command = [sys.executable, "-m", "ucotron_ray", "serve", *arguments, "--port", str(port), "--json"]
    settings = {**(environment or os.environ), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    service = Service(command, settings)
    try:
        service.ready()
        yield service
    finally:
        if service.process.poll() is None:
            service.process.terminate()
            try:
                service.process.wait(60)
            except subprocess.TimeoutExpired:
                service.process.kill()


@dataclass(frozen=True)
class Asked:
    """One request and what came back."""

    number: int
    began: float
    seconds: float
    status: int
    """0 = the connection broke."""
    retry_after: str | None
    code: str | None
    model: str | None
    text: str
    tokens: int


class Load:
    """Clients that ask one request after the other until they are told to stop. Each sends the next row in turn."""

    def __init__(self, url: str, rows: Sequence[RawRow], *, model: str = "ucotron-re", key: str = "any") -> None:
        self._url = url
        self._rows = rows
        self._model = model
        self._key = key
        self._next = 0
        self._stop = asyncio.Event()
        self.asked: list[Asked] = []

    @asynccontextmanager
    async def running(self, clients: int) -> AsyncIterator["Load"]:
        """In the block the clients ask; at its end all have their last answer."""
        headers = {"Authorization": f"Bearer {self._key}"}
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            tasks = [asyncio.create_task(self._client(session)) for _ in range(clients)]
            try:
                yield self
            finally:
                self._stop.set()
                await asyncio.gather(*tasks)

    async def answered(self, more: int, *, timeout: float = 60) -> None:
        """Wait until so many further requests were answered well."""
        goal = sum(entry.status == 200 for entry in self.asked) + more
        async with asyncio.timeout(timeout):
            while sum(entry.status == 200 for entry in self.asked) < goal:
                await asyncio.sleep(0.01)

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while not self._stop.is_set():
            number, self._next = self._next, self._next + 1
            row = self._rows[number % len(self._rows)]
            body = server_request_body(self._model, row.text, row.entities)
            began = time.monotonic()
            try:
                async with session.post(f"{self._url}/chat/completions", json=body) as reply:
                    content = await reply.json(content_type=None)
                    status, retry = reply.status, reply.headers.get("Retry-After")
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                content, status, retry = {"error": {"code": repr(error)}}, 0, None
            self.asked.append(_asked(number, began, status, retry, content))
            if status != 200:
                # As a client that reads the header; a broken connection is not met again at once.
                await asyncio.sleep(min(1.0, float(retry or 0.2)))


def _asked(number: int, began: float, status: int, retry: str | None, content: Any) -> Asked:
    good = status == 200
    error = {} if good or not isinstance(content, dict) else content.get("error") or {}
    return Asked(
        number=number,
        began=began,
        seconds=time.monotonic() - began,
        status=status,
        retry_after=retry,
        code=error.get("code"),
        model=content["model"] if good else None,
        text=content["choices"][0]["message"]["content"] if good else "",
        tokens=content["usage"]["completion_tokens"] if good else 0,
    )
