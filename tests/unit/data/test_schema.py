"""The schema: its file, what is refused in it, and what relations in it are written as."""

import logging

import pytest
from pydantic import ValidationError

from ucotron_ray.core.errors import InputError
from ucotron_ray.data import schema_file
from ucotron_ray.data.records import Relation
from ucotron_ray.data.schema import EntityType, Example, Predicate, Schema, predicate_key, snake_case
from ucotron_ray.synthesis import seeds

FAMILY = Schema(
    types=(EntityType(name="person", description="A human being: any."), EntityType(name="musical work")),
    predicates=(
        Predicate(
            name="child_of",
            description='Not "son of".',
            domain=("person",),
            range=("person",),
            aliases=("kind von", "offspring"),
            examples=(
                Example(subject="Ann", object="Bo", text="Ann: Bo's child, # no comment"),
                Example(subject="no", object="12"),
            ),
            count=3,
        ),
        Predicate(name="parent_of", domain=("person",), range=("person",), inverse="child_of", aliases=("raised",)),
        Predicate(name="married_to", domain=("person",), range=("person",), symmetric=True, aliases=("spouse",)),
        Predicate(name="made", domain=("person",), range=("musical work",)),
        Predicate(name="no", description="Sí, «x»", count=0),
    ),
)


def relation(subject, predicate, object_):
    return Relation(subject=subject, predicate=predicate, object=object_, confidence=0.7)


def parsed(tmp_path, text):
    path = tmp_path / "schema.yaml"
    path.write_text(text, encoding="utf-8")
    return schema_file.read(path)


@pytest.mark.parametrize("schema", [FAMILY, schema_file.default()], ids=["family", "default"])
def test_writing_reading_and_writing_again_gives_the_same_bytes(tmp_path, schema):
    text = schema_file.write(schema)
    read = parsed(tmp_path, text)
    assert read == schema
    assert schema_file.write(read) == text
    assert text.startswith("# ")


def test_the_built_in_schema_is_the_generators_vocabulary():
    schema = schema_file.default()
    assert sorted(schema.vocabulary) == sorted(seeds.RELATION_TYPES)
    assert {kind.name for kind in schema.types} == set(seeds.ENTITY_TYPES)
    assert all(entry.description for entry in (*schema.types, *schema.predicates))
    drawn = {(t.relation, seeds.KINDS[t.subject], seeds.KINDS[t.object]) for t in seeds.TEMPLATES}
    stated = {(p.name, one, other) for p in schema.predicates for one in p.domain for other in p.range}
    assert stated == drawn


