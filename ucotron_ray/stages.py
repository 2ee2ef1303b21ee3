"""One function a stage: say what is asked for, reuse it if it is there, else run it, and publish it.

Each stage takes a `Run` and artifacts and returns an artifact. What is heavy is imported inside the functions, since a
run that reuses everything should cost nothing.
"""

import importlib.util
import json
import logging
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ucotron_ray import artifacts, config, jsonl, wire
from ucotron_ray.artifacts import Artifact, Build, Input, Request, Result
from ucotron_ray.errors import ConfigError, GateFailed, InputError, MissingPackage
from ucotron_ray.graph import dataset as graph_dataset
from ucotron_ray.graph import export as graph_export
from ucotron_ray.models import base as base_models
from ucotron_ray.records import ChatRow, Entity, PreferenceRow, RawRow, Row
from ucotron_ray.run import Run

log = logging.getLogger(__name__)

TRAIN, VAL, ROWS = "train.jsonl", "val.jsonl", "rows.jsonl"
PREDICTIONS, SCORES = "predictions.jsonl", "scores.json"
HEADLINE_GROUP, SECOND_GROUP, GUIDE_GROUP = "seen", "unseen", "guide"

PACKAGES = {
    "ray": "ray[data,train,tune,default,serve]",
    "torch": "torch",
    "transformers": "transformers",
    "trl": "trl",
    "peft": "peft",
    "datasets": "datasets",
    "accelerate": "accelerate",
    "optimum": "optimum optimum-onnx",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "mlflow": "mlflow",
    "aiohttp": "aiohttp",
    "gguf": "gguf",
}
"""Module → what to install for it."""


def require_packages(*modules: str) -> None:
    """Raise MissingPackage with the install line if a module of these is not installed. Imports nothing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingPackage(
            f"Missing Python dependencies for training: {', '.join(missing)}",
            expected="the packages of pyproject.toml at the versions of constraints.txt",
            next_step="pip install -c constraints.txt " + " ".join(PACKAGES[module] for module in missing),
        )


def prompt_identity() -> str:
    """Hash of the server's prompt: another prompt is another recipe."""
    example = [Entity(text="{entity}", label="{label}")]
    return artifacts.canonical_hash(wire.chat_messages("{text}", example))[:16]


# ---- datasets --------------------------------------------------------------------------------------------------------


def graph_request(run: Run, identity: Mapping[str, str]) -> Request:
    """What importing a graph would make; `identity` is the hash of what was read."""
    settings = run.config.recipe.graph.model_dump(exclude={"source"})
    return Request("dataset", run.name, {"graph": settings, "source": dict(identity)})


def rows_request(train: Path, val: Path | None) -> Request:
    """What importing the user's own files would make, named by their content."""
    hashes = {"train": artifacts.file_hash(train), "val": artifacts.file_hash(val) if val else None}
    return Request("dataset", f"rows-{artifacts.canonical_hash(hashes)[:12]}", {"files": hashes})


def import_graph(run: Run, source: str | None = None) -> Artifact:
    """A knowledge graph → `dataset/<name>` with `train.jsonl` and `val.jsonl`."""
    settings = run.config.recipe.graph
    source = source or settings.source or config.variable("UCOTRON_SERVER_URL")
    assert source is not None
    split, identity, where = _read_graph(source, settings)

    def build(build: Build) -> Result:
        jsonl.write_rows(build.path / TRAIN, split.train)
        jsonl.write_rows(build.path / VAL, split.val)
        return Result({}, split.counts, [f"from {where}", *split.notes])

    artifact = run.make("import-graph", graph_request(run, identity), build)
    for note in split.notes:
        log.warning("%s", note)
    return artifact


