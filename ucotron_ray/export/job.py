"""From a base model and an adapter to a bundle with its gates, in the order in which it happens. No Ray in here."""

import json
import logging
import resource
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ucotron_ray.core.files import file_hash, write_json
from ucotron_ray.core.recipe import Export

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ucotron_ray.data.records import RawRow
    from ucotron_ray.export.gptq import Calibrated
    from ucotron_ray.export.tasks import Reference
    from ucotron_ray.models.served import BundleModel

log = logging.getLogger(__name__)

Figures = dict[str, float]

RAW_EVERY = 4
"""Every so many parity prompts are asked raw, the others by chat."""


@dataclass(frozen=True)
class ExportJob:
    """What the task needs. Plain data."""

    name: str
    base: str
    base_label: str
    adapter: str | None
    model_directory: str
    merge: bool
    """False where the merged model is there already."""
    bundle_directory: str
    rows_file: str | None
    calibration_file: str | None
    """Training rows; without it four bits are rounded for the held-out rows' prompts."""
    predicates: tuple[str, ...]
    """What the decoding `vocabulary` allows."""
    settings: dict[str, Any]
    facts: dict[str, str]
    spool: str
    run: str
    destination: dict[str, Any] | None
    log_file: str
    num_threads: int = 0
    """0 = as many as the runtimes choose."""


@dataclass(frozen=True)
class _ParityPrompts:
    """The parity prompts."""

    rows: "list[RawRow]"
    layouts: list[str]
    prompts: list[list[int]]


@dataclass(frozen=True)
class _Measured:
    """Figures of float32, and of each variant, way of decoding and GGUF file."""

    figures: Figures
    variants: dict[str, Figures]
    decodings: dict[str, Figures]
    gguf: dict[str, Figures]


def merge(job: ExportJob) -> None:
    """Write the merged model."""
    from ucotron_ray.models import base as base_models  # noqa: PLC0415 - torch and transformers, in the task only
    from ucotron_ray.models.merge import write_merged  # noqa: PLC0415

    log.info("export: merging in float32")
    write_merged(base_models.located(job.base), Path(job.adapter) if job.adapter else None, Path(job.model_directory))


def bundle(job: ExportJob) -> Figures:
    """Write the bundle and all of its figures; return those of float32, of each variant and each file, flat."""
    from ucotron_ray.export import gguf, tasks  # noqa: PLC0415 - torch and transformers, in the task only

    settings = Export.model_validate(job.settings)
    if settings.gguf:
        gguf.check(Path(job.model_directory))
    began = time.monotonic()
    graph, tokenizer = _graph(job, settings)
    exported = time.monotonic()
    rows = _rows(job)
    asked = _asked(rows, tokenizer, settings)
    model, figures = _parity(job, graph, asked, settings, eos=int(tokenizer.eos_token_id))
    compared = time.monotonic()
    task_rows = tasks.spread(rows, tasks.rows_for(settings))
    log.info("export: float32 answers %d of %d rows that the gates need", len(task_rows), tasks.rows_for(settings))
    expected = tasks.reference(model, task_rows, settings)
    calibrated = _calibrated(job, tokenizer, settings)
    variants = _variants(job, graph, model, expected, calibrated, settings)
    log.info("export: ways of decoding: %s", ", ".join(settings.decodings))
    decodings = tasks.decodings(model, expected, settings)
    files = _files(job, model, asked.rows, expected, calibrated, settings, tokenizer)
    figures |= {
        "export_seconds": exported - began,
        "parity_seconds": compared - exported,
        "variants_seconds": time.monotonic() - compared,
        "onnx_bytes": variants["fp32"]["bytes"],
        "peak_bytes": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024),
    }
    made = _Measured(figures, variants, decodings, files)
    _publish(job, graph, made, tokenizer, settings)
    return figures | flat(variants) | flat(decodings, "decoding_") | flat(files, "gguf_")


def _graph(job: ExportJob, settings: Export) -> "tuple[Path, PreTrainedTokenizerBase]":
    """The float32 graph beside its tokenizer and contracts: what the server reads."""
    from ucotron_ray.export import bundle as contents  # noqa: PLC0415 - torch and transformers, in the task only
    from ucotron_ray.export import exporter  # noqa: PLC0415
    from ucotron_ray.models import base as base_models  # noqa: PLC0415

    directory, source = Path(job.bundle_directory), Path(job.model_directory)
    log.info("export: tracing to ONNX, opset %d", settings.opset)
    graph = exporter.export(source, directory, opset=settings.opset)
    tokenizer = base_models.load_tokenizer(base_models.located(str(source)))
    tokenizer.save_pretrained(directory)
    io = exporter.io_contract(graph, directory / "config.json", eos=_ends(source, tokenizer))
    contents.write_contracts(directory, tokenizer=tokenizer, io=io, name=job.name, predicates=job.predicates)
    return graph, tokenizer


