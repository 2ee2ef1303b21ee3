"""How a GGUF file's tokenizer splits texts: as the model's own, in llama.cpp and read back."""

import copy
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

from tests.families import CONFIGS, SIZES, save_random
from tests.llama_cpp import llama_cpp
from tests.tiny_models import CHATML, save_tiny
from ucotron_ray.core.errors import InputError
from ucotron_ray.export import gguf, gguf_vocabulary
from ucotron_ray.models import base as base_models
from ucotron_ray.models import splitting
from ucotron_ray.simulators import demo_world

TEXTS = [
    "It's Anna's 1234567 EUROs, HTMLParser'S camelCase XMLHttpRequest don'T",
    "  two   spaces\n\n\n  next\r\n\tline / path//x\n/y ",
    "Die Übergröße der Ärzte in Málaga, Łódź and Škoda; naïve Ünïcode",
    "日本語とカタカナ 한국어 텍스트 ไทย Москва ЭВМ العربية",
    "'re 'LL x'd é'S A b C1d2 aB cDE FGh IJKlm Ⅷ ²³",
]
NOT_APPROXIMATED = ["a\u0301bc e\u0301te\u0301", "हिन्दी नमस्ते"]


def saved(directory: Path, name: str) -> Path:
    """A random model whose tokenizer splits in a way, with merges over these very texts."""
    save_tiny(directory, "qwen2")
    file = directory / "tokenizer.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = splitting.by_name(name), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*TEXTS, *NOT_APPROXIMATED] * 3, trainer)
    made = json.loads(backend.to_str())
    settings |= {part: made[part] for part in ("model", "pre_tokenizer", "added_tokens")}
    file.write_text(json.dumps(settings), encoding="utf-8")
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("name", splitting.NAMES)
def test_llama_cpp_splits_as_the_tokenizer_does(name, tmp_path):
    model = saved(tmp_path / "model", name)
    file = gguf.path_of(tmp_path, "tiny", "f16")
    gguf.write(model, file, kind="f16", name="tiny")
    texts = TEXTS if name in splitting.APPROXIMATE else [*TEXTS, *NOT_APPROXIMATED]
    tokenizer = base_models.load_tokenizer(base_models.located(str(model)))
    found = llama_cpp(file, texts, max_new_tokens=1)
    assert [answer["ids"] for answer in found] == [tokenizer.encode(text, add_special_tokens=False) for text in texts]


@pytest.mark.parametrize("name", splitting.NAMES)
def test_a_file_read_back_splits_as_the_tokenizer_does(name, tmp_path, caplog):
    model = saved(tmp_path / "model", name)
    gguf.check(model)
    assert ("only nearly" in caplog.text) == (name in splitting.APPROXIMATE)
    file = gguf.path_of(tmp_path, "tiny", "f16")
    gguf.write(model, file, kind="f16", name="tiny")
    own, again = (base_models.load_tokenizer(base_models.located(str(path))) for path in (model, file))
    for text in [*TEXTS, *NOT_APPROXIMATED]:
        assert again.encode(text, add_special_tokens=False) == own.encode(text, add_special_tokens=False)


SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<|im_start|>", "<|im_end|>"]
MARKED = [*TEXTS, *NOT_APPROXIMATED, " lead", "trail  ", "a<|im_end|> b", "▁ ▁▁"]


def gemma_like() -> Tokenizer:
    """BPE as Gemma has it, whose merges are made of a list of words as those of a SentencePiece model are."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    parts = {"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
    trained = Tokenizer(models.BPE(**parts))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*SPECIAL, *bytes_], show_progress=False, limit_alphabet=80, max_token_length=8
    )
    rows = demo_world.rows(demo_world.graph_world(1), 60, seed=1)
    trained.train_from_iterator([*TEXTS, *(row.text for row in rows)], trainer)
    words = trained.get_vocab()
    merges = generate_merges(words, {word: -number for word, number in words.items()})
    made = Tokenizer(models.BPE(vocab=words, merges=merges, **parts))
    made.normalizer = trained.normalizer
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(SPECIAL)
    return made


def saved_gemma(directory: Path, family: str) -> PreTrainedTokenizerFast:
    special = {"bos_token": "<bos>", "eos_token": "<|im_end|>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=gemma_like(), chat_template=CHATML, **special)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    save_random(CONFIGS[family](**SIZES, **ids, vocab_size=len(tokenizer)).get_text_config(), directory)
    tokenizer.save_pretrained(directory)
    return tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma3", "gemma4"])
def test_llama_cpp_splits_as_gemmas_tokenizer_does(family, tmp_path):
    tokenizer = saved_gemma(tmp_path / "model", family)
    file = gguf.path_of(tmp_path, "tiny", "f16")
    gguf.write(tmp_path / "model", file, kind="f16", name="tiny")
    expected = [[tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)] for text in MARKED]
    assert [answer["ids"] for answer in llama_cpp(file, MARKED, max_new_tokens=1)] == expected


@pytest.mark.parametrize("family", ["gemma3", "gemma4"])
def test_a_file_read_back_splits_as_gemmas_tokenizer_does(family, tmp_path):
    tokenizer = saved_gemma(tmp_path / "model", family)
    gguf.check(tmp_path / "model")
    file = gguf.path_of(tmp_path, "tiny", "f16")
    gguf.write(tmp_path / "model", file, kind="f16", name="tiny")
    again = base_models.load_tokenizer(base_models.located(str(file)))
    assert (again.bos_token, again.eos_token, again.pad_token) == ("<bos>", "<|im_end|>", "<pad>")
    assert again.chat_template == CHATML
    for text in MARKED:
        assert again.encode(text, add_special_tokens=False) == tokenizer.encode(text, add_special_tokens=False)


def test_merges_that_scores_cannot_say_are_refused():
    whole = json.loads(gemma_like().to_str())
    assert gguf_vocabulary.scores(whole)
    fewer = copy.deepcopy(whole)
    # One of the two ways to make a word.
    made = ["".join(pair) for pair in whole["model"]["merges"]]
    twice = next(at for at, word in enumerate(made) if made.count(word) > 1)
    del fewer["model"]["merges"][twice]
    torn = copy.deepcopy(whole)
    torn["model"]["merges"].append(torn["model"]["merges"].pop(twice))
    for other in (fewer, torn):
        with pytest.raises(InputError, match="would merge in another order"):
            gguf_vocabulary.check(other)
