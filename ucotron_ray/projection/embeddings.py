"""Descriptions → encoded pairs: what the encoders are, and the stages that import and encode."""

import json
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

from ucotron_ray.core.artifacts import Artifact, Build, BuildResult, Request
from ucotron_ray.core.errors import InputError
from ucotron_ray.core.files import canonical_hash, content_hash, file_hash, list_files, write_json
from ucotron_ray.core.recipe import Projection
from ucotron_ray.core.run import Run
from ucotron_ray.models import base as base_models
from ucotron_ray.models.stage import loadable_base, note_hub

STAND_IN = "stand-in:"
ENCODERS = "encoders.json"
TASK_FILE = "projection.jsonl"
"""Where `synthesize projection` leaves its rows."""


@dataclass(frozen=True)
class Encoders:
    """What the recipe names. `label` says in every artifact which models made the vectors."""

    clip: base_models.BaseModel
    clip_is_stand_in: bool
    text: base_models.BaseModel

    @property
    def labels(self) -> dict[str, str]:
        """By side; a stand-in says so."""
        clip = (
            f"STAND-IN for CLIP: first layers of {self.clip.reference}"
            if self.clip_is_stand_in
            else self.clip.reference
        )
        return {"clip": clip, "text": self.text.reference}

    @property
    def identities(self) -> dict[str, str]:
        """What goes into recipe hashes."""
        prefix = STAND_IN if self.clip_is_stand_in else ""
        return {"clip": prefix + self.clip.identity, "text": self.text.identity}


def encoders_of(settings: Projection, commits: MutableMapping[str, str] | None = None) -> Encoders:
    """What `projection.clip` and `projection.text` name. Raises InputError before anything is loaded."""
    is_stand_in = settings.clip.startswith(STAND_IN)
    clip = base_models.resolve(settings.clip.removeprefix(STAND_IN), commits=commits)
    text = base_models.resolve(settings.text, commits=commits)
    for setting, base in (("projection.clip", clip), ("projection.text", text)):
        if base.kind == "gguf" and not (is_stand_in and base is clip):
            raise InputError(
                "a GGUF file is no encoder",
                where=f"{setting}: {base.reference}",
                expected="a hub name or a directory of CLIP or of a sentence encoder",
                next_step=f"a language model can take CLIP's place only as a stand-in: {STAND_IN}{base.reference}",
            )
    return Encoders(clip, is_stand_in, text)


def pairs_of(run: Run, reference: str) -> Artifact:
    """Encoded pairs: what `reference` names, if it is encoded already, else made of the descriptions that it names.

    Args:
        run: the invocation.
        reference: a dataset of the store (pairs, or descriptions of `synthesize projection`), or a path: descriptions
            (JSONL, text, an image folder), or the guide's JSONL with both embeddings.
    """
    path = Path(reference)
    if path.name == reference and run.store.find("dataset", reference) is not None:
        found = run.store.get("dataset", reference, accept_rejected=run.accept_rejected)
        is_encoded = any(entry.path.endswith(".parquet") for entry in found.manifest.files)
        return found if is_encoded else encode(run, found)
    if not path.exists():
        raise InputError(
            "there is no such file or dataset",
            where="--input",
            expected="a path, or one of: " + (", ".join(run.store.names("dataset")) or "(no dataset yet)"),
            found=reference,
            next_step="check the path, or let a teacher write descriptions: ucotron-ray synthesize projection",
        )
    from ucotron_ray.projection import descriptions

    return _import_pairs(run, path) if descriptions.is_encoded(path) else encode(run, _import_descriptions(run, path))


