"""The verb `validate`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ucotron_ray.core import flags, terminal

SHOWN = 20


def add_validate(verbs: Any) -> None:
    """`validate`: what a file of rows is worth."""
    parser = flags.verb(
        verbs,
        "validate",
        "Say what a file of rows is, what is wrong in it and where, and how many of its rows would train.",
        _validate,
    )
    parser.add_argument("path", type=Path, metavar="PATH", help="JSON, JSONL, CSV, Parquet, or a directory of splits")
    parser.add_argument("--val-data", type=Path, metavar="PATH", help="its validation rows, to look for leaks")
    flags.add_reading(parser)
    parser.add_argument("--report", type=Path, metavar="DIR", help="write report.html and report.json there")


def _validate(args: argparse.Namespace) -> dict[str, Any]:
    from ucotron_ray.core import requirements
    from ucotron_ray.synthesis import publish, validation

    requirements.require_packages("datasketch", "pyarrow")
    settings = flags.config_of(args).recipe.generation
    paths = [args.path, *([args.val_data] if args.val_data else [])]
    report = validation.validate(paths, settings, args.layout)
    if args.report:
        args.report.mkdir(parents=True, exist_ok=True)
        publish.write_report(args.report, args.path.name, report)
    _say(report, args.report)
    failed = {"status": "rejected", "exit_code": 1} if report["state"] == "rejected" else {}
    return {**report, **failed}


def _say(report: dict[str, Any], directory: Path | None) -> None:
    stage = (
        f"{report['would_train']:,} would train with {report['stage']}"
        if report["stage"]
        else "no stage trains on them"
    )
    lines = [
        *([report["read_as"]] if report["read_as"] else []),
        f"{report['rows']:,} rows of kind {report['kind']}: {report['without_defect']:,} without a defect; {stage}",
        *(
            f"{row['where']}: {', '.join(row['defects'])}" + (f" ({row['found']})" if "found" in row else "")
            for row in report["findings"][:SHOWN]
        ),
    ]
    if len(report["findings"]) > SHOWN:
        lines.append(f"and {len(report['findings']) - SHOWN:,} more rows; --json and --report name them all")
    lines += [f"not good enough: {failure}" for failure in report["failures"]]
    if directory:
        lines.append(f"see {directory}/report.html")
    for line in lines:
        print(terminal.printable(line), file=sys.stderr)
