"""Measures the six generators and the gate: `python -m tests.benchmarks.generators [targets teacher files kill graph]`.

The simulator runs in a process of its own, and its ledger is what is counted. Writes `results/generators_<name>.json`.
"""

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.benchmarks.run import ROOT, processor
from tests.benchmarks.synthesis import Watched, events, ours, simulator
from tests.benchmarks.table import RESULTS
from ucotron_ray.core import config
from ucotron_ray.core.artifacts import Store
from ucotron_ray.core.provenance import provenance
from ucotron_ray.data import readers
from ucotron_ray.data.readers import Entry
from ucotron_ray.simulators import fireworks as stand_in
from ucotron_ray.synthesis import gate, job, journal
from ucotron_ray.synthesis.plan import Answer, Done, Ended, Task, request_body, request_id
from ucotron_ray.synthesis.rows import RowKind
from ucotron_ray.synthesis.seeds import is_held_out
from ucotron_ray.teacher.outcome import OutcomeKind

GENERATION = config.load().recipe.generation
ROWS = 3000
PLANTED = 300
Fields = dict[str, Any]


def command(url: str, store: Path, task: str, *more: str, count: int | None = None) -> list[str]:
    made = ours(url, store, *more, task=task, count=count or 1)
    if count is None:
        at = made.index("--count")
        del made[at : at + 2]
    return made


# ---- the guide's full targets ----------------------------------------------------------------------------------------


def targets(directory: Path, scale: float = 1.0) -> dict[str, Any]:
    """`synthesize all` at the guide's counts, 3 % of the answers garbage; minutes, gates, and what the rows are worth."""
    ledger, store = directory / "ledger.jsonl", directory / "store"
    with simulator(ledger, "--latency", "0.2") as url:
        watched = Watched(command(url, store, "all", "--scale", str(scale)))
        code, out, err = watched.finish(3000)
    result = json.loads(out.splitlines()[-1]) if out.strip() else {"error": err[-2000:]}
    answers = Counter(e["request"] for e in events(ledger) if e["event"] == "out" and e["status"] == "200")
    made = {
        "exit": code,
        "minutes": result.get("seconds", 0.0) / 60,
        "accepted": {task: figures.get("accepted") for task, figures in result.get("tasks", {}).items()},
        "states": {task: figures["status"] for task, figures in result.get("tasks", {}).items()},
        "seconds": {
            task: Store(store).get("dataset", task, accept_rejected=True).manifest.provenance["seconds"]
            for task in result.get("tasks", {})
        },
        "requests": sum(answers.values()),
        "answered_twice": sum(count - 1 for count in answers.values()),
        "driver_mb_peak": watched.driver_peak / 2**20,
    }
    return {**made, "quality": quality(store)} if code in (0, 1) else {**made, "error": err[-3000:]}


def quality(store: Path) -> dict[str, Any]:
    """Repetitions, leaks and wrong labels of the published rows, in the terms of what the older scripts' rows have."""
    reports = {path.parent.name: json.loads(path.read_text()) for path in (store / "dataset").glob("*/report.json")}
    shares = {
        task: {
            name: sum(report["defects"][part]["rows"] for part in parts) / max(1, report["rows"])
            for name, parts in (
                ("duplicates", ("duplicate", "near_duplicate")),
                ("leaks", ("leak",)),
                ("label_errors", ("wrong_span", "outside_vocabulary", "same_fact", "wrong_label", "unstated",
                                  "alias_as_negative", "wrong_reward", "same_answers")),
            )
        }
        for task, report in reports.items()
    }  # fmt: skip
    relations = rows_of(store, "relation_extraction")
    seeds = Counter((r["metadata"]["seed_subject"], r["metadata"]["seed_object"]) for r in relations)
    pairs = rows_of(store, "entity_resolution")
    found = rows_of(store, "path_reward")
    through = Counter(node for row in found for node in set(row["path_node_ids"]))
    return {
        "shares": shares,
        "repeated_seed_pairs": 1 - len(seeds) / len(relations),
        "positives": sum(row["is_duplicate"] for row in pairs) / len(pairs),
        "case_variations": sum(row["variation_type"] == "case_variation" for row in pairs),
        "path_pairs": len({frozenset((row["source_id"], row["target_id"])) for row in found}),
        "most_paths_through_a_node": max(through.values()) / len(found),
        "longest_paths": sum(row["hop_count"] == 4 for row in found) / len(found),
        "reward_deviation": statistics.pstdev(row["reward_total"] for row in found),
        "splits": {task: report["splits"] for task, report in reports.items()},
    }


