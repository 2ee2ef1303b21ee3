"""What is to be served, as a small file that the serving command writes and every replica follows.

Ray Serve has no way to give running replicas a new model without taking them out of the routing or starting others
beside them (`serve.run` makes a new version every time, ray 2.60). A file is also what a replica reads that Serve
starts anew after a crash, so it comes back with the model of now and not of then.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ucotron_ray.core import artifacts
from ucotron_ray.core.errors import CorruptArtifact
from ucotron_ray.core.files import write_json

Backend = Literal["onnx", "transformers"]


@dataclass(frozen=True)
class Target:
    """A model to serve. Its files must lie at the same place for all replicas."""

    model: str
    """The public name."""
    backend: Backend
    path: str | None
    """Directory of a bundle or an adapter artifact; None = the base model alone."""
    content: str
    """Hash of what is served: another one is another model."""
    variant: str = "fp32"
    decoding: str = "free"
    base: str = ""
    """What transformers loads."""
    dtype: str = "auto"


def write(file: Path, target: Target) -> None:
    """Say what is to be served from now on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, asdict(target))


def read(file: Path) -> Target:
    """What is to be served now."""
    return Target(**json.loads(file.read_text(encoding="utf-8")))


def check(target: Target) -> None:
    """Compare the files with their manifest and with what was promised. Raises CorruptArtifact.

    Every replica does this before it loads: it may see other bytes than the command that chose the model.
    """
    if target.path is None:
        return
    artifact = artifacts.read_artifact(Path(target.path))
    artifacts.verify(artifact)
    if artifact.manifest.content != target.content:
        raise CorruptArtifact(
            "the files are not those that were to be served",
            where=target.path,
            expected=target.content,
            found=artifact.manifest.content,
            next_step="serve it again: somebody replaced it in between",
        )
