"""Which rows an artifact was made with, and what for: kept in its manifest, so that a claim can be checked."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class RowsUse(BaseModel):
    """Rows of one file of a dataset that were trained on, chosen by, or scored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    purpose: Literal["training", "choice", "score"]
    what: str
    """What was trained, chosen or scored, in words."""
    dataset: str
    content: str
    """Of the dataset: a name may hold other rows later."""
    file: str
    rows: int
