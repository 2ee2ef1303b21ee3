"""The base as it is trained on: as it is, or in 4 bits for a GPU that is too small (QLoRA)."""

from typing import Any

import torch

from ucotron_ray.core.errors import ResourceError
from ucotron_ray.models import base as base_models
from ucotron_ray.models import precision


def load(base: base_models.Located, dtype: precision.Dtype, *, quantize: str, attention: str = "auto") -> Any:
    """The base, quantized or not, with this kind of attention: on the GPU if it is quantized, else on the processor."""
    if quantize == "nf4":
        return _quantized(base, dtype)
    model = base_models.load_model(base, dtype)
    if attention != "auto":
        model.set_attn_implementation(attention)
    return model


def for_answers(base: base_models.Located, dtype: precision.Dtype, *, quantize: str) -> Any:
    """The base that is only asked, in the very weights that are trained on, where it computes."""
    model = load(base, dtype, quantize=quantize).eval()
    return model.to("cuda") if torch.cuda.is_available() and quantize == "none" else model


def _quantized(base: base_models.Located, dtype: precision.Dtype) -> Any:
    """The base in 4 bits (NF4 with double quantization; Dettmers et al. 2023, arxiv.org/abs/2305.14314)."""
    from peft import prepare_model_for_kbit_training  # noqa: PLC0415 - 4 s; only workers pay for it
    from transformers import BitsAndBytesConfig  # noqa: PLC0415

    if not torch.cuda.is_available():
        raise ResourceError(
            "4-bit weights need a GPU",
            where="training.<stage>.<tier>.quantize",
            expected="a worker with a GPU",
            found="a processor",
            next_step="set quantize to none",
        )
    model = base_models.loaded_as(
        base,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, dtype),
        ),
        dtype=getattr(torch, dtype),
        device_map={"": torch.cuda.current_device()},
    )
    # Casts norms to float32 and freezes the rest; checkpointing is the plan's decision, not this function's.
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
