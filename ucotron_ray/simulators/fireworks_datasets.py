"""The simulator's datasets: creation, direct upload, signed upload and download, as the vendor's SDK calls them."""

import re
import uuid
from pathlib import Path
from typing import Any

from aiohttp import web

from ucotron_ray.simulators.fireworks_control import ControlPlane, Refusal, checked, cut_off, json_of, shown

DIRECT_UPLOAD_BYTES = 150 * 1024**2
DATASET_FIELDS = (
    "displayName", "evalProtocol", "evaluationResult", "exampleCount", "externalUrl", "format", "sourceJobName",
    "splitted", "transformed", "userUploaded",
)  # fmt: skip
_ID = re.compile(r"[a-z][a-z0-9-]{0,62}")
CHUNK = 1024**2


def add_dataset_routes(application: web.Application, plane: ControlPlane) -> None:
    """Mount them."""
    routes = _Datasets(plane)
    path = "/v1/accounts/{account}/datasets"
    application.router.add_post(path, plane.handler(routes.create))
    application.router.add_get(path, plane.handler(routes.list))
    application.router.add_get(path + "/{name}", plane.handler(routes.get))
    application.router.add_delete(path + "/{name}", plane.handler(routes.delete))
    application.router.add_post(path + "/{name}", plane.handler(routes.call))
    # Signed addresses carry their own permission, and no key.
    application.router.add_put("/simulator/signed/{token}", routes.put)
    application.router.add_get("/simulator/signed/{token}", routes.fetch)


def add_output(plane: ControlPlane, name: str, job: str, files: dict[str, str]) -> None:
    """A dataset that a job wrote."""
    if name not in plane.resources:
        rows = sum(text.count("\n") for text in files.values())
        plane.add(name, {"state": "READY", "format": "CHAT", "exampleCount": str(rows), "sourceJobName": job})
    for filename, text in files.items():
        path = file_of(plane, name, filename)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    plane.resources[name]["_files"] = list(files)


def file_of(plane: ControlPlane, dataset: str, filename: str) -> Path:
    """Where a file of a dataset lies."""
    return plane.files / dataset.replace("/", "~") / Path(filename).name


def rows_file(plane: ControlPlane, dataset: str) -> Path:
    """The one file of a dataset that was uploaded. Raises Refusal if it is not whole."""
    found = plane.get(dataset)
    if found["state"] != "READY":
        raise Refusal(400, f"dataset is not ready: {dataset}")
    return file_of(plane, dataset, found["_files"][0])


