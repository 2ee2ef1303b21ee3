"""Tiny random encoders with the interfaces and sizes of the real ones: CLIP (512) and a sentence encoder (384)."""

import json
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import BertConfig, BertModel, BertTokenizerFast, CLIPConfig, CLIPModel, CLIPTokenizerFast

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = [
    "a",
    "the",
    "red",
    "blue",
    "old",
    "wet",
    "dog",
    "cat",
    "boat",
    "tree",
    "river",
    "street",
    "under",
    "over",
    "near",
    "with",
    "and",
    "of",
    "sun",
    "rain",
    "stone",
    "bridge",
]


def save_clip(directory: Path, *, projection_dim: int = 512) -> Path:
    """A CLIP with one layer in each tower; one token a character, so that 77 tokens are short."""
    directory.mkdir(parents=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, *(f"{x}</w>" for x in letters), START, END])}
    (directory / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (directory / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    CLIPTokenizerFast(str(directory / "vocab.json"), str(directory / "merges.txt")).save_pretrained(directory)
    layer = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": vocabulary[START], "eos_token_id": vocabulary[END], "pad_token_id": vocabulary[END]}
    config = CLIPConfig(
        text_config={**layer, **ids, "vocab_size": len(vocabulary), "max_position_embeddings": 77},
        vision_config={**layer, "image_size": 224, "patch_size": 32},
        projection_dim=projection_dim,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(directory)
    return directory


def save_sentences(directory: Path, *, hidden_size: int = 384) -> Path:
    """A BERT with one narrow layer and a vocabulary of a few words and all letters."""
    directory.mkdir(parents=True)
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{x}" for x in letters)]
    vocabulary = list(dict.fromkeys(vocabulary))
    (directory / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(str(directory / "vocab.txt")).save_pretrained(directory)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
    )
    torch.manual_seed(1)
    BertModel(config, add_pooling_layer=False).save_pretrained(directory)
    return directory
