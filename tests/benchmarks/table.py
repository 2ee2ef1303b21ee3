"""README's tables of figures, made from the result files."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

LABELS = {"demo": "generated demo graph, {part}", "real_graph": "real sentences (Text2KGBench, Wikidata-TekGen)"}

Describe = Callable[[dict[str, Any]], list[tuple[str, str]]]
"""The lines of one result: what was measured, and the figure."""


def table(directory: Path = RESULTS) -> str:
    """One line a result: base and tuned F1 with intervals, rows, minutes, seed, commit."""
    lines = [
        "| data | base F1 | tuned F1 | valid answers | rows trained / scored | minutes | seed | commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in LABELS:
        path = directory / f"{name}.json"
        if path.is_file():
            lines += _lines(name, json.loads(path.read_text(encoding="utf-8")))
    return "\n".join(lines)


def _lines(name: str, result: dict[str, Any]) -> list[str]:
    lines = []
    for part, scores in result["parts"].items():
        base, tuned = scores["base"], scores["tuned"]
        lines.append(
            f"| {LABELS[name].format(part=f'`{part}`')} | {_f1(base)} | {_f1(tuned)} | {tuned['valid_answers']:.0%} "
            f"| {result['rows_trained']} / {tuned['rows']:.0f} | {result['minutes']:.1f} | {result['seed']} "
            f"| {result['commit'][:7]} |"
        )
    return lines


def _f1(scores: dict[str, float]) -> str:
    return f"{scores['f1']:.2f} ({scores['f1_low']:.2f}–{scores['f1_high']:.2f})"


def synthesis_table(directory: Path = RESULTS) -> str:
    """One line a figure of the synthesis engine, for the results that are there."""
    lines = ["| what | measured | commit |", "|---|---|---|"]
    for name, describe in (
        ("throughput", _throughput),
        ("limits", _limits),
        ("plan", _plan),
        ("start", _start),
        ("targets", _targets),
    ):
        path = directory / f"synthesis_{name}.json"
        if path.is_file():
            result = json.loads(path.read_text(encoding="utf-8"))
            lines += [f"| {what} | {figure} | {result['commit'][:7]} |" for what, figure in describe(result)]
    return "\n".join(lines)


def generators_table(directory: Path = RESULTS) -> str:
    """What the rows are worth, beside what the reference says of the older scripts' rows."""
    lines = ["| what | the existing scripts | here | commit |", "|---|---|---|---|"]
    path = directory / "generators_targets.json"
    if path.is_file():
        result = json.loads(path.read_text(encoding="utf-8"))
        rows = [_minutes(result), *_quality(result["quality"])]
        lines += [f"| {what} | {old} | {new} | {result['commit'][:7]} |" for what, old, new in rows]
    lines += _more(directory)
    return "\n".join(lines)


def _more(directory: Path) -> list[str]:
    """A run that was killed, and a large graph."""
    kill, graph = (directory / f"generators_{name}.json" for name in ("kill", "graph"))
    lines = []
    if kill.is_file():
        made = json.loads(kill.read_text(encoding="utf-8"))
        what = (
            f"`synthesize all`, {made['requests']:,} requests, killed {len(made['killed_after'])} times and run again"
        )
        new = f"{'the same bytes' if made['same_bytes'] else 'other bytes'} in {made['files']} files"
        lines.append(f"| {what} | begins anew | {new} | {made['commit'][:7]} |")
    if graph.is_file():
        made = json.loads(graph.read_text(encoding="utf-8"))
        what = "path rewards of a graph of 100,000 nodes and 500,000 edges: seconds, arrays that a task copies"
        lines.append(
            f"| {what} | at most 500 nodes | {made['seconds']:.0f}, {made['copied_arrays']} | {made['commit'][:7]} |"
        )
    return lines


def _minutes(result: dict[str, Any]) -> tuple[str, str, str]:
    rows, green = sum(result["accepted"].values()), sum(state == "ok" for state in result["states"].values())
    what = f"`synthesize all`: minutes for {rows:,} rows, {result['requests']:,} requests at 0.2 s, two cores"
    new = f"{result['minutes']:.1f}; {green} of 6 gates green, {result['answered_twice']} requests answered twice"
    return what, "one request at a time", new


