"""Parity plots: predictions against labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from farfield.evaluation.comparison import Comparison
from farfield.evaluation.metrics import Metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Above this number of points a density takes the place of points.
DENSITY_FROM = 1500

_INK = "#1f2933"
_MUTED = "#7b8794"
_POINT = "#1f6f8b"
#: One hue from light to dark: density is a magnitude.
_RAMP = ("#d7ecef", "#8cc7d0", "#3a97a8", "#1f6f8b", "#123a52")
#: Elements keep their colour in every plot; these stay apart in the common kinds of colour blindness.
_ELEMENTS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b5ea7", "#5b6770")

_STYLE = {
    "font.size": 9,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": _INK,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def format_number(value: float | None, digits: int = 3) -> str:
    """Format with significant digits, in plain decimals where that is readable; a dash for None."""
    if value is None:
        return "–"
    if value != 0 and not 1e-4 <= abs(value) < 1e5:
        return f"{value:.{digits - 1}e}"
    text = f"{value:#.{digits}g}".rstrip(".")
    # '#' keeps the zeros that carry precision, but writes 1.23e+04 for large values
    return f"{value:.0f}" if "e" in text else text.replace("-", "−")


def format_share(value: float | None) -> str:
    """Format R² and r²: four decimals, never rounded up to one."""
    if value is None:
        return "–"
    return f"{np.floor(value * 1e4) / 1e4 if 0 < value < 1 else value:.4f}".replace("-", "−")


def summary(metrics: Metrics) -> str:
    """MAE, RMSE and R² in two lines."""
    return (
        f"MAE {format_number(metrics.mae)}   RMSE {format_number(metrics.rmse)} {metrics.unit}\n"
        f"R² {format_share(metrics.r2)}   r² {format_share(metrics.pearson_r2)}"
    )


def draw_parity(axes: Axes, comparison: Comparison) -> None:
    """Draw one parity plot: a log-scaled density for many points, else points, coloured by element for charges.

    Energies are drawn relative to the mean of the labels, which makes no difference to errors.
    """
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.ticker import MaxNLocator

    quantity = comparison.quantity
    reference, predicted = comparison.reference.ravel(), comparison.predicted.ravel()
    suffix = ""
    if comparison.key == "energy_per_atom":
        offset = reference.mean()
        reference, predicted = reference - offset, predicted - offset
        suffix = ", relative to the mean"
    low = float(min(reference.min(), predicted.min()))
    high = float(max(reference.max(), predicted.max()))
    pad = 0.05 * (high - low) or max(abs(high), 1.0) * 0.05
    low, high = low - pad, high + pad

    axes.plot([low, high], [low, high], color=_MUTED, linewidth=0.9, zorder=1)
    elements = np.unique(comparison.numbers)
    if comparison.key == "charges" and 1 < len(elements) <= len(_ELEMENTS):
        from ase.data import chemical_symbols

        for color, number in zip(_ELEMENTS, elements, strict=False):
            rows = comparison.numbers == number
            axes.scatter(
                reference[rows], predicted[rows], s=7, color=color, alpha=0.5, linewidths=0, zorder=2,
                label=chemical_symbols[number], rasterized=True,
            )  # fmt: skip
        legend = axes.legend(loc="lower right", frameon=False, markerscale=2, handletextpad=0.1, borderaxespad=0.1)
        for handle in legend.legend_handles:
            handle.set_alpha(1)  # type: ignore[union-attr]
    elif len(reference) > DENSITY_FROM:
        ramp = LinearSegmentedColormap.from_list("farfield", _RAMP)
        cells = axes.hexbin(
            reference, predicted, gridsize=70, extent=(low, high, low, high), bins="log", mincnt=1, cmap=ramp,
            linewidths=0.15, zorder=2,
        )  # fmt: skip
        # inside, in the corner that the diagonal leaves free, so that all plots have one size
        place = axes.inset_axes((0.62, 0.1, 0.35, 0.025))
        bar = axes.figure.colorbar(cells, cax=place, orientation="horizontal")
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=2, labelsize=6.5, pad=1, which="both")
        bar.ax.set_title("points per cell", fontsize=7, fontweight="normal", color=_MUTED, pad=3, loc="center")
    else:
        axes.scatter(reference, predicted, s=16, color=_POINT, alpha=0.65, linewidths=0, zorder=2)

    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axes.set_title(quantity.title, pad=31)
    axes.text(
        0.0, 1.015, summary(comparison.metrics), transform=axes.transAxes, fontsize=8.2, color=_MUTED, va="bottom",
        linespacing=1.3,
    )  # fmt: skip
    axes.set_xlabel(f"label ({quantity.unit}{suffix})")
    axes.set_ylabel(f"model ({quantity.unit})")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    axes.tick_params(length=3)


def parity_figure(comparison: Comparison) -> Figure:
    """Make the parity plot of one quantity, as a figure of its own."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(4.3, 4.3), layout="constrained", dpi=130)
        draw_parity(figure.add_subplot(), comparison)
        # ticks and texts are made when drawn: do so while the style holds
        figure.draw_without_rendering()
    return figure


def save_parity(comparisons: dict[str, Comparison], directory: str | Path) -> dict[str, Path]:
    """Write ``parity_KEY.png`` for each quantity and return the paths by key."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = {}
    for key, comparison in comparisons.items():
        paths[key] = directory / f"parity_{key}.png"
        parity_figure(comparison).savefig(paths[key])
    return paths