def test_proposals_are_written_and_passed_over_with_a_word(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    proposals = [{"kind": "alias", "predicates": ["made", "no"], "reason": "2 of 3 pairs are pairs of both"}]
    text = schema_file.write(FAMILY, proposals)
    assert "2 of 3 pairs" in text
    assert parsed(tmp_path, text) == FAMILY
    assert "1 entries of `proposals:` are not read" in caplog.text


def test_more_values_than_settings_may_have_are_read_and_a_mistake_among_them_has_its_line(tmp_path):
    names = [f"t{n}" for n in range(400)]
    text = "types:\n" + "".join(f"  {name}:\n" for name in names) + "predicates:\n"
    text += f"  p:\n    domain: &all [{', '.join(names)}]\n" + "".join(
        f"  p{n}: {{domain: *all}}\n" for n in range(300)
    )
    assert len(parsed(tmp_path, text).predicates[-1].domain) == 400
    with pytest.raises(InputError, match=f"line {len(text.splitlines()) + 1}\n"):
        parsed(tmp_path, text + "  q: {domain: [t400]}\n")


def test_a_predicate_without_anything_holds_between_everything(tmp_path):
    schema = parsed(tmp_path, "types:\n  person:\npredicates:\n  knows:\n")
    assert schema.types == (EntityType(name="person"),)
    assert schema.allows("person", "knows", "whatever")


HEAD = "types:\n  person: ''\n  city: ''\npredicates:\n  lives_in:\n    domain: [person]\n    range: [city]\n"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("", None, "the file holds no schema"),
        ("- a\n- b\n", None, "the file holds no schema"),
        ("predicates: {a: {}\n", None, "no readable YAML"),
        (HEAD + "  lives_in:\n", 8, "stands here twice"),
        (HEAD + "  Lives-In:\n", 8, "the predicate `Lives-In` stands here twice: also as `lives_in`"),
        (HEAD + "    rnage: [city]\n", 8, "did you mean `range`?"),
        (HEAD + "    name: x\n", 8, "`predicates.lives_in.name` is no known key"),
        (HEAD + "colours: 1\n", 8, "`colours` is no known key"),
        (HEAD + "    examples:\n    - {subject: A, objekt: B}\n", 9, "did you mean `object`?"),
        (HEAD + "    examples:\n    - {subject: A}\n", 9, "`predicates.lives_in.examples.0.object`"),
        (HEAD + "    examples:\n    - {subject: Ann, object: Bo, text: Ann and bo}\n", 9, "does not mention `Bo`"),
        (HEAD + "  born_in:\n    domain: [person, persn]\n", 9, "did you mean `person`?"),
        (HEAD + "  born_in:\n    domain: [Person]\n", 9, "did you mean `person`?"),
        (HEAD + "  born_in:\n    range: [city, city]\n", 9, "names the type `city` twice"),
        (HEAD + "  born_in:\n    range: city\n", 9, "valid tuple"),
        (HEAD + "  born_in:\n    symmetric: 'yes'\n", 9, "`predicates.born_in.symmetric`"),
        (HEAD + "  born_in:\n    count: -1\n", 9, "greater than or equal to 0"),
        (HEAD + "  born_in: [person]\n", 8, "`predicates.born_in` has a value that cannot be used"),
        (HEAD + "  born_in:\n    aliases:\n    - x\n    - lives in\n", 11, "already a name of `lives_in`"),
        (HEAD + "    aliases: [home]\n  born_in:\n    aliases: [home]\n", 10, "already a name of `lives_in`"),
        (HEAD + "    aliases: [home, Home]\n", 8, "already a name of `lives_in`"),
        (HEAD + "    symmetric: true\n", 8, "is symmetric, and its ends have different types"),
        (HEAD + "    inverse: home_of\n", 8, "which is not here"),
        (HEAD + "    inverse: lives_in\n", 8, "it is the same in both directions"),
        (HEAD + "    inverse: b\n  b:\n    symmetric: true\n", 8, "it is the same in both directions"),
        (HEAD + "    inverse: b\n  b:\n    inverse: lives_in\n", 8, "which is itself the inverse of `lives_in`"),
        (HEAD + "  no:\n", 4, "is no name to YAML"),
        ("types:\n  a: ''\n  A: ''\npredicates:\n  b:\n", 3, "the type `A` stands here twice: also as `a`"),
        ("types:\n- a\npredicates:\n  b:\n", 1, "`types` is no mapping"),
        ("types:\n  a: [b]\npredicates:\n  b:\n", 2, "`types.a.description`"),
        ("predicates: {}\n", 1, "at least 1 item"),
        ('predicates:\n  "a\\nb":\n', 2, "`predicates.a\nb.name`"),
    ],
)
def test_what_is_wrong_is_refused_with_its_line(tmp_path, text, line, said):
    with pytest.raises(InputError) as caught:
        parsed(tmp_path, text)
    shown = str(caught.value)
    assert said in shown
    assert caught.value.exit_code == 2
    assert str(tmp_path / "schema.yaml") in shown
    assert caught.value.next_step
    if line is not None:
        assert f"line {line}" in shown


def test_a_schema_that_is_built_wrong_is_refused_too():
    with pytest.raises(ValidationError, match="unknown type `city`"):
        Schema(predicates=(Predicate(name="lives_in", range=("city",)),))