def _quality(quality: dict[str, Any]) -> list[tuple[str, str, str]]:
    shares = quality["shares"]
    worst = {name: max(entry[name] for entry in shares.values()) for name in ("duplicates", "leaks", "label_errors")}
    splits = sum(min(split.get("train", 0), split.get("val", 0)) > 0 for split in quality["splits"].values())
    return [
        ("repeated or nearly repeated rows, worst of the six sets", "not looked for", f"{worst['duplicates']:.1%}"),
        (
            "relation rows whose pair of names was drawn before",
            "37.5%",
            f"{quality['repeated_seed_pairs']:.1%} (other texts)",
        ),
        ("sets with a split for validation", "1 of 6", f"{splits} of 6"),
        (
            "validation rows with a name, node or text of training, worst set",
            "100% (rows from the graph); elsewhere no split",
            f"{worst['leaks']:.1%}",
        ),
        (
            "rows with a wrong span, word, label, fact or reward, worst set",
            "not checked; identical facts pass as contradictions",
            f"{worst['label_errors']:.1%}",
        ),
        ("duplicates among the name pairs", "about 56%, 60% asked for", f"{quality['positives']:.1%}"),
        ("variations of case among them", "0", f"{quality['case_variations']}"),
        ("pairs of ends in 500 path rewards", "29", f"{quality['path_pairs']}"),
        ("of these paths through one node", "95.4%", f"{quality['most_paths_through_a_node']:.1%}"),
        ("of these paths with four hops", "88.6%", f"{quality['longest_paths']:.1%}"),
        ("standard deviation of their rewards", "0.077", f"{quality['reward_deviation']:.3f}"),
    ]


def gate_table(directory: Path = RESULTS) -> str:
    """What the gate finds of planted defects: in files, and in what a teacher answers."""
    lines = ["| defect | put into a file: found of planted, false alarms | answered by the teacher: found of planted |"]
    lines.append("|---|---|---|")
    arms = [_arms(directory / f"generators_{name}.json") for name in ("files", "teacher")]
    for name in dict.fromkeys([*arms[0], *arms[1]]):
        in_file, asked = arms[0].get(name), arms[1].get(name)
        of_file = (
            f"{in_file['found']} of {in_file['planted']}, {in_file['false_alarms']} in {in_file['clean_rows']} clean rows"
            if in_file
            else ""
        )
        of_teacher = f"{asked['found']} of {asked['planted']}, dataset {asked['state']}" if asked else ""
        lines.append(f"| {name.replace('_', ' ')} | {of_file} | {of_teacher} |")
    return "\n".join(lines)


def _arms(path: Path) -> dict[str, Any]:
    arms: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["arms"] if path.is_file() else {}
    return arms


def projection_table(directory: Path = RESULTS) -> str:
    """One line an arm: cosine loss and retrieval on the test pairs."""
    result = json.loads((directory / "projection.json").read_text(encoding="utf-8"))
    lines = [
        "| test pairs | arm | cosine loss | recall@1 | recall@5 | recall@10 | MRR |",
        "|---|---|---|---|---|---|---|",
    ]
    for data, label in (("generated", "generated descriptions"), ("real", "real sentences (Text2KGBench)")):
        arms, rows = result[data]["arms"], result[data]["arms"]["ours"]["rows"]["test"]
        ours = arms["ours"]["test"]
        scores = {
            "this trainer": ours["projection"],
            "existing settings": arms["existing settings"]["test"]["projection"],
        }
        scores |= {"linear map": ours["linear"], "chance": ours["chance"]}
        lines += [f"| {rows:,} {label} | {arm} | {_scores(values)} |" for arm, values in scores.items()]
    return "\n".join(lines)


