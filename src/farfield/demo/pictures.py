"""The demo's pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from farfield.demo.curves import Curve
from farfield.evaluation.comparison import Comparison
from farfield.evaluation.evaluate import Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, MUTED, WASH = "#1f2933", "#7b8794", "#eef2f4"
#: Colour of each model; apart also in the common kinds of colour blindness.
COLORS = {"short-range": "#d55e00", "long-range": "#0072b2"}
ELEMENTS = {1: "#7b8794", 6: "#1f2933", 7: "#0072b2", 8: "#d55e00"}
STYLE = {
    "font.size": 9,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 130,
}
SIGNS = {"ammonium": "⁺", "methylammonium": "⁺", "formate": "⁻", "acetate": "⁻"}


def title_of(curve: Curve) -> str:
    """Names of the two molecules with their charges."""
    return " · · · ".join(f"{name}{SIGNS.get(name, '')}" for name in curve.molecules)


def draw_curve(axes: Axes, curve: Curve, trained_range: float, legend: bool = False) -> None:
    """Draw one dissociation curve; the wash marks distances at which the molecules do not see each other."""
    right = float(curve.distance.max()) + 0.4
    axes.axvspan(curve.horizon, right, color=WASH, linewidth=0, zorder=0)
    axes.axhline(0, color=MUTED, linewidth=0.6, zorder=1)
    axes.axvline(trained_range, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    for name, energy in curve.fine_models.items():
        axes.plot(curve.fine_distance, energy, color=COLORS.get(name), linewidth=1.9, label=name, zorder=3)
    axes.plot(
        curve.distance, curve.reference, "o", color=INK, markersize=4, markeredgewidth=0, label="reference", zorder=4
    )
    values = np.concatenate([curve.reference, *curve.fine_models.values()])
    low, high = float(values.min()), float(values.max())
    axes.set(
        xlim=(float(curve.distance.min()) - 0.4, right), ylim=(low - 0.08 * (high - low), high + 0.12 * (high - low))
    )
    axes.set_title(title_of(curve))
    axes.set_xlabel("distance of the centres of mass (Å)")
    axes.set_ylabel("interaction energy (eV)")
    axes.tick_params(length=3)
    note = "beyond the cutoff"
    axes.text(
        (curve.horizon + right) / 2, 0.97, note, transform=axes.get_xaxis_transform(), fontsize=7.5, color=MUTED,
        ha="center", va="top", bbox={"facecolor": WASH, "edgecolor": "none", "pad": 1}, zorder=2,
    )  # fmt: skip
    if legend:
        axes.legend(loc="lower right", handlelength=1.6, fontsize=8.5)


def draw_atoms(axes: Axes, comparison: Comparison, title: str, unit: str, note: str) -> None:
    """Draw a parity plot whose points are coloured by element (grey where rows are systems)."""
    from ase.data import chemical_symbols

    reference, predicted = comparison.reference, comparison.predicted
    low = float(min(reference.min(), predicted.min()))
    high = float(max(reference.max(), predicted.max()))
    pad = 0.05 * (high - low)
    axes.plot([low - pad, high + pad], [low - pad, high + pad], color=MUTED, linewidth=0.9, zorder=1)
    if len(comparison.numbers):
        for number in np.unique(comparison.numbers):
            rows = comparison.numbers == number
            axes.scatter(
                reference[rows].ravel(), predicted[rows].ravel(), s=5, alpha=0.45, linewidths=0, zorder=2,
                color=ELEMENTS.get(int(number), MUTED), label=chemical_symbols[number], rasterized=True,
            )  # fmt: skip
        legend = axes.legend(loc="lower right", markerscale=2.6, handletextpad=0.1, borderaxespad=0.1, fontsize=8.5)
        for handle in legend.legend_handles:
            handle.set_alpha(1)  # type: ignore[union-attr]
    else:
        axes.scatter(reference.ravel(), predicted.ravel(), s=12, alpha=0.6, linewidths=0, color=COLORS["long-range"])
    axes.set(xlim=(low - pad, high + pad), ylim=(low - pad, high + pad), aspect="equal")
    axes.set_title(title)
    axes.set_xlabel(f"reference ({unit})")
    axes.set_ylabel(f"learned from energies and forces ({unit})")
    axes.text(0.03, 0.97, note, transform=axes.transAxes, fontsize=8, color=MUTED, va="top", linespacing=1.4)
    axes.tick_params(length=3)


def agreement(comparison: Comparison) -> str:
    """Squared correlation and RMSE, in two lines."""
    metrics = comparison.metrics
    r2 = "" if metrics.pearson_r2 is None else f"r² = {np.floor(metrics.pearson_r2 * 1e3) / 1e3:.3f}\n"
    return f"{r2}RMSE {metrics.rmse:.3g} {metrics.unit}"


def save_curves(path: Path, curves: Sequence[Curve], trained_range: float) -> None:
    """Write all dissociation curves as one picture."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(3.7 * columns, 2.9 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for index, (axes, curve) in enumerate(zip(grid, curves, strict=False)):
            draw_curve(axes, curve, trained_range, legend=index == 0)
        for axes in grid[len(curves) :]:
            axes.set_visible(False)
        figure.savefig(path)


