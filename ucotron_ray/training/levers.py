"""What large models on small GPUs need: 4-bit weights (QLoRA), a base spread over the workers (FSDP2).

And what GPUs gain by: flash attention on rows behind one another without padding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ucotron_ray.core.errors import ResourceError
from ucotron_ray.models import base as base_models


def load(base: base_models.BaseModel, dtype: base_models.Dtype, *, quantize: str, attention: str = "auto") -> Any:
    """The base with these levers: on the GPU if it is quantized, else on the processor."""
    if quantize == "nf4":
        return _quantized(base)
    model = base_models.load_model(base, dtype)
    if attention != "auto":
        model.set_attn_implementation(attention)
    return model


def for_answers(base: base_models.BaseModel, dtype: base_models.Dtype, *, quantize: str) -> Any:
    """The base that is only asked, in the very weights that are trained on, where it computes."""
    model = load(base, dtype, quantize=quantize).eval()
    return model.to("cuda") if torch.cuda.is_available() and quantize == "none" else model


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


def _quantized(base: base_models.BaseModel) -> Any:
    """The base in 4 bits (NF4 with double quantization; Dettmers et al. 2023, arxiv.org/abs/2305.14314)."""
    from peft import prepare_model_for_kbit_training  # noqa: PLC0415 - 4 s; only workers pay for it
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig  # noqa: PLC0415

    if not torch.cuda.is_available():
        raise ResourceError(
            "4-bit weights need a GPU",
            where="training.<stage>.<tier>.quantize",
            expected="a worker with a GPU",
            found="a processor",
            next_step="set quantize to none",
        )
    model = AutoModelForCausalLM.from_pretrained(
        str(base.path) if base.path else base.reference,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
        dtype=torch.bfloat16,
        device_map={"": torch.cuda.current_device()},
        use_safetensors=True,
        trust_remote_code=False,
    )
    # Casts norms to float32 and freezes the rest; checkpointing is the plan's decision, not this function's.
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
