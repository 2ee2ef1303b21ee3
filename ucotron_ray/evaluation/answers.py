"""What can answer a question: a base model, an adapter, a variant of a bundle, an endpoint, or no model at all."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from ucotron_ray.core.artifacts import Artifact, Input
from ucotron_ray.core.errors import ConfigError
from ucotron_ray.core.files import canonical_hash
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl
from ucotron_ray.data.records import RawRow
from ucotron_ray.models import base as base_models
from ucotron_ray.models import bundles
from ucotron_ray.models import stage as models
from ucotron_ray.models.bundles import DEFAULT_DECODING, bundle_of, is_bundle

if TYPE_CHECKING:
    from ucotron_ray.evaluation.predictions import Prediction
    from ucotron_ray.teacher.endpoint import Endpoint

CO_OCCURRENCE = "co-occurrence"
EXAMPLES = "examples.jsonl"

Question = tuple[int, str]
"""Row index and layout."""

_BUNDLE = re.compile(r"(?:bundle/)?(?P<name>[^@+]+)(?:@(?P<variant>[\w.-]+?))?(?:\+(?P<decoding>\w+))?")
_MODEL = re.compile(r"(?P<name>.+)\+(?P<decoding>free|entities)")
_ENDPOINT = re.compile(r"(?P<url>https?://[^#]+)#(?P<model>.+)")


@dataclass(frozen=True)
class ModelRef:
    """One thing that answers, and the name under which it stands in a comparison."""

    label: str
    kind: Literal["model", "bundle", "endpoint", "co-occurrence"]
    base: base_models.BaseModel | None = None
    adapter: Artifact | None = None
    bundle: Artifact | None = None
    variant: str = "fp32"
    decoding: str = DEFAULT_DECODING
    endpoint: "Endpoint | None" = None
    examples: tuple[RawRow, ...] = ()
    """Rows that stand, answered, before every question; for a base model or an endpoint."""

    @property
    def identity(self) -> dict[str, Any]:
        """What of it changes the answers, for a recipe; its artifacts are inputs."""
        if self.examples:
            shown = canonical_hash([row.model_dump() for row in self.examples])
            return {**replace(self, examples=()).identity, "examples": shown}
        if self.base is not None:
            return {"base": models.base_fields(self.base), "decoding": self.decoding}
        if self.endpoint is not None:
            return {"source": {"endpoint": self.endpoint.base_url, "model": self.endpoint.model}}
        if self.bundle is not None:
            return {"source": {"bundle": self.variant, "decoding": self.decoding}}
        return {"source": self.kind}

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Its artifacts."""
        made = {"adapter": self.adapter, "bundle": self.bundle}
        return tuple(artifact.as_input(role) for role, artifact in made.items() if artifact is not None)


def model_ref(run: Run, reference: str) -> ModelRef:
    """What MODEL names in a comparison.

    `co-occurrence`, `http(s)://HOST/v1#MODEL`, `bundle/NAME[@VARIANT][+DECODING]` or the directory of a bundle with the
    same endings, else an adapter's name or directory or a base model, with `+free` or `+entities` behind. Without an
    ending it is float32, decoded as it is served.
    """
    if reference == CO_OCCURRENCE:
        return ModelRef(reference, "co-occurrence")
    if reference.startswith(("http://", "https://")):
        return _endpoint(run, reference)
    found = _BUNDLE.fullmatch(reference)
    if found is not None and (reference.startswith("bundle/") or is_bundle(Path(found["name"]))):
        bundle = bundle_of(run, found["name"])
        return bundle_ref(bundle, reference, found["variant"] or "fp32", found["decoding"])
    named = _MODEL.fullmatch(reference)
    name, decoding = (named["name"], named["decoding"]) if named and not Path(reference).exists() else (reference, None)
    base, adapter = models.model(run, name)
    label = Path(reference).name or reference
    return ModelRef(label, "model", base=base, adapter=adapter, decoding=decoding or DEFAULT_DECODING)


def bundle_ref(bundle: Artifact, label: str, variant: str = "fp32", decoding: str | None = None) -> ModelRef:
    """A variant of a bundle; decoded as it is served, unless another way is given. Raises ConfigError."""
    chosen = bundles.checked_decoding(bundle, label, variant, decoding)
    return ModelRef(label, "bundle", bundle=bundle, variant=variant, decoding=chosen)