def import_rows(run: Run, train: Path, val: Path | None) -> Artifact:
    """The user's own JSONL files → a dataset under their content hash. Chat rows are read back where they can be."""
    train_rows, num_chat, num_as_is = _readable_rows(jsonl.read_training_rows(train))
    val_rows = _readable_rows(jsonl.read_training_rows(val))[0] if val else []
    common = {_row_key(row) for row in train_rows} & {_row_key(row) for row in val_rows}
    if common:
        raise InputError(
            f"{len(common)} validation row(s) are training rows too",
            where=f"{train}, {val}",
            expected="validation rows that training does not see",
            found=sorted(common)[0][:120],
            next_step="remove them from the validation file",
        )

    def build(build: Build) -> Result:
        jsonl.write_rows(build.path / TRAIN, train_rows)
        jsonl.write_rows(build.path / VAL, val_rows)
        counts = {"train": len(train_rows), "val": len(val_rows), "chat": num_chat, "chat_as_is": num_as_is}
        notes = [f"from {train}" + (f" and {val}" if val else "")]
        return Result({}, counts, notes)

    return run.make("import-rows", rows_request(train, val), build)


def held_out_request(path: Path) -> Request:
    """What importing a held-out file would make, named by its content."""
    digest = artifacts.file_hash(path)
    return Request("dataset", f"rows-{digest[:12]}", {"file": digest})


def held_out(run: Run, reference: str | None, dataset: Artifact | None) -> Artifact:
    """The rows to score on: a file (imported under its content hash), a dataset's name, or the dataset's own split."""
    if reference is None:
        if dataset is None or not (dataset.path / VAL).stat().st_size:
            raise ConfigError(
                "there are no rows to score on",
                where="evaluation.data",
                expected="a JSONL file, the name of a dataset, or a dataset with validation rows",
                next_step="pass --data FILE",
            )
        return dataset
    path = Path(reference)
    if not path.is_file():
        if run.store.find("dataset", path.name) is not None and path.name == reference:
            return run.store.get("dataset", reference, accept_rejected=run.accept_rejected)
        raise InputError(
            "there is no such held-out file or dataset",
            where="evaluation.data",
            expected="a JSONL file or one of: " + (", ".join(run.store.names("dataset")) or "(no dataset yet)"),
            found=reference,
            next_step="check the path",
        )
    rows = jsonl.read_relations(path)

    def build(build: Build) -> Result:
        jsonl.write_rows(build.path / ROWS, rows)
        counts = {"rows": len(rows), "relations": sum(len(row.expected_relations) for row in rows)}
        return Result({}, counts, [f"from {path}"])

    return run.make("import-rows", held_out_request(path), build)


def rows_file(data: Artifact) -> Path:
    """The file of a dataset that holds the rows to score on."""
    path = data.path / ROWS
    return path if path.is_file() else data.path / VAL


def training_data(run: Run, train: str | None, val: Path | None) -> Artifact:
    """What `--train-data` names: a dataset of the store, a JSONL file, or nothing for the dataset of the run's name."""
    if train is None or (not Path(train).exists() and run.store.find("dataset", Path(train).name) is not None):
        return run.store.get("dataset", train or run.name, accept_rejected=run.accept_rejected)
    return import_rows(run, Path(train), val)


def data_of(run: Run, adapter: Artifact | None) -> Artifact | None:
    """The dataset that an adapter was trained on, if the store still has it; its validation rows can be scored."""
    entry = next((entry for entry in adapter.manifest.inputs if entry.role == "data"), None) if adapter else None
    return run.store.find("dataset", entry.name) if entry else None


def write_chat_copy(dataset: Artifact, path: Path) -> int:
    """The training rows as the guide's chat JSONL, in the server's inference prompt; returns how many."""
    rows = jsonl.read_relations(dataset.path / TRAIN)
    messages = [
        [
            *wire.chat_messages(row.text, row.entities),
            {"role": "assistant", "content": wire.format_answer(row.expected_relations)},
        ]
        for row in rows
    ]
    return jsonl.write_rows(path, [ChatRow.model_validate({"messages": turns}) for turns in messages])


