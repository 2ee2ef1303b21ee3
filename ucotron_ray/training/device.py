"""What a worker will compute on, as far as it is known before it starts."""

from dataclasses import dataclass
from pathlib import Path

from ucotron_ray.core import cluster
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.place import Workers
from ucotron_ray.core.run import Run
from ucotron_ray.models import precision
from ucotron_ray.training import plan as plans
from ucotron_ray.training.peak import gpu_of_this_machine, processor_flops


def refuse_shared_gpus(workers: Workers) -> None:
    """Raise ConfigError for several workers that would share a GPU: NCCL, by which they add gradients, refuses that."""
    share = workers.gpus_per_worker or 0.0
    if workers.num_workers > 1 and 0 < share < 1:
        raise ConfigError(
            "workers of one training cannot share a GPU",
            where="workers.gpus_per_worker, workers.num_workers",
            expected="a whole GPU for each worker, or one worker with a part of one (NCCL: duplicate GPU detected)",
            found=f"{workers.num_workers} workers with {share:g} of a GPU each",
            next_step="set workers.gpus_per_worker=1, or workers.num_workers=1",
        )


@dataclass(frozen=True)
class Device:
    """What one worker computes on, as far as it is known: bytes, FLOP/s, and the shares of them that are reached."""

    dtype: str
    on_gpu: bool
    memory: float | None
    flops: float | None
    shares: tuple[float, float]


def device_of(run: Run) -> Device:
    """This machine if Ray will start on it, else what the cluster says once the run is connected."""
    import torch  # noqa: PLC0415 - 1 s; not for a run that reuses everything

    workers = run.config.place.workers
    given = workers.memory_gb * 1e9 if workers.memory_gb else None
    gpus, found, memory = workers.gpus_per_worker or 0.0, None, None
    if not is_remote(run):
        memory = _free_memory(workers.num_workers)
        if workers.gpus_per_worker is None:
            gpus = float(torch.cuda.device_count() >= workers.num_workers)
        found = gpu_of_this_machine() if gpus else None
    elif run.connected:
        from ucotron_ray.core import session  # noqa: PLC0415 - Ray
        from ucotron_ray.training.on_ray import gpu_on_ray  # noqa: PLC0415 - Ray

        gpus = session.worker_resources(workers).gpus
        memory = session.worker_memory(workers)
        found = gpu_on_ray(workers) if gpus else None
    if gpus:
        name, has = (found.name, found.has_bfloat16) if found else ("", True)
        dtype = precision.of_gpu(workers.dtype, name, has_bfloat16=has)
        # Who shares a GPU has its share of the memory.
        memory = found.free * min(1.0, gpus) if found else None
        return Device(dtype, True, given or memory, found.flops if found else None, plans.MFU_EXPECTED)
    dtype = precision.compute_dtype(workers.dtype)
    return Device(dtype, False, given or memory, processor_flops(dtype), plans.CPU_SHARES)


def is_remote(run: Run) -> bool:
    """Whether the run joins a cluster that others started."""
    return cluster.address_of(run.config.place) is not None


def _free_memory(num_workers: int) -> float | None:
    """Bytes that this machine can still give to each of so many workers; None where its kernel does not say."""
    path = Path("/proc/meminfo")
    for line in path.read_text(encoding="ascii").splitlines() if path.is_file() else []:
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024 / num_workers
    return None
