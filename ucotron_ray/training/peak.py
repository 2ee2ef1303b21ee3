"""How fast the hardware multiplies at best, and how much memory it has: what MFU and plans are measured against."""

import time

TERA, GIGA = 1e12, 1e9

GPUS = (
    ("H200", 989 * TERA, 141 * GIGA),
    ("H100 NVL", 835 * TERA, 94 * GIGA),
    ("H100 PCIe", 756 * TERA, 80 * GIGA),
    ("H100", 989 * TERA, 80 * GIGA),
    ("A100-SXM4-40GB", 312 * TERA, 40 * GIGA),
    ("A100-PCIE-40GB", 312 * TERA, 40 * GIGA),
    ("A100-40G", 312 * TERA, 40 * GIGA),
    ("A100", 312 * TERA, 80 * GIGA),
    ("L40S", 362 * TERA, 48 * GIGA),
    ("L4", 121 * TERA, 24 * GIGA),
    ("A10G", 70 * TERA, 24 * GIGA),
    ("A10", 125 * TERA, 24 * GIGA),
    ("T4", 65 * TERA, 16 * GIGA),
    ("V100", 125 * TERA, 16 * GIGA),
    ("RTX 4090", 165 * TERA, 24 * GIGA),
    ("A6000", 155 * TERA, 48 * GIGA),
)
"""Part of the name, dense 16-bit FLOP/s and bytes, as the vendor's data sheets have them. The first match counts."""


def gpu(name: str) -> tuple[float, float] | None:
    """FLOP/s and bytes of a GPU by CUDA's name or Ray's accelerator type; None for one that is not listed."""
    return next(((flops, size) for part, flops, size in GPUS if part.lower() in name.lower()), None)


def peak_flops(dtype: str) -> tuple[float, str] | None:
    """FLOP/s of this process's device and what they are: a GPU's data sheet, or a product timed on this processor.

    None for a GPU that is not listed: an MFU against a guess would be worth nothing.
    """
    import torch  # noqa: PLC0415 - workers have it anyway; a driver only pays where it plans

    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        known = gpu(name)
        return (known[0], f"{name}, data sheet, dense 16 bit") if known else None
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
