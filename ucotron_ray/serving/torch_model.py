"""A model of transformers as the batcher calls it: left-padded batches whose rows come and go, on a GPU or a CPU.

Suffixes: B rows, T columns of the cache, S tokens of a step, K key heads, D head dimension, V words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from ucotron_ray.models.runner import Floats

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class TorchBatch:
    """A batch that has read its tokens. A column that is no token of a row is 0 in its mask."""

    cache: DynamicCache
    """Keys and values of each layer, [B, K, T, D] each. A step writes on in it: a batch is used once."""
    mask_BT: torch.Tensor
    logits_BV: torch.Tensor
    """Of the last token of each row."""


class TorchStepper:
    """Runs batches. One thread at a time."""

    def __init__(self, model: "PreTrainedModel") -> None:
        self._model = model

    def prefill(self, prompts: Sequence[Sequence[int]]) -> TorchBatch:
        mask_BT = torch.zeros((len(prompts), 0), dtype=torch.long, device=self._model.device)
        return self._step(DynamicCache(), mask_BT, prompts)

    def step(self, batch: TorchBatch, tokens: Sequence[Sequence[int]]) -> TorchBatch:
        return self._step(batch.cache, batch.mask_BT, tokens)

    def pick(self, parts: Sequence[tuple[TorchBatch, Sequence[int]]]) -> TorchBatch:
        rows = [torch.tensor(list(wanted), device=self._model.device) for _, wanted in parts]
        masks = [batch.mask_BT[index] for (batch, _), index in zip(parts, rows, strict=True)]
        # Columns in front that no row needs are left behind; shorter batches are padded there.
        starts = [int(mask_BT.any(dim=0).int().argmax()) for mask_BT in masks]
        width = max(mask_BT.shape[1] - start for mask_BT, start in zip(masks, starts, strict=True))

        def aligned(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
            pairs = zip(tensors, starts, strict=True)
            cut = [tensor.narrow(dim, start, tensor.shape[dim] - start) for tensor, start in pairs]
            after = [0, 0] * (tensors[0].dim() - 1 - dim)
            return torch.cat([torch.nn.functional.pad(part, [*after, width - part.shape[dim], 0]) for part in cut])

        layers = []
        for layer in zip(*(batch.cache.layers for batch, _ in parts), strict=True):
            keys = [own.keys[index] for own, index in zip(layer, rows, strict=True)]
            values = [own.values[index] for own, index in zip(layer, rows, strict=True)]
            layers.append((aligned(keys, 2), aligned(values, 2)))
        logits_BV = torch.cat([batch.logits_BV[index] for (batch, _), index in zip(parts, rows, strict=True)])
        return TorchBatch(DynamicCache(layers), aligned(masks, 1), logits_BV)

    def logits(self, batch: TorchBatch) -> Floats:
        logits_BV: Floats = batch.logits_BV.float().cpu().numpy()
        return logits_BV

    @torch.inference_mode()
    def _step(self, cache: DynamicCache, mask_BT: torch.Tensor, tokens: Sequence[Sequence[int]]) -> TorchBatch:
        longest = max(len(row) for row in tokens)
        ids_BS = torch.tensor([[0] * (longest - len(row)) + list(row) for row in tokens]).to(mask_BT)
        new_BS = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in tokens]).to(mask_BT)
        positions_BS = (mask_BT.sum(dim=1, keepdim=True) + new_BS.cumsum(dim=1) - 1).clamp(min=0)
        mask_BT = torch.cat([mask_BT, new_BS], dim=1)
        output = self._model(
            input_ids=ids_BS,
            attention_mask=mask_BT,
            position_ids=positions_BS,
            cache=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return TorchBatch(output.cache, mask_BT, output.logits[:, -1])