def rows_of(store: Path, task: str) -> list[Fields]:
    path = Store(store).path("dataset", task) / f"{task}.jsonl"
    return [entry.value for entry in readers.entries(path) if entry.value is not None]


# ---- defects that the teacher makes ----------------------------------------------------------------------------------

TEACHERS = (
    ("relation_extraction", "wrong_span", 0.12),
    ("relation_extraction", "outside_vocabulary", 0.15),
    ("relation_extraction", "leak", 0.8),
    ("relation_extraction", "secret", 0.03),
    ("relation_extraction", "special_token", 0.03),
    ("contradiction", "same_fact", 0.1),
    ("entity_resolution", "alias_as_negative", 0.5),
    ("projection", "near_duplicate", 0.5),
)


def teacher(directory: Path, count: int = 400) -> dict[str, Any]:
    """The simulator plants one defect at a time; the ledger knows how often, and the report says how often it was found."""
    return {"arms": {f"{task}: {defect}": planted_by_teacher(directory, task, defect, share, count)
                     for task, defect, share in TEACHERS}}  # fmt: skip


def planted_by_teacher(directory: Path, task: str, defect: str, share: float, count: int) -> dict[str, Any]:
    ledger, store = directory / f"{task}-{defect}.jsonl", directory / f"{task}-{defect}"
    with simulator(ledger, "--garbage", "0", "--plant", f"{defect}={share}") as url:
        code, out, err = Watched(command(url, store, task, "--max-rounds", "9", count=count)).finish(600)
    assert code in (0, 1), err[-2000:]
    result = json.loads(out.splitlines()[-1])
    report = json.loads((Path(result["artifact"]) / "report.json").read_text())
    planted = sum(entry["event"] == "planted" for entry in events(ledger))
    if defect == "near_duplicate":
        # The first of them repeats nothing.
        planted -= 1
    if defect == "leak":
        planted = leaks_planted(store / "journal" / task, report["samples"], Path(result["artifact"]))
    found = report["caught"].get(defect, {"rows": 0})["rows"]
    others = sum(entry["rows"] for name, entry in report["caught"].items() if name != defect)
    return {
        "samples": report["samples"],
        "planted": planted,
        "found": found,
        "other_findings": others,
        "left_in_the_rows": report["defects"].get(defect, {"rows": 0})["rows"],
        "state": report["state"],
    }


def leaks_planted(folder: Path, samples: int, made: Path) -> int:
    """Validation samples whose text has the names that were planted into training texts too.

    Without those beyond the count, which are published nowhere and looked at by nobody.
    """
    rejected = (entry.value for entry in readers.entries(made / "rejected.jsonl"))
    unneeded = {entry["number"] for entry in rejected if entry and entry["status"] == "pending"}
    task = job.task_of("relation_extraction", GENERATION)
    texts = {record.rid: record.text for record in journal.records(folder) if record.step == "write"}
    names = stand_in.defects.LEAKED_NAMES
    found = 0
    for number in range(samples):
        facts = task.sample(number)
        ask = next(task.converse(facts))
        text = texts.get(request_id(task, stand_in.TEACHER, facts, ask, []), "")
        held_out = is_held_out(number, seed=GENERATION.seed, val_ratio=GENERATION.val_ratio)
        found += held_out and names[0] in text and number not in unneeded
    return found


# ---- defects in files ------------------------------------------------------------------------------------------------


def files(directory: Path, rows: int = ROWS, planted: int = PLANTED) -> dict[str, Any]:
    """Clean rows with a known number of each defect put into them: what the gate finds, and what else it reports."""
    arms = {}
    for task_name, plants in PLANTS.items():
        task = job.task_of(task_name, GENERATION)
        clean = clean_rows(task, rows)
        alarms = sum(bool(e.defects) for e in gate.examine(task.rows, entries_of(clean), GENERATION.near_duplicate))
        assert not alarms
        for defect, (plant, eligible) in plants.items():
            arms[f"{task_name}: {defect}"] = planted_in_file(task.rows, clean, defect, plant, eligible, planted)
    return {"rows": rows, "arms": arms}


