"""A version of a registered model, as the registry knows it."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit


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
        """Where the files are, if that is a directory that this machine can see."""
        path = Path(unquote(urlsplit(self.source).path)) if urlsplit(self.source).scheme in ("file", "") else None
        return path if path is not None and path.is_dir() else None
