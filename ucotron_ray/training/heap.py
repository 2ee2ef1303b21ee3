"""Gives memory that a training on a processor has freed back to the system."""

import ctypes
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

EVERY = 16
"""Optimizer steps. What was given back is fetched again by the next step, page by page: a tenth of a step."""


class HeapTrim(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """glibc keeps what is freed, and rows of many lengths leave holes between what stays: a gigabyte in 100 steps."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step % EVERY == 0 and not torch.cuda.is_available():
            # Of glibc alone: other libraries have no such function.
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)
