"""What this machine has and lacks, with advice for each gap. Values of variables are never read out."""

import importlib.util
import os
import resource
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from ucotron_ray.core import cluster, variables
from ucotron_ray.core import destination as destinations
from ucotron_ray.core.config import Config
from ucotron_ray.core.errors import UcotronRayError
from ucotron_ray.core.requirements import OPTIONAL, PACKAGES
from ucotron_ray.models import base as base_models
from ucotron_ray.models import precision
from ucotron_ray.operations import status

OK, NOTE, GAP = "ok", "note", "GAP"


@dataclass(frozen=True)
class Check:
    """One line of the doctor's: a GAP keeps something of the default recipe from working, a note does not."""

    verdict: str
    subject: str
    found: str
    advice: str = ""


def examine(settings: Config) -> list[Check]:
    """All checks. Starts nothing and connects to nothing."""
    return [
        _python(),
        *(_package(module, install) for module, install in PACKAGES.items()),
        *(_package(module, install, wanted_for=setting) for module, (install, setting) in OPTIONAL.items()),
        _processor(),
        _gpu(),
        _memory(),
        _shared_memory(),
        _open_files(),
        _ray_address(settings),
        _ray_token(),
        _store(settings),
        _model(settings),
        _tracking(settings),
        *(_variable(name) for name in variables.VARIABLES),
    ]


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info >= (3, 13):
        return Check(NOTE, "Python", version, "the pins are tried on Python 3.11 and 3.12")
    return Check(OK, "Python", version)


def _package(module: str, install: str, *, wanted_for: str | None = None) -> Check:
    command = f"pip install -c constraints.txt {install}"
    if importlib.util.find_spec(module) is not None:
        return Check(OK, module, metadata.version(install.partition("[")[0]))
    if wanted_for is not None:
        return Check(NOTE, module, f"not installed; only for {wanted_for}", command)
    return Check(GAP, module, "not installed", command)


def _processor() -> Check:
    dtype = precision.compute_dtype("auto") if importlib.util.find_spec("torch") else "unknown"
    return Check(OK, "processor", f"{os.cpu_count()} cores, trains in {dtype}")


def _gpu() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check(NOTE, "GPU", "unknown without torch")
    import torch  # noqa: PLC0415 - 1 s, for this line only

    if torch.cuda.is_available():
        return Check(OK, "GPU", ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())))
    return Check(NOTE, "GPU", "none", "the demo trains without; the tiers of the guide want 8, 16 and 24 GB")


def _memory() -> Check:
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1024**3
    free = shutil.disk_usage(Path.cwd()).free / 1024**3
    verdict, advice = (OK, "") if free > 5 else (GAP, "the demo writes about 3 GB")
    return Check(verdict, "memory, disk", f"{pages:.0f} GiB memory, {free:.0f} GiB free disk", advice)


def _shared_memory() -> Check:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Check(NOTE, "shared memory", "none", "Ray keeps its objects on disk then, which is slow")
    size = shutil.disk_usage(folder).total / 1024**3
    if size < 0.5:
        return Check(
            NOTE, "shared memory", f"{size:.2f} GiB", "Ray's objects go to disk beyond it (docker: --shm-size)"
        )
    return Check(OK, "shared memory", f"{size:.1f} GiB")


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096 and hard != resource.RLIM_INFINITY and hard < 4096:
        return Check(NOTE, "open files", f"at most {hard}", "a Ray head with many workers wants 65536 (ulimit -n)")
    return Check(OK, "open files", str(soft))


def _ray_address(settings: Config) -> Check:
    address = cluster.address_of(settings.place)
    if not address:
        return Check(OK, "Ray", "started by each command on this machine (ray.address, RAY_ADDRESS: none)")
    try:
        cluster.check_text(address)
    except UcotronRayError as error:
        return Check(GAP, "Ray", f"{error.found}: {error.problem}", error.next_step or error.expected or "")
    return Check(OK, "Ray", f"the cluster at {address}")


def _ray_token() -> Check:
    path = Path(variables.value("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    if not path.is_file():
        return Check(
            NOTE, "Ray's token", "none", "cluster/local-head.sh makes one; a cluster elsewhere gives you its own"
        )
    if path.stat().st_mode & 0o077:
        return Check(NOTE, "Ray's token", f"others can read {path}", f"chmod 600 {path}")
    return Check(OK, "Ray's token", str(path))


def _store(settings: Config) -> Check:
    root = Path(settings.place.store).expanduser().absolute()
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    if not os.access(existing, os.W_OK):
        return Check(GAP, "store", f"{existing} cannot be written", "choose another with --set store=PATH")
    unfinished = [entry for entry in status.look(root).building if entry.resumable]
    if unfinished:
        names = ", ".join(f"{entry.kind}/{entry.name}" for entry in unfinished[:3])
        return Check(NOTE, "store", f"{root}: unfinished: {names}", "the command that began it goes on from there")
    return Check(OK, "store", str(root))


def _model(settings: Config) -> Check:
    model = settings.recipe.tier_model
    reference = model.local_model
    try:
        base = base_models.located(reference, model.revision)
    except UcotronRayError as error:
        return Check(GAP, "model", f"{reference}: {error.problem}", error.next_step or "")
    if base.kind == "hub":
        return Check(NOTE, "model", f"{reference}, from the hub", "the first run downloads it, unless it is cached")
    return Check(OK, "model", reference)


def _tracking(settings: Config) -> Check:
    try:
        where = destinations.destination(settings.place, Path(settings.place.store).expanduser().absolute())
    except UcotronRayError as error:
        return Check(GAP, "MLflow", error.problem, error.next_step or "")
    return Check(OK, "MLflow", where.shown if where else "switched off")


def _variable(name: str) -> Check:
    purpose = variables.VARIABLES[name]
    if variables.is_set(name):
        return Check(OK, name, "set")
    default = variables.VARIABLE_DEFAULTS.get(name)
    if default:
        return Check(NOTE, name, f"not set, default {default}")
    return Check(NOTE, name, "not set", purpose)