def _parity(
    job: ExportJob, graph: Path, asked: _ParityPrompts, settings: Export, *, eos: int
) -> "tuple[BundleModel, Figures]":
    """The bundle loaded as it is served, and how far it agrees with PyTorch."""
    from ucotron_ray.export import parity  # noqa: PLC0415 - torch, in the task only

    log.info("export: comparing with PyTorch on %d prompts", len(asked.prompts))
    source = Path(job.model_directory)
    figures = parity.compare(source, graph, asked.prompts, settings, eos=eos, num_threads=job.num_threads)
    model, figures["load_seconds"] = _loaded(graph.parent, job)
    figures["prompt_ids_match"] = parity.prompt_ids_match(model, asked.rows, asked.layouts, asked.prompts)
    return model, figures


def _publish(
    job: ExportJob, graph: Path, made: _Measured, tokenizer: "PreTrainedTokenizerBase", settings: Export
) -> None:
    """Take out what misses a gate, and write what the bundle says of itself."""
    from ucotron_ray.export import bundle as contents  # noqa: PLC0415 - in the task only
    from ucotron_ray.export import gguf, gguf_parity, modelfile, parity, tasks  # noqa: PLC0415
    from ucotron_ray.models import served  # noqa: PLC0415

    directory = graph.parent
    missed = [*parity.failures(made.figures, settings), *gguf_parity.failures(made.gguf, settings)]
    withheld = tasks.withheld(made.variants, settings) | gguf_parity.withheld(made.gguf, settings)
    _withhold(directory, withheld, job.name)
    published = {kind: gguf.path_of(directory, job.name, kind) for kind in made.gguf if kind not in withheld}
    ends = [str(token) for token in tokenizer.convert_ids_to_tokens(_ends(Path(job.model_directory), tokenizer))]
    modelfile.write(directory, tokenizer, published, ends)
    best = tasks.best_decoding(made.decodings)
    report: dict[str, Any] = {**vars(made), "missed": missed, "withheld": withheld}
    write_json(directory / contents.PARITY, {**report, "settings": job.settings})
    write_json(directory / served.DECODING, {"default": best, "figures": made.decodings})
    facts = {**job.facts, "graph sha256": file_hash(graph), "decoding": best}
    contents.write_card(directory, name=job.name, base=job.base_label, report=report, facts=facts)


def flat(parts: Mapping[str, Mapping[str, float]], prefix: str = "") -> Figures:
    """Figures of parts under `<part>_<name>`."""
    return {f"{prefix}{part}_{name}": value for part, values in parts.items() for name, value in values.items()}


