"""The rows that a chain scores and chooses by, as its steps."""

from functools import partial
from pathlib import Path

from ucotron_ray.core.run import Run
from ucotron_ray.core.steps import Step
from ucotron_ray.data import stage as datasets
from ucotron_ray.data import uses


def held_out_steps(run: Run) -> list[Step]:
    """`held-out`, the rows that claims are made on, and `gate-rows`, those of gates and choices.

    Read before the long part: a wrong path should not cost a training run.
    """
    claimed, chosen_by = run.config.recipe.evaluation.data, run.config.recipe.export.data
    if chosen_by is not None:
        return [_rows_step(run, "held-out", claimed), _rows_step(run, "gate-rows", chosen_by, "choice")]
    own = Step(
        key="gate-rows",
        stage="gate-rows",
        kind="dataset",
        name=run.name,
        make=lambda made: uses.rows_to_choose_by(run, None, made["rows"]),
        needs=("rows",),
        shown=False,
    )
    return [_rows_step(run, "held-out", claimed), own]


def _rows_step(run: Run, key: str, reference: str | None, purpose: datasets.Purpose = "claim") -> Step:
    score = partial(datasets.held_out, run, reference, purpose=purpose)
    if reference is not None and Path(reference).exists() and not datasets.in_store(run, reference):
        asked = datasets.held_out_request(Path(reference), purpose)
        return Step(key, f"import-{key}", "dataset", asked.name, lambda _: score(None), lambda _: asked)
    name = reference or run.name
    return Step(key, key, "dataset", name, lambda made: score(made["rows"]), needs=("rows",), shown=False)
