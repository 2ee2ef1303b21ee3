"""Settings of a training, a class a method. All of them change the result: they are part of a recipe, and hashed."""

from typing import Annotated, Any, Literal

from pydantic import Field

from ucotron_ray.core.sections import Count, NonNegative, Positive, Section, Share, Text


class LoraSettings(Section):
    """Hyperparameters of a LoRA training. All of them change the result."""

    epochs: Count
    """Passes over the training rows."""
    learning_rate: Positive
    """Of AdamW, at its highest."""
    lora_rank: Count
    """Rank of the adapter's matrices."""
    max_context_length: Annotated[int, Field(ge=128)]
    """Tokens of prompt and answer; a longer row is dropped and counted."""
    batch_size: Count | None
    """Rows per optimizer step over all workers; null = 16."""
    lora_alpha: Count | None
    lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: Text | list[Text]
    weight_decay: Annotated[float, Field(ge=0)]
    warmup_ratio: Share
    lr_scheduler: Literal["linear", "cosine", "constant"]
    max_grad_norm: Positive
    max_rows: Count | None
    eval_rows: NonNegative
    eval_f1_rows: NonNegative
    eval_steps: Count | None
    save_steps: Count
    keep: Literal["best", "last"]
    """The adapter of the best validation score, or of the last step; without validation rows always the last."""
    patience: NonNegative
    """Evaluations without a better score until training stops; 0 = never."""
    quantize: Literal["none", "nf4"]
    seed: NonNegative

    def identity(self) -> dict[str, Any]:
        """What of it changes the adapter. The last step without patience is what was made before there was a choice."""
        as_before = {name for name, value in (("keep", "last"), ("patience", 0)) if getattr(self, name) == value}
        return self.model_dump(exclude=as_before)

    @property
    def global_batch(self) -> int:
        """Rows per optimizer step over all workers."""
        return self.batch_size or 16

    @property
    def alpha(self) -> int:
        """LoRA alpha; twice the rank unless given."""
        return self.lora_alpha or 2 * self.lora_rank


class SftSettings(LoraSettings):
    """Hyperparameters of supervised fine-tuning."""

    raw_share: Share


class OnPolicy(Section):
    """Rejected answers that the model itself gives. `max_tokens` of one answer."""

    samples: Count
    temperature: Annotated[float, Field(gt=0, le=2)]
    max_tokens: Count


class DpoSettings(LoraSettings):
    """Hyperparameters of preference training."""

    beta: Positive
    """How strongly answers are held near those of the model that DPO starts from."""
    max_longer_share: Annotated[float, Field(ge=0.5, le=1)] | None
    on_policy: OnPolicy