def adapter_of(run: Run, bundle: Artifact) -> Artifact | None:
    """The adapter in a bundle, if the store still has those bytes: it knows what it was trained on."""
    entry = next((entry for entry in bundle.manifest.inputs if entry.role == "adapter"), None)
    adapter = run.store.find("adapter", entry.name) if entry else None
    return adapter if adapter is not None and entry is not None and adapter.manifest.content == entry.content else None


def answers_of(
    run: Run, source: ModelRef, rows: Sequence[RawRow], questions: Sequence[Question], directory: Path
) -> tuple[list["Prediction"], dict[str, float]]:
    """All answers in the order of the questions, and seconds. The directory has `rows.jsonl` and keeps what is done."""
    if source.examples:
        jsonl.write_rows(directory / EXAMPLES, source.examples)
    if source.kind == "co-occurrence":
        return _guessed(rows, questions), {}
    if source.kind == "endpoint":
        return _asked(run, source, rows, questions, directory)
    return _generated(run, source, questions, directory)


def layouts_of(source: ModelRef) -> tuple[str, ...]:
    """In which layouts a source can be asked."""
    if source.kind == "co-occurrence":
        return ("chat",)
    # Examples are turns of a chat: the raw layout has none.
    return ("chat", "end_to_end") if source.kind == "endpoint" or source.examples else ("chat", "raw", "end_to_end")


def _generated(
    run: Run, source: ModelRef, questions: Sequence[Question], directory: Path
) -> tuple[list["Prediction"], dict[str, float]]:
    """Greedy answers by the place's workers: by transformers, or of a bundle by ONNX Runtime."""
    loadable = models.loadable_base(run, source.base) if source.base is not None else ""
    run.connect()
    from ucotron_ray.core import session
    from ucotron_ray.data.stage import ROWS
    from ucotron_ray.evaluation.on_ray import predict_on_ray
    from ucotron_ray.evaluation.predictions import PredictJob

    settings, workers = run.config.recipe.evaluation, run.config.place.workers
    job = PredictJob(
        base=loadable,
        adapter=str(source.adapter.path / "adapter") if source.adapter else None,
        rows_file=str(directory / ROWS),
        questions=tuple(questions),
        output_file="",
        max_new_tokens=settings.max_new_tokens,
        batch_size=workers.eval_batch,
        dtype=workers.dtype,
        num_threads=session.worker_resources(workers).threads,
        bundle=str(source.bundle.path) if source.bundle else None,
        variant=source.variant,
        decoding=source.decoding,
        quantize=settings.quantize,
        spread=workers.shard_base,
        examples_file=str(directory / EXAMPLES) if source.examples else None,
    )
    return predict_on_ray(job, workers, directory, run.log_file)


def _guessed(rows: Sequence[RawRow], questions: Sequence[Question]) -> list["Prediction"]:
    from ucotron_ray.data.wire import format_answer
    from ucotron_ray.evaluation.predictions import Prediction
    from ucotron_ray.graph import cooccurrence

    return [
        Prediction(row, layout, format_answer(cooccurrence.relations(rows[row].text, rows[row].entities)), 0, False)
        for row, layout in questions
    ]


def _asked(
    run: Run, source: ModelRef, rows: Sequence[RawRow], questions: Sequence[Question], directory: Path
) -> tuple[list["Prediction"], dict[str, float]]:
    """Answers over HTTP to the server's own call."""
    from ucotron_ray.evaluation import endpoint, endpoint_answers

    assert source.endpoint is not None
    began = time.monotonic()
    asking = endpoint.asking_of(run.config.place.api)
    found = endpoint_answers.answers(source.endpoint, rows, questions, asking, directory, examples=source.examples)
    return found, {"seconds": time.monotonic() - began}


def _endpoint(run: Run, reference: str) -> ModelRef:
    from ucotron_ray.teacher import check, endpoint

    found = _ENDPOINT.fullmatch(reference)
    if found is None:
        raise ConfigError(
            "the endpoint's model is not named",
            expected="http://HOST:PORT/v1#MODEL",
            found=reference,
            next_step="ask its /models for the name",
        )
    api, url = run.config.place.api, found["url"].rstrip("/")
    changes: dict[str, Any] = {"inference_base_url": url, "inference_base_urls": []}
    if urlsplit(url).netloc != urlsplit(api.inference_base_url or "").netloc:
        # The teacher's key is for the teacher's host. For another one: --set api.inference_base_url=URL as well.
        changes |= {"key_variable": None, "key_file": None, "headers": {}}
    served = endpoint.endpoint_of(api.model_copy(update=changes), found["model"])
    check.check(served)
    return ModelRef(reference, "endpoint", endpoint=served)
