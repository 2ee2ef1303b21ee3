"""Where a user wants copies: what they must not take the place of, found before the work, and how they get there."""

from pathlib import Path

from ucotron_ray.core import artifacts, copies
from ucotron_ray.core.artifacts import Artifact
from ucotron_ray.core.errors import ConfigError, CorruptArtifact


def copy_out(artifact: Artifact, directory: Path) -> None:
    """A copy of an artifact of the store where the user wants it: whole, or what was there before.

    Raises ConfigError as `refuse_mixing`: hours may lie between its first call and this one.
    """
    refuse_mixing(directory, artifact.path.parents[1], artifact.manifest.kind)
    # Through a link to what it names: a link would be exchanged itself.
    target = directory.resolve()
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
    copies.install(copies.copy_of(artifact.path), target, artifact.manifest.content)


def refuse_mixing(directory: Path, root: Path, kind: artifacts.ArtifactKind) -> None:
    """Raise ConfigError if a copy of an artifact of this kind would take the place of anything but an older copy.

    `root` is the store's: what lies in it is no copy, and would be lost.
    """
    target, store = directory.resolve(), root.resolve()
    if target.is_relative_to(store) or store.is_relative_to(target):
        raise ConfigError(
            "the output directory would take the place of artifacts of the store",
            where=str(directory),
            expected="a directory outside the store",
            found=f"the store {store}",
            next_step="choose another --output-dir",
        )
    found = _in_the_way(target, kind)
    if found is not None:
        raise ConfigError(
            "the output directory cannot be replaced",
            where=str(directory),
            expected=f"a new or empty directory, or an older copy of a {kind}",
            found=found,
            next_step="choose another --output-dir",
        )


def check_file(file: Path) -> None:
    """Raise ConfigError if a file cannot be written there, since a directory is."""
    if file.is_dir():
        raise ConfigError(
            "the output is a directory", where=str(file), expected="a file", next_step="name a file in it"
        )
    check_directory(file.parent)


def check_directory(directory: Path) -> None:
    """Raise ConfigError if there can be no such directory, since a file is where it or one above it would be."""
    nearest = _nearest(directory)
    if not nearest.is_dir():
        raise ConfigError(
            "the output is no directory",
            where=str(directory),
            expected="a directory, or a new one",
            found=f"the file {nearest}",
            next_step="choose another path",
        )


def _in_the_way(target: Path, kind: artifacts.ArtifactKind) -> str | None:
    """What a copy must not take the place of; None where it may."""
    nearest = _nearest(target)
    if not nearest.is_dir():
        return f"the file {nearest}"
    if target.is_mount():
        return "a mount point, to which nothing can be renamed; a directory in it would do"
    if nearest != target or not any(target.iterdir()):
        return None
    try:
        there = artifacts.read_artifact(target).manifest
    except CorruptArtifact:
        return "files of something else"
    return None if there.kind == kind else f"the {there.kind} '{there.name}'"


def _nearest(path: Path) -> Path:
    """The path, or of those above it the first that exists."""
    absolute = path.absolute()
    return next(found for found in (absolute, *absolute.parents) if found.exists())
