"""Whether a family can become an ONNX graph, asked before anything is trained on it.

Those that tests export are known. Of any other a model of two layers with random weights is traced: 20 seconds, against
the hours of a training whose adapter no bundle can be made of.
"""

import json
import logging
import tempfile
from pathlib import Path

from ucotron_ray.core.errors import InputError

log = logging.getLogger(__name__)

KNOWN = (
    "gemma3",
    "gemma3_text",
    "gemma4",
    "gemma4_text",
    "granite",
    "llama",
    "ministral3",
    "mistral",
    "mistral3",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_5",
    "qwen3_5_text",
    "smollm3",
)
"""Model types that `tests/e2e/test_families.py` and `tests/unit/export` export and compare with PyTorch."""

_LAYERS, _WORDS = 2, 64


def check(model: Path) -> None:
    """Raise InputError for a model directory of a family that the exporter cannot trace. No weights are read."""
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    if settings.get("model_type") in KNOWN:
        return
    log.info("export: the family '%s' was never exported here: tracing two layers of it", settings.get("model_type"))
    from ucotron_ray.export import exporter  # noqa: PLC0415 - torch and transformers, for other families only

    with tempfile.TemporaryDirectory() as directory:
        try:
            _save_small(model, Path(directory))
            exporter.export(Path(directory), Path(directory) / "bundle", opset=18)
        except InputError:
            raise
        except Exception as error:
            raise exporter.refusal(str(settings.get("model_type")), error) from error


def _save_small(model: Path, directory: Path) -> None:
    """A random model with the first layers of this one, and few words."""
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    config = AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False).get_text_config()
    config.num_hidden_layers = _LAYERS
    if config.to_dict().get("layer_types"):
        # The kinds that there are: two layers may well be of the same.
        kinds = list(dict.fromkeys(config.layer_types))
        config.layer_types = (kinds * _LAYERS)[: max(_LAYERS, len(kinds))]
        config.num_hidden_layers = len(config.layer_types)
    config.vocab_size, config.pad_token_id, config.bos_token_id, config.eos_token_id = _WORDS, None, None, None
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
