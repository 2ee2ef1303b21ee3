"""Measures training: `python -m tests.benchmarks.training [ray trl workers reference memory preference gpu]`.

Writes `results/training_<name>.json` and prints the table for README. Every arm runs in a process of its own, arms take
turns, figures are medians. `gpu` needs a GPU and is skipped, in words, without one. `preference` is the demo's whole
chain. With `--keep DIR` a run that was stopped goes on where it was.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.benchmarks.preference import preference
from tests.benchmarks.run import REAL, ROOT, processor
from tests.benchmarks.table import RESULTS, training_table
from ucotron_ray.core.provenance import provenance

Result = dict[str, Any]

MEMORY_STEPS = 16
"""What stays between steps shows only after some."""


def arm(name: str, directory: Path, **settings: Any) -> Result:
    """One arm in a fresh process; its figures. Those of an earlier call in the same directory are taken as they are."""
    figures = directory / "figures.json"
    if figures.is_file():
        kept: Result = json.loads(figures.read_text(encoding="utf-8"))
        return kept
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    file = directory / "arm.json"
    file.write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-m", "tests.benchmarks.training_arms", name, str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
    made: Result = json.loads(figures.read_text(encoding="utf-8"))
    print(f"{directory.name}: {json.dumps({k: v for k, v in made.items() if k != 'steps'})}", file=sys.stderr)
    return made


def turns(repeats: int, root: Path, arms: dict[str, Callable[[Path], Result]]) -> dict[str, list[Result]]:
    """All arms, one after the other, as often as wanted."""
    made: dict[str, list[Result]] = {name: [] for name in arms}
    for number in range(repeats):
        for name, measure in arms.items():
            made[name].append(measure(root / f"{name}-{number}"))
    return made


def median(results: list[Result], name: str) -> float:
    return statistics.median(result[name] for result in results)


def spread(results: dict[str, list[Result]], *names: str) -> Result:
    """Median, lowest and highest of each figure in each arm."""
    return {
        arm_name: {
            name: {
                "median": median(every, name),
                "low": min(result[name] for result in every),
                "high": max(result[name] for result in every),
            }
            for name in names
        }
        for arm_name, every in results.items()
    }


def overhead(root: Path, repeats: int) -> Result:
    """One Ray worker against the same function in a plain process: as on a machine of one's own, and in a group."""
    settings = {"rows": 2 * 16, "batch": 2}
    arms = {
        "plain": lambda path: arm("plain", path, **settings),
        "ray": lambda path: arm("ray", path, **settings),
        "group": lambda path: arm("ray", path, **settings, group=True),
    }
    made = turns(repeats, root, arms)

    def against_plain(name: str) -> Result:
        return {
            "step_ratio": median(made[name], "step_p50") / median(made["plain"], "step_p50"),
            "fixed_seconds": median(made[name], "wall_seconds") - median(made["plain"], "wall_seconds"),
        }

    return {
        "arms": spread(made, "step_p50", "wall_seconds", "tokens_per_second", "memory_peak_gb"),
        "ray": against_plain("ray"),
        "group": against_plain("group"),
        "same_bytes": len({result["adapter"] for every in made.values() for result in every}) == 1,
        "repeats": repeats,
        "steps": 16,
    }


def stock(root: Path, repeats: int) -> Result:
    """Against TRL with its own defaults on the same rows, model and adapter; also without checkpointing there."""
    settings = {"rows": 48, "batch": 8, "learning_rate": 2e-5, "real": REAL.is_dir(), "dtype": "auto"}
    arms = {
        "ours": lambda path: arm("plain", path, **settings),
        "trl": lambda path: arm("trl", path, **settings, checkpointing=True),
        "trl, checkpointing off": lambda path: arm("trl", path, **settings, checkpointing=False),
    }
    made = turns(repeats, root, arms)
    speed = {name: median(every, "tokens_per_second") for name, every in made.items()}
    losses = {name: median(every, "held_out_loss") for name, every in made.items()}
    return {
        "arms": spread(made, "tokens_per_second", "step_p50", "held_out_loss", "memory_peak_gb"),
        "times_trl": speed["ours"] / speed["trl"],
        "times_trl_checkpointing_off": speed["ours"] / speed["trl, checkpointing off"],
        "loss_difference": abs(losses["ours"] / losses["trl"] - 1),
        "rows": "real" if settings["real"] else "demo",
        "dtype": made["ours"][0]["dtype"],
        "repeats": repeats,
        "steps": 6,
    }