def planted_in_file(
    kind: RowKind, clean: list[tuple[str, Fields]], defect: str, plant: Any, eligible: Any, count: int
) -> dict[str, Any]:
    rng = random.Random(f"plant {defect}")
    places = [n for n, (split, row) in enumerate(clean) if n >= 50 and eligible(split, row)]
    chosen = set(rng.sample(places, min(count, len(places))))
    mixed = [(s, plant(row, rng, clean[:50]) if n in chosen else row) for n, (s, row) in enumerate(clean)]
    looked = list(gate.examine(kind, entries_of(mixed), GENERATION.near_duplicate))
    found = {int(entry.where) for entry in looked if defect in entry.defects}
    flagged = {int(entry.where) for entry in looked if entry.defects}
    report = gate.report(kind, looked, GENERATION.gate)
    return {
        "planted": len(chosen),
        "found": len(found & chosen),
        "false_alarms": len(flagged - chosen),
        "clean_rows": len(mixed) - len(chosen),
        "state": report["state"],
    }


def entries_of(rows: Iterable[tuple[str, Fields]]) -> list[Entry]:
    return [Entry(str(number), split, row) for number, (split, row) in enumerate(rows)]


def clean_rows(task: Task, count: int) -> list[tuple[str, Fields]]:
    """Rows of the simulator in which the gate finds nothing."""
    made = []
    for number in itertools.count():
        done = answered(task, number)
        if done.row is not None:
            made.append((task.sample(number)["split"], dict(task.rows.published(done.row))))
        if len(made) >= count * 1.15:
            break
    looked = gate.examine(task.rows, entries_of(made), GENERATION.near_duplicate)
    bad = {int(entry.where) for entry in looked if entry.defects}
    return [entry for number, entry in enumerate(made) if number not in bad][:count]


def answered(task: Task, number: int) -> Done:
    """A sample as the simulator answers it, without HTTP."""
    facts, answers = task.sample(number), []
    talk = task.converse(facts)
    try:
        ask = next(talk)
        while True:
            rid = request_id(task, "m", facts, ask, answers)
            text = stand_in.answer_to(request_body("m", ask, rid), random.Random(rid)).answer
            answers.append(Answer(OutcomeKind.ANSWER, text))
            ask = talk.send(answers[-1])
    except StopIteration as end:
        done: Done = end.value
        return done
    except Ended as end:
        return end.done


def _wrong_span(row: Fields, rng: random.Random, others: Any) -> Fields:
    entities = [dict(entity) for entity in row["entities"]]
    entity = rng.choice(entities)
    shift = rng.choice((-1, 1)) if entity["start"] else 1
    entity |= {"start": entity["start"] + shift, "end": entity["end"] + shift}
    return {**row, "entities": entities}


def _outside(row: Fields, rng: random.Random, others: Any) -> Fields:
    if rng.random() < 0.5:
        return {**row, "entities": [{**row["entities"][0], "type": "Alien"}, *row["entities"][1:]]}
    return {**row, "relations": [{**row["relations"][0], "relation": "zaps"}, *row["relations"][1:]]}


def _leak(row: Fields, rng: random.Random, others: list[tuple[str, Fields]]) -> Fields:
    name = rng.choice([e["text"] for split, other in others if split == "train" for e in other["entities"]])
    text = f"{row['text']} {name} sent a note with number {rng.randrange(10**6)}."
    start = len(row["text"]) + 1
    entity = {"text": name, "type": "Person", "start": start, "end": start + len(name)}
    return {**row, "text": text, "entities": [*row["entities"], entity]}


_KEYS = ("fw_", "sk-proj-", "ghp_", "hf_")


def _secret(row: Fields, rng: random.Random, others: Any) -> Fields:
    key = rng.choice(_KEYS) + "".join(rng.choices("abcdefghijkABCDEFGHIJK0123456789", k=32))
    return {**row, "text": f"{row['text']} Use {key} for it."}


def _same_fact(row: Fields, rng: random.Random, others: Any) -> Fields:
    first = row["fact_a"]
    text = first["text"] if rng.random() < 0.5 else f"In other words: {first['text']}"
    return {**row, "fact_b": {**row["fact_b"], "object": first["object"], "text": text}}


def _alias(row: Fields, rng: random.Random, others: Any) -> Fields:
    words = row["canonical"].split()
    forms = [row["canonical"].upper(), f"{row['canonical']} {rng.choice(('Inc.', 'Ltd.', 'Group of Friends'))}"]
    if len(words) > 1:
        forms += ["".join(word[0] for word in words), words[-1], f"{words[0][0]}. {' '.join(words[1:])}"]
    return {**row, "variant": rng.choice(forms)}


