"""How a copy of an artifact comes into its place: fetched beside it, every byte compared, put there in one step."""

import ctypes
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from ucotron_ray.core.artifacts import Artifact, read_artifact, verify
from ucotron_ray.core.errors import ConfigError, CorruptArtifact
from ucotron_ray.core.files import MANIFEST, fsync_directory

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""`renameat2(2)`."""


def install(fetch: Callable[[Path], Path], target: Path, content: str) -> Artifact:
    """Fetch an artifact beside the target, compare every byte, and put it in the target's place.

    `fetch` gets an empty directory and returns where in it the artifact lies. `content` is what the registry says of
    it: a manifest that was changed together with its files is noticed too. Raises CorruptArtifact, with nothing left
    behind and nothing changed, and ConfigError where the target holds something else than an artifact.
    """
    if target.exists() and not (target / MANIFEST).is_file():
        raise ConfigError(
            "the target is no artifact and stays as it is",
            where=str(target),
            expected="a new directory, or an older copy of an artifact",
            next_step="choose another directory",
        )
    aside = target.with_name(f"{target.name}.{os.getpid()}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        fetched = read_artifact(fetch(aside))
        verify_content(fetched, content)
        _place(fetched.path, target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    fsync_directory(target.parent)
    return read_artifact(target)


def verify_content(artifact: Artifact, content: str) -> None:
    """Every byte against the manifest, and the manifest against the registry. Raises CorruptArtifact."""
    verify(artifact)
    check_content(artifact, content)


def holds(directory: Path, content: str) -> bool:
    """Whether a directory is an artifact of this content, byte for byte."""
    if not (directory / MANIFEST).is_file():
        return False
    try:
        verify_content(read_artifact(directory), content)
    except CorruptArtifact:
        return False
    return True


def check_content(artifact: Artifact, content: str) -> None:
    """The manifest against the registry, the files unread. Raises CorruptArtifact."""
    if artifact.manifest.content != content:
        raise CorruptArtifact(
            f"{artifact.manifest.kind} '{artifact.manifest.name}' is not what was registered",
            where=str(artifact.path),
            expected=content[:16],
            found=artifact.manifest.content[:16],
            next_step="promote what lies there now, roll back, or bring the registered bytes back",
        )


def copy_of(source: Path, copy: Callable[[str, str], object] = shutil.copy2) -> Callable[[Path], Path]:
    """A fetch from a directory."""

    def fetch(directory: Path) -> Path:
        return Path(shutil.copytree(source, directory / source.name, copy_function=copy))

    return fetch


def _place(new: Path, target: Path) -> None:
    """Rename a directory into place. One that is there is exchanged for it: no reader finds nothing or a mixture."""
    if not target.exists():
        os.rename(new, target)
        return
    if not _exchanged(new, target):
        # A file system without exchange: for a moment there is nothing, but never a mixture.
        old = target.with_name(f"{target.name}.old.partial")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(target, old)
        os.rename(new, target)
        shutil.rmtree(old, ignore_errors=True)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two paths at once (`renameat2` of Linux); False where that does not exist."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if not renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code), str(other))
