"""What a process computes in: bfloat16 where that is faster and no emulation, else float32."""

import logging
import time
from typing import Literal

from ucotron_ray.core.errors import ResourceError

log = logging.getLogger(__name__)

TIMED_PRODUCTS = 6
BFLOAT16_MARGIN = 1.1
"""How much faster bfloat16 must be: it is less exact."""

Dtype = Literal["bfloat16", "float32"]


def compute_dtype(setting: str, *, rows: int = 2048) -> Dtype:
    """`auto` = bfloat16 on a GPU that has it; on a processor whichever multiplies `rows` activations faster, measured.

    A flag of the processor does not tell: with avx512_bf16 alone bf16 took half the time of float32 on a Zen 4, and 1.8
    times as long on an Emerald Rapids whose AMX the virtual machine hides (torch 2.13, 2,432 x 576 x 1,536).
    """
    import torch  # noqa: PLC0415

    if torch.cuda.is_available():
        return of_gpu(setting, torch.cuda.get_device_name(), has_bfloat16=gpu_has_bfloat16())
    if setting != "auto":
        return "bfloat16" if setting == "bfloat16" else "float32"
    seconds = {dtype: _product_seconds(dtype, rows) for dtype in ("bfloat16", "float32")}
    return "bfloat16" if seconds["bfloat16"] * BFLOAT16_MARGIN < seconds["float32"] else "float32"


def of_gpu(setting: str, name: str, *, has_bfloat16: bool) -> Dtype:
    """What a GPU computes in. Raises ResourceError for a type that it only emulates."""
    if has_bfloat16 or setting == "float32":
        return "float32" if setting == "float32" else "bfloat16"
    if setting == "bfloat16":
        raise ResourceError(
            "this GPU computes bfloat16 in emulation only",
            where="workers.dtype",
            expected="auto or float32, or a GPU of compute capability 8.0 or more",
            found=name,
        )
    log.warning("%s has no bfloat16: computing in float32, in twice the memory", name)
    return "float32"


def gpu_has_bfloat16() -> bool:
    """Whether the GPU computes in bfloat16 itself: torch says yes of a T4 and a V100 too, which emulate it slowly."""
    import torch  # noqa: PLC0415

    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _product_seconds(dtype: str, rows: int) -> float:
    """The fastest of a few products of a layer's size, in seconds."""
    import torch  # noqa: PLC0415

    x, w = (torch.ones(count, 1024, dtype=getattr(torch, dtype)) for count in (rows, 1024))
    timed = []
    for _ in range(TIMED_PRODUCTS):
        began = time.perf_counter()
        torch.nn.functional.linear(x, w)
        timed.append(time.perf_counter() - began)
    return min(timed)
