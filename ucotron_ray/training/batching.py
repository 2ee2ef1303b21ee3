"""Which rows go through the model together: their order, and how they are padded to one length."""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch.utils.data import Sampler

from ucotron_ray.training.data import IGNORED, epoch_order


def collate(rows: Sequence[Mapping[str, list[int]]], *, pad: int) -> dict[str, torch.Tensor]:
    """A left-padded batch: `input_ids`, `labels`, `attention_mask`, each [rows, longest].

    Answers then end in the same column, and the columns that have a label in any row are few. Positions are relative
    (RoPE), so padding in front changes nothing.
    """
    longest = max(len(row["input_ids"]) for row in rows)

    def left(values: list[int], filler: int) -> list[int]:
        return [filler] * (longest - len(values)) + list(values)

    return {
        "input_ids": torch.tensor([left(row["input_ids"], pad) for row in rows]),
        "labels": torch.tensor([left(row["labels"], IGNORED) for row in rows]),
        "attention_mask": torch.tensor([left([1] * len(row["input_ids"]), 0) for row in rows]),
    }


class EpochOrder(Sampler[int]):
    """Gives the rows in `epoch_order`; accelerate calls `set_epoch`."""

    def __init__(self, lengths: list[int], global_batch: int, seed: int) -> None:
        self._lengths, self._global_batch, self._seed, self._epoch = lengths, global_batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(epoch_order(self._lengths, global_batch=self._global_batch, seed=self._seed, epoch=self._epoch))

    def __len__(self) -> int:
        return math.ceil(len(self._lengths) / self._global_batch) * self._global_batch


def collate_flat(rows: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Rows behind one another as one, without padding: `input_ids`, `labels`, `position_ids`, each [1, all tokens].

    Positions begin anew with every row, by which transformers keeps attention within it (flash attention at no cost,
    sdpa by a mask of all tokens squared). A row's first label is never one: none is predicted from the row before.
    """
    return {
        "input_ids": torch.tensor([[token for row in rows for token in row["input_ids"]]]),
        "labels": torch.tensor([[label for row in rows for label in row["labels"]]]),
        "position_ids": torch.tensor([[position for row in rows for position in range(len(row["input_ids"]))]]),
    }
