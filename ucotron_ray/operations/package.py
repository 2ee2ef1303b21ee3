"""What a submitted job takes along: a list of what may go, never of what may not.

Ray itself uploads a whole directory but for what ignore files name, follows links out of it, and says only after the
upload that 100 MiB were too much (ray 2.60, `dashboard/http_server_head.py`: a body of 104857600 bytes).
"""

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.files import canonical_hash, file_hash

ALLOWED = (
    "ucotron_ray/**/*.py",
    "ucotron_ray/**/*.yaml",
    "jobs/*.py",
    "jobs/recipes/*.yaml",
    "cluster/places/*.yaml",
    "pyproject.toml",
    "constraints.txt",
)
"""What goes, by pattern below the project's directory."""

MAX_BYTES = 90 * 1024**2
"""Below the server's limit, with room for the archive's own directory."""

LARGEST = 10
MARKER = ".run_id"
"""A file of its own in each package: Ray takes an unchanged package for uploaded even where it has expired since
(ray#36703, ray#46625)."""

FILE_FLAGS = ("--recipe", "--place", "--overlay")
"""Flags whose file goes along without --include: it is what the job is."""


@dataclass(frozen=True)
class PackedFile:
    """One file: path below the project's directory, size in bytes, sha256."""

    path: str
    size: int
    sha256: str


def project_root(start: Path) -> Path:
    """The project's directory: the one where the command runs, if it has the code. Raises ConfigError."""
    if (start / "ucotron_ray" / "cli.py").is_file():
        return start
    raise ConfigError(
        "a job is submitted from the project's directory",
        where=str(start),
        expected="a directory with ucotron_ray/ and jobs/ in it",
        next_step="cd to the checkout, or give --working-dir local:///app of an image that has it",
    )


def collect(root: Path, include: Iterable[str]) -> list[PackedFile]:
    """Every file that goes, sorted by path.

    Raises ConfigError for a link (Ray would follow it anywhere), a path that leaves the project, a missing one.
    """
    paths = {path for pattern in ALLOWED for path in root.glob(pattern) if "__pycache__" not in path.parts}
    for name in include:
        paths |= _included(root, name)
    files = []
    for path in sorted(paths):
        _refuse_links(root, path)
        if path.is_file():
            relative = path.relative_to(root).as_posix()
            files.append(PackedFile(relative, path.stat().st_size, file_hash(path)))
    return files


def named_files(arguments: Sequence[str]) -> list[str]:
    """Relative paths after --recipe, --place and --overlay."""
    found = []
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, inline = flag.partition("=")
        if name in FILE_FLAGS:
            found.append(inline if equals else value)
    return [name for name in found if name and not Path(name).is_absolute()]


def refuse_left_behind(root: Path, arguments: Sequence[str], files: Iterable[PackedFile]) -> None:
    """Refuse an argument that is a file or directory here and would be none there. Raises ConfigError.

    A word without a slash is taken for a directory by nobody: it may be a name.
    """
    packed = {entry.path for entry in files}
    packed |= {parent.as_posix() for path in packed for parent in Path(path).parents}
    for argument in arguments:
        value = argument.rpartition("=")[2]
        if not value or value.startswith(("-", "/")) or "://" in value:
            continue
        if not ((root / value).is_file() or ("/" in value and (root / value).is_dir())):
            continue
        path = Path(value).as_posix()
        if path not in packed:
            raise ConfigError(
                f"the job would not find {value}: it is not uploaded",
                where=argument,
                expected="an absolute path that the cluster's nodes see, or a file that goes along",
                next_step=f"name it by its absolute path on the cluster, or add --include {path} before the verb",
            )


def check_size(files: Sequence[PackedFile]) -> int:
    """The bytes in all. Raises ConfigError with the largest files above what the server takes."""
    total = sum(entry.size for entry in files)
    if total > MAX_BYTES:
        raise ConfigError(
            "the package is too large for Ray's job server",
            expected=f"at most {MAX_BYTES / 1024**2:.0f} MiB, unpacked",
            found=f"{total / 1024**2:.1f} MiB; the largest files:\n" + size_table(files),
            next_step="put data where the nodes see it, and name it by its absolute path",
        )
    return total


def size_table(files: Sequence[PackedFile]) -> str:
    """The largest files and the sum, one a line."""
    largest = sorted(files, key=lambda entry: (-entry.size, entry.path))[:LARGEST]
    rest = len(files) - len(largest)
    lines = [f"  {entry.size / 1024:9.1f} KiB  {entry.path}" for entry in largest]
    if rest:
        lines.append(f"  {(sum(e.size for e in files) - sum(e.size for e in largest)) / 1024:9.1f} KiB  {rest} more")
    lines.append(f"  {sum(entry.size for entry in files) / 1024:9.1f} KiB  in {len(files)} files")
    return "\n".join(lines)


def digest(files: Iterable[PackedFile]) -> str:
    """sha256 over path and bytes of every file."""
    return canonical_hash([[entry.path, entry.sha256] for entry in files])


def stage(root: Path, files: Iterable[PackedFile], target: Path, marker: str) -> Path:
    """Copy exactly these files into a directory, with the marker of this submission; the directory."""
    for entry in files:
        path = target / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / entry.path, path, follow_symlinks=False)
    (target / MARKER).write_text(marker + "\n", encoding="utf-8")
    return target


def _included(root: Path, name: str) -> set[Path]:
    path = root / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(root.resolve()):
        raise ConfigError(
            f"{name} lies outside of the project and is not uploaded",
            where="--include, --recipe, --place, --overlay",
            expected="a relative path below the project's directory",
            next_step="copy it into the project, or name it by an absolute path that the nodes see",
        )
    if path.is_dir() and not path.is_symlink():
        return {below for below in path.rglob("*") if below.is_file() or below.is_symlink()}
    if not path.exists():
        raise ConfigError(f"{name} does not exist", where="--include, --recipe, --place, --overlay")
    return {path}


def _refuse_links(root: Path, path: Path) -> None:
    for part in (path, *path.parents):
        if part == root:
            return
        if part.is_symlink():
            raise ConfigError(
                "a link is not uploaded: what it points to might be anything",
                where=str(part),
                next_step="put the file itself there",
            )
