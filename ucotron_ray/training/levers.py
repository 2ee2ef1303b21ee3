"""What only a GPU gains by: 4-bit weights (QLoRA), flash attention on rows behind one another without padding."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ucotron_ray.config import LoraSettings
from ucotron_ray.errors import ResourceError
from ucotron_ray.models import base as base_models
from ucotron_ray.training.job import TrainingJob


def load(base: base_models.BaseModel, dtype: base_models.Dtype, job: TrainingJob, settings: LoraSettings) -> Any:
    """The base as the job wants it."""
    if settings.quantize == "nf4":
        return _quantized(base)
    model = base_models.load_model(base, dtype)
    if job.attention != "auto":
        model.set_attn_implementation(job.attention)
    return model


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
