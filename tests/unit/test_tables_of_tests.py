"""The tables of tests/README.md name tests that exist, and every fault has its line."""

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]
TEXT = (TESTS / "README.md").read_text(encoding="utf-8")


def test_every_test_that_a_table_names_exists():
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", TEXT)
    assert len(named) > 30
    for file, name in named:
        assert re.search(rf"^(async )?def {name}\(", (TESTS / file).read_text(encoding="utf-8"), re.MULTILINE), name


def test_every_fault_has_a_line_with_a_test_or_says_that_it_has_none():
    section = TEXT.split("## Faults")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (\d+) \|[^|]+\|(.+)\|$", section, re.MULTILINE)
    assert [int(number) for number, _ in lines] == list(range(1, 26))
    for number, tests in lines:
        assert "::" in tests or "not yet" in tests, number
