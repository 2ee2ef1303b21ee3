"""An adapter added to its base, as one model that transformers loads."""

from pathlib import Path

from ucotron_ray.models import base as base_models
from ucotron_ray.models import lora


def write_merged(base: base_models.BaseModel, adapter: Path | None, directory: Path) -> None:
    """Write the float32 model that transformers loads: base plus adapter, or the base alone, with its tokenizer."""
    model = base_models.load_model(base, "float32")
    if adapter is not None:
        model = lora.load_merged(model, adapter)
    tokenizer = base_models.load_tokenizer(base)
    model.config._name_or_path = ""
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.generation_config is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(directory, safe_serialization=True)
    base_models.save_tokenizer(tokenizer, directory)
