"""Questions to a model, its answers, and the file that keeps each answer as soon as it is there. Light: no torch."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ucotron_ray.data.records import RawRow

END_TO_END = "end_to_end"


@dataclass(frozen=True)
class PredictJob:
    """A share of the questions to a model. Plain data, so that it can travel to another machine."""

    base: str
    adapter: str | None
    rows_file: str
    questions: tuple[tuple[int, str], ...]
    """Row index and layout of each question: `chat` or `raw` as the server asks, `end_to_end` without entities."""
    output_file: str
    max_new_tokens: int
    batch_size: int
    dtype: str
    """`auto`, `bfloat16` or `float32`; `auto` is decided by the worker's own processor."""
    num_threads: int | None
    quantize: str = "none"
    """`nf4`: the base in 4 bits."""
    spread: bool = False
    """Over all GPUs of the task, for a base that one is too small for."""
    bundle: str | None = None
    """Directory of a bundle that answers instead of `base` and `adapter`, with ONNX Runtime."""
    variant: str = "fp32"
    decoding: str = "free"
    """`free`, `entities` or `vocabulary`, see `models/served.py`."""
    examples_file: str | None = None
    """Rows that stand, answered, before every question; not for a bundle."""


@dataclass(frozen=True)
class Prediction:
    """One answer. `cut` says that it reached the limit of new tokens without an end.

    `sureness` is the model's own probability of each relation in it, where the model's probabilities are known.
    """

    row: int
    layout: str
    answer: str
    num_tokens: int
    cut: bool
    sureness: list[float] | None = None
    prompt_tokens: int = 0
    """As a server counted them; 0 where a model of ours answered."""


def asked_row(row: RawRow, layout: str) -> tuple[RawRow, str]:
    """The row as it is asked, and the layout of its prompt. End to end the list of entities is empty."""
    return (row.model_copy(update={"entities": []}), "chat") if layout == END_TO_END else (row, layout)


def read_predictions(path: Path) -> list[Prediction]:
    """All whole lines of a predictions file; none if there is no file. A torn last line is an answer not given."""
    if not path.exists():
        return []
    # Not splitlines of text: it also splits at characters that may stand inside of a JSON string.
    return [Prediction(**json.loads(line)) for line in path.read_bytes().split(b"\n")[:-1]]


def append_predictions(path: Path, predictions: Sequence[Prediction]) -> None:
    """Add lines to a predictions file, dropping a torn last line of a killed predecessor first."""
    path.touch()
    with path.open("r+b") as file:
        # Only a torn file is read: a file is added to once an answer.
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if end and file.read(1) != b"\n":
            file.truncate(path.read_bytes().rfind(b"\n") + 1)
        file.seek(0, os.SEEK_END)
        for prediction in predictions:
            record: dict[str, Any] = vars(prediction)
            file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())
