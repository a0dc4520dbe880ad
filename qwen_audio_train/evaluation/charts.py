"""Curves as SVG inside a page: text stays text, colours are the page's own, so dark mode needs no second copy.

matplotlib writes fixed colours. We draw in marker colours that occur nowhere else and replace them by CSS variables.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Points = Sequence[tuple[int, float]]
"""(step, value), in order of steps. Points that are not finite are left out of the drawing."""

_INK, _GRID, _LOSS, _HELD_OUT, _RATE, _ACCURACY, _MARGIN = (f"#01fe0{digit}" for digit in range(7))
_CSS_COLOURS = {
    _INK: "currentColor",
    _GRID: "var(--grid)",
    _LOSS: "var(--loss)",
    _HELD_OUT: "var(--held-out)",
    _RATE: "var(--rate)",
    _ACCURACY: "var(--accuracy)",
    _MARGIN: "var(--margin)",
}
_MIN_POINTS_TO_SMOOTH = 30
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "text.color": _INK,
    "xtick.color": _GRID,
    "ytick.color": _GRID,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _GRID,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True, kw_only=True)
class StageCurves:
    """What one stage logged while it trained. Only ``loss`` is always there."""

    stage: str
    """A name in report.STAGES."""
    loss: Points
    held_out_loss: Points = ()
    learning_rate: Points = ()
    reward_accuracy: Points = ()
    reward_margin: Points = ()


def loss_chart(curves: StageCurves, description: str) -> Markup:
    """Training loss (thin: as logged, thick: smoothed), held-out loss as dots, the learning rate lightly behind."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure("loss")
        if curves.learning_rate:
            _draw_learning_rate(axes, curves.learning_rate)
        steps, values = _finite(curves.loss)
        if len(values) >= _MIN_POINTS_TO_SMOOTH:
            axes.plot(steps, values, color=_LOSS, linewidth=0.8, alpha=0.35)
            values = _smoothed(values)
        axes.plot(steps, values, color=_LOSS, linewidth=2, label="training", marker="o" if len(values) == 1 else None)
        if curves.held_out_loss:
            axes.plot(
                *_finite(curves.held_out_loss), "o-", color=_HELD_OUT, linewidth=1, markersize=4, label="held-out"
            )
            axes.legend(loc="upper right")
        return _svg(figure, salt=f"loss-{curves.stage}", description=description)


def reward_chart(curves: StageCurves, description: str) -> Markup:
    """DPO: share of pairs that the model ranks right (left axis, 0 to 1), reward margin (right axis)."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _figure("reward accuracy")
        axes.plot(*_finite(curves.reward_accuracy), color=_ACCURACY, linewidth=2, label="accuracy")
        axes.axhline(0.5, color=_ACCURACY, linewidth=0.8, linestyle=(0, (4, 4)))
        axes.set_ylim(0, 1.05)
        lines = list(axes.get_lines()[:1])
        if curves.reward_margin:
            beside = axes.twinx()
            beside.set_ylabel("reward margin")
            lines += beside.plot(*_finite(curves.reward_margin), color=_MARGIN, linewidth=2, label="margin")
        axes.legend(handles=lines, loc="lower right")
        return _svg(figure, salt=f"reward-{curves.stage}", description=description)


def _figure(label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.2, 2.9), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.grid(axis="y", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    return figure, axes


def _draw_learning_rate(axes: Axes, learning_rate: Points) -> None:
    beside = axes.twinx()
    steps, rates = _finite(learning_rate)
    beside.fill_between(steps, rates, color=_RATE, alpha=0.18, linewidth=0)
    beside.set_ylim(0, 1.6 * max(rates, default=1.0) or 1.0)
    beside.set_ylabel("learning rate", color=_RATE)
    beside.tick_params(length=0, labelcolor=_RATE)
    beside.yaxis.set_major_formatter(
        lambda rate, _: f"{rate:.1e}".replace(".0e", "e").replace("e-0", "e-") if rate else "0"
    )
    beside.yaxis.set_major_locator(MaxNLocator(nbins=4))
    # The loss is drawn over it, on a see-through background.
    axes.set_zorder(beside.get_zorder() + 1)
    axes.patch.set_visible(False)


def _finite(points: Points) -> tuple[list[int], list[float]]:
    kept = [(step, value) for step, value in points if math.isfinite(value)]
    return [step for step, _ in kept], [value for _, value in kept]


def _smoothed(values: list[float]) -> list[float]:
    """A centred mean over a twentieth of the curve: no lag, shorter windows at the ends."""
    reach = max(1, len(values) // 40)
    windows = (values[max(0, index - reach) : index + reach + 1] for index in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _svg(figure: Figure, *, salt: str, description: str) -> Markup:
    output = io.StringIO()
    # Element ids are hashes with this salt: two charts of a page must not share them.
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(output, format="svg", transparent=True)
    drawing = output.getvalue()
    view_box = re.search(r'viewBox="[^"]*"', drawing)
    assert view_box is not None
    # Inside HTML neither prologue nor metadata nor namespaces mean anything; without them no URL is left.
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL)
    opening = f'<svg {view_box[0]} role="img" aria-label="{escape(description)}">'
    drawing = re.sub(r"<svg[^>]*>", lambda _: opening, drawing, count=1)
    drawing = re.sub(r"(font: [\d.]+px )[^;\"]*", r"\1system-ui, sans-serif", drawing)
    for marker, colour in _CSS_COLOURS.items():
        drawing = drawing.replace(marker, colour)
    return Markup(drawing)  # noqa: S704 - numbers and our own labels, and the description is escaped
