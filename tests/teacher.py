"""The simulator of Fireworks in a thread of the test: real HTTP on loopback."""

import asyncio
import json
import ssl
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web

from ucotron_ray.simulators import fireworks as simulator
from ucotron_ray.simulators.fireworks_settings import Settings


@dataclass(frozen=True)
class Teacher:
    base_url: str

    def ledger(self) -> dict:
        url = self.base_url.replace("/inference/v1", "/simulator/ledger")
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.loads(answer.read())


@contextmanager
def serving(application: web.Application, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """An application on a free port, for the time of the block."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)

    async def start() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        return runner.addresses[0][1]

    async def stop() -> None:
        await runner.cleanup()
        # Requests that the simulator lets hang.
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def teaching(**settings) -> Iterator[Teacher]:
    """The simulator with these settings; no garbage unless asked for."""
    chosen = Settings(**{"garbage": 0.0, **settings})
    with serving(simulator.make_app(chosen)) as url:
        yield Teacher(f"{url}/inference/v1")
