"""What can be drawn: curves and points, a heat map, parallel coordinates, bars. `svg.py` and `png.py` draw them."""

from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A curve. `ends` marks its last point: `dot`, `cross` (stopped) or nothing."""

    trial: str
    points: tuple[Point, ...]
    color: str
    text: str
    strong: bool = False
    ends: str = "dot"


@dataclass(frozen=True)
class Dot:
    """A point with its interval."""

    trial: str
    x: float
    y: float
    color: str
    text: str
    low: float | None = None
    high: float | None = None
    name: str = ""


@dataclass(frozen=True)
class Chart:
    """Curves and points over two axes."""

    key: str
    title: str
    note: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()
    x_log: bool = False
    stairs: bool = False


@dataclass(frozen=True)
class Cell:
    """A field of a heat map. `value` None = nothing was tried there."""

    x: int
    y: int
    value: float | None
    color: str
    text: str
    trial: str


@dataclass(frozen=True)
class Heat:
    """Scores over two settings."""

    key: str
    title: str
    note: str
    x_label: str
    y_label: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Axis:
    """One setting of the parallel coordinates: its marks, each with its height from 0 to 1."""

    name: str
    marks: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Parallel:
    """A line a trial over all settings and its score."""

    key: str
    title: str
    note: str
    axes: tuple[Axis, ...]
    lines: tuple[tuple[str, tuple[float, ...], str, str], ...]
    """(trial, height on each axis, colour, text)."""


@dataclass(frozen=True)
class Bars:
    """Horizontal bars; `part` is the darker share of one."""

    key: str
    title: str
    note: str
    unit: str
    bars: tuple[tuple[str, float, float, str, str], ...]
    """(label, value, part, colour, text)."""


Figure = Chart | Heat | Parallel | Bars
