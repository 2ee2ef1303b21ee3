"""A file is the same rows however it is packed, encoded or laid out as text, or it is refused with the place."""

import bz2
import csv
import gzip
import io
import json
import lzma

import pyarrow as pa
import pytest

from ucotron_ray.core.errors import InputError
from ucotron_ray.data import jsonl, readers

ROWS = [
    {
        "text": f"Zoë{n} met “Bo{n}”.",
        "entities": [{"text": f"Zoë{n}", "label": "person", "start": 0, "end": 3 + len(str(n))}, {"text": f"Bo{n}"}],
        "expected_relations": [{"subject": f"Zoë{n}", "predicate": "met", "object": f"Bo{n}", "confidence": 0.5}],
    }
    for n in range(3)
]
TEXT = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def expected(tmp_path):
    (tmp_path / "plain.jsonl").write_text(TEXT, encoding="utf-8")
    return jsonl.read_relations(tmp_path / "plain.jsonl")


def zstd(raw: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(raw)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "raw",
    [
        TEXT.encode("utf-8-sig"),
        TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
        TEXT.replace("\n", "\n\ufeff").encode("utf-8-sig").removesuffix("\ufeff".encode()),
        TEXT.encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.replace("\n", "\r\n").encode("utf-16"),
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-32"),
        gzip.compress(TEXT.encode()),
        gzip.compress(TEXT.encode("utf-16")) + gzip.compress(b""),
        zstd(TEXT.encode("utf-8-sig")),
        zstd(TEXT.encode()[:60]) + zstd(TEXT.encode()[60:]),
        bz2.compress(TEXT.encode()),
        lzma.compress(TEXT.encode()),
        json.dumps(ROWS).encode(),
        json.dumps(ROWS, indent=2, ensure_ascii=False).encode("utf-16"),
        b"\n\n" + json.dumps({"data": ROWS}, indent=1).encode(),
        json.dumps({"version": 1, "rows": ROWS}).encode(),
        "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    ],
)
def test_the_same_rows_in_any_packing_and_encoding(tmp_path, raw):
    # The name says nothing: what a file is say its bytes.
    (tmp_path / "rows.jsonl").write_bytes(raw)
    assert jsonl.read_relations(tmp_path / "rows.jsonl") == expected(tmp_path)


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (TEXT.encode("utf-16")[:-1], "byte"),
        (gzip.compress(TEXT.encode())[:-9], "cannot be read"),
        (zstd(TEXT.encode())[:-3], "cannot be read"),
        (b"PK\x03\x04 a workbook", "xlsx"),
        (b"SQLite format 3\x00", "SQLite"),
        (TEXT.encode("latin-1", "replace"), "line 1.*\n.*\n.*not UTF-8"),
        (TEXT.replace("}\n", "},\n").encode(), "line 1(.|\n)*comma at the end of every line"),
        (TEXT.encode() + b'{"text": 1},', "line 4(.|\n)*comma"),
        (b"[" + TEXT.replace("}\n", "},\n").encode() + b"]", "item 4(.|\n)*comma behind the last item"),
        (b"[" + TEXT.encode() + b"]", "line 2, item 2(.|\n)*no comma"),
        (json.dumps(ROWS, indent=1).encode()[:-2], "array does not end"),
        (json.dumps(ROWS).encode() + b"x", "text behind"),
        (b'[{"text": NaN}]', "item 1(.|\n)*NaN"),
        (json.dumps([*ROWS, 3]).encode(), "item 4(.|\n)*int, no object"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_place_and_the_way_out(tmp_path, raw, found):
    (tmp_path / "rows.jsonl").write_bytes(raw)
    with pytest.raises(InputError, match=found):
        jsonl.read_rows(tmp_path / "rows.jsonl")


def table(rows, delimiter=","):
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\r\n")
    writer.writerows(rows)
    return out.getvalue()


def typed(rows):
    return [["text", "entities", "expected_relations"]] + [
        [row["text"], json.dumps(row["entities"]), json.dumps(row["expected_relations"])] for row in rows
    ]


@pytest.mark.parametrize("name", ["rows.csv", "rows.CSV.gz", "rows.tsv", "semicolons.csv"])
def test_tables_with_json_in_their_cells_are_the_rows(tmp_path, name):
    raw = table(typed(ROWS), {"rows.tsv": "\t", "semicolons.csv": ";"}.get(name, ",")).encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    assert jsonl.read_relations(tmp_path / name) == expected(tmp_path)


def test_a_relation_a_line_makes_one_row_of_a_text(tmp_path):
    lines = [["text", "subject", "predicate", "object", "subject_type", "confidence"]]
    lines += [["Ann met Bo\nand Cy.", "Ann", "met", "Bo", "Human", "0.5"], ["Di ran.", "Di", "did", "ran", "", ""]]
    lines += [["Ann met Bo\nand Cy.", "Ann", "met", "Cy", "Human", ""]]
    (tmp_path / "rows.csv").write_text(table(lines), encoding="utf-8")
    rows = jsonl.placed_rows(tmp_path / "rows.csv")
    assert [(placed.where, len(placed.row.expected_relations)) for placed in rows] == [("line 2", 2), ("line 4", 1)]
    first = rows[0].row
    assert [(e.text, e.label, e.start) for e in first.entities] == [
        ("Ann", "person", 0),
        ("Bo", "concept", 8),
        ("Cy", "concept", 15),
    ]
    assert [r.confidence for r in first.expected_relations] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("text,entities,expected_relations\nAnn,\"[{'text': 'Ann'}]\",[]\n", "line 2(.|\n)*column entities"),
        ("text,subject,predicate,object\nAnn, met,a,b,c\n", "line 2(.|\n)*5 cells under 4 names"),
        ("text,subject,predicate,object\nAnn,Ann,met,Bo\nAnn,a,b,c\udce9\n", "line 3(.|\n)*not UTF-8"),
        ("question,reply\na,b\n", "keys question, reply"),
    ],
)
def test_a_cell_that_cannot_be_read_is_named_by_line_and_column(tmp_path, text, found):
    (tmp_path / "rows.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=found):
        jsonl.read_rows(tmp_path / "rows.csv")


def test_null_is_absent_at_every_depth_of_json_and_of_tables(tmp_path):
    import pyarrow.parquet as pq

    row = {
        "text": "Ann met Bo.",
        "group": None,
        "entities": [{"text": "Ann", "label": None, "start": None, "end": None}, {"text": "Bo", "label": "person"}],
        "expected_relations": [{"subject": "Ann", "predicate": "met", "object": "Bo", "confidence": None}],
    }
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist([row, ROWS[0]]), tmp_path / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet"):
        read = jsonl.read_relations(tmp_path / name)[0]
        assert (read.entities[0].label, read.entities[0].start) == ("concept", -1)
        assert read.expected_relations[0].confidence == 1.0
    chat = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tool_calls": None}]}
    (tmp_path / "chat.jsonl").write_text(json.dumps(chat | {"tools": None, "system": None}), encoding="utf-8")
    assert len(jsonl.read_training_rows(tmp_path / "chat.jsonl")) == 1
    (tmp_path / "bad.jsonl").write_text(json.dumps(row | {"text": None}), encoding="utf-8")
    with pytest.raises(InputError, match="text: Field required"):
        jsonl.read_rows(tmp_path / "bad.jsonl")


def test_an_integer_where_a_text_stands_is_found_and_not_made_one(tmp_path):
    row = json.loads(TEXT.splitlines()[0])
    row["expected_relations"][0]["predicate"] = 108
    (tmp_path / "rows.jsonl").write_text(TEXT + json.dumps(row), encoding="utf-8")
    with pytest.raises(InputError, match=r"line 4(.|\n)*predicate"):
        jsonl.read_rows(tmp_path / "rows.jsonl")


def test_an_object_with_lists_named_as_splits_holds_these_splits(tmp_path):
    named = {"train": ROWS[:1], "dev": ROWS[1:2], "test": ROWS[2:], "about": "three"}
    (tmp_path / "rows.json").write_text(json.dumps(named), encoding="utf-8")
    found = list(readers.entries(tmp_path / "rows.json"))
    assert [(entry.split, entry.where) for entry in found] == [
        ("train", "train, item 1"),
        ("val", "dev, item 1"),
        ("test", "test, item 1"),
    ]
