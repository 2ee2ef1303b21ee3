"""Runs merge, export and parity as one Ray task in a process of its own, which ends with it."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray

from ucotron_ray import session, tracking
from ucotron_ray.artifacts import file_hash, write_json
from ucotron_ray.config import Export, Workers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportJob:
    """What the task needs. Plain data. `bundle_directory` None = merge only."""

    name: str
    base: str
    base_label: str
    adapter: str | None
    model_directory: str
    merge: bool
    """False where the merged model is there already."""
    bundle_directory: str | None
    rows_file: str | None
    settings: dict[str, Any]
    facts: dict[str, str]
    spool: str
    run: str
    destination: dict[str, Any] | None
    log_file: str


def export_on_ray(job: ExportJob, workers: Workers) -> dict[str, float]:
    """Run the task; return the parity figures, sizes in bytes and seconds. Empty for a merge only."""
    resources = session.worker_resources(workers)
    # max_calls=1: optimum leaves patches in torch and transformers, and onnxruntime its arena.
    task = ray.remote(max_calls=1)(_export).options(num_cpus=resources.cpus, max_retries=1)
    try:
        with session.following(job.log_file):
            measured: dict[str, float] = ray.get(task.remote(asdict(job)))
    except ray.exceptions.RayError as error:
        next_step = "if it ran out of memory, export on a larger machine; the same command goes on from here"
        raise session.cause_of(error, "the export task failed", next_step=next_step) from error
    return measured


def _export(fields: Mapping[str, Any]) -> dict[str, float]:
    from ucotron_ray.export import bundle, onnx, parity  # noqa: PLC0415 - torch and transformers, in the task only
    from ucotron_ray.jsonl import read_relations  # noqa: PLC0415
    from ucotron_ray.models import base as base_models  # noqa: PLC0415
    from ucotron_ray.training.data import prompt_ids, server_row  # noqa: PLC0415

    job = ExportJob(**fields)
    session.set_up_worker(job.log_file)
    spool = tracking.Spool(Path(job.spool), job.run)
    settings = Export.model_validate(job.settings)
    model_directory = Path(job.model_directory)
    base = base_models.resolve(job.base)
    began = time.monotonic()
    if job.merge:
        log.info("export: merging in float32")
        onnx.merge(base, Path(job.adapter) if job.adapter else None, model_directory)
    if job.bundle_directory is None:
        return {}
    directory = Path(job.bundle_directory)
    merged = time.monotonic()
    log.info("export: tracing to ONNX, opset %d", settings.opset)
    onnx.export(model_directory, directory, opset=settings.opset)
    tokenizer = base_models.load_tokenizer(base_models.resolve(str(model_directory)))
    base_models.save_tokenizer(tokenizer, directory)
    exported = time.monotonic()
    rows = read_relations(Path(job.rows_file))[: settings.parity_rows] if job.rows_file else _guide_rows()
    prompts = [
        prompt_ids(server_row(row, "raw" if index % 4 == 3 else "chat"), tokenizer) for index, row in enumerate(rows)
    ]
    log.info("export: comparing with PyTorch on %d prompts", len(prompts))
    figures = parity.compare(
        model_directory, directory / onnx.GRAPH, prompts, settings, eos=int(tokenizer.eos_token_id)
    )
    missed = parity.failures(figures, settings)
    figures |= {
        "merge_seconds": merged - began,
        "export_seconds": exported - merged,
        "parity_seconds": time.monotonic() - exported,
        "onnx_bytes": float(sum(path.stat().st_size for path in directory.glob("model.onnx*"))),
    }
    io = onnx.io_contract(directory / onnx.GRAPH, directory / "config.json")
    bundle.write_contracts(directory, tokenizer=tokenizer, io=io, name=job.name)
    write_json(directory / bundle.PARITY, {"figures": figures, "missed": missed, "settings": job.settings})
    facts = {**job.facts, "graph sha256": file_hash(directory / onnx.GRAPH)}
    bundle.write_card(directory, name=job.name, base=job.base_label, parity=figures, missed=missed, facts=facts)
    spool.metrics(figures)
    for name in (bundle.CARD, bundle.PARITY, bundle.IO_CONTRACT, bundle.PROMPT_CONTRACT, bundle.SERVER_LINES):
        spool.file(directory / name)
    if job.destination is not None:
        # The last task of a run leaves nothing unsent, also where the driver's own sender is gone.
        tracking.send_pending(spool.directory, tracking.Destination(**job.destination))
    return figures


def _guide_rows() -> list[Any]:
    from ucotron_ray.evaluation.guide_prompts import guide_rows  # noqa: PLC0415

    return guide_rows()
