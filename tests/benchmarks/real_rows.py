"""The split of the real rows: which are test, which are dev, for ever. By id, since the rows are not ours to ship.

`real_split.json` has an id for each row: the first 16 hex digits of the sha256 of its text (one row stands there
twice, and counts once). `test` are the 500 rows that
`evaluate --max-rows 500` drew with seed 42 when the first figures were published; claims are made on them alone. `dev` are
500 of the others, drawn with seed 43: choices are made on them. What is left may be read, labelled and trained on.
Made once by `python -m tests.benchmarks.real_rows`, which refuses to make it anew.
"""

import hashlib
import json
import random
from pathlib import Path

from tests.benchmarks.run import REAL
from ucotron_ray.data import jsonl
from ucotron_ray.data.records import RawRow
from ucotron_ray.evaluation.stage import sampled

SPLIT = Path(__file__).parent / "real_split.json"
ROWS = REAL / "relations_test.jsonl"
ROWS_OF_EACH = 500


def row_id(row: RawRow) -> str:
    """What names a row in the split."""
    return hashlib.sha256(row.text.encode()).hexdigest()[:16]


def part(name: str) -> list[RawRow]:
    """The rows of `test`, of `dev`, or of `rest`, which is all others. Raises ValueError where rows are missing."""
    split: dict[str, list[str]] = json.loads(SPLIT.read_text(encoding="utf-8"))
    by_id = {row_id(row): row for row in jsonl.read_relations(ROWS)}
    if name == "rest":
        return [row for key, row in by_id.items() if key not in {*split["test"], *split["dev"]}]
    found = [row for key, row in by_id.items() if key in set(split[name])]
    if len(found) != ROWS_OF_EACH:
        raise ValueError(f"{ROWS} has not all rows of {name}: it is another version of the data")
    return found


def write(directory: Path) -> dict[str, Path]:
    """All three parts as files of a directory."""
    files = {name: directory / f"{name}.jsonl" for name in ("test", "dev", "rest")}
    for name, path in files.items():
        jsonl.write_rows(path, part(name))
    return files


def main() -> None:
    if SPLIT.exists():
        raise SystemExit(f"{SPLIT} is there, and stays as it is")
    rows = jsonl.read_relations(ROWS)
    test = {row_id(row) for row in sampled(rows, ROWS_OF_EACH, 42)}
    dev = random.Random(43).sample(sorted({row_id(row) for row in rows} - test), ROWS_OF_EACH)
    SPLIT.write_text(json.dumps({"test": sorted(test), "dev": sorted(dev)}, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
