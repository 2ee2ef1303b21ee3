"""How fast the hardware multiplies at best, and how much memory a GPU has: what MFU and plans are measured against."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass

from ucotron_ray.models import precision

TERA = 1e12

GPUS = {
    "NVIDIA H200": 989 * TERA,
    "NVIDIA H100 NVL": 835 * TERA,
    "NVIDIA H100 PCIe": 756 * TERA,
    "NVIDIA H100 80GB HBM3": 989 * TERA,
    "NVIDIA A100-SXM4-80GB": 312 * TERA,
    "NVIDIA A100-SXM4-40GB": 312 * TERA,
    "NVIDIA A100 80GB PCIe": 312 * TERA,
    "NVIDIA A100-PCIE-40GB": 312 * TERA,
    "NVIDIA L40S": 362 * TERA,
    "NVIDIA L40": 181 * TERA,
    "NVIDIA L4": 121 * TERA,
    "NVIDIA A10G": 70 * TERA,
    "NVIDIA A10": 125 * TERA,
    "Tesla T4": 65 * TERA,
    "Tesla V100-SXM2-16GB": 125 * TERA,
    "Tesla V100-SXM2-32GB": 125 * TERA,
    "Tesla V100-PCIE-16GB": 112 * TERA,
    "NVIDIA GeForce RTX 4090": 165 * TERA,
    "NVIDIA RTX A6000": 155 * TERA,
}
"""CUDA's name and dense 16-bit FLOP/s, as the vendor's data sheets have them. A slice of one (MIG) is not listed."""

ASK_SECONDS = 120.0


@dataclass(frozen=True)
class Gpu:
    """What a process sees of its first GPU: its name, the bytes that are free, and whether it computes in bfloat16."""

    name: str
    free: float
    has_bfloat16: bool

    @property
    def flops(self) -> float | None:
        """Dense 16-bit FLOP/s; None for one that is not listed."""
        return GPUS.get(self.name)


def visible_gpu() -> Gpu | None:
    """This process's first GPU; None where it sees none. It has a context on it from then on."""
    import torch  # noqa: PLC0415 - workers have it anyway; a driver only pays where it plans

    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info()
    return Gpu(torch.cuda.get_device_name(), float(free), precision.gpu_has_bfloat16())


def gpu_of_this_machine() -> Gpu | None:
    """The same, seen by a process of its own: the context takes half a GB as long as its process lives."""
    ask = "import json; from dataclasses import asdict; from ucotron_ray.training.peak import visible_gpu as see"
    command = [sys.executable, "-c", f"{ask}; found = see(); print(json.dumps(asdict(found) if found else None))"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ASK_SECONDS)
    found = json.loads(answer.stdout.splitlines()[-1])
    return Gpu(**found) if found else None


def peak_flops(dtype: str) -> tuple[float, str] | None:
    """FLOP/s of this process's device and what they are: a GPU's data sheet, or a product timed on this processor.

    None for a GPU that is not listed: an MFU against a guess would be worth nothing.
    """
    import torch  # noqa: PLC0415 - workers have it anyway; a driver only pays where it plans

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return (GPUS[name], f"{name}, data sheet, dense 16 bit") if name in GPUS else None
    return processor_flops(dtype), f"a 2048 x 1024 x 1024 product in {dtype}, measured on this processor"


def processor_flops(dtype: str) -> float:
    """FLOP/s of the fastest of a few products on this processor, with the threads that torch has."""
    import torch  # noqa: PLC0415

    x, w = (torch.ones(count, 1024, dtype=getattr(torch, dtype)) for count in (2048, 1024))
    seconds = []
    for _ in range(6):
        began = time.perf_counter()
        torch.nn.functional.linear(x, w)
        seconds.append(time.perf_counter() - began)
    return 2 * 2048 * 1024 * 1024 / min(seconds)
