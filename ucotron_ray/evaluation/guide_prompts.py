"""The guide's five test prompts as rows with entities given.

Expected triples: the guide's arrows for the first three, and this project's own reading for the last two, where the
guide names none.
"""

from ucotron_ray.data.records import Entity, RawRow, Relation


def guide_rows() -> list[RawRow]:
    """The five rows."""
    return [
        _row(
            "Alice works at Google",
            [("Alice", "person"), ("Google", "organization")],
            [("Alice", "works_at", "Google")],
        ),
        _row(
            "Dr. Smith diagnoses patient with diabetes",
            [("Dr. Smith", "person"), ("patient", "person"), ("diabetes", "concept")],
            [("Dr. Smith", "diagnoses", "diabetes")],
        ),
        _row(
            "Eiffel Tower designed by Gustave Eiffel",
            [("Eiffel Tower", "location"), ("Gustave Eiffel", "person")],
            [("Eiffel Tower", "designed_by", "Gustave Eiffel")],
        ),
        _row(
            "Maria lives in Berlin, studies at TU Berlin",
            [("Maria", "person"), ("Berlin", "location"), ("TU Berlin", "organization")],
            [("Maria", "lives_in", "Berlin"), ("Maria", "studies_at", "TU Berlin")],
        ),
        _row(
            "Meeting at New York office with John, Sarah, Mike",
            [
                ("Meeting", "concept"),
                ("New York office", "location"),
                ("John", "person"),
                ("Sarah", "person"),
                ("Mike", "person"),
            ],
            [
                ("John", "attended", "Meeting"),
                ("Sarah", "attended", "Meeting"),
                ("Mike", "attended", "Meeting"),
                ("Meeting", "located_in", "New York office"),
            ],
        ),
    ]


def _row(text: str, entities: list[tuple[str, str]], triples: list[tuple[str, str, str]]) -> RawRow:
    return RawRow(
        text=text,
        entities=[Entity.located(name, label, text) for name, label in entities],
        expected_relations=[Relation(subject=s, predicate=p, object=o) for s, p, o in triples],
        group="guide",
    )
