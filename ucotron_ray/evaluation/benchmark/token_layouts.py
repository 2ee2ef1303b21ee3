"""Sets whose texts are tokens and whose mentions are places of tokens: CoNLL04, SciERC, CrossRE, DocRED.

Each function reads one record of a file. What is not there, or is of another kind, raises KeyError, IndexError,
TypeError or ValueError; `sets.py` says where that was.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ucotron_ray.evaluation.benchmark.records import BenchmarkRow, GoldEntity, Span, joined, span_entity


def conll04(record: Mapping[str, Any]) -> list[BenchmarkRow]:
    """One sentence of CoNLL04 as SpERT has it: `tokens`, `entities` (end exclusive), `relations` by entity index.

    Source: github.com/lavis-nlp/spert, `spert/input_reader.py` (arXiv 1909.07755); its split is that of Gupta et al.
    2016. No pair without a relation is listed.
    """
    text, spans = joined(record["tokens"])
    entities = tuple(
        span_entity(text, spans, _within(entity["start"], spans), _within(entity["end"] - 1, spans), entity["type"])
        for entity in record["entities"]
    )
    relations = tuple(
        (_within(relation["head"], entities), str(relation["type"]), _within(relation["tail"], entities))
        for relation in record["relations"]
    )
    return [BenchmarkRow(text, entities, relations)]


def scierc(record: Mapping[str, Any]) -> list[BenchmarkRow]:
    """One abstract of SciERC → a row a sentence: `sentences`, `ner` and `relations` a sentence, last token included.

    Places count over the document. Source: nlp.cs.washington.edu/sciIE (arXiv 1808.09602), the format as
    github.com/dwadden/dygiepp describes it in DATA.md. SpERT's files of SciERC have the layout of CoNLL04.
    """
    rows, before = [], 0
    for tokens, ner, relations in zip(record["sentences"], record["ner"], record["relations"], strict=True):
        rows.append(_sentence(tokens, ner, relations, before))
        before += len(tokens)
    return rows


def crossre(record: Mapping[str, Any]) -> list[BenchmarkRow]:
    """One sentence of CrossRE: `sentence`, `ner`, `relations` [s1, e1, s2, e2, type, …], last token included.

    A pair may have several relations. Source: github.com/mainlp/CrossRE, README.md (arXiv 2210.09345). Its baseline
    classifies the pairs that have a relation.
    """
    return [_sentence(record["sentence"], record["ner"], record["relations"], 0)]


def docred(record: Mapping[str, Any], names: Mapping[str, str]) -> list[BenchmarkRow]:
    """One document of DocRED: `sents`, `vertexSet` (an entity is a list of mentions), `labels` {h, t, r}.

    `pos` counts within the sentence `sent_id`, end exclusive; every ordered pair without a label is a negative, as in
    `code/gen_data.py` of github.com/thunlp/DocRED (arXiv 1906.06127). `names` is `rel_info.json`: id → name.
    """
    text, spans = joined([token for sentence in record["sents"] for token in sentence])
    starts = [0]
    for sentence in record["sents"]:
        starts.append(starts[-1] + len(sentence))
    entities = tuple(_cluster(mentions, text, spans, starts) for mentions in record["vertexSet"])
    relations = tuple(
        (_within(label["h"], entities), names[label["r"]], _within(label["t"], entities)) for label in record["labels"]
    )
    related = {triple[::2] for triple in relations}
    pairs = [(head, tail) for head in range(len(entities)) for tail in range(len(entities)) if head != tail]
    return [BenchmarkRow(text, entities, relations, tuple(pair for pair in pairs if pair not in related))]


def _sentence(tokens: Sequence[str], ner: Sequence[Any], relations: Sequence[Any], before: int) -> BenchmarkRow:
    text, spans = joined(tokens)
    index_of = {(first, last): index for index, (first, last, *_) in enumerate(ner)}
    entities = tuple(
        span_entity(text, spans, _within(first - before, spans), _within(last - before, spans), kind)
        for first, last, kind in ner
    )
    triples = tuple(
        (index_of[one, two], str(kind), index_of[three, four]) for one, two, three, four, kind, *_ in relations
    )
    return BenchmarkRow(text, entities, triples)


def _cluster(
    mentions: Sequence[Mapping[str, Any]], text: str, spans: Sequence[Span], starts: Sequence[int]
) -> GoldEntity:
    places = []
    for mention in mentions:
        start = starts[int(mention["sent_id"])]
        first, end = mention["pos"]
        places.append((spans[_within(start + first, spans)][0], spans[_within(start + end - 1, spans)][1]))
    names = dict.fromkeys([*(mention["name"] for mention in mentions), *(text[slice(*place)] for place in places)])
    return GoldEntity(tuple(names), mentions[0]["type"], tuple(dict.fromkeys(places)))


def _within(index: int, among: Sequence[object]) -> int:
    """The index, if it is one: -1 would be read as the last."""
    if not 0 <= index < len(among):
        raise IndexError(f"{index} of {len(among)}")
    return index
