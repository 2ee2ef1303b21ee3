"""What is served, where, and what happens when it is replaced: bundles, adapters and base models behind an endpoint."""

import ipaddress
import logging
import os
import socket
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ucotron_ray.core import artifacts, copies, variables
from ucotron_ray.core.errors import ArtifactError, ConfigError, MissingArtifact
from ucotron_ray.core.files import MANIFEST
from ucotron_ray.core.place import Serving
from ucotron_ray.core.run import Run
from ucotron_ray.core.tracking import Registry
from ucotron_ray.models import stage as models
from ucotron_ray.models.bundles import DEFAULT_DECODING, bundle_of, checked_decoding
from ucotron_ray.registry import aliases
from ucotron_ray.registry.versions import CANDIDATE, CHAMPION, CONTENT_TAG, PREVIOUS
from ucotron_ray.serving import target as targets
from ucotron_ray.serving.target import Target

log = logging.getLogger(__name__)


def serve(run: Run, reference: str, *, ready: Callable[[str, str], None]) -> dict[str, Any]:
    """Serve what the reference names until SIGTERM or Ctrl-C; `ready` gets the model's name and the base URL."""
    settings = run.config.place.serving
    check_address(settings)
    key = _key(settings)
    if not _cluster_elsewhere(run):
        check_port_free(settings)
    named = Reference(run, reference)
    # Its own name: another service of this name and port, on another cluster, follows a file of its own.
    file = run.store.root / "serving" / f"{run.name}-{settings.port}-{uuid.uuid4().hex[:8]}.json"
    following = Following(named, file)
    target = following.target
    run.connect(workers=False)
    from ucotron_ray.serving.app import digest_of
    from ucotron_ray.serving.on_ray import ServeJob, refuse_a_second_one, resources_of, serve_on_ray

    refuse_a_second_one()
    resources = resources_of(settings, run.config.place.workers, gpu=target.backend == "transformers")
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
    targets.write(file, target)
    try:
        result = serve_on_ray(job, ready=lambda: ready(target.model, url), look=following.look)
    finally:
        file.unlink(missing_ok=True)
    return {"artifact": following.target.path, "model": following.target.model, "url": url, **result}


class Reference:
    """What the user named: a bundle of the store, an alias of the registry, a directory, an adapter or a base model."""

    def __init__(self, run: Run, text: str) -> None:
        self.run = run
        self.text = text
        self._models: Registry | None = None
        self._was_bundle = False

    def bundle(self) -> Path | None:
        """The directory of the bundle that is meant now; None if it is none.

        Raises MissingArtifact for an alias that points nowhere, and for what was a bundle when it was asked before: an
        adapter of the same name has passed no gate, and does not take its place.
        """
        found = self._bundle()
        if found is None and self._was_bundle:
            raise MissingArtifact(
                f"'{self.text}' is no bundle any more",
                where=str(self.run.store.root),
                next_step="bring it back or export it again; it is followed then",
            )
        self._was_bundle = found is not None
        return found

    def _bundle(self) -> Path | None:
        is_name = Path(self.text).name == self.text
        if is_name and self.run.store.find("bundle", self.text) is not None:
            return self.run.store.path("bundle", self.text)
        if is_name and self.text in (CHAMPION, CANDIDATE, PREVIOUS):
            return self._of_alias()
        directory = Path(self.text).expanduser()
        if not (directory / MANIFEST).is_file():
            return None
        # Resolved now: a link that is turned later must not change the files under a replica that loads them.
        directory = directory.resolve()
        return directory if artifacts.read_artifact(directory).manifest.kind == "bundle" else None

    def stamp(self) -> tuple[str, int, int] | None:
        """What changes when other bytes are meant; None for a model that is not watched, or for a moment.

        Raises as `bundle`.
        """
        place = self.bundle() or self.run.store.path("adapter", Path(self.text).name)
        try:
            found = os.stat(place / MANIFEST)
        except OSError:
            return None
        return str(place), found.st_ino, found.st_mtime_ns

    def _of_alias(self) -> Path:
        """Where the files of a registered version lie; fetched once if they are not on this machine.

        Raises CorruptArtifact where other files lie there than those that were registered.
        """
        if self._models is None:
            self._models = aliases.registry_of(self.run, must_exist=True)
        version = aliases.version_of(self._models, self.text)
        if version is None:
            raise MissingArtifact(
                f"{self._models.model} has no version with the alias '{self.text}'",
                where=self._models.uri,
                next_step="ucotron-ray promote BUNDLE, or name a bundle",
            )
        content = version.tags[CONTENT_TAG]
        place = version.directory
        if place is None:
            place = self.run.store.root / "serving" / "fetched" / content[:16]
            if not (place / MANIFEST).is_file():
                aliases.fetch(self._models, version, place)
        # What lies there now may have been made since, and passed no gate. Its bytes are compared when it is served.
        copies.check_content(artifacts.read_artifact(place), content)
        return place