def projection_costs(directory: Path = RESULTS) -> str:
    """One line a figure of the projection's costs."""
    result = json.loads((directory / "projection.json").read_text(encoding="utf-8"))
    generated, onnx = result["generated"], result["onnx"]
    encoding, ours = generated["encoding"], generated["arms"]["ours"]
    figures = {
        f"{generated['pairs']:,} pairs of {generated['mean_characters']:.0f} characters encoded, both towers": (
            f"{encoding['rows_per_second_of_one_encoder']:.0f} pairs a second"
        ),
        "largest resident memory of any one process": f"{max(result['peak_mb'].values()):,.0f} MB",
        f"training, {ours['epochs']:.0f} epochs": f"{ours['seconds']:.0f} s",
        "ONNX against PyTorch: pinned ONNX Runtime, 1.23.2": f"{onnx['pinned']:.1e}, {onnx['server_1_23_2']:.1e}",
        "finished shards that were encoded again after kill -9": str(result["shards_encoded_again_after_kill"]),
    }
    return "\n".join(
        ["| what | measured |", "|---|---|", *(f"| {what} | {value} |" for what, value in figures.items())]
    )


def _scores(values: dict[str, float]) -> str:
    loss = f"{values['cosine_loss']:.3f}" if "cosine_loss" in values else "–"
    recalls = (f"{values[key]:.3f}" for key in ("recall_at_1", "recall_at_5", "recall_at_10", "mrr"))
    return f"{loss} | " + " | ".join(recalls)


def _figures(stem: str, parts: Iterable[tuple[str, Describe]], directory: Path) -> str:
    """A line for each figure of the results `<stem>_<part>.json` that are there."""
    lines = ["| what | measured | commit |", "|---|---|---|"]
    for name, describe in parts:
        path = directory / f"{stem}_{name}.json"
        if path.is_file():
            result = json.loads(path.read_text(encoding="utf-8"))
            lines += [f"| {what} | {figure} | {result['commit'][:7]} |" for what, figure in describe(result)]
    return "\n".join(lines)


def training_table(directory: Path = RESULTS) -> str:
    """One line a figure of training, for the results that are there."""
    parts = (
        ("ray", _ray),
        ("trl", _trl),
        ("workers", _workers),
        ("reference", _reference),
        ("preference", _preference),
        ("memory", _memory),
        ("gpu", _gpu),
    )
    return _figures("training", parts, directory)


def _ray(result: dict[str, Any]) -> list[tuple[str, str]]:
    same = "the same bytes" if result["same_bytes"] else "other bytes"
    return [
        (
            f"one Ray worker {where} against the same function in a plain process: step p50, fixed cost",
            f"{result[name]['step_ratio']:.3f} times, {result[name]['fixed_seconds']:.1f} s; {same}",
        )
        for name, where in (("ray", "on a cluster of our own"), ("group", "in a group of Ray Train"))
    ]


def _trl(result: dict[str, Any]) -> list[tuple[str, str]]:
    arms = result["arms"]
    ours, trl = arms["ours"]["tokens_per_second"]["median"], arms["trl"]["tokens_per_second"]["median"]
    return [
        (
            f"against TRL's defaults, {result['rows']} rows, ours in {result['dtype']}: tokens a second without padding",
            f"{ours:.0f} against {trl:.0f} ({result['times_trl']:.2f} times; "
            f"{result['times_trl_checkpointing_off']:.2f} with checkpointing off on both sides)",
        ),
        (
            "the same: loss on held-out rows after the same rows",
            f"{arms['ours']['held_out_loss']['median']:.3f} against {arms['trl']['held_out_loss']['median']:.3f} "
            f"({result['loss_difference']:.1%} apart)",
        ),
    ]


def _workers(result: dict[str, Any]) -> list[tuple[str, str]]:
    figure = f"{result['efficiency']:.2f}"
    if "efficiency_of_unrelated" in result:
        figure += f"; of two unrelated processes {result['efficiency_of_unrelated']:.2f}"
    return [("two workers of one thread against one, twice the rows: efficiency", figure)]


def _reference(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            "DPO with the reference kept, against computing it in every step: step time saved",
            f"{result['step_saved']:.0%}; losses {result['loss_difference']:.4f} apart",
        )
    ]