# ---- models ----------------------------------------------------------------------------------------------------------


def loadable_base(run: Run, base: base_models.BaseModel) -> str:
    """What a worker loads: the reference itself, or for a GGUF file the safetensors that were made of it once."""
    if base.kind != "gguf":
        run.hub_needed = run.hub_needed or base.kind == "hub"
        return str(base.path or base.reference)
    request = Request("cache", f"base-{base.identity[-12:]}", {"base": base.identity, "format": "safetensors float32"})

    def build(build: Build) -> Result:
        run.connect()
        from ucotron_ray.models.on_ray import convert_on_ray

        convert_on_ray(base.reference, build.path)
        return Result({}, {}, [f"{base.reference}, dequantized to float32"])

    return str(run.make("convert-base", request, build).path)


def sft_request(run: Run, dataset: Artifact, base: base_models.BaseModel) -> Request:
    """What supervised fine-tuning would make."""
    fields = {
        "sft": run.config.recipe.sft.model_dump(),
        "base": {"reference": base.reference, "identity": base.identity},
        "prompt": prompt_identity(),
    }
    return Request("adapter", run.name, fields, (dataset.as_input("data"),))


def sft(run: Run, dataset: Artifact, base: base_models.BaseModel) -> Artifact:
    """Supervised fine-tuning → `adapter/<name>`."""
    workers = run.config.place.workers

    def build(build: Build) -> Result:
        loadable = loadable_base(run, base)
        run.connect()
        from ucotron_ray import session
        from ucotron_ray.training.job import SftJob
        from ucotron_ray.training.on_ray import train_on_ray

        val = dataset.path / VAL
        job = SftJob(
            base=loadable,
            train_file=str(dataset.path / TRAIN),
            val_file=str(val) if val.stat().st_size else None,
            directory=str(build.path),
            settings=run.config.recipe.sft.model_dump(),
            dtype=workers.dtype,
            per_device_batch=workers.per_device_batch,
            tokens_per_step=workers.tokens_per_step,
            num_threads=session.worker_resources(workers).threads,
        )
        spool = run.spool.child("sft")
        spool.dataset(dataset, "training")
        metrics = train_on_ray(job, workers, spool, build, run.log_file)
        record = json.loads((build.path / "training.json").read_text(encoding="utf-8"))
        shutil.rmtree(build.path / "checkpoints", ignore_errors=True)
        _name_base(build.path / "adapter" / "adapter_config.json", base.reference)
        spool.file(build.path / "training.json")
        return Result(metrics, record["counts"], [f"base {base.reference}"])

    return run.make("sft", sft_request(run, dataset, base), build)


def base_of(adapter: Artifact) -> base_models.BaseModel:
    """The base model of an adapter, with the bytes that it was trained on. Raises InputError if they are others now."""
    recorded = adapter.manifest.recipe_fields["base"]
    base = base_models.resolve(recorded["reference"])
    if base.identity != recorded["identity"]:
        raise InputError(
            "the base model is not the one that the adapter was trained on",
            where=base.reference,
            expected=recorded["identity"],
            found=base.identity,
            next_step="bring the original base model back, or train again",
        )
    return base


def model(run: Run, reference: str) -> tuple[base_models.BaseModel, Artifact | None]:
    """What MODEL names: an adapter of the store, the directory of an adapter artifact, or a base model."""
    adapter: Artifact | None = None
    if Path(reference).name == reference and run.store.find("adapter", reference) is not None:
        adapter = run.store.get("adapter", reference, accept_rejected=run.accept_rejected)
    elif (Path(reference) / artifacts.MANIFEST).is_file():
        found = artifacts.read_artifact(Path(reference).absolute())
        artifacts.verify(found)
        if found.manifest.kind == "adapter":
            adapter = found
    if adapter is None:
        return base_models.resolve(reference), None
    return base_of(adapter), adapter


