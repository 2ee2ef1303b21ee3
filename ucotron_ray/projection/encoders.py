"""The two spaces that a projection joins: CLIP's joint space (512) and MiniLM's (384), as the server computes them.

CLIP: texts of at most 77 tokens and images, both *after* CLIP's own projections: that is what the server's image model
gives out (`cross_modal.rs`). MiniLM: mean over the tokens. All vectors have length 1.

Where no CLIP is at hand, `stand-in:MODEL` names a language model: the mean of its states after the first layers, under
a fixed random projection to 512 dimensions. It has CLIP's interface and none of its knowledge about images.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ucotron_ray.core.errors import InputError
from ucotron_ray.models import base as base_models
from ucotron_ray.models.precision import Dtype
from ucotron_ray.projection.job import EncodeJob
from ucotron_ray.projection.pairs import CLIP_DIM, TEXT_DIM, Floats

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

CLIP_TOKENS, TEXT_TOKENS = 77, 256
STAND_IN_LAYERS, STAND_IN_SEED = 2, 512
IMAGE_SIZE, IMAGES_PER_BATCH = 224, 32
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""The server's image preparation (§1.8 of its formats)."""

Pool = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class TextTower:
    """A text encoder. `pool` makes one vector a row of model, ids and mask (both [rows, longest])."""

    tokenizer: "PreTrainedTokenizerBase"
    model: "PreTrainedModel"
    pool: Pool
    size: int
    max_tokens: int


@dataclass(frozen=True)
class Encoders:
    """Both towers, and CLIP's image tower where it is a real CLIP."""

    clip: TextTower
    text: TextTower
    max_tokens_per_microbatch: int

    def encode(self, texts: Sequence[str], images: Sequence[str | None]) -> tuple[Floats, Floats, int]:
        """CLIP [N, 512] and MiniLM [N, 384] vectors, and how many texts were cut.

        A description longer than CLIP's 77 tokens is cut there for MiniLM too, so that both vectors are of the same
        words. A row with an image has the image's vector in CLIP's place, and the whole caption's.
        """
        captions, clip = list(texts), np.empty((len(texts), CLIP_DIM), np.float32)
        plain = [row for row, image in enumerate(images) if not image]
        if plain:
            clip[plain], seen = embed(self.clip, [texts[row] for row in plain], self.max_tokens_per_microbatch)
            for row, end in zip(plain, seen, strict=True):
                captions[row] = texts[row][:end]
        shown = {row: Path(image) for row, image in enumerate(images) if image}
        if shown:
            clip[list(shown)] = embed_images(self.clip.model, list(shown.values()))
        minilm, _ = embed(self.text, captions, self.max_tokens_per_microbatch)
        return clip, minilm, sum(caption != text for caption, text in zip(captions, texts, strict=True))


def load(job: EncodeJob, dtype: Dtype) -> Encoders:
    """Load both towers. Raises InputError if they are no such models, or give vectors of another size.

    In bfloat16 the vectors of MiniLM have a cosine of at least 0.9999 to those in float32 (2,000 texts).
    """
    torch_dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clip = (load_stand_in if job.clip_is_stand_in else load_clip)(job.clip, torch_dtype, device)
    return Encoders(clip, load_sentences(job.text, torch_dtype, device), job.max_tokens_per_microbatch)