@pytest.mark.parametrize(
    ("said", "written"),
    [
        (("Ann", "Offspring", "Bo"), ("Ann", "child_of", "Bo")),
        (("Ann", "childOf", "Bo"), ("Ann", "child_of", "Bo")),
        (("Bo", "parent_of", "Ann"), ("Ann", "child_of", "Bo")),
        (("Bo", "raised", "Ann"), ("Ann", "child_of", "Bo")),
        (("Bo", "spouse", "Ann"), ("Ann", "married_to", "Bo")),
        (("ann", "married_to", "Bo"), ("ann", "married_to", "Bo")),
        (("Bo", "made", "Ann"), ("Bo", "made", "Ann")),
        (("Bo", "unheard of", "Ann"), ("Bo", "unheard of", "Ann")),
    ],
)
def test_relations_that_mean_the_same_are_written_the_same(said, written):
    once = FAMILY.canonical(relation(*said))
    assert once == relation(*written)
    assert FAMILY.canonical(once) == once
    # An inverse with its ends exchanged, and a symmetric predicate in either direction, say one thing.
    predicate = FAMILY.predicate_named(said[1])
    if predicate and predicate.symmetric:
        assert FAMILY.canonical(relation(*said[::-1])) == once
    if predicate and predicate.inverse:
        assert FAMILY.canonical(relation(said[2], predicate.inverse, said[0])) == once


def test_what_relations_are_written_with_leaves_out_inverses():
    assert FAMILY.vocabulary == ("child_of", "married_to", "made", "no")
    assert FAMILY.predicate_named("Kind-von").name == "child_of"
    assert FAMILY.predicate_named("child") is None


def test_types_of_a_label_and_what_they_allow():
    schema = Schema(
        types=tuple(EntityType(name=name) for name in ("human", "city", "mountain", "film")),
        predicates=(
            Predicate(name="lives_in", domain=("human",), range=("city",), aliases=("home",)),
            Predicate(name="range", domain=("mountain",), range=("mountain",), symmetric=True),
        ),
    )
    # Rows have the server's labels, which say less than the types of a graph.
    assert schema.types_of("location") == {"city", "mountain"}
    assert schema.types_of("City") == {"city"}
    assert schema.types_of("colour") == frozenset()
    assert schema.allows("person", "home", "location")
    assert schema.allows("human", "lives_in", "city")
    assert not schema.allows("human", "lives_in", "mountain")
    assert not schema.allows("location", "lives_in", "person")
    assert not schema.allows("human", "unheard of", "city")
    # Without a type of that name only: the built-in `Event` is no `Concept`, though the server calls both so.
    default = schema_file.default()
    assert default.allows("event", "caused_by", "concept")
    assert not default.allows("concept", "caused_by", "concept")


def test_the_hash_is_that_of_the_meaning():
    turned = Schema(
        types=FAMILY.types[::-1],
        predicates=tuple(
            p.model_copy(update={"count": 9, "aliases": p.aliases[::-1], "examples": p.examples[::-1]})
            for p in FAMILY.predicates[::-1]
        ),
    )
    assert turned.content == FAMILY.content
    loves = Predicate(
        name="loves",
        domain=("person", "dog"),
        range=("person", "dog"),
        aliases=("likes",),
        examples=(Example(subject="Ann", object="Bo"),),
    )
    base = Schema(
        types=(EntityType(name="person"), EntityType(name="dog")), predicates=(loves, Predicate(name="liked_by"))
    )
    seen = {base.content, base.model_copy(update={"types": (*base.types, EntityType(name="cat"))}).content}
    changes = (
        {"description": "x"}, {"domain": ("dog",)}, {"range": ()}, {"symmetric": True}, {"aliases": ()}, {"examples": ()},
        {"name": "x"}, {"inverse": "liked_by"},
    )  # fmt: skip
    for change in changes:
        seen.add(base.model_copy(update={"predicates": (loves.model_copy(update=change), base.predicates[1])}).content)
    assert len(seen) == len(changes) + 2


def test_a_copy_is_found_by_its_own_names_and_is_checked():
    assert FAMILY.predicate_named("made")
    copy = FAMILY.model_copy(update={"predicates": FAMILY.predicates[:1]})
    assert copy.predicate_named("made") is None
    with pytest.raises(ValidationError, match="unknown type"):
        FAMILY.model_copy(update={"types": ()})


def test_spellings_of_one_predicate():
    for spelling in ("works_at", "worksAt", "Works at", "works-at", " WORKS_AT "):
        assert predicate_key(spelling) == snake_case(spelling) == "works_at"
    assert predicate_key("<") != predicate_key(">")
