"""What is served, where, and what happens when it is replaced: bundles, adapters and base models behind an endpoint."""

import ipaddress
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ucotron_ray import artifacts, config
from ucotron_ray.artifacts import Artifact
from ucotron_ray.config import Serving
from ucotron_ray.errors import ArtifactError, ConfigError, UcotronRayError
from ucotron_ray.run import Run
from ucotron_ray.serving import target as targets
from ucotron_ray.serving.target import Target
from ucotron_ray.stages import models

log = logging.getLogger(__name__)


def serve(run: Run, reference: str, *, ready: Callable[[str, str], None]) -> dict[str, Any]:
    """Serve what the reference names until SIGTERM or Ctrl-C; `ready` gets the model's name and the base URL."""
    settings = run.config.place.serving
    check_address(settings)
    key = _key(settings)
    if not _cluster_elsewhere(run):
        check_port_free(settings)
    target = target_of(run, reference)
    run.connect(workers=False)
    from ucotron_ray.serving.app import digest_of
    from ucotron_ray.serving.on_ray import ServeJob, resources_of, serve_on_ray

    file = run.store.root / "serving" / f"{run.name}-{settings.port}.json"
    targets.write(file, target)
    following = Following(run, reference, file, target)
    resources = resources_of(settings, gpu=target.backend == "transformers")
    job = ServeJob(
        target_file=str(file),
        settings=settings.model_dump(),
        key_digest=digest_of(key) if key else None,
        cpus=resources.cpus,
        gpus=resources.gpus,
        num_threads=resources.threads,
        log_file=run.log_file,
    )
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}/v1"
    try:
        result = serve_on_ray(job, ready=lambda: ready(target.model, url), look=following.look)
    finally:
        file.unlink(missing_ok=True)
    return {"artifact": following.target.path, "model": following.target.model, "url": url, **result}


class Following:
    """Sees when the reference names other bytes than those that are served, and tells the replicas.

    A bundle that is made again, a link that is turned, an alias that is moved: whatever the reference was found by.
    """

    def __init__(self, run: Run, reference: str, file: Path, target: Target) -> None:
        self._run = run
        self._reference = reference
        self._file = file
        self._stamp = _stamp(run, reference)
        self.target = target
        """What the replicas were told last."""

    def look(self) -> None:
        """Verify what was replaced, then let it be served; what fails is logged, and the old one goes on."""
        stamp = _stamp(self._run, self._reference)
        if stamp in (None, self._stamp):
            return
        self._stamp = stamp
        try:
            target = target_of(self._run, self._reference)
        except UcotronRayError as error:
            log.error("serve: stays with %s: %s", self.target.model, error)
            return
        if target != self.target:
            log.info("serve: %s was replaced, the replicas load %s", self._reference, target.content[:12])
            targets.write(self._file, target)
            self.target = target


def target_of(run: Run, reference: str) -> Target:
    """What the reference names, its bytes verified.

    Raises CorruptArtifact, ArtifactError for a bundle that failed its gates, InputError and ConfigError.
    """
    settings = run.config.place.serving
    bundle = _bundle(run, reference)
    if bundle is not None:
        if settings.backend == "transformers":
            raise ConfigError(
                "a bundle holds a graph for ONNX Runtime and no weights for transformers",
                where="serving.backend",
                expected="auto or onnx; or the name of the adapter that the bundle was made from",
            )
        return Target(
            model=bundle.manifest.name,
            backend="onnx",
            path=str(bundle.path),
            content=bundle.manifest.content,
            variant=settings.variant,
            decoding=_decoding(settings, bundle.path),
        )
    base, adapter = models.model(run, reference)
    if settings.backend == "onnx":
        raise ConfigError(
            "ONNX Runtime serves bundles only",
            where="serving.backend",
            found="an adapter" if adapter else "a base model",
            next_step=f"ucotron-ray export {reference}",
        )
    return Target(
        model=adapter.manifest.name if adapter else Path(base.reference).name,
        backend="transformers",
        path=str(adapter.path) if adapter else None,
        content=adapter.manifest.content if adapter else base.identity,
        decoding="entities" if settings.decoding == "auto" else settings.decoding,
        base=models.loadable_base(run, base),
        dtype=run.config.place.workers.dtype,
    )


def _bundle(run: Run, reference: str) -> Artifact | None:
    """The bundle of that name or in that directory, verified; None if it is neither."""
    if Path(reference).name == reference and run.store.find("bundle", reference) is not None:
        return run.store.get("bundle", reference, accept_rejected=run.accept_rejected)
    directory = Path(reference).expanduser()
    if not (directory / artifacts.MANIFEST).is_file():
        return None
    # Resolved now: a link that is turned later must not change the files under a replica that loads them.
    found = artifacts.read_artifact(directory.resolve())
    if found.manifest.kind != "bundle":
        return None
    artifacts.verify(found)
    if found.manifest.state != "ok" and not run.accept_rejected:
        raise ArtifactError(
            f"the bundle is marked {found.manifest.state}",
            where=str(found.path),
            found="; ".join(found.manifest.notes) or "no reason noted",
            next_step="serve another one, or pass --accept-rejected if you know why it is",
        )
    return found


def _decoding(settings: Serving, bundle: Path) -> str:
    if settings.decoding != "auto":
        return settings.decoding
    from ucotron_ray.models.served import default_decoding

    return default_decoding(bundle)


def _stamp(run: Run, reference: str) -> tuple[str, int, int] | None:
    """What changes when other bytes lie behind the reference; None where nothing can be watched, or for a moment."""
    named = Path(reference).name == reference
    places = [run.store.path(kind, reference) for kind in ("bundle", "adapter")] if named else [Path(reference)]
    for place in places:
        manifest = place.expanduser() / artifacts.MANIFEST
        try:
            found = os.stat(manifest)
        except OSError:
            continue
        return str(manifest.resolve()), found.st_ino, found.st_mtime_ns
    return None


def check_address(settings: Serving) -> None:
    """Refuse to listen beyond this machine without a key. Raises ConfigError."""
    try:
        loopback = settings.host == "localhost" or ipaddress.ip_address(settings.host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and settings.key_variable is None:
        raise ConfigError(
            "whoever reaches this address could use the model",
            where="serving.host",
            expected="a loopback address, or a key: serving.key_variable=NAME_OF_THE_VARIABLE",
            found=settings.host,
        )


def check_port_free(settings: Serving) -> None:
    """Refuse a port that something else listens on: Serve's proxy would only try again and again."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise ConfigError(
                "the address cannot be listened on",
                where="serving.host, serving.port",
                found=f"{settings.host}:{settings.port}: {error.strerror}",
                next_step="stop what listens there, or choose another --port",
            ) from error


def _key(settings: Serving) -> str | None:
    if settings.key_variable is not None and not config.is_set(settings.key_variable):
        raise ConfigError(
            f"the environment variable {settings.key_variable} is not set",
            where="serving.key_variable",
            expected="the key that callers have to send as a bearer token",
            next_step=f"export {settings.key_variable}=... and run the same command again",
        )
    return config.secret(settings.key_variable, None)


def _cluster_elsewhere(run: Run) -> bool:
    return bool(run.config.place.ray.address) or config.is_set("RAY_ADDRESS")
