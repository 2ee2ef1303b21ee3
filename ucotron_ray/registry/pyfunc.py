"""A registered version as MLflow loads it: `mlflow.pyfunc.load_model("models:/NAME@champion").predict(rows)`.

MLflow calls `_load_pyfunc` (see `model_files.py`), in an environment that has the model's own requirements and this
package's files, and nothing else. So this imports neither mlflow nor pandas, torch or ray.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ucotron_ray.core.errors import InputError
from ucotron_ray.core.model_version import BUNDLE
from ucotron_ray.data.records import Entity, RawRow
from ucotron_ray.data.wire import SERVER_MAX_TOKENS, chat_messages, parse_answer
from ucotron_ray.evaluation.onnx_answers import answers
from ucotron_ray.models import served

BATCH_ROWS = 16

OF_THE_BUNDLE = "auto"
"""The way of decoding that won when the bundle was made, as in `serving.decoding`."""


@dataclass(frozen=True)
class Extractor:
    """A bundle that answers tables. Threads may share it."""

    bundle: served.BundleModel
    decoding: str
    """The bundle's own choice."""
    context: int
    """The most tokens that prompt and answer may have together."""

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[list[dict[str, Any]]]:
        """The triples of each row, as the Ucotron server would read them from the model's answer.

        Rows are a pandas DataFrame or a list of mappings with `text` and `entities`. `params`: `decoding` and
        `max_new_tokens`. Raises InputError.
        """
        params = params or {}
        decoding = params.get("decoding", OF_THE_BUNDLE)
        if decoding not in (OF_THE_BUNDLE, *served.DECODINGS):
            raise InputError(
                f"'{decoding}' is no way to decode", expected=", ".join((OF_THE_BUNDLE, *served.DECODINGS))
            )
        found = model_input.to_dict("records") if hasattr(model_input, "to_dict") else model_input
        rows = [_row(number, row) for number, row in enumerate(found)]
        # Without an entity there is nothing to ask about: the server does not ask either.
        asked = [number for number, row in enumerate(rows) if row.entities]
        for number in asked:
            self._refuse_too_long(number, rows[number])
        triples: list[list[dict[str, Any]]] = [[] for _ in rows]
        for batch in answers(
            self.bundle,
            rows,
            [(number, "chat") for number in asked],
            decoding=self.decoding if decoding == OF_THE_BUNDLE else decoding,
            max_new_tokens=int(params.get("max_new_tokens", SERVER_MAX_TOKENS)),
            batch_size=BATCH_ROWS,
        ):
            for answer in batch:
                triples[answer.row] = [relation.model_dump() for relation in parse_answer(answer.answer) or []]
        return triples

    def _refuse_too_long(self, number: int, row: RawRow) -> None:
        length = len(self.bundle.chat_ids(chat_messages(row.text, row.entities)))
        if length >= self.context:
            raise InputError(
                f"row {number} is too long for the model",
                expected=f"fewer than {self.context} tokens, the prompt around the text included",
                found=f"{length}",
            )


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> Extractor:
    """What MLflow calls, with the directory of the model and what stands under `config` in its MLmodel."""
    settings = model_config or {}
    bundle = Path(path) / BUNDLE
    model = served.load(
        bundle, variant=settings.get("variant", "fp32"), num_threads=int(settings.get("num_threads", 0))
    )
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    return Extractor(model, served.default_decoding(bundle), int(config["max_position_embeddings"]))


def _row(number: int, found: Any) -> RawRow:
    """A row to ask about. Its other columns, and where its entities stand, do not matter to the prompt."""
    try:
        entities = [
            Entity(**{key: entity[key] for key in ("text", "label") if entity.get(key) is not None})
            for entity in found["entities"]
        ]
        return RawRow(text=found["text"], entities=entities, expected_relations=[])
    except (KeyError, TypeError, AttributeError, ValidationError) as error:
        raise InputError(
            f"row {number} is no question",
            expected='{"text": "...", "entities": [{"text": "...", "label": "..."}, ...]}, and no blank text or name',
            found=" ".join(str(error).split()),
        ) from error
