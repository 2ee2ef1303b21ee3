"""What a worker raised: whether another attempt may go without it, and how another process is told."""

import json
from pathlib import Path

from ucotron_ray.core import errors
from ucotron_ray.core.errors import UcotronRayError


def may_pass(error: BaseException, *, peers: bool = False) -> bool:
    """Whether another attempt may go without what a worker raised: a device, a disk or a connection that failed.

    A mistake in rows, model or program comes again. With `peers` the loss of one is met by the others as a
    RuntimeError of their collective call.
    """
    if isinstance(error, UcotronRayError) or "device-side assert" in str(error):
        # An index beyond a table, on a GPU.
        return False
    if isinstance(error, OSError):
        return not isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError))
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if kinds & {"NotImplementedError", "OutOfMemoryError"}:
        return False
    # By name: not every process that comes by here has torch.
    return bool(kinds & {"AcceleratorError", "DistError"}) or (peers and "RuntimeError" in kinds)


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def write(file: Path, error: UcotronRayError) -> None:
    """Keep an error for another process, which nothing but a file reaches."""
    file.parent.mkdir(parents=True, exist_ok=True)
    said = {"kind": type(error).__name__, "problem": error.problem, "details": error.details()}
    file.write_text(json.dumps(said), encoding="utf-8")


def read(file: Path) -> UcotronRayError:
    """What `write` kept."""
    said = json.loads(file.read_text(encoding="utf-8"))
    return errors.rebuilt(getattr(errors, said["kind"]), said["problem"], said["details"])
