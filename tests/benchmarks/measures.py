"""The same predictions under the measure of before and under today's: `python -m tests.benchmarks.measures SCORES …`.

SCORES are directories of scores artifacts. Before: NFKC, all punctuation gone from both ends of a name (C, C++ and C# are
one), and a percentile bootstrap by row. Today: `evaluation/scoring.py` and `evaluation/intervals.py`.
"""

import json
import re
import string
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.run import processor
from tests.benchmarks.table import RESULTS
from ucotron_ray.core.provenance import provenance
from ucotron_ray.data import jsonl
from ucotron_ray.data.records import Relation
from ucotron_ray.data.wire import parse_answer
from ucotron_ray.evaluation import scoring
from ucotron_ray.evaluation.bootstrap import f1_of_counts
from ucotron_ray.evaluation.stage import GUIDE_GROUP

EDGES = string.punctuation + string.whitespace + "“”‘’«»„"
RESAMPLES, SEED = 1000, 42


def normalised_before(text: str) -> str:
    """A name as it was compared before."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[_\s]+", " ", folded).strip(EDGES)


def triples_before(relations: list[Relation]) -> set[tuple[str, str, str]]:
    return {
        (normalised_before(r.subject), normalised_before(r.predicate), normalised_before(r.object)) for r in relations
    }


def both(directory: Path) -> dict[str, Any]:
    """F1 and its interval by both measures, over the rows that were asked in the chat layout."""
    rows = jsonl.read_relations(directory / "rows.jsonl")
    lines = (directory / "predictions.jsonl").read_bytes().split(b"\n")[:-1]
    asked = [entry for line in lines if (entry := json.loads(line))["layout"] == "chat"]
    pairs = [(rows[entry["row"]], entry["answer"]) for entry in asked if rows[entry["row"]].group != GUIDE_GROUP]
    counts = []
    for row, answer in pairs:
        found, expected = triples_before(parse_answer(answer) or []), triples_before(row.expected_relations)
        counts.append((len(found & expected), len(found), len(expected)))
    counts_N3 = np.array(counts, dtype=float)
    picks_RN = np.random.default_rng(SEED).integers(0, len(counts), size=(RESAMPLES, len(counts)))
    low, high = np.quantile(f1_of_counts(counts_N3[picks_RN].sum(axis=1)), (0.025, 0.975))
    today = scoring.summary([scoring.score_row(row, answer) for row, answer in pairs])
    before = {"f1": float(f1_of_counts(counts_N3.sum(axis=0))), "f1_low": float(low), "f1_high": float(high)}
    return {"rows": len(pairs), "before": before, "today": {key: today[key] for key in before}}


if __name__ == "__main__":
    made = provenance(seconds=0.0)
    result = {"scores": {Path(path).name: both(Path(path)) for path in sys.argv[1:]}}
    facts = {"commit": made["commit"], "packages": made["packages"], "processor": processor()}
    (RESULTS / "measures.json").write_text(json.dumps({**result, **facts}, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