def _near(row: Fields, rng: random.Random, others: list[tuple[str, Fields]]) -> Fields:
    words = rng.choice(others)[1]["description"].split()
    place = rng.choice((0, len(words) - 1))
    words[place] = f"word{rng.randrange(10**6)}"
    return {**row, "description": " ".join(words)}


Plant = tuple[Callable[[Fields, random.Random, Any], Fields], Callable[[str, Fields], bool]]
PLANTS: dict[str, dict[str, Plant]] = {
    "relation_extraction": {
        "wrong_span": (_wrong_span, lambda split, row: True),
        "outside_vocabulary": (_outside, lambda split, row: True),
        "leak": (_leak, lambda split, row: split == "val"),
        "secret": (_secret, lambda split, row: True),
    },
    "contradiction": {"same_fact": (_same_fact, lambda split, row: row["label"] != "agrees")},
    "entity_resolution": {"alias_as_negative": (_alias, lambda split, row: not row["is_duplicate"])},
    "projection": {"near_duplicate": (_near, lambda split, row: True)},
}

# ---- kill, and a large graph -----------------------------------------------------------------------------------------


def kill(directory: Path, scale: float = 0.02, seed: int = 1) -> dict[str, Any]:
    """`synthesize all`, killed by SIGKILL at random moments and run again: are the files the same, what was paid twice?"""
    straight, killed = directory / "straight", directory / "killed"
    with simulator(directory / "straight.jsonl", "--latency", "0.1") as url:
        code, _, err = Watched(command(url, straight, "all", "--scale", str(scale))).finish(900)
        assert code == 0, err[-2000:]
    total = sum(e["event"] == "out" for e in events(directory / "straight.jsonl"))
    rng = random.Random(seed)
    moments = sorted(rng.randrange(total // 10, total) for _ in range(2))
    ledger = directory / "killed.jsonl"
    with simulator(ledger, "--latency", "0.1") as url:
        for moment in moments:
            process = subprocess.Popen(command(url, killed, "all", "--scale", str(scale)), cwd=ROOT,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
            while process.poll() is None and sum(e["event"] == "out" for e in events(ledger)) < moment:
                time.sleep(0.05)
            process.kill()
            process.wait()
        code, _, err = Watched(command(url, killed, "all", "--scale", str(scale))).finish(900)
        assert code == 0, err[-2000:]
    answers = Counter(e["request"] for e in events(ledger) if e["event"] == "out" and e["status"] == "200")
    same = _files(straight) == _files(killed)
    return {
        "requests": total,
        "killed_after": moments,
        "same_bytes": same,
        "files": len(_files(straight)),
        "answered_twice": sum(count - 1 for count in answers.values()),
    }


def _files(store: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in (store / "dataset").rglob("*")
        if path.is_file() and path.name != "manifest.json" and path.suffix != ".lock"
    }


def graph(directory: Path) -> dict[str, Any]:
    """500 path rewards from a graph of 100,000 nodes and 500,000 edges; where a task finds the graph's arrays."""
    store = directory / "store"
    size = ["--set", "generation.tasks.path_reward.nodes=100000", "--set", "generation.tasks.path_reward.edges=500000"]
    watched = Watched(command("http://127.0.0.1:1", store, "path_reward", *size, count=500))
    code, _, err = watched.finish(600)
    assert code == 0, err[-2000:]
    seconds = Store(store).get("dataset", "path_reward").manifest.provenance["seconds"]
    memory = subprocess.run([sys.executable, "-m", "tests.benchmarks.graph_memory"], check=True, cwd=ROOT,
                            capture_output=True, text=True)  # fmt: skip
    hops = Counter(row["hop_count"] for row in rows_of(store, "path_reward"))
    return {"seconds": seconds, "hops": dict(sorted(hops.items())), **json.loads(memory.stdout.splitlines()[-1])}


def main() -> None:
    arms = {"targets": targets, "teacher": teacher, "files": files, "kill": kill, "graph": graph}
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=list(arms))
    for name in parser.parse_args().names:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as directory:
            result = arms[name](Path(directory))
        made = provenance(seconds=time.monotonic() - began)
        result |= {"commit": made["commit"], "packages": made["packages"], "processor": processor()}
        (RESULTS / f"generators_{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
