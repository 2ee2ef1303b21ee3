"""ONNX computes what PyTorch computes, for tied and untied heads and another head_dim; and the gates notice if not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx as onnx_package
import pytest

from tests.llama_cpp import llama_cpp
from tests.tiny_models import save_tiny
from ucotron_ray.core import config
from ucotron_ray.core.artifacts import BuildResult, Request
from ucotron_ray.core.errors import InputError, ResourceError
from ucotron_ray.core.files import canonical_hash
from ucotron_ray.core.run import Run
from ucotron_ray.data import jsonl, wire
from ucotron_ray.data.wire import user_prompt
from ucotron_ray.evaluation import scoring
from ucotron_ray.export import (
    bundle,
    exporter,
    gguf,
    gguf_parity,
    gguf_vocabulary,
    job,
    layout,
    modelfile,
    parity,
    plan,
    quantize,
    tasks,
)
from ucotron_ray.export import stage as export_stage
from ucotron_ray.models import base as base_models
from ucotron_ray.models import served, shape
from ucotron_ray.models import stage as models
from ucotron_ray.models.merge import write_merged
from ucotron_ray.models.prompts import chat_text, prompt_ids, server_row
from ucotron_ray.models.runner import NUM_LOGITS, OnnxRunner
from ucotron_ray.simulators import demo_world

# Tracing warns about every branch of the model's code that it fixes.
pytestmark = pytest.mark.filterwarnings("ignore::Warning")

ROWS = list(demo_world.rows(demo_world.graph_world(1), 3, seed=1))
LAYOUTS = ("chat", "raw", "chat")
SETTINGS = config.load().recipe.export.model_copy(
    update={
        "parity_new_tokens": 6,
        "parity_rows": 3,
        "task_rows": 2,
        "task_new_tokens": 6,
        "calibration_rows": 2,
        "min_int8_agreement": 0.5,
        "max_int8_size": 0.6,
    }
)


@pytest.fixture(params=["qwen2", "qwen3", "llama"])
def made(request, tiny_bundle) -> Path:
    """A bundle with the float32 graph alone; the merged model is beside it."""
    return tiny_bundle(request.param)


def asked(made: Path) -> tuple[list[list[int]], int]:
    tokenizer = base_models.load_tokenizer(base_models.resolve(str(made.parent / "merged")))
    prompts = [prompt_ids(server_row(row, layout), tokenizer) for row, layout in zip(ROWS, LAYOUTS, strict=True)]
    return prompts, tokenizer.eos_token_id


def test_export_is_equal_to_pytorch_and_a_changed_weight_fails_the_gate(made, tmp_path):
    prompts, eos = asked(made)
    graph = made / exporter.GRAPH
    figures = parity.compare(made.parent / "merged", graph, prompts, SETTINGS, eos=eos)
    figures["prompt_ids_match"] = parity.prompt_ids_match(served.load(made), ROWS, LAYOUTS, prompts)
    assert parity.failures(figures, SETTINGS) == []
    assert figures["max_logit_difference"] < 1e-4
    assert figures["greedy_match"] == figures["greedy_prefix"] == 1.0
    assert figures["positions"] == sum(map(len, prompts)) + 18 + min(1000, sum(map(len, prompts)))

    other = tmp_path / "other"
    write_merged(base_models.resolve(str(made.parent / "base")), None, other)
    _shift_one_tensor(other / "model.safetensors")
    changed = parity.compare(other, graph, prompts, SETTINGS, eos=eos) | {"prompt_ids_match": 0.5}
    missed = parity.failures(changed, SETTINGS)
    assert {line.split()[0] for line in missed} >= {"max_logit_difference", "batch_difference", "prompt_ids_match"}


def test_the_graph_is_one_that_the_servers_runtime_reads(made):
    contract = json.loads((made / served.IO_CONTRACT).read_text(encoding="utf-8"))
    assert [entry["name"] for entry in contract["inputs"]][:3] == ["input_ids", "attention_mask", "position_ids"]
    assert [entry["name"] for entry in contract["optional_inputs"]] == [NUM_LOGITS]
    assert contract["opset"]["ai.onnx"] <= 21
    assert contract["ir_version"] <= 10
    onnx_package.checker.check_model(str(made / exporter.GRAPH))


def test_weights_lie_the_same_way_whatever_the_head(made):
    proto, weights = layout.read(made / exporter.GRAPH)
    outside = {tensor.name for tensor in proto.graph.initializer if tensor.external_data}
    assert outside == {name for name, array in weights.items() if array.nbytes >= layout.MIN_BYTES}
    for tensor in proto.graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        assert not where or (where["location"] == "model.onnx_data" and int(where["offset"]) % layout.PAGE == 0)
    config_ = json.loads((made / "config.json").read_text(encoding="utf-8"))
    table = config_["vocab_size"] * config_["hidden_size"]
    copies = sum(array.size == table for array in weights.values())
    assert copies == (1 if config_["tie_word_embeddings"] else 2)


def test_constants_that_lie_outside_come_into_the_graph(tmp_path):
    """onnx can write constants of nodes outside as well."""
    values = np.arange(64, dtype=np.float32)
    make = onnx_package.helper
    constant = make.make_node("Constant", [], ["c"], value=onnx_package.numpy_helper.from_array(values, "c"))
    add = make.make_node("Add", ["x", "c"], ["y"])
    infos = [make.make_tensor_value_info(name, onnx_package.TensorProto.FLOAT, [64]) for name in "xy"]
    proto = make.make_model(
        make.make_graph([constant, add], "g", infos[:1], infos[1:]),
        opset_imports=[make.make_opsetid("", 18)],
        ir_version=8,
    )
    graph = tmp_path / "model.onnx"
    onnx_package.save(
        proto,
        str(graph),
        save_as_external_data=True,
        location="model.onnx_data",
        size_threshold=0,
        convert_attribute=True,
    )
    read, weights = layout.read(graph)
    assert not read.graph.node[0].attribute[0].t.external_data
    layout.write(graph, read, weights)
    layout.data_file(graph).write_bytes(b"")
    import onnxruntime

    found = onnxruntime.InferenceSession(str(graph)).run(None, {"x": np.zeros(64, dtype=np.float32)})[0]
    assert np.array_equal(found, values)


def test_a_caller_that_does_not_know_of_num_logits_gets_all(made):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(made / exporter.GRAPH))
    runner = OnnxRunner(made / exporter.GRAPH)
    ids = np.array([[5, 6, 7]])
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(3)[None]}
    empty = {
        name: np.zeros((1, entry.shape[1], 0, entry.shape[3]), dtype=np.float32)
        for name, entry in runner.inputs.items()
        if name.startswith("past")
    }
    logits = session.run(["logits"], {**feed, **empty})[0]
    assert logits.shape[1] == 3
    assert np.abs(logits[0, -1] - runner.prefill([[5, 6, 7]]).logits_BV[0]).max() < 1e-5


def test_int8_and_int4_round_every_matrix_once_and_stay_close(made):
    prompts, _ = asked(made)
    graph = made / exporter.GRAPH
    reference = OnnxRunner(graph).logits(prompts[0])
    errors, sizes = {}, {}
    for bits in (8, 4):
        target = made / f"model_int{bits}.onnx"
        figures = quantize.quantize(graph, target, bits=bits, block=32)
        assert figures["rounded_share"] > 0.99
        proto, weights = layout.read(target)
        assert {"MatMulNBits", "GatherBlockQuantized"} <= {node.op_type for node in proto.graph.node}
        assert not [
            node.name for node in proto.graph.node if node.op_type == "MatMul" and set(node.input) & set(weights)
        ]
        errors[bits] = np.abs(OnnxRunner(target).logits(prompts[0]) - reference).mean()
        sizes[bits] = layout.data_file(target).stat().st_size
    spread = reference.std()
    assert errors[8] < 0.02 * spread < errors[4] < 0.5 * spread
    # Pages cost a small model more than a large one: see the plan's test for those.
    assert sizes[4] < sizes[8] < 0.45 * layout.data_file(graph).stat().st_size


def test_a_tied_head_reads_the_bytes_of_the_table(made):
    target = made / "model_int8.onnx"
    quantize.quantize(made / exporter.GRAPH, target, bits=8, block=32)
    proto = onnx_package.load(str(target), load_external_data=False)
    config_ = json.loads((made / "config.json").read_text(encoding="utf-8"))
    gather = next(node for node in proto.graph.node if node.op_type == "GatherBlockQuantized")
    head = next(node for node in proto.graph.node if "logits" in node.output)
    places = {tensor.name: [entry.value for entry in tensor.external_data] for tensor in proto.graph.initializer}
    same = places[gather.input[0]] == places[head.input[1]]
    assert same == config_["tie_word_embeddings"]


@pytest.mark.parametrize("seed", range(3))
def test_rounding_is_within_half_a_step(seed):
    blocks = np.random.default_rng(seed).standard_normal((5, 3, 16)).astype(np.float32)
    blocks[0, 0] = 0
    codes, scales = quantize.quantize_int8(blocks)
    assert np.abs((codes.astype(np.float32) - 128) * scales[..., None] - blocks).max() <= scales.max() / 2 + 1e-6
    codes, scales, zeros = quantize.quantize_int4(blocks)
    unpacked = np.stack([codes & 15, codes >> 4], axis=-1).reshape(5, 3, 16).astype(np.float32)
    points = np.stack([zeros & 15, zeros >> 4], axis=-1).reshape(5, 4)[:, :3].astype(np.float32)
    # The zero point is rounded too, which costs the ends of a block up to another half step.
    assert np.abs((unpacked - points[..., None]) * scales[..., None] - blocks).max() <= scales.max() + 1e-6


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_gguf_read_back_is_the_same_model_with_the_same_tokens(tmp_path, family):
    base = base_models.resolve(str(save_tiny(tmp_path / "base", family)))
    write_merged(base, None, tmp_path / "merged")
    tokenizer = base_models.load_tokenizer(base_models.resolve(str(tmp_path / "merged")))
    prompts = [prompt_ids(server_row(row, "raw"), tokenizer) for row in ROWS]
    eos = tokenizer.eos_token_id
    expected = parity.greedy(parity.load(tmp_path / "merged"), prompts, max_new_tokens=6, eos=eos)
    for kind in ("q4_k_m", "f16", "q8_0"):
        file = gguf.path_of(tmp_path, "tiny", kind)
        gguf.write(tmp_path / "merged", file, kind=kind, name="tiny")
        assert [path.name for path in file.parent.glob("*.gguf")] == [file.name]
        figures = gguf_parity.compare(file, tmp_path / "merged", ROWS, prompts, expected, SETTINGS, eos=eos)
        assert figures["prompt_ids_match"] == 1.0
        if kind == "f16":
            assert gguf_parity.failures({kind: figures}, SETTINGS) == []
    from gguf import GGUFReader

    fields = GGUFReader(str(file)).fields
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert fields["tokenizer.ggml.add_bos_token"].contents() == (family == "llama")
    assert fields["tokenizer.ggml.eos_token_id"].contents() == eos
    assert fields["tokenizer.ggml.token_type"].contents()[eos] == 3
    assert fields["general.architecture"].contents() == family


def test_a_tokenizer_that_llama_cpp_would_read_in_another_way_is_refused():
    byte_level = {"type": "ByteLevel", "add_prefix_space": False}
    digits = {"type": "Digits", "individual_digits": True}
    bpe = {"type": "BPE"}
    assert gguf_vocabulary.pre_tokenizer({"model": bpe, "pre_tokenizer": byte_level}) == "gpt-2"
    both = {"type": "Sequence", "pretokenizers": [digits, byte_level]}
    assert gguf_vocabulary.pre_tokenizer({"model": bpe, "pre_tokenizer": both}) == "smollm"
    for foreign in ({"type": "Metaspace"}, {"type": "ByteLevel", "add_prefix_space": True}):
        with pytest.raises(InputError):
            gguf_vocabulary.pre_tokenizer({"model": bpe, "pre_tokenizer": foreign})
    split = {"type": "Split", "pattern": {"Regex": r"\s+"}}
    with pytest.raises(InputError):
        gguf_vocabulary.pre_tokenizer(
            {"model": bpe, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]}}
        )


def test_a_whole_bundle_has_every_part_and_a_variant_that_misses_a_gate_is_not_in_it(tmp_path):
    base = save_tiny(tmp_path / "base", "qwen2")
    jsonl.write_rows(tmp_path / "rows.jsonl", ROWS)
    settings = SETTINGS.model_copy(update={"min_int8_agreement": 1.0, "max_int8_size": 0.01})
    fields = job.ExportJob(
        name="whole",
        base=str(base),
        base_label="tiny",
        adapter=None,
        model_directory=str(tmp_path / "model"),
        merge=True,
        bundle_directory=str(tmp_path / "bundle"),
        rows_file=str(tmp_path / "rows.jsonl"),
        calibration_file=None,
        predicates=("works_at",),
        settings=settings.model_dump(),
        facts={},
        spool="",
        run="",
        destination=None,
        log_file="",
        num_threads=1,
    )
    job.merge(fields)
    figures = job.bundle(fields)
    report = json.loads((tmp_path / "bundle" / bundle.PARITY).read_text(encoding="utf-8"))
    assert set(report["variants"]) == {"fp32", "int8", "int4"}
    assert set(report["decodings"]) == {"free", "entities", "vocabulary"}
    assert report["decodings"]["entities"]["invented_entities"] == 0
    assert set(report["gguf"]) == {"f16", "q8_0", "q4_k_m"}
    assert any("int8 size" in line for line in report["withheld"]["int8"])
    assert report["missed"] == []
    assert figures["int8_bytes"] == report["variants"]["int8"]["bytes"]
    assert served.default_decoding(tmp_path / "bundle") in served.DECODINGS
    assert "not published: int8" in (tmp_path / "bundle" / bundle.CARD).read_text(encoding="utf-8")
    parts = ["", *("_int4" for _ in "4" if "int4" not in report["withheld"])]
    assert {path.name for path in (tmp_path / "bundle").glob("model*")} == {
        f"model{part}.onnx{end}" for part in parts for end in ("", "_data")
    }
    published = {"f16", "q8_0", "q4_k_m"} - set(report["withheld"])
    assert {path.name for path in (tmp_path / "bundle/gguf").iterdir()} == published
    modelfile = (tmp_path / "bundle/Modelfile").read_text(encoding="utf-8")
    smallest = "q4_k_m" if "q4_k_m" in published else "q8_0"
    assert modelfile.startswith(f"FROM ./gguf/{smallest}/whole-{smallest}.gguf\n")


def test_nan_fails_the_gates():
    nan = float("nan")
    names = ("max_logit_difference", "batch_difference", "cache_difference", "mean_logit_difference")
    figures = dict.fromkeys((*names, "top1_agreement", "greedy_match", "prompt_ids_match"), nan)
    assert len(parity.failures(figures, SETTINGS)) == 7
    int8 = dict.fromkeys(("agreement", "f1_drop", "f1_drop_upper", "f1_drop_sd", "rows", "size_ratio"), nan)
    assert len(tasks.withheld({"int8": int8}, SETTINGS)["int8"]) == 3
    files = {"f16": {"prompt_ids_match": nan, "greedy_match": nan}}
    assert len(gguf_parity.failures(files, SETTINGS)) == 2
    files = {"q8_0": {"prompt_ids_match": 1.0, "greedy_prefix": nan}}
    assert len(gguf_parity.failures(files, SETTINGS)) == 1
    assert gguf_parity.failures({"q8_0": {"prompt_ids_match": 1.0, "greedy_prefix": 0.5}}, SETTINGS) == []


def _reference(made: Path, count: int = 6) -> tuple[served.BundleModel, tasks.Reference]:
    model = served.load(made)
    rows = list(demo_world.rows(demo_world.graph_world(1), count, seed=1))
    return model, tasks.reference(model, rows, SETTINGS.model_copy(update={"task_new_tokens": 12}))


def test_a_variant_is_decoded_only_where_its_choices_differ_and_scores_as_if_it_were_everywhere(made):
    model, expected = _reference(made)
    settings = SETTINGS.model_copy(update={"task_new_tokens": 12})
    same = tasks.compared(
        model, expected, lambda ids, count: model.runner.logits(ids, last=count).argmax(-1), lambda _: pytest.fail("!")
    )
    assert (same["agreement"], same["same_answers"], same["f1_drop"], same["f1_drop_upper"]) == (1.0, 1.0, 0.0, 0.0)

    target = made / "model_int4.onnx"
    quantize.quantize(made / exporter.GRAPH, target, bits=4, block=32)
    other = served.load(made, variant="int4")
    asked_rows = []

    def decoded(indices):
        asked_rows.extend(indices)
        return tasks.decode(other, expected.prompts, expected.rows, indices, settings, decoding="free")

    found = tasks.compared(model, expected, lambda ids, count: other.runner.logits(ids, last=count).argmax(-1), decoded)
    alone = tasks.decode(other, expected.prompts, expected.rows, range(6), settings, decoding="free")
    differing = [
        index for index, (a, b) in enumerate(zip(alone, expected.answers, strict=True)) if a.tokens != b.tokens
    ]
    assert set(differing) <= set(asked_rows)
    scores = [scoring.score_row(row, other.finished(a)) for row, a in zip(expected.rows, alone, strict=True)]
    assert found["f1"] == scoring.summary(scores)["f1"]
    assert found["same_answers"] == 1 - len(asked_rows) / 6


def test_a_way_of_decoding_is_asked_only_where_the_grammar_stops_the_free_answer(made):
    model, expected = _reference(made)
    settings = SETTINGS.model_copy(update={"task_new_tokens": 40})
    found = tasks.decodings(model, expected, settings)
    assert found["free"]["changed_answers"] == 0
    # Random weights say no arrays.
    assert found["entities"]["changed_answers"] == 1
    assert found["entities"]["invented_entities"] == 0
    row = expected.rows[0]
    constraint = model.entities.of_entities(row.entities)
    names = [entity.text for entity in row.entities]
    answer = (
        f'[{{"subject":{json.dumps(names[0])},"predicate":"knows","object":{json.dumps(names[1])},"confidence":0.9}}]'
    )
    assert constraint.takes(model.ids(answer))
    assert constraint.takes(model.ids("[]"))
    assert not constraint.takes(model.ids(answer[:-1]))
    assert not constraint.takes(model.ids(answer.replace(names[0], "Nobody")))


def test_a_variant_that_loses_too_much_or_cannot_show_that_it_does_not_is_withheld():
    good = {
        "f1_drop": 0.0,
        "f1_drop_upper": 0.01,
        "f1_drop_sd": 0.1,
        "rows": 274.0,
        "agreement": 0.99,
        "size_ratio": 0.3,
    }
    assert tasks.withheld({"fp32": {}, "int8": good, "int4": good}, SETTINGS) == {}
    lossy = {**good, "f1_drop": 0.01, "f1_drop_upper": 0.05}
    found = tasks.withheld({"int8": good, "int4": lossy}, SETTINGS)
    assert list(found) == ["int4"]
    assert "274 rows" in found["int4"][0]
    assert tasks.withheld(
        {"int8": {**good, "f1_drop_upper": 0.025}, "int4": {**good, "f1_drop_upper": 0.025}}, SETTINGS
    ).keys() == {"int8"}


def test_the_best_decoding_wins_and_of_equal_ones_the_one_that_keeps_names():
    assert tasks.best_decoding({"free": {"f1": 0.5}, "entities": {"f1": 0.5}, "vocabulary": {"f1": 0.5}}) == "entities"
    assert tasks.best_decoding({"free": {"f1": 0.6}, "entities": {"f1": 0.5}}) == "free"
    assert tasks.best_decoding({}) == "free"


def test_a_model_that_cannot_fit_is_refused_before_it_is_tried():
    seven = plan.plan(shape.KNOWN["Qwen/Qwen2.5-7B-Instruct"], SETTINGS)
    assert 7.5e9 < seven.parameters < 7.7e9
    assert seven.files["onnx int8"] < 0.35 * seven.files["onnx fp32"]
    assert seven.memory > 100e9
    with pytest.raises(ResourceError, match="memory"):
        plan.check_memory(seven, 24e9)
    small = plan.plan(shape.KNOWN["Qwen/Qwen2.5-0.5B-Instruct"], SETTINGS)
    plan.check_memory(small, 24e9)
    plan.check_memory(seven, None)


def test_prompt_contract_is_hashed_and_names_the_servers_strings(tiny_model):
    tokenizer = base_models.load_tokenizer(base_models.resolve(str(tiny_model)))
    contract = bundle.prompt_contract(tokenizer)
    digest = contract.pop("sha256")
    assert digest == canonical_hash(contract)
    assert contract["chat"]["rendered"].endswith("<|im_start|>assistant\n")
    assert json.dumps(contract)


def test_server_lines_have_the_servers_real_key_names():
    import tomllib

    assert set(tomllib.loads(bundle.server_lines("demo"))["models"]) == {
        "fine_tuned_re_model",
        "fine_tuned_re_endpoint",
        "fine_tuned_re_api_key_env",
    }


def _shift_one_tensor(path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if "down_proj" in name)
    tensors[name] = tensors[name] + 0.05
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.slow
def test_every_graph_agrees_under_the_runtime_of_the_server(made, tmp_path):
    """pip install --no-deps --target DIR onnxruntime==1.23.2; SERVER_ONNXRUNTIME=DIR"""
    directory = os.environ.get("SERVER_ONNXRUNTIME")
    if not directory:
        pytest.skip("SERVER_ONNXRUNTIME does not name a directory with onnxruntime 1.23.2")
    prompts, _ = asked(made)
    for bits in (8, 4):
        quantize.quantize(made / exporter.GRAPH, made / f"model_int{bits}.onnx", bits=bits, block=32)
    script = (
        "import json, sys, numpy as np, onnxruntime\n"
        "from pathlib import Path\n"
        "assert onnxruntime.__version__ == '1.23.2', onnxruntime.__version__\n"
        "from ucotron_ray.models.runner import OnnxRunner\n"
        "runner = OnnxRunner(Path(sys.argv[1]), num_threads=1)\n"
        "np.save(sys.argv[3], runner.stepwise_logits(json.loads(sys.argv[2]), num_prefill=5))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{directory}:{Path(__file__).parents[3]}"}
    for file in served.GRAPHS.values():
        output = tmp_path / "logits.npy"
        command = [sys.executable, "-c", script, str(made / file), json.dumps(prompts[0]), str(output)]
        subprocess.run(command, env=environment, check=True, timeout=120)
        pinned = OnnxRunner(made / file, num_threads=1).logits(prompts[0])
        # Rounded activations fall on either side of a half where sums differ in the last bit.
        assert np.abs(np.load(output) - pinned).max() < (1e-4 if file == exporter.GRAPH else 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_llama_cpp_reads_the_files_splits_texts_alike_and_answers_the_same(tmp_path, family):
    base = base_models.resolve(str(save_tiny(tmp_path / "base", family)))
    write_merged(base, None, tmp_path / "merged")
    tokenizer = base_models.load_tokenizer(base_models.resolve(str(tmp_path / "merged")))
    texts = [user_prompt(row.text, row.entities) for row in ROWS]
    prompts = [prompt_ids(server_row(row, "raw"), tokenizer) for row in ROWS]
    expected = parity.greedy(parity.load(tmp_path / "merged"), prompts, max_new_tokens=6, eos=tokenizer.eos_token_id)
    for kind in ("f16", "q8_0"):
        file = gguf.path_of(tmp_path, "tiny", kind)
        gguf.write(tmp_path / "merged", file, kind=kind, name="tiny")
        found = llama_cpp(file, texts, max_new_tokens=6)
        assert [answer["ids"] for answer in found] == prompts
        if kind == "f16":
            assert [answer["tokens"] for answer in found] == expected


def test_the_rows_that_the_gates_are_judged_on_are_part_of_what_a_bundle_is(tmp_path, tiny_model):
    run = Run(config.load(overrides=[("store", str(tmp_path))]), verb="export", name="x")
    base = base_models.resolve(str(tiny_model))
    recipes = set()
    for name in ("few", "many"):
        with run.store.building(Request("dataset", name, {})) as build:
            (build.path / "rows.jsonl").write_text(name)
            rows = build.publish(BuildResult({}, {}, []))
        recipes.add(export_stage.bundle_request(run, base, None, rows).recipe)
    assert len(recipes) == 2
    # The merged model is the same whatever is asked of it.
    assert models.merge_request(run, base, None).inputs == ()


def test_a_modelfile_asks_as_training_did(tiny_model):
    tokenizer = base_models.load_tokenizer(base_models.located(str(tiny_model)))
    found = modelfile.text(Path("gguf/q8_0/x-q8_0.gguf"), tokenizer, ["<|im_end|>"])
    template = found.split('TEMPLATE """')[1].split('"""')[0]
    messages = wire.chat_messages(ROWS[0].text, ROWS[0].entities)
    asked = template.replace("{{ .System }}", messages[0]["content"]).replace("{{ .Prompt }}", messages[1]["content"])
    rendered = chat_text(messages, tokenizer)
    assert asked.removesuffix("{{ .Response }}") == rendered.removeprefix(tokenizer.bos_token or "")
    assert 'PARAMETER stop "<|im_end|>"' in found
