"""How a GGUF file's tokenizer splits texts: as the model's own, in llama.cpp and read back."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.llama_cpp import llama_cpp
from tests.tiny_models import save_tiny
from ucotron_ray.export import gguf
from ucotron_ray.models import base as base_models
from ucotron_ray.models import splitting

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