def _ends(model: Path, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that end an answer."""
    from ucotron_ray.models import base as base_models  # noqa: PLC0415 - in the task only

    file = model / "generation_config.json"
    own = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
    return base_models.end_tokens(int(tokenizer.eos_token_id), own)


def _rows(job: ExportJob) -> "list[RawRow]":
    from ucotron_ray.data.jsonl import relations_among  # noqa: PLC0415
    from ucotron_ray.evaluation.guide_prompts import guide_rows  # noqa: PLC0415 - in the task only

    return relations_among(Path(job.rows_file)) if job.rows_file else guide_rows()


def _asked(rows: "Sequence[RawRow]", tokenizer: "PreTrainedTokenizerBase", settings: Export) -> _ParityPrompts:
    from ucotron_ray.models.prompts import prompt_ids, server_row  # noqa: PLC0415 - in the task only

    picked = list(rows[: settings.parity_rows])
    layouts = ["raw" if index % RAW_EVERY == RAW_EVERY - 1 else "chat" for index in range(len(picked))]
    prompts = [prompt_ids(server_row(row, layout), tokenizer) for row, layout in zip(picked, layouts, strict=True)]
    return _ParityPrompts(picked, layouts, prompts)


def _loaded(directory: Path, job: ExportJob) -> "tuple[BundleModel, float]":
    from ucotron_ray.models import served  # noqa: PLC0415 - in the task only

    began = time.monotonic()
    model = served.load(directory, num_threads=job.num_threads)
    return model, time.monotonic() - began


def _calibrated(job: ExportJob, tokenizer: "PreTrainedTokenizerBase", settings: Export) -> "Calibrated | None":
    """Weights in four bits and the inputs' importance, from training rows; None where nothing asks for four bits."""
    if "int4" not in settings.variants and "q4_k_m" not in settings.gguf:
        return None
    from ucotron_ray.data.jsonl import relations_among  # noqa: PLC0415 - torch, in the task only
    from ucotron_ray.export import gptq, tasks  # noqa: PLC0415
    from ucotron_ray.models import base as base_models  # noqa: PLC0415
    from ucotron_ray.models.prompts import prompt_ids, server_row  # noqa: PLC0415

    rows = relations_among(Path(job.calibration_file)) if job.calibration_file else _rows(job)
    examples = [server_row(row, "chat") for row in tasks.spread(rows, settings.calibration_rows)]
    log.info("export: rounding to four bits for %d rows", len(examples))
    end = [int(tokenizer.eos_token_id)]
    texts = [
        [*prompt_ids(row, tokenizer), *tokenizer.encode(row.completion, add_special_tokens=False), *end]
        for row in examples
    ]
    model = base_models.load_model(base_models.located(job.model_directory), "float32").eval()
    return gptq.calibrate(model, texts, block=settings.block, four_bits="int4" in settings.variants)


def _withhold(directory: Path, withheld: Mapping[str, Sequence[str]], bundle: str) -> None:
    """Take variants out of the bundle, and say why."""
    from ucotron_ray.export import gguf, layout  # noqa: PLC0415 - in the task only
    from ucotron_ray.models import served  # noqa: PLC0415

    for name, reasons in withheld.items():
        log.warning("export: %s is not published: %s", name, "; ".join(reasons))
        if name in served.GRAPHS:
            graph = directory / served.GRAPHS[name]
            graph.unlink()
            layout.data_file(graph).unlink()
        else:
            shutil.rmtree(gguf.path_of(directory, bundle, name).parent)


def _variants(
    job: ExportJob,
    graph: Path,
    model: "BundleModel",
    expected: "Reference",
    calibrated: "Calibrated | None",
    settings: Export,
) -> dict[str, Figures]:
    """float32 as it is, and each rounded graph, written and measured."""
    from ucotron_ray.export import layout, quantize, tasks  # noqa: PLC0415 - in the task only
    from ucotron_ray.models import served  # noqa: PLC0415

    size = float(layout.size_of(graph))
    made = {"fp32": {"bytes": size, **expected.figures}}
    for name in settings.variants:
        log.info("export: %s", name)
        target, bits = graph.with_name(served.GRAPHS[name]), int(name.removeprefix("int"))
        rounded = calibrated.rounded if calibrated is not None else {}
        written = quantize.quantize(graph, target, bits=bits, block=settings.block, rounded=rounded)
        measured = tasks.variant(graph.parent, name, model, expected, settings, num_threads=job.num_threads)
        made[name] = {**written, "size_ratio": written["bytes"] / size, **measured}
    return made


def _files(
    job: ExportJob,
    model: "BundleModel",
    rows: "Sequence[RawRow]",
    reference: "Reference",
    calibrated: "Calibrated | None",
    settings: Export,
    tokenizer: "PreTrainedTokenizerBase",
) -> dict[str, Figures]:
    """Each GGUF file, written and loaded back."""
    from ucotron_ray.export import gguf, gguf_parity  # noqa: PLC0415 - in the task only
    from ucotron_ray.models.prompts import prompt_ids, server_row  # noqa: PLC0415

    made: dict[str, Figures] = {}
    if not settings.gguf:
        return made
    source = Path(job.model_directory)
    prompts = [prompt_ids(server_row(row, "raw"), tokenizer) for row in rows]
    expected: list[list[int]] = []
    for start in range(0, len(prompts), gguf_parity.BATCH):
        batch = prompts[start : start + gguf_parity.BATCH]
        expected += model.generate(batch, max_new_tokens=settings.parity_new_tokens, to_array_end=False)
    for kind in settings.gguf:
        log.info("export: GGUF %s", kind)
        file = gguf.path_of(Path(job.bundle_directory), job.name, kind)
        importance = calibrated.importance if calibrated is not None else {}
        gguf.write(source, file, kind=kind, name=job.name, importance=importance)
        made[kind] = gguf_parity.compare(
            file, source, rows, prompts, expected, settings, eos=int(tokenizer.eos_token_id)
        )
        if kind == "q4_k_m":
            made[kind] |= gguf_parity.task_figures(file, source, model, reference, settings)
    return made