class Following:
    """Sees when the reference names other bytes than those that are served, and tells the replicas.

    A bundle that is made again or pulled again, a link that is turned, an alias that is moved.
    """

    def __init__(self, named: Reference, file: Path) -> None:
        self._named = named
        self._file = file
        self._said = ""
        # Before it is read: what is replaced in between is seen by the first look.
        self._stamp = named.stamp()
        self.target = target_of(named)
        """What the replicas were told last."""

    def look(self) -> None:
        """Verify what was replaced, then let it be served. Never raises: what fails is logged, the old one goes on."""
        stamp = self._stamp
        try:
            stamp = self._named.stamp()
            if stamp in (None, self._stamp):
                return
            target = target_of(self._named)
            if target != self.target:
                log.info("serve: %s was replaced, the replicas load %s", self._named.text, target.content[:12])
                targets.write(self._file, target)
                self.target = target
        except (ArtifactError, ConfigError) as error:
            # These bytes stay refused, until others take their place: damaged, rejected, or without our variant.
            self._stamp = stamp
            self._say(f"serve: stays with {self.target.model}: {error}")
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, what is served goes on, and the next look tries again
            self._say(f"serve: stays with {self.target.model} for now: {type(error).__name__}: {error}")
            return
        self._stamp, self._said = stamp, ""

    def _say(self, problem: str) -> None:
        """Log it once, however often it is met."""
        if problem != self._said:
            log.error("%s", problem)
        self._said = problem


def target_of(named: Reference) -> Target:
    """What is to be served, its bytes verified.

    Raises CorruptArtifact, ArtifactError for a bundle that failed its gates, InputError and ConfigError.
    """
    run, settings = named.run, named.run.config.place.serving
    directory = named.bundle()
    if directory is not None:
        if settings.backend == "transformers":
            raise ConfigError(
                "a bundle holds a graph for ONNX Runtime and no weights for transformers",
                where="serving.backend",
                expected="auto or onnx; or the name of the adapter that the bundle was made from",
            )
        bundle = bundle_of(run, str(directory))
        chosen = None if settings.decoding == "auto" else settings.decoding
        decoding = checked_decoding(bundle, named.text, settings.variant, chosen)
        return Target(
            model=bundle.manifest.name,
            backend="onnx",
            path=str(bundle.path),
            content=bundle.manifest.content,
            variant=settings.variant,
            decoding=decoding,
        )
    base, adapter = models.model(run, named.text)
    if settings.backend == "onnx":
        raise ConfigError(
            "ONNX Runtime serves bundles only",
            where="serving.backend",
            found="an adapter" if adapter else "a base model",
            next_step=f"ucotron-ray export {named.text}",
        )
    return Target(
        model=adapter.manifest.name if adapter else Path(base.reference).name,
        backend="transformers",
        path=str(adapter.path) if adapter else None,
        content=adapter.manifest.content if adapter else base.identity,
        decoding=DEFAULT_DECODING if settings.decoding == "auto" else settings.decoding,
        base=models.loadable_base(run, base),
        dtype=run.config.place.workers.dtype,
    )


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
    if settings.key_variable is not None and not variables.is_set(settings.key_variable):
        raise ConfigError(
            f"the environment variable {settings.key_variable} is not set",
            where="serving.key_variable",
            expected="the key that callers have to send as a bearer token",
            next_step=f"export {settings.key_variable}=... and run the same command again",
        )
    return variables.secret(settings.key_variable, None)


def _cluster_elsewhere(run: Run) -> bool:
    return bool(run.config.place.ray.address) or variables.is_set("RAY_ADDRESS")
