"""What a chain asks of a teacher: relation rows to mix with those of the graph, and preference pairs to align with."""

import logging

from ucotron_ray.core.artifacts import Artifact, Request
from ucotron_ray.core.errors import MissingArtifact
from ucotron_ray.core.run import Run
from ucotron_ray.data import stage as datasets
from ucotron_ray.synthesis import stage as synthesis
from ucotron_ray.synthesis.stage import SynthesisOrder
from ucotron_ray.teacher import stage as teachers

log = logging.getLogger(__name__)


def wanted_rows(run: Run) -> SynthesisOrder | None:
    """The rows that the recipe wants from a teacher beside those of the graph."""
    count = run.config.recipe.generation.in_pipeline
    return synthesis.wanted(run, "relation_extraction", count, None, name=f"{run.name}-teacher") if count else None


def pairs_name(run: Run) -> str:
    """The dataset of the pairs that a teacher writes."""
    return f"{run.name}-preference"


def wanted_pairs(run: Run, dataset: Artifact) -> SynthesisOrder | None:
    """The preference pairs that the recipe wants of a teacher; None where they cannot be built on these rows."""
    if not datasets.holds_relations_only(dataset):
        log.warning("dpo: skipped: a teacher's pairs are built on relation rows, and some of these are others")
        return None
    count = run.config.recipe.generation.preferences_in_pipeline
    return synthesis.wanted(run, "preference", count, dataset.manifest.name, name=pairs_name(run))


def pairs(run: Run, dataset: Artifact) -> Artifact | None:
    """Those pairs. What the chain's rows have cost counts for the same budget."""
    want, rows = wanted_pairs(run, dataset), wanted_rows(run)
    if want is None:
        return None
    return synthesis.accepted(run, want, after=[synthesis.request(run, rows)] if rows else [])


def check(run: Run, *, rows: bool, pairs: bool, ask: bool) -> None:
    """Refuse a teacher that cannot be asked for the `rows` or the `pairs` that are wanted: later hours are lost.

    With `ask` a teacher that is to write pairs only is asked for its models now; of rows it is asked at once anyway.
    Raises ConfigError.
    """
    want = wanted_rows(run) if rows else None
    asks_rows = want is not None and synthesis.will_run(run, synthesis.request(run, want))
    wants_pairs = pairs and bool(run.config.recipe.generation.preferences_in_pipeline)
    asks_pairs = wants_pairs and run.store.find("dataset", pairs_name(run)) is None
    if asks_pairs and not asks_rows and ask:
        teachers.checked(run)
    elif asks_rows or asks_pairs:
        teachers.configured(run)


def pairs_request(run: Run, rows: Artifact) -> Request | None:
    """What a teacher's pairs on these rows would make; None where they cannot be built on them."""
    want = wanted_pairs(run, rows)
    return synthesis.request(run, want) if want is not None else None


def rows_before(run: Run) -> Artifact:
    """What `--skip-generate` alone goes on with: the rows as an earlier chain of this recipe left them."""
    name = run.name if wanted_rows(run) is None else f"{run.name}-mix"
    if run.store.find("dataset", name) is None:
        raise MissingArtifact(
            f"--skip-generate needs the dataset '{name}'",
            where=str(run.store.root),
            found=", ".join(run.store.names("dataset")) or "no dataset at all",
            next_step="leave --skip-generate away: what was paid for is not paid again",
        )
    return run.store.get("dataset", name, accept_rejected=run.accept_rejected)
