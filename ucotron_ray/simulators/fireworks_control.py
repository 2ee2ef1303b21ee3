"""The simulator's control plane, what its routes share: settings, state, refusals in the vendor's shape, pages, faults.

It speaks what the vendor's SDK sends (`fireworks-ai` 1.2.30) and refuses fields that the vendor does not know. How jobs
move, and what goes wrong, is told by `ControlSettings`. Nothing here trains anything.
"""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from ucotron_ray.core.errors import ConfigError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BASE_MODELS = {
    "accounts/fireworks/models/qwen2p5-0.5b-instruct": "494000000",
    "accounts/fireworks/models/qwen2p5-1.5b-instruct": "1540000000",
    "accounts/fireworks/models/qwen2p5-7b-instruct": "7620000000",
}
"""Models that can be tuned, with their parameters."""

BASE_GARBAGE = 0.6
"""Share of answers of an untuned model that cannot be used: tuning must have something to mend."""

CONTROL_FAULTS = ("429", "429-retry-after", "500", "503", "lost")
"""`lost`: the work is done, and the connection cut before the answer. The others do nothing."""

SAFE_METHODS = ("GET", "PUT")


@dataclass(frozen=True)
class ControlSettings:
    """How jobs, uploads and quotas behave."""

    job_polls: int = 6
    """Looks at a job from its creation to its end."""
    job_seconds: float | None = None
    """The same by the clock instead."""
    job_end: str = "COMPLETED"
    """The state that jobs end in or stay in: a terminal one, PENDING, PAUSED, or a name that nobody knows."""
    max_active_jobs: int | None = None
    cut_uploads: int = 0
    """So many uploads are cut off in the middle."""
    batch_error_share: float = 0.0
    faults: dict[str, float] = field(default_factory=dict)
    page_size: int = 200
    dollars_per_million: float = 0.5
    seed: int = 0


class Refusal(Exception):
    """An answer that is no success, as the vendor words it."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})


class ControlPlane:
    """What the simulator knows of one account or several: resources by full name, files, counts of what came."""

    def __init__(self, settings: ControlSettings, api_key: str | None) -> None:
        self.settings = settings
        self.api_key = api_key
        self.resources: dict[str, dict[str, Any]] = {}
        self.created: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.cuts_left = settings.cut_uploads
        self._folder = tempfile.TemporaryDirectory(prefix="simulate-fireworks-")
        self.files = Path(self._folder.name)
        self._rng = random.Random(f"{settings.seed}/control")
        for name, parameters in BASE_MODELS.items():
            self.resources[name] = {
                "name": name,
                "displayName": name.rpartition("/")[2],
                "kind": "HF_BASE_MODEL",
                "state": "READY",
                "tunable": True,
                "supportsLora": True,
                "baseModelDetails": {"parameterCount": parameters, "tunable": True},
            }

    def handler(self, work: Handler) -> Handler:
        """A route with the key checked, faults drawn, and refusals in the vendor's shape."""

        async def handle(request: web.Request) -> web.StreamResponse:
            route = request.match_info.route.resource
            self.requests[f"{request.method} {route.canonical if route else request.path}"] += 1
            try:
                self._check_key(request)
                fault = self._fault()
                if fault and fault != "lost":
                    raise Refusal(int(fault[:3]), "on demand", {"Retry-After": "0"} if "retry" in fault else {})
                response = await work(request)
            except Refusal as refusal:
                body = {"code": refusal.status, "message": str(refusal), "details": []}
                if refusal.status == 403:
                    body = {"error": {"message": str(refusal), "code": "UNAUTHORIZED"}}
                return web.json_response(body, status=refusal.status, headers=refusal.headers)
            if fault == "lost":
                cut_off(request)
            return response

        return handle

    def get(self, name: str) -> dict[str, Any]:
        """The resource of that name. Raises Refusal 404."""
        found = self.resources.get(name)
        if found is None:
            raise Refusal(404, f"resource not found: {name}")
        return found

    def add(self, name: str, resource: dict[str, Any]) -> dict[str, Any]:
        """A new resource. Raises Refusal 409 for a name that is taken."""
        if name in self.resources:
            raise Refusal(409, f"already exists: {name}")
        self.resources[name] = {"name": name, "createTime": now(), "updateTime": now(), **resource}
        self.created[name.split("/")[2]] += 1
        return self.resources[name]

    def page(self, request: web.Request, collection: str) -> web.Response:
        """A page of the resources of `accounts/A/collection`, as the vendor lists them."""
        prefix = f"accounts/{request.match_info['account']}/{collection}/"
        names = sorted(name for name in self.resources if name.startswith(prefix))
        size = min(int(request.query.get("pageSize") or 50), self.settings.page_size)
        start = int(request.query.get("pageToken") or 0)
        body: dict[str, Any] = {collection: [shown(self.resources[name]) for name in names[start : start + size]]}
        body |= {"totalSize": len(names), "nextPageToken": str(start + size) if start + size < len(names) else ""}
        return web.json_response(body)

    def is_cut(self) -> bool:
        """Whether this upload is one of those that are cut off."""
        self.cuts_left -= 1
        return self.cuts_left >= 0

    def summary(self) -> dict[str, Any]:
        """The figures of `GET /simulator/control`."""
        stored = {
            str(path.relative_to(self.files)): path.stat().st_size for path in self.files.rglob("*") if path.is_file()
        }
        return {"created": dict(self.created), "requests": dict(self.requests), "stored": stored}

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()

    def _check_key(self, request: web.Request) -> None:
        if self.api_key is not None and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            raise Refusal(403, "The API key you provided is invalid.")

    def _fault(self) -> str | None:
        draw = self._rng.random()
        for name, share in self.settings.faults.items():
            if draw < share:
                return name
            draw -= share
        return None


def parse_control_faults(text: str) -> dict[str, float]:
    """`503=0.05,lost=0.01` → shares of the control plane's calls. Raises ConfigError."""
    faults: dict[str, float] = {}
    for part in filter(None, text.split(",")):
        name, _, share = part.partition("=")
        try:
            faults[name] = float(share)
        except ValueError:
            faults[name] = -1.0
        if name not in CONTROL_FAULTS or not 0 <= faults[name] <= 1:
            raise ConfigError(
                f"--control-faults {part} cannot be read",
                expected="NAME=SHARE with a share from 0 to 1, and NAME one of " + ", ".join(CONTROL_FAULTS),
                found=part,
            )
    return faults


def shown(resource: Mapping[str, Any]) -> dict[str, Any]:
    """What is sent of a resource: keys that begin with `_` are the simulator's own."""
    return {key: value for key, value in resource.items() if not key.startswith("_")}


async def json_of(request: web.Request, known: Iterable[str]) -> dict[str, Any]:
    """The body of a request. Raises Refusal 400 for fields that the vendor does not know."""
    try:
        body = await request.json()
    except ValueError as error:
        raise Refusal(400, "the body is no JSON") from error
    return checked(body, known)


def checked(body: object, known: Iterable[str]) -> dict[str, Any]:
    """An object with known fields only. Raises Refusal 400."""
    if not isinstance(body, dict):
        raise Refusal(400, "the body is no object")
    unknown = sorted(set(body) - set(known))
    if unknown:
        raise Refusal(400, f'unknown field "{unknown[0]}"')
    return body


def cut_off(request: web.Request) -> None:
    """Reset the connection."""
    if request.transport is not None:
        request.transport.abort()


def now() -> str:
    """A time as the vendor writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