def merge(run: Run, base: base_models.BaseModel, adapter: Artifact) -> Artifact:
    """The adapter added to its base → `model/<name>`, as transformers loads it."""

    def build(build: Build) -> Result:
        loadable = loadable_base(run, base)
        run.connect()
        from ucotron_ray.export.on_ray import ExportJob, export_on_ray

        job = ExportJob(
            name=run.name,
            base=loadable,
            base_label=base.reference,
            adapter=str(adapter.path / "adapter"),
            model_directory=str(build.path),
            merge=True,
            bundle_directory=None,
            rows_file=None,
            settings=run.config.recipe.export.model_dump(),
            facts={},
            spool=str(run.spool.directory),
            run=run.spool.child("merge").run,
            destination=None,
            log_file=run.log_file,
        )
        export_on_ray(job, run.config.place.workers)
        return Result({}, {}, [f"base {base.reference}, float32"])

    return run.make("merge", export_requests(run, base, adapter)[0], build)


def evaluate_request(
    run: Run, name: str, base: base_models.BaseModel, adapter: Artifact | None, data: Artifact
) -> Request:
    """What scoring would make."""
    fields = {
        "evaluation": run.config.recipe.evaluation.model_dump(exclude={"data", "base"}),
        "base": {"reference": base.reference, "identity": base.identity},
        "prompt": prompt_identity(),
    }
    inputs = (data.as_input("data"), *((adapter.as_input("adapter"),) if adapter else ()))
    return Request("scores", name, fields, inputs)


def evaluate(run: Run, name: str, base: base_models.BaseModel, adapter: Artifact | None, data: Artifact) -> Artifact:
    """Score a base model, or it with an adapter → `scores/<name>` with every prediction."""
    settings, workers = run.config.recipe.evaluation, run.config.place.workers

    def build(build: Build) -> Result:
        loadable = loadable_base(run, base)
        run.connect()
        from ucotron_ray import session
        from ucotron_ray.evaluation.guide_prompts import guide_rows
        from ucotron_ray.evaluation.on_ray import predict_on_ray
        from ucotron_ray.evaluation.predictions import PredictJob
        from ucotron_ray.evaluation.report import write_scores

        sample = sampled(jsonl.read_relations(rows_file(data)), settings.max_rows, settings.seed)
        rows = [*sample, *guide_rows()]
        jsonl.write_rows(build.path / ROWS, rows)
        questions = [(index, "chat") for index in range(len(rows))]
        num_raw = min(settings.raw_rows, len(sample))
        asked_raw = random.Random(settings.seed).sample(range(len(sample)), num_raw)
        questions += [(index, "raw") for index in sorted(asked_raw)]
        job = PredictJob(
            base=loadable,
            adapter=str(adapter.path / "adapter") if adapter else None,
            rows_file=str(build.path / ROWS),
            questions=tuple(questions),
            output_file="",
            max_new_tokens=settings.max_new_tokens,
            batch_size=workers.eval_batch,
            dtype=workers.dtype,
            num_threads=session.worker_resources(workers).threads,
        )
        predictions, measured = predict_on_ray(job, workers, build.path, run.log_file)
        scores = write_scores(build.path, rows, predictions, settings)
        for shard in build.path.glob("shard-*.jsonl"):
            shard.unlink()
        stage = "evaluate" if adapter else "evaluate-base"
        metrics = {**flat_metrics(scores), **({"seconds": measured["seconds"]} if measured["seconds"] else {})}
        spool = run.spool.child(stage)
        spool.dataset(data, "evaluation")
        if adapter:
            spool.model(adapter, "input")
        spool.metrics(metrics)
        for file in (SCORES, PREDICTIONS):
            spool.file(build.path / file)
        counts = {"rows": len(sample), "predictions": len(predictions)}
        return Result(metrics, counts, [f"model {base.reference}" + (f" + {adapter.manifest.name}" if adapter else "")])

    stage = "evaluate" if adapter else "evaluate-base"
    return run.make(stage, evaluate_request(run, name, base, adapter, data), build)


