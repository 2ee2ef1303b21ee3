"""The same pictures as PNG files, drawn by matplotlib: for slides, and for viewers that show no SVG."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Sheet

from ucotron_ray.tuning.axes import label
from ucotron_ray.tuning.drawing import Bars, Chart, Figure, Heat, Parallel

DPI = 144


def write(figures: Sequence[Figure], directory: Path) -> None:
    """One `<key>.png` a picture. Needs no display and changes no setting of matplotlib's."""
    directory.mkdir(parents=True, exist_ok=True)
    for figure in figures:
        sheet = Sheet(figsize=(7, 4.2), layout="constrained")
        FigureCanvasAgg(sheet)
        axes = sheet.add_subplot()
        axes.set_title(figure.title)
        if isinstance(figure, Chart):
            _chart(axes, figure)
        elif isinstance(figure, Heat):
            _heat(axes, figure)
        elif isinstance(figure, Parallel):
            _parallel(axes, figure)
        else:
            _bars(axes, figure)
        sheet.savefig(directory / f"{figure.key}.png", dpi=DPI)


def _chart(axes: Any, chart: Chart) -> None:
    for line in sorted(chart.lines, key=lambda line: line.strong):
        xs, ys = zip(*line.points, strict=True)
        style = "steps-post" if chart.stairs else "default"
        axes.plot(xs, ys, color=line.color, linewidth=2.6 if line.strong else 1.2, drawstyle=style)
        if line.ends:
            axes.plot(xs[-1:], ys[-1:], color=line.color, marker="x" if line.ends == "cross" else "o")
    for dot in chart.dots:
        if dot.low is not None and dot.high is not None:
            axes.plot([dot.x, dot.x], [dot.low, dot.high], color=dot.color)
        axes.plot([dot.x], [dot.y], color=dot.color, marker="o", markersize=7 if dot.name else 4)
        axes.annotate(dot.name, (dot.x, dot.y), xytext=(7, -3), textcoords="offset points")
    if chart.x_log:
        axes.set_xscale("log")
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.grid(alpha=0.3)


def _heat(axes: Any, heat: Heat) -> None:
    for cell in heat.cells:
        axes.add_patch(_square(cell.x, cell.y, cell.color if cell.value is not None else "#e6eaee"))
        text = f"{cell.value:.3f}" if cell.value is not None else "–"
        axes.text(
            cell.x, cell.y, text, ha="center", va="center", color="white" if cell.value is not None else "#57606a"
        )
    axes.set_xlim(-0.5, len(heat.columns) - 0.5)
    axes.set_ylim(-0.5, len(heat.rows) - 0.5)
    axes.set_xticks(range(len(heat.columns)), heat.columns)
    axes.set_yticks(range(len(heat.rows)), heat.rows)
    axes.set_xlabel(heat.x_label)
    axes.set_ylabel(heat.y_label)


def _square(x: int, y: int, color: str) -> Any:
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - heat maps only

    return Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, color=color)


def _parallel(axes: Any, parallel: Parallel) -> None:
    xs = range(len(parallel.axes))
    for _, heights, color, _ in parallel.lines:
        axes.plot(xs, heights, color=color, linewidth=1.4)
    for x, axis in zip(xs, parallel.axes, strict=True):
        axes.axvline(x, color="#57606a", linewidth=0.8)
        for name, share in axis.marks:
            axes.annotate(name, (x, share), xytext=(3, 0), textcoords="offset points", fontsize=8)
    axes.set_xticks(xs, [axis.name for axis in parallel.axes])
    axes.set_yticks([])


def _bars(axes: Any, bars: Bars) -> None:
    names = [name for name, *_ in bars.bars][::-1]
    axes.barh(names, [value for _, value, *_ in bars.bars][::-1], color=[bar[3] for bar in bars.bars][::-1])
    axes.barh(names, [part for _, _, part, *_ in bars.bars][::-1], color="#00000055")
    axes.set_xlabel(bars.unit)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if bars.unit == "share" else label(value))
