"""The simulator's control plane in a thread of the test, and an account that asks it."""

import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.teacher import teaching
from ucotron_ray.fireworks.account import Account
from ucotron_ray.simulators.fireworks_control import ControlSettings

KEY = "fw-secret"
TINY = "accounts/fireworks/models/qwen2p5-0.5b-instruct"


@dataclass(frozen=True)
class Vendor:
    url: str
    account: Account

    def control(self) -> dict:
        with urllib.request.urlopen(f"{self.url}/simulator/control", timeout=10) as answer:
            return json.loads(answer.read())

    def created(self, collection: str) -> int:
        return self.control()["created"].get(collection, 0)

    def settings(self, store: Path) -> list[str]:
        """Flags that point a verb at this simulator."""
        values = {
            "api.fine_tuning_base_url": f"{self.url}/v1",
            "api.inference_base_url": f"{self.url}/inference/v1",
            "api.retry_delay": "0.01",
            "polling.interval": "0.01",
            "polling.verbose": "false",
            "store": str(store),
            "tracking.mlflow_uri": "none",
            "models.generation.model_id": "accounts/simulator/models/teacher",
        }
        return [part for key, value in values.items() for part in ("--set", f"{key}={value}")]


@contextmanager
def vending(monkeypatch, *, garbage: float = 0.0, **control) -> Iterator[Vendor]:
    """The simulator with these control settings, and the variables of its account set."""
    monkeypatch.setenv("FIREWORKS_API_KEY", KEY)
    monkeypatch.setenv("FIREWORKS_ACCOUNT_ID", "acme")
    with teaching(control=ControlSettings(**control), api_key=KEY, garbage=garbage) as teacher:
        url = teacher.base_url.removesuffix("/inference/v1")
        account = Account(f"{url}/v1", "acme", "FIREWORKS_API_KEY", None, timeout=10.0, retry_delay=0.01)
        yield Vendor(url, account)


def environment(vendor: Vendor) -> dict[str, str]:
    """For a process of its own."""
    return {**os.environ, "FIREWORKS_BASE_URL": vendor.url}


def chat_file(path: Path, rows: int = 5) -> Path:
    turns = [
        {"messages": [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": "[]"}]}
        for n in range(rows)
    ]
    path.write_text("".join(json.dumps(turn) + "\n" for turn in turns), encoding="utf-8")
    return path


def pairs_file(path: Path, rows: int = 4) -> Path:
    pairs = [{"prompt": f"Extract relations from: {n}", "chosen": "[1]", "rejected": "[]"} for n in range(rows)]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return path
