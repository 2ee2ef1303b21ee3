"""What a candidate has to reach before it is served: better than its base, not worse than what is served now.

Reference §4.10. All three have answered the same held-out rows; differences are by paired bootstrap.
"""

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ucotron_ray.core.recipe import Promotion
from ucotron_ray.core.rows_use import RowsUse
from ucotron_ray.data.records import RawRow, name_key
from ucotron_ray.evaluation.bootstrap import Difference, paired
from ucotron_ray.evaluation.compare import ScoredModel, scores_of_rows
from ucotron_ray.evaluation.scoring import counts_of

_NEW_ROWS, _CLAIM = "held-out rows are new", "held-out rows chose nothing"


@dataclass(frozen=True)
class Gate:
    """One condition: whether it holds, in words with its numbers, and the numbers."""

    name: str
    passed: bool
    said: str
    figures: dict[str, float] = field(default_factory=dict)


def gates(
    rows: Sequence[RawRow],
    candidate: ScoredModel,
    base: ScoredModel,
    champion: ScoredModel | None,
    settings: Promotion,
    *,
    resamples: int,
    seed: int,
) -> list[Gate]:
    """Every condition. Without a champion those about one are left out."""
    counts = {
        model.label: counts_of(scores_of_rows(rows, model.answers)) for model in (candidate, base, champion) if model
    }
    drawn = {"resamples": resamples, "seed": seed}
    found = [
        _better(paired(counts[candidate.label], counts[base.label], **drawn), candidate, base, settings),
        *_form(candidate, settings),
    ]
    if champion is not None:
        difference = paired(counts[candidate.label], counts[champion.label], **drawn)
        found += [_not_worse(difference, candidate, champion, settings), _invented(candidate, champion, settings)]
    return found


def not_trained_on(rows: Sequence[RawRow], trained: Sequence[str] | None) -> Gate:
    """Whether no held-out text is among the texts that were trained on; failed where those are unknown (None)."""
    if trained is None:
        said = f"the store does not have what was trained on, so {len(rows)} held-out texts cannot be compared with it"
        return Gate(_NEW_ROWS, False, said)
    seen = {name_key(text) for text in trained}
    common = sum(name_key(row.text) in seen for row in rows)
    said = f"{common} of {len(rows)} held-out texts are among {len(trained)} training texts"
    return Gate(_NEW_ROWS, not common, said, {"common": float(common)})


def chose_nothing(rows: Sequence[RawRow], uses: Sequence[RowsUse], chosen_by: Collection[str] | None) -> Gate:
    """Whether no held-out text is among those by which the model was chosen; failed where those are unknown (None)."""
    what = "; ".join(sorted({f"{use.what} by {use.file} of dataset '{use.dataset}'" for use in uses})) or "nothing"
    if chosen_by is None:
        return Gate(_CLAIM, False, f"the store does not have all rows that something was chosen by ({what})")
    common = sum(name_key(row.text) in chosen_by for row in rows)
    said = f"{common} of {len(rows)} held-out texts are among {len(chosen_by)} by which something was chosen ({what})"
    return Gate(_CLAIM, not common, said, {"common": float(common)})


def record(found: Sequence[Gate]) -> list[dict[str, Any]]:
    """The gates as JSON."""
    return [asdict(gate) for gate in found]


def _better(difference: Difference, candidate: ScoredModel, base: ScoredModel, settings: Promotion) -> Gate:
    passed = difference.difference > 0 and difference.p_not_better < settings.significance
    said = f"{_against(difference, candidate, base)}, p of «not better» {difference.p_not_better:.3f}"
    return Gate("better than the base", passed, f"{said} (below {settings.significance:g})", _figures(difference))


def _not_worse(difference: Difference, candidate: ScoredModel, champion: ScoredModel, settings: Promotion) -> Gate:
    """The loss stays within the limit, and is none that the bootstrap is certain of."""
    passed = difference.difference >= -settings.max_f1_loss and difference.high >= 0
    said = f"{_against(difference, candidate, champion)} (at most {settings.max_f1_loss:g} lost, interval up to 0)"
    return Gate("not worse than the champion", passed, said, _figures(difference))


def _form(candidate: ScoredModel, settings: Promotion) -> list[Gate]:
    overall = candidate.scores["overall"]
    limits = (
        ("answers that the server reads", overall["valid_answers"], settings.min_valid_answers),
        ("answers that keep the schema", overall["schema_answers"], settings.min_schema_answers),
    )
    return [
        Gate(name, share >= limit, f"{share:.3f} (at least {limit:g})", {"share": share})
        for name, share, limit in limits
    ]


def _invented(candidate: ScoredModel, champion: ScoredModel, settings: Promotion) -> Gate:
    ours, theirs = (model.scores["overall"]["invented_entities"] for model in (candidate, champion))
    limit = settings.max_invented_gain
    said = f"{ours:.3f} of the names were not given, the champion's {theirs:.3f} (at most {limit:g} more)"
    # Shares such as 0.1 + 0.005 are not exact in binary.
    passed = ours <= theirs + limit + 1e-9
    return Gate("invented names", passed, said, {"share": ours, "champion": theirs})


def _against(difference: Difference, one: ScoredModel, other: ScoredModel) -> str:
    f1, other_f1 = (model.scores["overall"]["f1"] for model in (one, other))
    return (
        f"F1 {f1:.3f} against {other_f1:.3f} on {difference.rows} rows: {difference.difference:+.3f} "
        f"({difference.low:+.3f} to {difference.high:+.3f})"
    )


def _figures(difference: Difference) -> dict[str, float]:
    return {key: float(value) for key, value in asdict(difference).items()}
