"""A bundle of the store, or in a directory, with verified bytes; and which of its variants can answer."""

from pathlib import Path

from ucotron_ray.core import artifacts
from ucotron_ray.core.artifacts import Artifact
from ucotron_ray.core.errors import ArtifactError, ConfigError
from ucotron_ray.core.files import MANIFEST
from ucotron_ray.core.run import Run

DEFAULT_DECODING = "entities"
"""How an adapter or a base model is decoded where nobody says otherwise: names as the request gives them."""


def bundle_of(run: Run, reference: str) -> Artifact:
    """A bundle by name or directory, every byte compared with its manifest."""
    path = Path(reference)
    if not is_bundle(path):
        return run.store.get("bundle", reference.removeprefix("bundle/"), accept_rejected=run.accept_rejected)
    bundle = artifacts.read_artifact(path.absolute())
    artifacts.verify(bundle)
    if bundle.manifest.state != "ok" and not run.accept_rejected:
        raise ArtifactError(
            f"the bundle is marked {bundle.manifest.state}",
            where=str(path),
            found="; ".join(bundle.manifest.notes) or "no reason noted",
            next_step="export it again, or pass --accept-rejected if you know why it is",
        )
    return bundle


def is_bundle(path: Path) -> bool:
    """Whether this is the directory of a bundle."""
    return (path / MANIFEST).is_file() and artifacts.read_artifact(path).manifest.kind == "bundle"


def checked_decoding(bundle: Artifact, label: str, variant: str, decoding: str | None) -> str:
    """The way to decode, the bundle's own choice if none is given. Raises ConfigError for what the bundle has not."""
    from ucotron_ray.models import served  # noqa: PLC0415 - tokenizers

    for value, known, what in ((variant, served.GRAPHS, "variant"), (decoding, served.DECODINGS, "way to decode")):
        if value is not None and value not in known:
            raise ConfigError(f"'{value}' is no {what}", where=label, expected=", ".join(known), found=value)
    if not (bundle.path / served.GRAPHS[variant]).is_file():
        have = [name for name, file in served.GRAPHS.items() if (bundle.path / file).is_file()]
        raise ConfigError(
            f"the bundle has no {variant}", where=str(bundle.path), expected=", ".join(have), found=variant
        )
    return decoding or served.default_decoding(bundle.path)