def scores_of(artifact: Artifact) -> dict[str, Any]:
    """The scores of a scores artifact."""
    scores: dict[str, Any] = json.loads((artifact.path / SCORES).read_text(encoding="utf-8"))
    return scores


def flat_metrics(scores: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a scores file for the manifest and MLflow: overall, per group, raw layout and guide prompts."""
    metrics = {key: float(value) for key, value in scores["overall"].items()}
    for group, values in {**scores["groups"], "raw": scores["raw"], GUIDE_GROUP: scores["guide"]}.items():
        if values:
            names = ("f1", "f1_low", "f1_high", "valid_answers", "rows")
            metrics |= {f"{group}_{key}": float(values[key]) for key in names}
    return metrics


def export_requests(run: Run, base: base_models.BaseModel, adapter: Artifact | None) -> tuple[Request, Request]:
    """What merging and exporting would make."""
    fields = {"base": {"reference": base.reference, "identity": base.identity}, "prompt": prompt_identity()}
    inputs: tuple[Input, ...] = (adapter.as_input("adapter"),) if adapter else ()
    merged = Request("model", run.name, {"merge": "float32", **fields}, inputs)
    return merged, Request("bundle", run.name, {"export": run.config.recipe.export.model_dump(), **fields}, inputs)


def export(run: Run, base: base_models.BaseModel, adapter: Artifact | None, data: Artifact | None) -> Artifact:
    """Merge → `model/<name>`, export and compare → `bundle/<name>`. Raises GateFailed if parity misses a threshold."""
    model_request, bundle_request = export_requests(run, base, adapter)
    spool = run.spool.child("export")

    def build_bundle(bundle: Build) -> Result:
        loadable = loadable_base(run, base)
        run.connect()
        from ucotron_ray.export.on_ray import ExportJob, export_on_ray

        if adapter:
            spool.model(adapter, "input")
        with run.store.building(model_request, replace=run.replace) as model:
            job = ExportJob(
                name=run.name,
                base=loadable,
                base_label=base.reference,
                adapter=str(adapter.path / "adapter") if adapter else None,
                model_directory=str(model.path),
                merge=not model.reused,
                bundle_directory=str(bundle.path),
                rows_file=str(rows_file(data)) if data else None,
                settings=run.config.recipe.export.model_dump(),
                facts=_facts(base, adapter),
                spool=str(spool.directory),
                run=spool.run,
                destination=asdict(run.destination) if run.destination else None,
                log_file=run.log_file,
            )
            figures = export_on_ray(job, run.config.place.workers)
            if not model.reused:
                model.publish(Result({}, {}, [f"base {base.reference}, float32"]))
        missed = json.loads((bundle.path / "parity.json").read_text(encoding="utf-8"))["missed"]
        return Result(figures, {}, missed, state="failed" if missed else "ok")

    bundle = run.make("export", bundle_request, build_bundle)
    if bundle.manifest.state != "ok":
        raise GateFailed(
            "the exported model does not compute what PyTorch computes",
            where=str(bundle.path),
            found="; ".join(bundle.manifest.notes),
            next_step="the bundle is kept for inspection, marked failed; see parity.json in it",
        )
    return bundle


# ---- small parts -----------------------------------------------------------------------------------------------------


def sampled(rows: Sequence[RawRow], max_rows: int | None, seed: int) -> list[RawRow]:
    """A seeded sample that keeps the shares of the groups, in the order of the file."""
    if max_rows is None or max_rows >= len(rows):
        return list(rows)
    groups: dict[str | None, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.group, []).append(index)
    picked: list[int] = []
    for number, members in enumerate(groups.values(), 1):
        # Rounding is settled by the last group.
        share = max_rows - len(picked) if number == len(groups) else round(max_rows * len(members) / len(rows))
        picked += random.Random(seed).sample(members, min(share, len(members)))
    return [rows[index] for index in sorted(picked)]


def copy_out(artifact: Artifact, directory: Path) -> None:
    """A copy of an artifact's files where the user wants them. Raises ConfigError rather than mix with other files."""
    if directory.exists() and any(directory.iterdir()) and not (directory / artifacts.MANIFEST).is_file():
        raise ConfigError(
            "the output directory holds files of something else",
            where=str(directory),
            expected="a new or empty directory, or an older copy of an artifact",
            next_step="choose another --output-dir",
        )
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(artifact.path, directory)


def _read_graph(source: str, settings: config.Graph) -> tuple[graph_dataset.Split, dict[str, str], str]:
    """The rows of a source, the identity of what was read, and where it was read without any key."""
    if not graph_export.is_server(source):
        path = Path(source)
        graph = graph_export.read_file(path)
        return graph_dataset.rows_of_graph(graph, settings), {"file": artifacts.file_hash(path)}, str(path)
    namespace = settings.namespace or config.variable("UCOTRON_NAMESPACE") or "default"
    key = config.variable("UCOTRON_API_KEY")
    if settings.kind == "generate-dataset":
        _refuse_namespace(namespace, settings)
        keys = ("max_samples", "train_ratio", "min_relations", "max_text_length", "seed")
        body = settings.model_dump(include=set(keys))
        answer = graph_export.call(
            source, "POST", "/api/v1/finetune/generate-dataset", api_key=key, namespace=namespace, body=body
        )
        split = graph_dataset.rows_of_generate_dataset(answer, settings)
    else:
        split = graph_dataset.rows_of_graph(graph_export.fetch(source, api_key=key, namespace=namespace), settings)
    rows = [row.model_dump() for row in [*split.train, *split.val]]
    return split, {"rows": artifacts.canonical_hash(rows)}, f"{source}, namespace {namespace}"


def _refuse_namespace(namespace: str, settings: config.Graph) -> None:
    if namespace != "default" and not settings.all_namespaces:
        raise ConfigError(
            "generate-dataset ignores namespaces: it would mix in the texts of all of them",
            where="graph.namespace",
            expected="namespace default, or --all-namespaces",
            found=namespace,
            next_step="use --source export, which keeps to the namespace, or pass --all-namespaces if you may see all",
        )


def _readable_rows(rows: Sequence[jsonl.TrainingRow]) -> tuple[list[Row], int, int]:
    """Rows with chat rows read back into relations; how many were chat rows, and how many of those stay as they are."""
    made: list[Row] = []
    num_chat = num_as_is = 0
    for row in rows:
        if isinstance(row, ChatRow):
            num_chat += 1
            parsed = graph_dataset.relations_of_chat(row)
            num_as_is += parsed is None
            made.append(parsed or row)
        else:
            made.append(row)
    return made, num_chat, num_as_is


def _row_key(row: Row) -> str:
    if isinstance(row, RawRow):
        return row.text
    if isinstance(row, ChatRow):
        return "\n".join(message.content for message in row.messages if message.role == "user")
    assert isinstance(row, PreferenceRow)
    return row.prompt


def _name_base(path: Path, reference: str) -> None:
    """An adapter names its base by reference, not by a path of the machine that it was trained on."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    artifacts.write_json(path, {**settings, "base_model_name_or_path": reference})


def _facts(base: base_models.BaseModel, adapter: Artifact | None) -> dict[str, str]:
    facts = {"base": base.reference, "base identity": base.identity, "prompt": prompt_identity()}
    if adapter:
        manifest = adapter.manifest
        facts |= {"adapter content": manifest.content, "training rows": str(manifest.counts.get("rows", "?"))}
        facts |= {f"data ({entry.role})": f"{entry.name}, {entry.content[:16]}" for entry in manifest.inputs}
    return facts
