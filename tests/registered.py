"""A store with bundles that were never trained: right manifests, made-up bytes, and models that are right as often as asked."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import save_file

from ucotron_ray.core.artifacts import Artifact, BuildResult, Request, Store
from ucotron_ray.data import jsonl, wire
from ucotron_ray.data.records import Entity, RawRow, Relation
from ucotron_ray.evaluation import stage as scoring
from ucotron_ray.evaluation.answers import ModelRef
from ucotron_ray.evaluation.predictions import Prediction
from ucotron_ray.models import base as base_models

NUM_ROWS = 60


def rows(prefix: str, count: int = NUM_ROWS) -> list[RawRow]:
    made = []
    for number in range(count):
        text = f"Ann met {prefix} {number}."
        made.append(
            RawRow(
                text=text,
                entities=[Entity.located(name, "person", text) for name in ("Ann", f"{prefix} {number}")],
                expected_relations=[Relation(subject="Ann", predicate="met", object=f"{prefix} {number}")],
            )
        )
    return made


def base_directory(directory: Path) -> Path:
    """What passes for a base model as long as nobody loads it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}", encoding="utf-8")
    save_file({}, directory / "model.safetensors")
    return directory


def held_out_file(directory: Path) -> Path:
    path = directory / "held_out.jsonl"
    jsonl.write_rows(path, rows("Bo"))
    return path


def make_bundle(store: Store, name: str, base: Path, *, state: str = "ok") -> Artifact:
    """A dataset, an adapter of it and a bundle of that, all called `name`."""
    if store.find("dataset", "d") is None:
        with store.building(Request("dataset", "d", {})) as build:
            jsonl.write_rows(build.path / "train.jsonl", rows("Cy"))
            jsonl.write_rows(build.path / "val.jsonl", rows("Di", 5))
            build.publish(BuildResult({}, {}, []))
    data = store.get("dataset", "d")
    resolved = base_models.resolve(str(base))
    fields = {"base": {"reference": resolved.reference, "identity": resolved.identity}, "name": name}
    with store.building(Request("adapter", name, fields, (data.as_input("data"),))) as build:
        (build.path / "adapter").mkdir()
        (build.path / "adapter" / "adapter_model.safetensors").write_bytes(name.encode())
        adapter = build.publish(BuildResult({}, {}, []))
    inputs = (adapter.as_input("adapter"),)
    with store.building(Request("bundle", name, {**fields, "prompt": "0123"}, inputs)) as build:
        (build.path / "model.onnx").write_bytes(b"graph of " + name.encode())
        (build.path / "model.onnx_data").write_bytes(bytes(range(256)) * 4)
        (build.path / "tokenizer.json").write_text("{}", encoding="utf-8")
        for precision in ("f16", "q8_0"):
            (build.path / "gguf" / precision).mkdir(parents=True)
            (build.path / "gguf" / precision / f"{name}-{precision}.gguf").write_bytes(b"GGUF" + precision.encode())
        return build.publish(BuildResult({}, {}, [], state=state))


def answer_with(monkeypatch: pytest.MonkeyPatch, right: dict[str, float]) -> list[str]:
    """Models are right on this share of the rows, by the name of adapter or bundle, `base` for none; gives who was asked."""
    asked: list[str] = []

    def answers(run, source: ModelRef, rows: Sequence[RawRow], questions, directory):
        made_of = source.adapter or source.bundle
        who = made_of.manifest.name if made_of else "base"
        asked.append(who)
        made = []
        for index, layout in questions:
            is_right = (index * 7919) % 100 < right[who] * 100
            text = wire.format_answer(rows[index].expected_relations) if is_right else "[]"
            made.append(Prediction(index, layout, text, 5, False))
        return made, {}

    monkeypatch.setattr(scoring, "answers_of", answers)
    return asked
