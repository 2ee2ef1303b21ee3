"""This worker among those of a training."""

from collections.abc import Sequence

import torch


def rank_and_world() -> tuple[int, int]:
    """This worker's number, and how many there are."""
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


def over_workers(values: Sequence[float], device: torch.device) -> list[float]:
    """The sums over all workers. A collective call: each of them must make it."""
    sums = torch.tensor(values, dtype=torch.float64)
    if rank_and_world()[1] > 1:
        sums = sums.to(device)
        torch.distributed.all_reduce(sums)
    summed: list[float] = sums.tolist()
    return summed
