"""Measures a bundle: `python -m tests.benchmarks.export STORE [decode variants decoding gguf runtime] --data FILE`.

STORE is that of a finished run (`make demo`); `--name` names its model and its bundle, `--data` held-out rows. Writes
`results/export_<arm>.json`. `runtime` loads every graph under another onnxruntime, in the directory that
SERVER_ONNXRUNTIME names (`pip install --no-deps --target DIR onnxruntime==1.23.2`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.benchmarks.run import processor
from tests.benchmarks.table import RESULTS
from ucotron_ray.core import config
from ucotron_ray.core.artifacts import Store
from ucotron_ray.core.provenance import provenance
from ucotron_ray.core.recipe import Export
from ucotron_ray.data import jsonl
from ucotron_ray.data.records import RawRow
from ucotron_ray.evaluation import scoring
from ucotron_ray.export import gguf, layout, parity, tasks
from ucotron_ray.models import base as base_models
from ucotron_ray.models import lora, served
from ucotron_ray.models.prompts import prompt_ids, server_row

Result = dict[str, Any]

SERVER_VERSION = "1.23.2"
DECODE_PROMPTS, DECODE_TOKENS, DECODE_REPEATS = 8, 48, 3
GGUF_PROMPTS, GGUF_TOKENS = 64, 32
TARGETS = {"decode": 1.5, "int8_size": 0.35, "f1_drop": 0.01, "gguf_match": 0.95}
"""Of the issue: a result says whether it reaches them."""


@dataclass(frozen=True)
class Bench:
    """What is measured, and on what."""

    model: Path
    bundle: Path
    name: str
    rows: list[RawRow]
    settings: Export
    threads: int

    def loaded(self, variant: str = "fp32") -> served.BundleModel:
        return served.load(self.bundle, variant=variant, num_threads=self.threads)

    def prompts(self, count: int, layout_name: str) -> list[list[int]]:
        tokenizer = base_models.load_tokenizer(base_models.resolve(str(self.model)))
        return [prompt_ids(server_row(row, layout_name), tokenizer) for row in tasks.spread(self.rows, count)]


def decode(bench: Bench) -> Result:
    """Greedy tokens a second, one prompt at a time, the runtimes in turns on the same prompts."""
    prompts = bench.prompts(DECODE_PROMPTS, "chat")
    base = base_models.resolve(str(bench.model))
    eos = int(base_models.load_tokenizer(base).eos_token_id)
    # `load_for_inference` sets eager attention, which is the faster one on a processor.
    by_torch = lora.load_for_inference(base, None, "float32")
    arms: dict[str, Callable[[list[int]], int]] = {
        "torch": lambda ids: len(parity.greedy(by_torch, [ids], max_new_tokens=DECODE_TOKENS, eos=eos)[0])
    }
    for variant in _variants(bench):
        runner = bench.loaded(variant).runner
        arms[f"onnx {variant}"] = lambda ids, runner=runner: len(
            runner.greedy(ids, max_new_tokens=DECODE_TOKENS, eos=eos)
        )
    speeds: dict[str, list[float]] = {arm: [] for arm in arms}
    for repeat in range(DECODE_REPEATS + 1):
        for arm, answer in arms.items():
            began, tokens = time.perf_counter(), 0
            for ids in prompts:
                tokens += answer(ids) + 1
            if repeat:  # the first turn warms up
                speeds[arm].append(tokens / (time.perf_counter() - began))
    medians = {arm: statistics.median(values) for arm, values in speeds.items()}
    ratios = {arm: median / medians["torch"] for arm, median in medians.items()}
    return {
        "tokens_per_second": speeds,
        "median": medians,
        "times_torch": ratios,
        "reached": ratios["onnx fp32"] >= TARGETS["decode"],
        "prompts": len(prompts),
        "prompt_tokens": statistics.mean(map(len, prompts)),
        "threads": bench.threads,
    }


def variants(bench: Bench) -> Result:
    """Size, load time, agreement and F1 of every graph, against float32 on the same rows."""
    float32 = bench.loaded()
    prompts = bench.prompts(bench.settings.parity_rows, "chat")
    expected = tasks.reference(float32, prompts, bench.rows, bench.settings)
    size = layout.size_of(bench.bundle / served.GRAPHS["fp32"])
    made: Result = {"fp32": {"bytes": size, **expected.score.figures}}
    for variant in _variants(bench):
        if variant == "fp32":
            continue
        figures = tasks.variant(
            bench.bundle,
            variant,
            float32,
            expected,
            prompts,
            bench.rows,
            bench.settings,
            num_threads=bench.threads,
        )
        own = layout.size_of(bench.bundle / served.GRAPHS[variant])
        made[variant] = {"bytes": own, "size_ratio": own / size, **figures}
    int8 = made["int8"]
    reached = int8["size_ratio"] <= TARGETS["int8_size"] and int8["f1_drop"] <= TARGETS["f1_drop"]
    return {"variants": made, "reached": reached, "rows": len(bench.rows)}


def decoding(bench: Bench) -> Result:
    """Free against constrained answers of float32 and int8."""
    made: Result = {}
    for variant in ("fp32", "int8"):
        model = bench.loaded(variant)
        made[variant] = {
            name: tasks.score(model, bench.rows, bench.settings, decoding=name).figures for name in served.DECODINGS
        }
    return {"decodings": made, "rows": len(bench.rows)}


def gguf_files(bench: Bench) -> Result:
    """F16: the same greedy tokens as the merged model. Q8_0: its F1. Both asked raw, loaded back by transformers."""
    base = base_models.resolve(str(bench.model))
    tokenizer = base_models.load_tokenizer(base)
    eos = int(tokenizer.eos_token_id)
    prompts = bench.prompts(GGUF_PROMPTS, "raw")
    merged = parity.load(bench.model)
    expected = _in_batches(merged, prompts, GGUF_TOKENS, eos)
    scores = {"merged": _raw_score(bench, merged, tokenizer)}
    del merged
    files: Result = {}
    for kind in ("f16", "q8_0"):
        file = gguf.path_of(bench.bundle, bench.name, kind)
        began = time.monotonic()
        model = base_models.load_model(base_models.resolve(str(file)), "float32").eval()
        seconds = time.monotonic() - began
        found = _in_batches(model, prompts, GGUF_TOKENS, eos)
        files[kind] = {
            "bytes": file.stat().st_size,
            "load_seconds": seconds,
            "greedy_match": float(np.mean([a == b for a, b in zip(found, expected, strict=True)])),
        }
        scores[kind] = _raw_score(bench, model, tokenizer)
        del model
    for kind in files:
        files[kind] |= {"f1": scores[kind].figures["f1"], "valid_answers": scores[kind].figures["valid_answers"]}
        files[kind] |= tasks.f1_drop(scores["merged"].counts_N3, scores[kind].counts_N3)
    reached = files["f16"]["greedy_match"] >= TARGETS["gguf_match"] and files["q8_0"]["f1_drop"] <= TARGETS["f1_drop"]
    return {
        "files": files,
        "merged_f1": scores["merged"].figures["f1"],
        "prompts": len(prompts),
        "tokens": GGUF_TOKENS,
        "rows": len(bench.rows),
        "reached": reached,
    }


def runtime(bench: Bench) -> Result:
    """Every graph under the onnxruntime of the server, its logits against those of the pinned one."""
    directory = os.environ.get("SERVER_ONNXRUNTIME")
    if not directory:
        return {"skipped": "SERVER_ONNXRUNTIME does not name a directory with onnxruntime 1.23.2"}
    ids = bench.prompts(1, "chat")[0]
    script = (
        "import sys, time, json, numpy as np, onnxruntime\n"
        "from pathlib import Path\n"
        f"assert onnxruntime.__version__ == '{SERVER_VERSION}', onnxruntime.__version__\n"
        "from ucotron_ray.models.runner import OnnxRunner\n"
        "began = time.monotonic()\n"
        "runner = OnnxRunner(Path(sys.argv[1]))\n"
        "seconds = time.monotonic() - began\n"
        "np.save(sys.argv[3], runner.logits(json.loads(sys.argv[2])))\n"
        "print(seconds)\n"
    )
    made: Result = {}
    for variant in _variants(bench):
        graph = bench.bundle / served.GRAPHS[variant]
        output = bench.bundle.parent / f"logits-{os.getpid()}.npy"
        command = [sys.executable, "-c", script, str(graph), json.dumps(ids), str(output)]
        environment = {**os.environ, "PYTHONPATH": f"{directory}:{Path(__file__).parents[2]}"}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        difference = np.abs(np.load(output) - bench.loaded(variant).runner.logits(ids))
        output.unlink()
        made[variant] = {"load_seconds": float(done.stdout), "max_logit_difference": float(difference.max())}
    return {"onnxruntime": SERVER_VERSION, "variants": made, "reached": True}


def _variants(bench: Bench) -> list[str]:
    return [name for name, file in served.GRAPHS.items() if (bench.bundle / file).is_file()]


def _in_batches(model: Any, prompts: Sequence[list[int]], tokens: int, eos: int) -> list[list[int]]:
    batches = [prompts[start : start + tasks.BATCH] for start in range(0, len(prompts), tasks.BATCH)]
    return [answer for batch in batches for answer in parity.greedy(model, batch, max_new_tokens=tokens, eos=eos)]


def _raw_score(bench: Bench, model: Any, tokenizer: Any) -> tasks.Score:
    prompts = [prompt_ids(server_row(row, "raw"), tokenizer) for row in bench.rows]
    eos = int(tokenizer.eos_token_id)
    answers = _in_batches(model, prompts, bench.settings.task_new_tokens, eos)
    texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
    scores = [scoring.score_row(row, text) for row, text in zip(bench.rows, texts, strict=True)]
    summary = scoring.summary(scores, resamples=tasks.RESAMPLES, seed=tasks.SEED)
    return tasks.Score(summary, scoring.counts_of(scores))


ARMS: dict[str, Callable[[Bench], Result]] = {
    "decode": decode,
    "variants": variants,
    "decoding": decoding,
    "gguf": gguf_files,
    "runtime": runtime,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("arms", nargs="*", default=list(ARMS))
    parser.add_argument("--name", default="demo")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    store = Store(args.store)
    torch.set_num_threads(args.threads)
    bench = Bench(
        store.get("model", args.name).path,
        store.get("bundle", args.name, accept_rejected=True).path,
        args.name,
        tasks.spread(jsonl.read_relations(args.data), args.rows),
        config.load().recipe.export,
        args.threads,
    )
    for arm in args.arms:
        began = time.monotonic()
        result = ARMS[arm](bench)
        made = provenance(seconds=time.monotonic() - began)
        result |= {"commit": made["commit"], "packages": made["packages"], "processor": processor()}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"export_{arm}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(arm, json.dumps({key: value for key, value in result.items() if key != "packages"}, indent=2))


if __name__ == "__main__":
    main()