def _preference(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            f"DPO after SFT on the demo graph, {result['pairs']} pairs of the model's own wrong answers: F1 before, after",
            f"{result['f1_before']:.3f}, {result['f1_after']:.3f} (difference {result['difference']:+.3f}, "
            f"95 % {result['difference_low']:+.3f} to {result['difference_high']:+.3f})",
        ),
        (
            "the same: held-out pairs whose chosen answer is preferred, and those where the longer answer is the chosen one",
            f"{result['accuracy']:.0%}, {result['longer_wins']:.0%} of {result['held_out_pairs']}",
        ),
    ]


def _memory(result: dict[str, Any]) -> list[tuple[str, str]]:
    shown = ", ".join(
        f"{arm['memory_predicted_gb']:.1f} for {arm['memory_peak_gb']:.1f}" for arm in result["arms"].values()
    )
    return [("memory predicted for memory used, GB, three batch sizes", f"{shown} ({result['largest_error']:+.0%})")]


def _gpu(result: dict[str, Any]) -> list[tuple[str, str]]:
    def line(name: str, arm: dict[str, Any]) -> tuple[str, str]:
        mfu, speed, peak, predicted = (
            arm[key]["median"] for key in ("mfu_4n", "tokens_per_second", "memory_peak_gb", "memory_predicted_gb")
        )
        figures = f"{mfu:.2f} ({speed:,.0f} tokens/s), {predicted:.1f} GB for {peak:.1f} ({predicted / peak - 1:+.0%})"
        return f"MFU (4N), and memory predicted for used: {name} a step, random weights, {result['device']}", figures

    return [line(name, arm) for name, arm in result["arms"].items()]


def _throughput(result: dict[str, Any]) -> list[tuple[str, str]]:
    arms = result["arms"]
    ours, bare = arms["ours at 1.0 s"], arms["bare at 1.0 s"]
    return [
        (
            "20,000 requests, 512 in flight, 1 s latency: answers a second, bare asyncio loop beside it",
            f"{ours['rate']:.0f}, bare {bare['rate']:.0f} ({result['share_of_bare']:.1%} of it)",
        ),
        (
            "the same against Ray Data's own HTTP processor",
            f"{result['times_http_processor']:.0f} times its {arms['ray http processor at 1.0 s']['rate']:.1f} a second",
        ),
        (
            "processor time of the client a request (driver, actors, raylet, GCS, less an idle cluster's)",
            f"{ours['cpu_ms_per_request']:.2f} ms",
        ),
        (
            "saturation of two cores that the simulator shares (20 ms latency)",
            f"{arms['ours at 0.02 s']['rate']:.0f} a second, bare {arms['bare at 0.02 s']['rate']:.0f}",
        ),
    ]


def _limits(result: dict[str, Any]) -> list[tuple[str, str]]:
    after = result["after"]
    return [
        (
            f"a token limit that moves, latency 1.5 s (p99 10 s), {after['seconds']:.0f} s after a ramp of 60 s",
            f"{after['share_of_allowed']:.1%} of the allowed tokens used, {after['share_429']:.1%} answered 429 "
            f"(ramp: {result['ramp']['share_of_allowed']:.0%} used)",
        )
    ]


def _plan(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            "200,000 planned rows at 50 ms: the driver's peak memory above that after `ray.init`",
            f"{result['driver_mb_peak_above']:.0f} MB",
        ),
    ]


def _start(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            "the same plan: from the command to the first journaled row",
            f"{result['seconds_to_first_row']:.1f} s, {result['seconds_of_ray_init']:.1f} s of them `ray.init`",
        )
    ]


def _targets(result: dict[str, Any]) -> list[tuple[str, str]]:
    rows = {task: figures["accepted"] for task, figures in result["results"].items()}
    requests = sum(figures["requests"] for figures in result["results"].values())
    return [
        (
            "both generators at the guide's counts, 3 % of the answers garbage",
            f"{rows['relation_extraction']:,} rows and {rows['preference']:,} pairs, {requests:,.0f} requests, "
            f"{result['answered_twice']} answered twice",
        )
    ]


def export_table(directory: Path = RESULTS) -> str:
    """One line a figure of the demo's bundle, for the results that are there."""
    return _figures("export", (("report", _report), ("decode", _decode), ("runtime", _runtime)), directory)