def load_clip(reference: str, dtype: torch.dtype, device: str) -> TextTower:
    """CLIP by hub name or directory; `model` carries the image tower too."""
    from transformers import AutoTokenizer, CLIPModel  # noqa: PLC0415 - 3 s; the tests of the loaders do without

    model, tokenizer = _loaded(CLIPModel, AutoTokenizer, reference, dtype, device)

    def pool(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        return features

    _check_size(reference, "projection.clip", model.config.projection_dim, CLIP_DIM)
    return TextTower(tokenizer, model, pool, CLIP_DIM, CLIP_TOKENS)


def load_sentences(reference: str, dtype: torch.dtype, device: str) -> TextTower:
    """A sentence encoder that takes the mean over its tokens, as all-MiniLM-L6-v2 does."""
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415

    model, tokenizer = _loaded(AutoModel, AutoTokenizer, reference, dtype, device)
    _check_size(reference, "projection.text", model.config.hidden_size, TEXT_DIM)
    return TextTower(tokenizer, model, _mean_of_states, TEXT_DIM, TEXT_TOKENS)


def load_stand_in(reference: str, dtype: torch.dtype, device: str) -> TextTower:
    """The first layers of a language model in the place of CLIP's text tower: nothing after them is computed."""
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415

    model, tokenizer = _loaded(AutoModel, AutoTokenizer, reference, dtype, device, num_hidden_layers=STAND_IN_LAYERS)
    generator = torch.Generator().manual_seed(STAND_IN_SEED)
    weight_HD = torch.randn(model.config.hidden_size, CLIP_DIM, generator=generator).to(device) / CLIP_DIM**0.5

    def pool(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.matmul(_mean_of_states(model, ids, mask), weight_HD)

    return TextTower(tokenizer, model, pool, CLIP_DIM, CLIP_TOKENS)


def embed(tower: TextTower, texts: Sequence[str], max_tokens_per_microbatch: int) -> tuple[Floats, list[int]]:
    """Vectors of length 1 [N, size] in the order of the texts, and for each text the character up to which it was seen.

    Rows of like length share a batch: padding costs as much as text.
    """
    encoded = tower.tokenizer(
        list(texts),
        truncation=True,
        max_length=tower.max_tokens,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    ids: list[list[int]] = encoded["input_ids"]
    seen = [
        len(text) if len(row) < tower.max_tokens else max(end for _, end in offsets)
        for text, row, offsets in zip(texts, ids, encoded["offset_mapping"], strict=True)
    ]
    vectors = np.empty((len(ids), tower.size), np.float32)
    device = tower.model.device
    with torch.inference_mode():
        for rows in batches([len(row) for row in ids], max_tokens_per_microbatch):
            padded, mask = _padded([ids[row] for row in rows])
            pooled = tower.pool(tower.model, padded.to(device), mask.to(device)).float()
            vectors[rows] = torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy()
    return vectors, seen


def embed_images(model: Any, paths: Sequence[Path]) -> Floats:
    """Vectors of length 1 [N, 512] of images in CLIP's joint space. Raises InputError on a file that is no image."""
    parts: list[Floats] = []
    with torch.inference_mode():
        for start in range(0, len(paths), IMAGES_PER_BATCH):
            pixels = np.stack([pixel_values(path) for path in paths[start : start + IMAGES_PER_BATCH]])
            found = model.get_image_features(pixel_values=torch.from_numpy(pixels).to(model.device, model.dtype))
            parts.append(torch.nn.functional.normalize(found.pooler_output.float(), dim=-1).cpu().numpy())
    return np.concatenate(parts)


def pixel_values(path: Path) -> Floats:
    """[3, 224, 224] as the server prepares an image: centre square, triangle filter, CLIP's mean and deviation."""
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - texts need no images

    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError("the image cannot be read", where=str(path), found=str(error)) from error
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    small = square.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    values = np.asarray(small, np.float32) / 255
    scaled = (values - np.asarray(IMAGE_MEAN, np.float32)) / np.asarray(IMAGE_DEVIATION, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1), np.float32)


def batches(lengths: Sequence[int], max_tokens_per_microbatch: int) -> Iterator[list[int]]:
    """Row numbers, longest rows first; as many in a batch as fit so many padded tokens, and one at least."""
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    start = 0
    while start < len(order):
        size = max(1, max_tokens_per_microbatch // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size


def _padded(rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [rows, longest], padded on the right with 0, as the server pads for CLIP."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def _mean_of_states(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    states_NTD = model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    weights_NT1 = mask.unsqueeze(-1).float()
    mean: torch.Tensor = (states_NTD * weights_NT1).sum(1) / weights_NT1.sum(1).clamp(min=1)
    return mean


def _loaded(
    model_class: Any, tokenizer_class: Any, reference: str, dtype: torch.dtype, device: str, **changes: Any
) -> tuple[Any, Any]:
    """Model (without gradients, in evaluation mode) and fast tokenizer. Raises InputError if there is no such model."""
    base = base_models.located(reference)
    source, fetching = base.path or base.reference, base.fetching()
    try:
        model = model_class.from_pretrained(source, use_safetensors=True, dtype=dtype, **fetching, **changes)
        tokenizer = tokenizer_class.from_pretrained(source, **fetching)
    except (ValueError, OSError) as error:
        raise InputError(
            "the encoder cannot be loaded",
            where=reference,
            expected="a model of its kind that the pinned transformers knows, with safetensors weights and a tokenizer",
            found=str(error).splitlines()[0],
            next_step="name a directory with the model in projection.clip or projection.text",
        ) from error
    return model.eval().requires_grad_(False).to(device), tokenizer


def _check_size(reference: str, setting: str, found: int, expected: int) -> None:
    if found != expected:
        raise InputError(
            "the encoder gives vectors of another size than the server's",
            where=f"{setting}: {reference}",
            expected=str(expected),
            found=str(found),
            next_step="take the model that the server uses: its vectors are in its memory already",
        )