def save_forces(path: Path, comparisons: Mapping[str, Comparison]) -> None:
    """Write the parity of forces of both models, side by side on the same scale."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    limit = 1.05 * max(float(abs(c.reference).max()) for c in comparisons.values()) / 1e3
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(4.1 * len(comparisons), 4.1), layout="constrained")
        for axes, (name, comparison) in zip(
            figure.subplots(1, len(comparisons), squeeze=False).ravel(), comparisons.items(), strict=True
        ):
            axes.plot([-limit, limit], [-limit, limit], color=MUTED, linewidth=0.9)
            axes.scatter(
                comparison.reference.ravel() / 1e3, comparison.predicted.ravel() / 1e3, s=5, alpha=0.4, linewidths=0,
                color=COLORS.get(name, INK), rasterized=True,
            )  # fmt: skip
            axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=f"Forces, {name}")
            axes.set_xlabel("reference (eV/Å)")
            axes.set_ylabel("model (eV/Å)")
            axes.text(
                0.03, 0.97, agreement(comparison), transform=axes.transAxes, fontsize=8, color=MUTED, va="top",
                linespacing=1.4,
            )  # fmt: skip
        figure.savefig(path)


def save_kept_back(path: Path, comparisons: Mapping[str, Comparison]) -> None:
    """Write charges, dipoles and Born charges against those kept back from training."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(4.0 * len(comparisons), 4.1), layout="constrained")
        for axes, comparison in zip(
            figure.subplots(1, len(comparisons), squeeze=False).ravel(), comparisons.values(), strict=True
        ):
            draw_atoms(axes, comparison, comparison.quantity.title, comparison.quantity.unit, agreement(comparison))
        figure.savefig(path)


def save_overview(path: Path, curves: Sequence[Curve], born: Comparison, trained_range: float) -> None:
    """Write the one picture that tells it all: a curve of each kind, and the Born charges."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    chosen: list[Curve] = []
    for kind in ("CC", "CP", "PP"):
        of_kind = sorted((curve for curve in curves if curve.kind == kind), key=lambda curve: curve.trained)
        chosen += of_kind[:1]
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(3.35 * (len(chosen) + 1), 3.2), layout="constrained")
        panels = figure.subplots(1, len(chosen) + 1, squeeze=False).ravel()
        for index, (axes, curve) in enumerate(zip(panels, chosen, strict=False)):
            draw_curve(axes, curve, trained_range, legend=index == 0)
            if index:
                axes.set_ylabel("")
        draw_atoms(panels[-1], born, "Born charges, never shown", "e", agreement(born))
        figure.savefig(path, dpi=150)


def save_all(
    output: Path, curves: Sequence[Curve], evaluations: Mapping[str, Evaluation], trained_range: float
) -> dict[str, Path]:
    """Write all pictures of the demo.

    Parameters
    ----------
    output
        Directory to write into.
    curves
        Dissociation curves.
    evaluations
        Evaluation of each model; ``long-range`` has charges, dipoles and Born charges.
    trained_range
        Largest distance in training (Å).

    Returns
    -------
    dict
        Paths by name: ``curves``, ``forces``, ``kept_back``, ``overview``.
    """
    far = evaluations["long-range"].comparisons
    kept_back: dict[str, Comparison] = {key: far[key] for key in ("charges", "dipole", "born_charges") if key in far}
    paths = {
        name: output / f"{file}.png"
        for name, file in {"curves": "curves", "forces": "forces", "kept_back": "kept_back", "overview": "demo"}.items()
    }
    save_curves(paths["curves"], curves, trained_range)
    save_forces(paths["forces"], {name: e.comparisons["forces"] for name, e in evaluations.items()})
    save_kept_back(paths["kept_back"], kept_back)
    save_overview(paths["overview"], curves, far["born_charges"], trained_range)
    return paths
