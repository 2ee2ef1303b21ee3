"""What stands in a bundle beside the graph: contracts, golden answers, the lines for the server, and a card."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucotron_ray.core.files import canonical_hash, write_json, write_text
from ucotron_ray.data.records import Entity
from ucotron_ray.data.wire import CHAT_SYSTEM, SERVER_MAX_TOKENS, SERVER_TEMPERATURE, chat_messages, user_prompt
from ucotron_ray.models.prompts import chat_text
from ucotron_ray.models.served import DECODING, IO_CONTRACT, RELATIONS
from ucotron_ray.models.templates import DATE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_CONTRACT = "prompt_contract.json"
PARITY = "parity.json"
CARD = "MODEL_CARD.md"
SERVER_LINES = "ucotron.toml"
REPORTED = (CARD, PARITY, DECODING, IO_CONTRACT, PROMPT_CONTRACT, SERVER_LINES)
"""What is shown beside the run."""


def prompt_contract(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """The prompt as templates and as one rendered example, with a hash over all of it."""
    example = [Entity(text="{entity}", label="{label}")]
    contract: dict[str, Any] = {
        "chat": {
            "system": CHAT_SYSTEM,
            "user": user_prompt("{text}", example),
            "rendered": chat_text(chat_messages("{text}", example), tokenizer),
            "date": f"{DATE:%Y-%m-%d}, on any day, for a template that asks what day it is",
            "max_tokens": SERVER_MAX_TOKENS,
            "temperature": SERVER_TEMPERATURE,
        },
        "raw": {
            "prompt": user_prompt("{text}", example),
            "bos_token_id": tokenizer.bos_token_id,
            "note": "the user prompt alone after BOS, as the server's GGUF path sends it",
        },
        "answer": 'a JSON array of {"subject", "predicate", "object", "confidence"}, then the end token',
        "eos_token_id": tokenizer.eos_token_id,
    }
    return {**contract, "sha256": canonical_hash(contract)}


def server_lines(
    name: str, *, endpoint: str = "http://127.0.0.1:8000/v1", key_variable: str = "UCOTRON_RE_API_KEY"
) -> str:
    """The `ucotron.toml` lines with the server's real key names, and what they do."""
    return f"""\
# The Ucotron server loads no ONNX relation model by itself. It calls an OpenAI-compatible endpoint once these three
# keys are set and the variable that is named here is not empty.
[models]
fine_tuned_re_model = {json.dumps(name)}
fine_tuned_re_endpoint = {json.dumps(endpoint)}
fine_tuned_re_api_key_env = {json.dumps(key_variable)}
# The directory key is `models_dir`; a key `model_dir` is ignored without a word.
"""


def write_contracts(
    directory: Path,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    io: Mapping[str, object],
    name: str,
    predicates: Sequence[str],
) -> None:
    """Write the IO contract, the prompt contract, the predicates and the server's lines."""
    write_json(directory / IO_CONTRACT, dict(io))
    write_json(directory / RELATIONS, {"predicates": list(predicates)})
    write_json(directory / PROMPT_CONTRACT, prompt_contract(tokenizer))
    write_text(directory / SERVER_LINES, server_lines(name))


def write_card(directory: Path, *, name: str, base: str, report: Mapping[str, Any], facts: Mapping[str, str]) -> None:
    """Write the model card: what it is, what was measured, what it is not good for."""
    parity, missed = report["figures"], report["missed"]
    verdict = "passed" if not missed else "FAILED: " + "; ".join(missed)
    lines = [
        f"# {name}",
        "",
        f"A relation extraction model for Ucotron: {base}, fine-tuned on the prompt that the Ucotron server sends.",
        "",
        "| fact | value |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in facts.items()),
        f"| gates | {verdict} |",
        *(f"| not published: {kind} | {'; '.join(reasons)} |" for kind, reasons in report["withheld"].items()),
        f"| largest logit difference to PyTorch | {parity['max_logit_difference']:.2e} |",
        f"| same greedy tokens | {parity['greedy_match']:.1%} of {parity['prompts']:.0f} prompts |",
        f"| greedy decoding, one prompt at a time | {parity['onnx_tokens_per_second']:.1f} tokens/s in ONNX Runtime, "
        f"{parity['torch_tokens_per_second']:.1f} in eager PyTorch |",
        "",
        *_variant_table(report["variants"]),
        *_decoding_table(report["decodings"]),
        *_gguf_table(report["gguf"]),
        "## Use",
        "",
        f"`{IO_CONTRACT}` names the graph's inputs and outputs, `{PROMPT_CONTRACT}` the prompt, `{SERVER_LINES}` the",
        "lines for the server. The answer is a JSON array; read it as the server does, from the first `[` to the last",
        "`]`.",
        "",
        "## Limits",
        "",
        "It is asked about entities that are given to it, and it was scored that way. `confidence` is what the",
        "training rows had, not a calibrated probability. Licence: that of the base model.",
        "",
    ]
    write_text(directory / CARD, "\n".join(lines))


def _variant_table(variants: Mapping[str, Mapping[str, float]]) -> list[str]:
    rows = [
        f"| {name} | {values['bytes'] / 1e6:.1f} | {values['f1']:.3f} | {values.get('f1_drop', 0.0):+.3f} | "
        f"{values.get('f1_drop_upper', 0.0):+.3f} | {values.get('agreement', 1.0):.1%} | "
        f"{values['single_tokens_per_second']:.1f} |"
        for name, values in variants.items()
    ]
    head = "| variant | MB | F1 | F1 lost | at most | same most likely token | tokens/s, one at a time |"
    return ["## Variants", "", head, "|---|---|---|---|---|---|---|", *rows, ""]


def _decoding_table(decodings: Mapping[str, Mapping[str, float]]) -> list[str]:
    rows = [
        f"| {name} | {values['f1']:.3f} ({values['f1_low']:.3f}-{values['f1_high']:.3f}) | "
        f"{values['valid_answers']:.1%} | {values['invented_entities']:.1%} | {values['changed_answers']:.1%} |"
        for name, values in decodings.items()
    ]
    head = "| decoding | F1 | valid answers | invented names | other answers than free |"
    return ["## Decoding", "", head, "|---|---|---|---|---|", *rows, ""] if rows else []


def _gguf_table(files: Mapping[str, Mapping[str, float]]) -> list[str]:
    rows = [
        f"| {kind} | {values['bytes'] / 1e6:.1f} | {values['greedy_match']:.1%} | {_lost(values)} |"
        for kind, values in files.items()
    ]
    head = "| GGUF | MB | same greedy tokens as float32, raw layout | F1 lost, at most |"
    return ["## GGUF", "", head, "|---|---|---|---|", *rows, ""] if rows else []


def _lost(values: Mapping[str, float]) -> str:
    return f"{values['f1_drop']:+.3f}, {values['f1_drop_upper']:+.3f}" if "f1_drop" in values else "not asked"
