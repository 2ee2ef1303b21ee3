"""Datasets at the vendor: created in two steps, uploaded in one piece or to a signed URL, reused when they are equal.

A dataset's id ends in the hash of its bytes. So an upload that was cut off is found and finished, an equal one is not
sent again, and another file never lands under an old name.
"""

import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.core.errors import FireworksError, InputError
from ucotron_ray.fireworks import account as control
from ucotron_ray.fireworks.account import Account, Streamed
from ucotron_ray.fireworks.dataset_rows import Layout, UploadRows, prepared, stable_id

log = logging.getLogger(__name__)

DIRECT_UPLOAD_BYTES = 150 * 1024**2
"""The most that `:upload` takes (docs, Upload Dataset Files); more goes to a signed URL."""

CHUNK_BYTES = 1024**2
FORMATS: dict[Layout, str] = {"chat": "CHAT", "preference": "CHAT", "batch": "CHAT"}
READY = "READY"


@dataclass(frozen=True)
class Upload:
    """A dataset that the vendor has, whole. `sent` False: it was there already."""

    name: str
    layout: Layout
    rows: int
    tokens: int
    sha256: str
    sent: bool

    @property
    def dataset_id(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]


def upload(account: Account, path: Path, *, dataset_id: str | None = None, stem: str | None = None) -> Upload:
    """Check every line, create the dataset, send the file. Resumes, and reuses an equal upload.

    Without an id it is made of `stem` (the file's, if none is given) and the hash of the bytes.

    Raises InputError before anything is sent where a line cannot be used, FireworksError where the vendor refuses.
    """
    with prepared(path) as file:
        return upload_prepared(account, file, dataset_id or stable_id(stem or path.stem, file.sha256))


def upload_prepared(account: Account, file: UploadRows, dataset_id: str) -> Upload:
    """The same for a file that was checked. A dataset of this id that is READY is taken to be the file."""
    name = account.full_name("datasets", dataset_id)
    made = {
        "displayName": dataset_id,
        "exampleCount": str(file.rows),
        "userUploaded": {},
        "format": FORMATS[file.layout],
    }
    body = {"datasetId": dataset_id, "dataset": made}
    found, is_new = control.create(account, f"{account.parent}/datasets", body, query={}, existing=name)
    sent = found.get("state") != READY
    if sent:
        log.info("fireworks: %s dataset '%s', %.1f MB", "send" if is_new else "finish", dataset_id, file.size / 1e6)
        _send(account, file, name)
        state = control.call(account, "GET", name).get("state")
        if state != READY:
            raise FireworksError(
                "the vendor has the file, but the dataset is not ready",
                where=name,
                expected=READY,
                found=str(state),
                next_step="run the same command again",
            )
    else:
        _check_rows(found, file, name)
        log.info("fireworks: reuse dataset '%s'", dataset_id)
    return Upload(name, file.layout, file.rows, file.tokens, file.sha256, sent)


def listed(account: Account) -> Iterator[dict[str, Any]]:
    """All datasets of the account."""
    return control.pages(account, f"{account.parent}/datasets", "datasets")


def download(account: Account, name: str) -> dict[str, bytes]:
    """The files of a dataset by their own names (the vendor's keys have a directory before them)."""
    # A GET with a body, as the vendor's page shows it, is refused by its front end.
    answer = control.call(account, "GET", f"{account.full_name('datasets', name)}:getDownloadEndpoint")
    urls: dict[str, str] = answer.get("filenameToSignedUrls") or {}
    files = {}
    for key, url in urls.items():
        read = control.repeated(account, lambda url=url: control.get_signed(account, url), f"GET {key}")  # type: ignore[misc]  # bound now
        files[key.rpartition("/")[2]] = read
    return files


def _check_rows(found: dict[str, Any], file: UploadRows, name: str) -> None:
    count = str(found.get("exampleCount") or file.rows)
    if count != str(file.rows):
        raise InputError(
            "a dataset of this id holds something else",
            where=name,
            expected=f"{file.rows} rows",
            found=f"{count} rows",
            next_step="choose another id, or leave it to the file's hash",
        )


def _send(account: Account, file: UploadRows, name: str) -> None:
    if file.size <= DIRECT_UPLOAD_BYTES:
        control.call(account, "POST", f"{name}:upload", _multipart(file.path))
        return
    filename = file.path.name
    sizes = {"filenameToSize": {filename: str(file.size)}}

    def put() -> None:
        # A new URL each time: they expire, and the endpoint forgets what was registered before.
        urls = control.once(account, "POST", f"{name}:getUploadEndpoint", sizes).get("filenameToSignedUrls") or {}
        if filename not in urls:
            raise FireworksError("the vendor names no address for the upload", where=name, found=str(sorted(urls)))
        control.put_signed(account, urls[filename], _raw(file.path))

    control.repeated(account, put, f"PUT {filename}")
    control.call(account, "POST", f"{name}:validateUpload", {})


def _raw(path: Path) -> Streamed:
    size = path.stat().st_size
    headers = {
        # All are part of what the vendor signs (its SDK, lib/dataset_upload.py).
        "Content-Type": "application/octet-stream",
        "X-Goog-Content-Length-Range": f"{size},{size}",
        "Content-Length": str(size),
    }
    return Streamed(headers, lambda: _chunks(path))


def _multipart(path: Path) -> Streamed:
    """One file as form data, field `file`."""
    boundary = uuid.uuid4().hex
    # A quote or line feed in the name would end the header.
    filename = "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in path.name)
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    ).encode()
    tail = f"\r\n--{boundary}--\r\n".encode()

    def start() -> Iterator[bytes]:
        yield head
        yield from _chunks(path)
        yield tail

    size = len(head) + path.stat().st_size + len(tail)
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}", "Content-Length": str(size)}
    return Streamed(headers, start)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
