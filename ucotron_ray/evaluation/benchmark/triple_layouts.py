"""Sets whose triples are names, without places: NYT, WebNLG, Text2KGBench.

Each function reads one record of a file; what it raises for another layout says `token_layouts.py`. Where a set lists
no entities, those of its triples are what «entities given» gives, in the order of the triples and without types.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from ucotron_ray.evaluation.benchmark.records import NO_TYPE, BenchmarkRow, GoldEntity

NO_RELATION = "None"
"""The label of NYT's pairs that have none."""


def sentence(record: Mapping[str, Any]) -> list[BenchmarkRow]:
    """NYT (and WebNLG) in the joint layout: `sentText`, `relationMentions`, and `entityMentions` where they are.

    {"sentText", "relationMentions": [{"em1Text", "em2Text", "label"}], "entityMentions": [{"text", "label"}]}. The
    label `None` marks a pair without a relation. Source: CoType's release of NYT (arXiv 1610.08763), and
    `data/NYT/build_data.py` of github.com/weizhepei/CasRel (arXiv 1909.03227), which strips the quotes around the text.
    """
    text = str(record["sentText"]).strip("\r\n").strip('"')
    types = {
        mention["text"]: mention["label"].split(",")[0].strip("/") for mention in record.get("entityMentions") or ()
    }
    mentions = record["relationMentions"]
    triples = [(mention["em1Text"], mention["label"], mention["em2Text"]) for mention in mentions]
    return [_row(text, triples, types)]


def triple_list(record: Mapping[str, Any]) -> list[BenchmarkRow]:
    """NYT and WebNLG as text and triples: {"text", "triple_list": [[subject, relation, object]]}.

    Source: what `data/*/build_data.py` of github.com/weizhepei/CasRel writes (arXiv 1909.03227). Where the release
    marks only the last word of a name, so do its triples: that is the «partial match» of the papers.
    """
    return [_row(record["text"], [(subject, label, object_) for subject, label, object_ in record["triple_list"]], {})]


def webnlg_xml(data: bytes) -> list[BenchmarkRow]:
    """A file of the WebNLG challenge 2020 → a row for each text (`lex`) of an entry, with the entry's `mtriple`s.

    Names are read as words: `_` is a space, quotes around a literal are no part of it. Source:
    github.com/WebNLG/challenge-2020, `data/en`. Raises ElementTree.ParseError.
    """
    rows = []
    for entry in ElementTree.fromstring(data).iter("entry"):
        triples = [_words(triple.text or "") for triple in entry.iterfind("modifiedtripleset/mtriple")]
        rows += [_row(lex.text, triples, {}, entry.get("category")) for lex in entry.iterfind("lex") if lex.text]
    return rows


def text2kgbench(record: Mapping[str, Any], types: Mapping[str, tuple[str, str]], group: str) -> list[BenchmarkRow]:
    """One line of Text2KGBench: {"id", "sent", "triples": [{"sub", "rel", "obj"}]}; types by the ontology's relation.

    The half that comes from DBpedia writes names with `_`; they are read as words, as its own scorer reads them.
    Source: github.com/cenguix/Text2KGBench, README.md and `src/evaluation/run_eval.py` (arXiv 2308.02357).
    """
    triples = [
        (triple["sub"].replace("_", " "), triple["rel"], triple["obj"].replace("_", " "))
        for triple in record["triples"]
    ]
    kinds: dict[str, str] = {}
    for subject, label, object_ in triples:
        domain, range_ = types.get(label, (NO_TYPE, NO_TYPE))
        kinds.setdefault(subject, domain)
        kinds.setdefault(object_, range_)
    return [_row(record["sent"], triples, kinds, group)]


def ontology(value: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """An ontology of Text2KGBench → relation → types of subject and object, by the labels of its concepts."""
    labels = {concept["qid"]: concept["label"] for concept in value["concepts"]}
    return {
        relation["label"]: (labels.get(relation["domain"], NO_TYPE), labels.get(relation["range"], NO_TYPE))
        for relation in value["relations"]
    }


def _row(
    text: str, triples: Sequence[tuple[str, str, str]], types: Mapping[str, str], group: str | None = None
) -> BenchmarkRow:
    """The row; its entities are the listed ones, then those of the triples."""
    names = _unique([*types, *(name for triple in triples for name in triple[::2])])
    index_of = {name: index for index, name in enumerate(names)}
    entities = tuple(GoldEntity((name,), types.get(name) or NO_TYPE) for name in names)
    found = [(index_of[subject], label, index_of[object_]) for subject, label, object_ in triples]
    return BenchmarkRow(
        text,
        entities,
        tuple(triple for triple in found if triple[1] != NO_RELATION),
        tuple(triple[::2] for triple in found if triple[1] == NO_RELATION),
        group,
    )


def _words(line: str) -> tuple[str, str, str]:
    subject, label, object_ = (part.strip() for part in line.split(" | "))
    return subject.replace("_", " "), label, object_.replace("_", " ").strip('"')


def _unique(names: Iterable[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.strip()]
