"""A version of a registered model, as the registry knows it."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ucotron_ray.core.files import MANIFEST

BUNDLE = "bundle"
"""The folder of the bundle among the files of a version; beside it is what MLflow loads it by."""


@dataclass(frozen=True)
class Version:
    """A version of the registered model. `source` is where its files are: a file URI, or one of MLflow's."""

    number: str
    source: str
    tags: dict[str, str]
    run: str | None = None
    """The run that logged the files at MLflow; None for files that were only pointed to."""

    @property
    def directory(self) -> Path | None:
        """Where the bundle is, if that is a directory that this machine can see."""
        path = Path(unquote(urlsplit(self.source).path)) if urlsplit(self.source).scheme in ("file", "") else None
        bundle = bundle_in(path) if path is not None else None
        return bundle if bundle is not None and bundle.is_dir() else None


def bundle_in(files: Path) -> Path:
    """The bundle among the files of a version; those of older versions are the bundle itself."""
    return files if (files / MANIFEST).is_file() else files / BUNDLE
