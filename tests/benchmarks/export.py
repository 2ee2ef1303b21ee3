"""Measures a bundle: `python -m tests.benchmarks.export STORE [report decode runtime]`.

STORE is that of a finished run (`make demo`); `--name` names its model and its bundle. Writes `results/export_<arm>.json`.
`report` is what the export measured itself: F1 of every variant on the rows that its gates need. `decode` times every
variant on the same work, those of GGUF in llama.cpp. `runtime` loads every graph under another onnxruntime, in the
directory that SERVER_ONNXRUNTIME names (`pip install --no-deps --target DIR onnxruntime==1.23.2`).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.run import processor
from tests.benchmarks.table import RESULTS
from tests.llama_cpp import llama_cpp_speed
from ucotron_ray.core.artifacts import Store
from ucotron_ray.core.provenance import provenance
from ucotron_ray.data import wire
from ucotron_ray.data.records import RawRow
from ucotron_ray.export import bundle, gguf
from ucotron_ray.models import served
from ucotron_ray.simulators import demo_world

Result = dict[str, Any]

SERVER_VERSION = "1.23.2"
DECODE_PROMPTS, DECODE_TOKENS, DECODE_REPEATS = 4, 32, 5


@dataclass(frozen=True)
class Bench:
    """What is measured."""

    bundle: Path
    name: str
    threads: int

    def loaded(self, variant: str = "fp32") -> served.BundleModel:
        return served.load(self.bundle, variant=variant, num_threads=self.threads)


def report(bench: Bench) -> Result:
    """What the export saw, and what it withheld."""
    made: Result = json.loads((bench.bundle / bundle.PARITY).read_text(encoding="utf-8"))
    return made


def decode(bench: Bench) -> Result:
    """Tokens a second of answering, one prompt at a time, the variants in turns on the same prompts and answers."""
    prompts = _prompts(DECODE_PROMPTS)
    arms: dict[str, Callable[[], float]] = {}
    answers: list[list[int]] = []
    for variant in _variants(bench):
        model = bench.loaded(variant)
        asked = [model.chat_ids(wire.chat_messages(row.text, row.entities)) for row in prompts]
        answers = answers or model.generate(asked, max_new_tokens=DECODE_TOKENS, to_array_end=False)
        arms[f"onnx {variant}"] = partial(_answering, model, asked, answers)
    texts = [wire.user_prompt(row.text, row.entities) for row in prompts]
    for file in sorted((bench.bundle / gguf.DIRECTORY).glob("*/*.gguf")):
        arms[f"llama.cpp {file.parent.name}"] = partial(_by_llama_cpp, file, texts, bench.threads)
    speeds: dict[str, list[float]] = {arm: [] for arm in arms}
    for repeat in range(DECODE_REPEATS + 1):
        for arm, timed in arms.items():
            speed = timed()
            if repeat:  # the first turn warms up
                speeds[arm].append(speed)
    medians = {arm: statistics.median(values) for arm, values in speeds.items()}
    return {
        "tokens_per_second": speeds,
        "median": medians,
        "times_fp32": {arm: median / medians["onnx fp32"] for arm, median in medians.items()},
        "prompts": len(prompts),
        "threads": bench.threads,
    }


def _prompts(count: int) -> list[RawRow]:
    return list(demo_world.rows(demo_world.unseen_world(42), count, seed=7))


def _answering(model: served.BundleModel, asked: list[list[int]], answers: list[list[int]]) -> float:
    seconds, tokens = 0.0, 0
    for ids, answer in zip(asked, answers, strict=True):
        state = model.runner.prefill([ids])
        began = time.perf_counter()
        for token in answer:
            state = model.runner.step(state, [[token]])
        seconds += time.perf_counter() - began
        tokens += len(answer)
    return tokens / seconds


def _by_llama_cpp(file: Path, texts: list[str], threads: int) -> float:
    return llama_cpp_speed(file, texts, max_new_tokens=DECODE_TOKENS, threads=threads)


def runtime(bench: Bench) -> Result:
    """Every graph under the onnxruntime of the server, its logits against those of the pinned one."""
    directory = os.environ.get("SERVER_ONNXRUNTIME")
    if not directory:
        return {"skipped": "SERVER_ONNXRUNTIME does not name a directory with onnxruntime 1.23.2"}
    (row,) = _prompts(1)
    ids = bench.loaded().chat_ids(wire.chat_messages(row.text, row.entities))
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


ARMS: dict[str, Callable[[Bench], Result]] = {"report": report, "decode": decode, "runtime": runtime}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("arms", nargs="*", default=list(ARMS))
    parser.add_argument("--name", default="demo")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    store = Store(args.store)
    bench = Bench(store.get("bundle", args.name, accept_rejected=True).path, args.name, args.threads)
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
