"""The demo's tables and its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from farfield.demo.curves import Curve
from farfield.demo.pictures import SIGNS
from farfield.evaluation.comparison import QUANTITIES
from farfield.evaluation.evaluate import Evaluation
from farfield.evaluation.parity import format_number, format_share
from farfield.evaluation.report import embedded_picture, html_page, html_table
from farfield.files import write_text

if TYPE_CHECKING:
    from rich.console import Console

KINDS = {"CC": "ion and ion", "CP": "ion and polar molecule", "PP": "two polar molecules"}


def curve_errors(curves: Sequence[Curve], model: str, kind: str | None = None, beyond: bool = True) -> float | None:
    """RMSE (eV) of the interaction energies of a model, on one side of the horizon; None where there is no point."""
    parts = [
        (curve.models[model] - curve.reference)[curve.beyond == beyond]
        for curve in curves
        if kind is None or curve.kind == kind
    ]
    errors = np.concatenate(parts) if parts else np.zeros(0)
    return float(np.sqrt((errors**2).mean())) if errors.size else None


def comparison_rows(curves: Sequence[Curve], evaluations: Mapping[str, Evaluation]) -> list[list[str]]:
    """Rows of the table that compares the models: what, unit, and one number for each model."""
    rows = []

    def add(title: str, unit: str, values: list[float | None], share: bool = False) -> None:
        rows.append([title, unit, *((format_share if share else format_number)(value) for value in values)])

    for key in ("energy_per_atom", "forces"):
        quantity = QUANTITIES[key]
        label = {"energy_per_atom": "meV/atom"}.get(key, quantity.unit)
        add(f"{quantity.title}, RMSE", label, [e.comparisons[key].metrics.rmse for e in evaluations.values()])
    for beyond, where in ((False, "within the cutoff"), (True, "beyond the cutoff")):
        values = [curve_errors(curves, name, beyond=beyond) for name in evaluations]
        add(f"Curves {where}, RMSE", "meV", [None if v is None else 1e3 * v for v in values])
    for key in ("charges", "dipole", "born_charges"):
        found = [e.comparisons.get(key) for e in evaluations.values()]
        if not any(found):
            continue
        quantity = QUANTITIES[key]
        add(f"{quantity.title}, RMSE", quantity.unit, [None if c is None else c.metrics.rmse for c in found])
        add(f"{quantity.title}, r²", "", [None if c is None else c.metrics.pearson_r2 for c in found], share=True)
    return rows


def charge_rows(charges: Mapping[str, tuple[float, float, float]]) -> list[list[str]]:
    """Rows of the table of the molecules' charges."""
    ordered = sorted(charges.items(), key=lambda item: (-item[1][0], item[0]))
    return [
        [
            f"{name}{SIGNS.get(name, '')}",
            f"{true:+.0f}".replace("-", "−").replace("+0", "0"),
            f"{mean:+.3f} ± {spread:.3f}".replace("-", "−"),
        ]
        for name, (true, mean, spread) in ordered
    ]


def print_tables(
    console: Console,
    curves: Sequence[Curve],
    evaluations: Mapping[str, Evaluation],
    charges: Mapping[str, tuple[float, float, float]],
) -> None:
    """Print the tables at the end of the demo on standard output."""
    from rich.table import Table

    table = Table(title="Held back from training: the charges, dipoles and Born charges were never shown")
    table.add_column("")
    table.add_column("unit")
    for name in evaluations:
        table.add_column(name, justify="right")
    for row in comparison_rows(curves, evaluations):
        table.add_row(*row)
    console.print(table)
    if charges:
        table = Table(title="Charge of each molecule (e)")
        for title in ("molecule", "true", "learned"):
            table.add_column(title, justify="left" if title == "molecule" else "right")
        for row in charge_rows(charges):
            table.add_row(*row)
        console.print(table)


def write_page(
    output: Path,
    curves: Sequence[Curve],
    evaluations: Mapping[str, Evaluation],
    charges: Mapping[str, tuple[float, float, float]],
    pictures: Mapping[str, Path],
    cutoff: float,
    n_train: int,
    seconds: float,
) -> Path:
    """Write ``index.html``, which holds its pictures, and return its path."""
    by_kind = [
        [
            f"{KINDS.get(kind, kind)}",
            *(
                "–" if (error := curve_errors(curves, name, kind)) is None else format_number(1e3 * error)
                for name in evaluations
            ),
        ]
        for kind in sorted({curve.kind for curve in curves})
    ]
    unseen = [" and ".join(curve.molecules) for curve in curves if not curve.trained]

    def figures(*names: str) -> str:
        chosen = "".join(embedded_picture(pictures[name], name) for name in names if name in pictures)
        return f'<div class="plots" style="grid-template-columns: 1fr">{chosen}</div>'

    body = [
        "<h1>A far field learned from energies and forces</h1>",
        f'<p class="lead">Two models were trained on {n_train} small systems of ions and polar molecules, in '
        f"{seconds / 60:.1f} minutes, comparison included. They are twins: the same atomic descriptors with a cutoff "
        f"of {cutoff:g} Å, the same data, loss and seed. One of them has latent charges and dipoles "
        "on its atoms, whose Coulomb energy is added. Neither was shown a charge, a dipole or a Born "
        "charge; neither was told which molecules are ions.</p>",
        html_table(["On frames held back", "Unit", *evaluations], comparison_rows(curves, evaluations)),
        "<h2>Pulling two molecules apart</h2>",
        figures("curves"),
        f'<p class="muted">Grey: no atom of one molecule sees one of the other within {cutoff:g} Å, so that the '
        "short-range energy is that of two separate molecules, whatever was trained. Dotted: the largest distance in "
        f"training. Pairs that training never met: {escape('; '.join(unseen))}. The molecules are rigid; energies are "
        "relative to each model's own energies of the two molecules alone.</p>",
        "<h2>Beyond the cutoff</h2>",
        html_table(["RMSE of the interaction energy (meV)", *evaluations], by_kind),
        "<h2>Learned, never shown</h2>",
        figures("kept_back"),
        '<p class="muted">Reference charges are fitted to the electrostatic potential of the Hartree–Fock density and '
        "are one choice of many, and a model with dipoles on its atoms need not share charge among them as these do; "
        "dipoles and Born charges are observables. r² is the squared Pearson correlation.</p>",
        "<h2>Charge of each molecule</h2>",
        html_table(["Molecule", "True (e)", "Sum of learned charges (e)"], charge_rows(charges)),
        "<h2>Forces</h2>",
        figures("forces"),
        "<h2>The data</h2>",
        '<p>Restricted Hartree–Fock, 6-31G*, density fitting (PySCF); geometries from GFN2-xTB dynamics (tblite). Made '
        "by <code>scripts/make_demo_data.py</code>, which says more; MIT licence. Evaluate the models yourself: "
        f"<code>farfield evaluate {escape(str(output))}/long-range.ff demo/test</code>.</p>",
    ]  # fmt: skip
    page = output / "index.html"
    write_text(page, html_page("farfield demo", "".join(body)))
    return page