class _Datasets:
    def __init__(self, plane: ControlPlane) -> None:
        self._plane = plane
        self._signed: dict[str, tuple[str, str, int]] = {}

    async def create(self, request: web.Request) -> web.Response:
        body = await json_of(request, ("dataset", "datasetId", "sourceDatasetId"))
        chosen, dataset = body.get("datasetId"), checked(body.get("dataset"), DATASET_FIELDS)
        if not isinstance(chosen, str) or not _ID.fullmatch(chosen):
            raise Refusal(400, "invalid dataset id: lower case letters, digits and -, at most 63, a letter first")
        if "userUploaded" in dataset and not dataset.get("exampleCount"):
            raise Refusal(400, "example_count is required for uploaded datasets")
        name = f"accounts/{request.match_info['account']}/datasets/{chosen}"
        made = self._plane.add(name, {"format": "CHAT", **dataset, "state": "UPLOADING", "_files": []})
        return web.json_response(shown(made))

    async def list(self, request: web.Request) -> web.Response:
        return self._plane.page(request, "datasets")

    async def get(self, request: web.Request) -> web.Response:
        name, verb = _parts(request)
        found = self._plane.get(name)
        if verb == "getDownloadEndpoint":
            if request.can_read_body:
                raise Refusal(400, "a GET takes no body")
            urls = {
                f"dataset/{name.rpartition('/')[2]}/{file}": self._sign(request, name, file, 0)
                for file in found["_files"]
            }
            return web.json_response({"filenameToSignedUrls": urls})
        return web.json_response(shown(found))

    async def delete(self, request: web.Request) -> web.Response:
        name, _ = _parts(request)
        self._plane.get(name)
        del self._plane.resources[name]
        return web.json_response({})

    async def call(self, request: web.Request) -> web.StreamResponse:
        name, verb = _parts(request)
        found = self._plane.get(name)
        if verb == "upload":
            return await self._upload(request, name, found)
        if verb == "getUploadEndpoint":
            body = await json_of(request, ("filenameToSize", "readMask"))
            sizes: dict[str, str] = body["filenameToSize"]
            found["_files"] = list(sizes)
            found["_sizes"] = {file: int(size) for file, size in sizes.items()}
            urls = {file: self._sign(request, name, file, int(size)) for file, size in sizes.items()}
            return web.json_response({"filenameToSignedUrls": urls})
        if verb == "validateUpload":
            for file, size in found.get("_sizes", {}).items():
                path = file_of(self._plane, name, file)
                if not path.is_file() or path.stat().st_size != size:
                    raise Refusal(400, f"the upload is not whole: {file}")
            if not found["_files"]:
                raise Refusal(400, "nothing was uploaded")
            found["state"] = "READY"
            return web.json_response({})
        raise Refusal(404, f"no such call: {verb}")

    async def put(self, request: web.Request) -> web.StreamResponse:
        signed = self._signed.get(request.match_info["token"])
        if signed is None:
            return web.Response(status=403, text="no such signature")
        name, file, size = signed
        wanted = {"Content-Type": "application/octet-stream", "X-Goog-Content-Length-Range": f"{size},{size}"}
        if (
            any(request.headers.get(key) != value for key, value in wanted.items())
            or "Authorization" in request.headers
        ):
            return web.Response(status=403, text="SignatureDoesNotMatch")
        if not await self._store(request, request.content, name, file, size):
            return web.Response()
        return web.Response(status=200 if file_of(self._plane, name, file).stat().st_size == size else 400)

    async def fetch(self, request: web.Request) -> web.StreamResponse:
        signed = self._signed.get(request.match_info["token"])
        if signed is None:
            return web.Response(status=403, text="no such signature")
        return web.FileResponse(file_of(self._plane, signed[0], signed[1]))

    async def _upload(self, request: web.Request, name: str, found: dict[str, Any]) -> web.Response:
        length = request.content_length or 0
        if length > DIRECT_UPLOAD_BYTES + CHUNK:
            raise Refusal(413, "larger than 150 MB: use getUploadEndpoint")
        reader = await request.multipart()
        part: Any = await reader.next()
        if part is None or part.name != "file":
            raise Refusal(400, "the form has no field `file`")
        file = part.filename or "data.jsonl"
        if not await self._store(request, part, name, file, length):
            return web.Response()
        found |= {"state": "READY", "_files": [file]}
        size = file_of(self._plane, name, file).stat().st_size
        return web.json_response({"id": name.rpartition("/")[2], "bytes": size, "filename": file, "object": "file"})

    async def _store(self, request: web.Request, source: Any, name: str, file: str, expected: int) -> bool:
        """Write what comes aside and rename it; False for an upload that is cut off in the middle."""
        path = file_of(self._plane, name, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        is_cut, received = self._plane.is_cut(), 0
        read = source.read_chunk if hasattr(source, "read_chunk") else source.read
        with aside.open("wb") as out:
            while chunk := await read(CHUNK):
                received += len(chunk)
                if is_cut and received >= expected // 2:
                    aside.unlink()
                    cut_off(request)
                    return False
                out.write(chunk)
        aside.rename(path)
        return True

    def _sign(self, request: web.Request, name: str, file: str, size: int) -> str:
        token = uuid.uuid4().hex
        self._signed[token] = name, file, size
        return f"{request.url.origin()}/simulator/signed/{token}?X-Goog-Signature={uuid.uuid4().hex}"


def _parts(request: web.Request) -> tuple[str, str]:
    """Full name and the verb behind the colon."""
    chosen, _, verb = request.match_info["name"].partition(":")
    return f"accounts/{request.match_info['account']}/datasets/{chosen}", verb