def encode(run: Run, data: Artifact) -> Artifact:
    """Descriptions → `dataset/embeddings-<hash>`: the same descriptions and encoders are encoded once for all names."""
    from ucotron_ray.projection import descriptions, pairs

    encoders = encoders_of(run.config.recipe.projection, run.commits)
    file = _descriptions_file(data)
    if encoders.clip_is_stand_in and data.manifest.counts.get("images"):
        raise InputError(
            "a stand-in for CLIP sees no images",
            where=f"projection.clip: {STAND_IN}{encoders.clip.reference}",
            expected="a real CLIP for descriptions with images",
            found=f"{data.manifest.counts['images']} images in {data.path}",
            next_step="name a CLIP by hub name or directory in projection.clip, or encode the texts alone",
        )
    fields = {"encoders": encoders.identities, "format": "unit vectors, float32"}
    inputs = (data.as_input("descriptions"),)
    name = f"embeddings-{Request('dataset', 'embeddings', fields, inputs).recipe[:12]}"

    def build(build: Build) -> BuildResult:
        for base in (encoders.clip, encoders.text):
            note_hub(run, base)
        clip, text = loadable_base(run, encoders.clip), loadable_base(run, encoders.text)
        run.connect()
        from ucotron_ray.core import session
        from ucotron_ray.projection.job import EncodeJob
        from ucotron_ray.projection.on_ray import encode_on_ray

        workers = run.config.place.workers
        job = EncodeJob(
            descriptions=str(file),
            directory=str(build.path),
            clip=clip,
            clip_is_stand_in=encoders.clip_is_stand_in,
            text=text,
            dtype=workers.dtype,
            max_tokens_per_microbatch=workers.max_tokens_per_microbatch,
            num_threads=session.worker_resources(workers).threads,
            log_file=run.log_file,
        )
        figures = encode_on_ray(job, descriptions.shards(file, pairs.ROWS_PER_SHARD), workers)
        write_json(build.path / ENCODERS, encoders.labels)
        return BuildResult(
            figures, pairs.shard_counts(build.path), [f"{side}: {label}" for side, label in encoders.labels.items()]
        )

    return run.make("encode", Request("dataset", name, fields, inputs), build)


def write_guide_rows(data: Artifact, path: Path) -> int:
    """Encoded pairs as the guide's JSONL; returns how many."""
    from ucotron_ray.projection import pairs

    return pairs.write_guide_rows(data.path, path)


def labels_of(data: Artifact) -> dict[str, str]:
    """Which models made the pairs of a dataset, by side."""
    file = data.path / ENCODERS
    unknown = {"clip": "not known", "text": "not known"}
    labels: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else unknown
    return labels


def _import_descriptions(run: Run, path: Path) -> Artifact:
    """The user's descriptions in the normal layout, without those that say the same again, under their content hash."""
    from ucotron_ray.projection import descriptions

    # Once through all of it: a mistake in a line is found before anything is made.
    images = [descriptions.image_hash(row) for row in descriptions.read(path)]
    if not images:
        raise InputError("there are no descriptions", where=str(path), expected=descriptions.EXPECTED, found="no rows")
    files = content_hash(list_files(path)) if path.is_dir() else file_hash(path)

    def build(build: Build) -> BuildResult:
        counts = descriptions.write(build.path / descriptions.FILE, descriptions.read(path))
        return BuildResult({}, counts, [f"from {path}"])

    fields = {"descriptions": files}
    if any(images):
        # The file only names them: other bytes under the same names are other data.
        fields["images"] = canonical_hash(images)
    request = Request("dataset", f"descriptions-{canonical_hash(fields)[:12]}", fields)
    return run.make("import-descriptions", request, build)


def _import_pairs(run: Run, path: Path) -> Artifact:
    """Rows that the guide's generator encoded, as shards, under their content hash."""
    from ucotron_ray.projection import pairs

    digest = file_hash(path)

    def build(build: Build) -> BuildResult:
        count = pairs.import_given(path, build.path)
        return BuildResult({}, {"rows": count}, [f"from {path}; which models encoded it is not known"])

    return run.make("import-pairs", Request("dataset", f"embeddings-{digest[:12]}", {"pairs": digest}), build)


def _descriptions_file(data: Artifact) -> Path:
    names = {entry.path for entry in data.manifest.files}
    for name in ("descriptions.jsonl", TASK_FILE):
        if name in names:
            return data.path / name
    raise InputError(
        "the dataset holds no descriptions",
        where=str(data.path),
        expected=f"{TASK_FILE} as `synthesize projection` leaves it, or encoded pairs",
        found=", ".join(sorted(names)[:8]),
        next_step="name another dataset, or a file, as --input",
    )
