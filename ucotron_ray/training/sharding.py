"""A frozen base spread over the workers' GPUs (FSDP2), where one is too small for it."""

from typing import Any

import torch


def spread(model: Any) -> None:
    """Spread the frozen weights over the workers; each is gathered for its layer's computation only. In place.

    FSDP2, torch's `fully_shard` (arxiv.org/abs/2304.11277). The adapter stays whole on every worker, DDP averages its
    gradients as ever, so that checkpoints, the optimizer and a resume on another number of workers are as in any run.
    """
    from torch.distributed.device_mesh import init_device_mesh  # noqa: PLC0415 - only where a base is spread
    from torch.distributed.fsdp import fully_shard  # noqa: PLC0415

    adapter = {parameter for parameter in model.parameters() if parameter.requires_grad}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    for block in _blocks(model):
        fully_shard(block, mesh=mesh, ignored_params=adapter)
    fully_shard(model, mesh=mesh, ignored_params=adapter)
    # What DDP would else copy from worker 0 to all others at its start (`DistributedDataParallel.__init__`).
    model._ddp_params_and_buffers_to_ignore = [
        name for name, parameter in model.named_parameters() if not parameter.requires_grad
    ]


def averaged(model: Any) -> Any:
    """A base that is spread, wrapped so that the adapter's gradients are averaged over the workers."""
    device = [torch.cuda.current_device()] if torch.cuda.is_available() else None
    return torch.nn.parallel.DistributedDataParallel(model, device_ids=device)


def is_spread(model: Any) -> bool:
    """Whether `spread` was called on it. Its forward passes are collective: all workers must make the same number."""
    from torch.distributed.fsdp import FSDPModule  # noqa: PLC0415

    return isinstance(model, FSDPModule)


def _blocks(model: Any) -> list[Any]:
    """The model's equal layers: the longest list of modules in it."""
    lists = [list(module) for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=len)