def workers(root: Path, repeats: int) -> Result:
    """Two workers of one thread against one, each a group of Ray Train: twice the rows in the same time would be 1.

    What two processes reach that know nothing of each other is the machine's own share of the loss.
    """
    arms = {
        "1 worker": lambda path: arm("ray", path, rows=2 * 12, batch=2, threads=1, group=True),
        "2 workers": lambda path: arm("ray", path, rows=4 * 12, batch=4, threads=1, workers=2),
        "1 process": lambda path: arm("plain", path, rows=2 * 12, batch=2, threads=1),
        "2 processes": two_processes,
    }
    made = turns(repeats, root, arms)
    speed = {name: median(every, "tokens_per_second") for name, every in made.items()}
    return {
        "arms": spread(made, "tokens_per_second", "step_p50"),
        "efficiency": speed["2 workers"] / (2 * speed["1 worker"]),
        "efficiency_of_unrelated": speed["2 processes"] / (2 * speed["1 process"]),
        "repeats": repeats,
        "steps": 12,
    }


def two_processes(path: Path) -> Result:
    """The same training twice at once, in processes that share nothing but the machine."""
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda name: arm("plain", path / name, rows=2 * 12, batch=2, threads=1), ("a", "b")))
    return {
        "tokens_per_second": sum(made["tokens_per_second"] for made in both),
        "step_p50": statistics.median(made["step_p50"] for made in both),
    }


def reference(root: Path, repeats: int) -> Result:
    """DPO with the reference kept, against one that computes it in every step by switching the adapter off."""
    arms = {
        "kept": lambda path: arm("dpo", path, rows=2 * 12, batch=2, inline=False, save_steps=10),
        "in the step": lambda path: arm("dpo", path, rows=2 * 12, batch=2, inline=True, save_steps=10),
    }
    made = turns(repeats, root, arms)
    return {
        "arms": spread(made, "step_p50", "train_loss_last"),
        "step_saved": 1 - median(made["kept"], "step_p50") / median(made["in the step"], "step_p50"),
        "loss_difference": abs(
            median(made["kept"], "train_loss_last") - median(made["in the step"], "train_loss_last")
        ),
        "repeats": repeats,
        "steps": 6,
    }


def memory(root: Path, repeats: int) -> Result:
    """The plan's memory against the worker's peak less what it held before the model was loaded."""
    arms = {
        f"{rows} rows": lambda path, rows=rows: arm("plain", path, rows=rows * MEMORY_STEPS, batch=rows, dtype="auto")
        for rows in (2, 6, 12)
    }
    made = turns(1, root, arms)
    errors = {name: every[0]["memory_predicted_gb"] / every[0]["memory_peak_gb"] - 1 for name, every in made.items()}
    return {
        "arms": {
            name: {key: every[0][key] for key in ("memory_predicted_gb", "memory_peak_gb", "dtype", "step_tokens")}
            for name, every in made.items()
        },
        "errors": errors,
        "largest_error": max(errors.values(), key=abs),
    }


def gpu(root: Path, repeats: int) -> Result | None:
    """MFU of the guide's shapes with random weights, rows of 4,096 tokens, on the GPU that is there; None without one."""
    import torch

    if not torch.cuda.is_available():
        print("gpu: not measured, there is no GPU", file=sys.stderr)
        return None
    small, medium = "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
    settings: dict[str, dict[str, Any]] = {
        "1.5B, 4,096 tokens": {"shape": small, "tokens": 4096},
        "1.5B, 8,192 tokens": {"shape": small, "tokens": 8192},
        "1.5B, 16,384 tokens": {"shape": small, "tokens": 16_384},
        "7B, 4,096 tokens": {"shape": medium, "tokens": 4096},
        "7B in 4 bits, recomputed, 8,192 tokens": {
            "shape": medium,
            "tokens": 8192,
            "quantize": "nf4",
            "levers": {"gradient_checkpointing": True},
        },
    }
    arms = {name: lambda path, given=given: arm("gpu", path, **given) for name, given in settings.items()}
    made = turns(repeats, root, arms)
    return {
        "arms": spread(made, "tokens_per_second", "mfu_4n", "step_p50", "memory_peak_gb", "memory_predicted_gb"),
        "device": torch.cuda.get_device_name(),
        "repeats": repeats,
    }


ARMS: dict[str, Callable[[Path, int], Result | None]] = {
    "ray": overhead,
    "trl": stock,
    "workers": workers,
    "reference": reference,
    "memory": memory,
    "gpu": gpu,
    "preference": lambda root, repeats: preference(root),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(ARMS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep arms and store there: stopped, it can go on")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    for name in given.names:
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as scratch:
            root = given.keep / name if given.keep else Path(scratch)
            result = ARMS[name](root, given.repeats)
        if result is None:
            continue
        made = provenance(seconds=0.0)
        result |= {"commit": made["commit"], "packages": made["packages"], "processor": processor()}
        given.results.mkdir(exist_ok=True, parents=True)
        (given.results / f"training_{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(training_table(given.results))


if __name__ == "__main__":
    main()