def _report(result: dict[str, Any]) -> list[tuple[str, str]]:
    figures, variants = result["figures"], {**result["variants"], **result["gguf"]}
    float32, size = variants["fp32"], variants["fp32"]["bytes"]
    lines = [
        (
            f"ONNX float32 against PyTorch: largest difference of a logit, prompts of {figures['prompts']:.0f} with the same "
            "greedy tokens; seconds to export",
            f"{figures['max_logit_difference']:.0e}, {figures['greedy_match']:.0%}; {figures['export_seconds']:.0f} s",
        )
    ]
    for name, made in variants.items():
        if "f1_drop" in made:
            withheld = " (not published)" if name in result["withheld"] else ""
            lines.append(
                (
                    f"{name}: size of float32's, F1 of {made['rows']:.0f} rows (float32 {float32['f1']:.3f}), points lost, "
                    "at most; rows with the very same answer",
                    f"{made['bytes'] / size:.3f}, {made['f1']:.3f}, {100 * made['f1_drop']:.1f}, "
                    f"{100 * made['f1_drop_upper']:.1f}; {made['same_answers']:.0%}{withheld}",
                )
            )
    ways = "; ".join(f"{name} {way['f1']:.3f}, {way['valid_answers']:.0%}" for name, way in result["decodings"].items())
    kinds = "; ".join(f"{kind} {file['greedy_match']:.0%}" for kind, file in result["gguf"].items())
    return [
        *lines,
        ("ways of decoding: F1, answers that parse", ways),
        (f"GGUF, raw prompts: share of {figures['prompts']:.0f} with float32's greedy tokens", kinds),
    ]


def _decode(result: dict[str, Any]) -> list[tuple[str, str]]:
    shown = "; ".join(
        f"{name} {speed:.0f} ({result['times_fp32'][name]:.2f} times)" for name, speed in result["median"].items()
    )
    return [
        (f"tokens a second of answering, one prompt at a time, {result['threads']} threads (of ONNX float32)", shown)
    ]


def _runtime(result: dict[str, Any]) -> list[tuple[str, str]]:
    if "variants" not in result:
        return []
    shown = ", ".join(f"{name} {made['max_logit_difference']:.1g}" for name, made in result["variants"].items())
    return [(f"loaded under ONNX Runtime {result['onnxruntime']}: largest difference of a logit", shown)]


def serving_table(directory: Path = RESULTS) -> str:
    """One line a figure of the endpoint, for the results that are there."""
    return _figures("serving", (("load", _load), ("swap", _swap), ("kill", _kill)), directory)


def _load(result: dict[str, Any]) -> list[tuple[str, str]]:
    served, runner = result["served"], result["direct"]["runner"]
    latency = served["latency_seconds"]
    return [
        (
            f"{result['clients']} clients, {served['seconds']:.0f} s: requests, failed, p50 and p95",
            f"{served['requests']}, {served['failed']} failed, {latency['p50']:.1f} s, {latency['p95']:.1f} s",
        ),
        (
            "answers a second, the same runner called directly on the same requests beside it",
            f"{served['answers_per_second']:.2f}, directly {runner['answers_per_second']:.2f} "
            f"({result['share_of_the_runner']:.0%} of it)",
        ),
        (
            "processor time of the process that made the load",
            f"{served['load_process_cpu_seconds']:.1f} s",
        ),
    ]


def _swap(result: dict[str, Any]) -> list[tuple[str, str]]:
    took = ", ".join(f"{seconds:.1f}" for seconds in result["seconds_from_publishing_to_answering"])
    return [
        (
            f"two exchanges of the bundle under {result['clients']} clients: requests, failed; seconds each",
            f"{result['requests']}, {result['failed']} failed; {took}",
        )
    ]


def _kill(result: dict[str, Any]) -> list[tuple[str, str]]:
    outcomes = ", ".join(f"{count} × {name}" for name, count in result["outcomes"].items())
    return [
        (
            f"kill -9 of one of two replicas under {result['clients']} clients: how requests ended; seconds until two again",
            f"{outcomes}; {result['seconds_until_two_processes']:.1f}",
        )
    ]
