"""Descriptions are read from every layout, split by what they say, and stored as pairs that come back bit by bit."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from ucotron_ray.core.errors import InputError, StageFailed
from ucotron_ray.projection import descriptions, pairs, retrieval
from ucotron_ray.projection.descriptions import Description

TEXTS = [f"A red boat number {number} under the old bridge." for number in range(25)]


def vectors(count: int, size: int, seed: int = 0) -> np.ndarray:
    return retrieval.unit(np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32))


def rows_of(texts) -> list[Description]:
    return [Description(text) for text in texts]


def test_jsonl_text_and_image_folder_give_the_same_normal_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"description": text, "category": "boats"}) + "\n" for text in TEXTS), encoding="utf-8"
    )
    (tmp_path / "a.txt").write_text("\n".join([*TEXTS, "", TEXTS[0]]), encoding="utf-8")
    assert [row.description for row in descriptions.read(tmp_path / "a.jsonl")] == TEXTS
    assert {row.category for row in descriptions.read(tmp_path / "a.jsonl")} == {"boats"}
    # The last line says what the first one says.
    assert list(descriptions.read(tmp_path / "a.txt")) == rows_of(TEXTS)
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "1.png").touch()
    lines = [{"file_name": "1.png", "text": TEXTS[0]}, {"file_name": "1.png", "text": TEXTS[1]}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    found = list(descriptions.read(folder))
    assert [row.description for row in found] == TEXTS[:2]
    # Two captions of one image are one key: they are on one side of the split.
    assert {row.key for row in found} == {str(folder / "1.png")}


def test_an_image_is_known_by_its_bytes_wherever_it_lies(tmp_path):
    rows = {}
    for place, content in (("here", b"one"), ("there", b"one"), ("changed", b"two")):
        folder = tmp_path / place
        folder.mkdir()
        (folder / "1.png").write_bytes(content)
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "1.png", "text": TEXTS[0]}), encoding="utf-8")
        descriptions.write(folder / "normal.jsonl", descriptions.read(folder))
        (rows[place],) = descriptions.read_shard(folder / "normal.jsonl", descriptions.Shard(0, 0, 1))
    assert rows["here"].key == rows["there"].key != rows["changed"].key


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"description": "short"}', "5 characters"),
        ('{"caption_text": "A red boat under a bridge"}', "caption_text"),
        ('{"description": "A red boat under a bridge", "image": "none.png"}', "none.png does not exist"),
        ("[1]", "list"),
        ("{", "line 2"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, found):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"description": TEXTS[0]}) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        list(descriptions.read(path))
    assert "line 2" in str(caught.value)
    assert found in str(caught.value)


def test_shards_cover_every_line_once_and_are_read_alone(tmp_path):
    path = tmp_path / descriptions.FILE
    counts = descriptions.write(path, iter(rows_of([*TEXTS[:-1], "Ein Fluß – und ein Boot."])))
    assert counts == {"rows": len(TEXTS), "images": 0}
    plan = descriptions.shards(path, 10)
    assert [shard.rows for shard in plan] == [10, 10, 5]
    read = [row for shard in plan for row in descriptions.read_shard(path, shard)]
    assert read == list(descriptions.read(path))
    assert descriptions.read_shard(path, plan[1])[0].description == TEXTS[10]


def test_a_side_follows_from_the_key_alone():
    keys = [f"description {number}" for number in range(4000)]
    parts = pairs.split(keys, seed=1, val=0.1, test=0.2)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(4000))
    assert abs(len(parts["val"]) - 400) < 80
    assert abs(len(parts["test"]) - 800) < 100
    # In another set, in another order, beside other rows and twice: still on the same side.
    other = [keys[number] for number in parts["test"][:50]] * 2 + ["new"]
    assert set(range(100)) <= set(pairs.split(other, seed=1, val=0.1, test=0.2)["test"].tolist())
    assert len(np.intersect1d(parts["test"], pairs.split(keys, seed=2, val=0.1, test=0.2)["test"])) < 260


def test_shards_come_back_bit_by_bit_as_fixed_size_lists(tmp_path):
    clip, minilm = vectors(25, 512), vectors(25, 384, 1)
    rows = rows_of(TEXTS)
    for number, part in enumerate((slice(0, 20), slice(20, 25))):
        path = pairs.shard_path(tmp_path, number)
        pairs.write_shard(path, rows[part], clip[part], minilm[part], num_cut=number + 1)
    loaded = pairs.load(tmp_path)
    assert loaded.keys == TEXTS
    assert np.array_equal(loaded.clip, clip)
    assert np.array_equal(loaded.minilm, minilm)
    assert pairs.shard_counts(tmp_path) == {"rows": 25, "images": 0, "cut": 3}
    assert str(pq.read_schema(pairs.shard_path(tmp_path, 0)).field("clip").type).startswith("fixed_size_list")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("spoil", ["long", "nan", "size"])
def test_vectors_that_are_not_of_length_one_are_refused(tmp_path, spoil):
    clip, minilm = vectors(3, 512), vectors(3, 384)
    if spoil == "size":
        clip = clip[:, :256]
    else:
        clip[1] *= np.nan if spoil == "nan" else 1.05
    with pytest.raises(StageFailed, match="clip vectors"):
        pairs.write_shard(tmp_path / "x.parquet", rows_of(TEXTS[:3]), clip, minilm)
    assert not list(tmp_path.iterdir())


def test_the_guides_rows_are_imported_and_written_again(tmp_path):
    clip, minilm = vectors(25, 512), vectors(25, 384, 1)
    path = tmp_path / "projection_dataset.jsonl"
    lines = [
        {"description": text, "clip_embedding": c.tolist(), "minilm_embedding": m.tolist(), "category": "mixed"}
        for text, c, m in zip(TEXTS, clip, minilm, strict=True)
    ]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert descriptions.is_encoded(path)
    assert pairs.import_given(path, tmp_path) == 25
    assert np.array_equal(pairs.load(tmp_path).clip, clip)
    assert pairs.write_guide_rows(tmp_path, tmp_path / "again.jsonl") == 25
    assert [json.loads(line) for line in (tmp_path / "again.jsonl").read_text().splitlines()] == lines
    lines[7]["clip_embedding"] = lines[7]["clip_embedding"][:500]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    with pytest.raises(InputError, match=r"(?s)line 8.*\[1, 500\]"):
        pairs.import_given(path, tmp_path)
