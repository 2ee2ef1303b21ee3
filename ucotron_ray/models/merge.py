"""An adapter added to its base, as one model that transformers loads."""

from pathlib import Path

from ucotron_ray.models import base as base_models
from ucotron_ray.models import lora


def write_merged(base: base_models.Located, adapter: Path | None, directory: Path) -> None:
    """Write the float32 model that transformers loads: base plus adapter, or the base alone, with its tokenizer."""
    model = base_models.load_model(base, "float32")
    if adapter is not None:
        model = lora.load_merged(model, adapter)
    base_models.save_model(model, base_models.load_tokenizer(base), directory)
