"""Checks of charges, dipoles and Born charges: sums, units and index order."""

from __future__ import annotations

from collections import Counter

import numpy as np

from farfield.datasets.findings import Finding, View
from farfield.datasets.quantities import conversion


def check_total_charges(view: View) -> list[Finding]:
    """Total charges that differ between frames, and atomic charges that do not add up to them."""
    found = []
    charges = [float(entry["total_charge"]) for entry in view.info if "total_charge" in entry]
    kinds = Counter(round(charge, 6) + 0.0 for charge in charges)
    if len(kinds) > 1:
        listed = ", ".join(f"{charge:+g} e in {count}" for charge, count in sorted(kinds.items()))
        message = (
            f"frames differ in total charge ({listed}): a model of all of them needs it as an input (`total_charge`)"
        )
        found.append(Finding("note", "charge", message))
    fractional = sum(count for charge, count in kinds.items() if abs(charge - round(charge)) > 1e-3)
    if fractional:
        found.append(Finding("warning", "charge", f"{fractional} frames have a fractional total charge"))
    charged = [
        n
        for n, entry in enumerate(view.info)
        if abs(float(entry.get("total_charge", 0.0))) > 1e-3 and bool(view.samples[n].batch.pbc.any())
    ]
    if charged:
        message = (
            f"{len(charged)} periodic frames are charged: their energies hold a neutralizing background, and depend "
            "on the "
            "size of the cell"
        )
        found.append(Finding("note", "charge", message))
    odd = []
    for n in view.with_label("charges"):
        known = float(view.info[n].get("total_charge", 0.0))
        if (
            abs(float(view.samples[n].labels["charges"].double().sum()) - known) > 0.05
            and "total_charge" in view.info[n]
        ):
            odd.append(n)
    if odd:
        message = f"atomic charges do not add up to the total charge within .05 e in {view.frames(odd)}"
        found.append(Finding("warning", "charge", message, view.numbers_of(odd)))
    return found


def check_dipoles(view: View) -> list[Finding]:
    """Dipoles of open systems against those of the atomic charges."""
    having = [
        n
        for n in view.with_label("dipole", "charges")
        if not bool(view.samples[n].batch.pbc.any()) and abs(float(view.info[n].get("total_charge", 0.0))) < 1e-3
    ]
    if len(having) < 3:
        return []
    given = np.stack([view.samples[n].labels["dipole"][0].double().numpy() for n in having])
    made = []
    for n in having:
        charges = view.samples[n].labels["charges"].double().numpy()
        positions = view.samples[n].batch.positions.double().numpy()
        made.append((charges - charges.mean()) @ positions)
    ours, theirs = np.stack(made).ravel(), given.ravel()
    correlation = float(ours @ theirs / max(np.linalg.norm(ours) * np.linalg.norm(theirs), 1e-300))
    if correlation**2 < 0.7:
        return []
    slope = float(np.sign(correlation) * np.linalg.norm(theirs) / np.linalg.norm(ours))
    if slope < 0:
        message = f"dipoles point against those of the atomic charges (correlation {correlation:.2f}): check their sign"
        return [Finding("warning", "units", message)]
    for unit in ("Debye", "e·bohr"):
        ratio = 1.0 / conversion(unit, "dipole")
        if abs(np.log(slope / ratio)) < 0.2:
            message = (
                f"dipoles are {slope:.3g} times those of the atomic charges, as if they were in {unit}: "
                "state the unit of dipoles"
            )
            return [Finding("warning", "units", message)]
    return []


def _rotation_errors(view: View, positions: list[int]) -> tuple[float, float]:
    """RMS violation of the rotational sum rule with the indices of Born charges as given, and exchanged.

    Turning a molecule by ω turns its dipole: Σ_i Z*_i (ω × r_i) = ω × µ, for charged ones about any one origin.
    """
    sums = np.zeros(2)
    for n in positions:
        labels = view.samples[n].labels
        born = labels["born_charges"].double().numpy()
        dipole = labels["dipole"][0].double().numpy()
        arms = view.samples[n].batch.positions.double().numpy()
        for axis in np.eye(3):
            moved, expected = np.cross(axis, arms), np.cross(axis, dipole)
            sums[0] += ((np.einsum("iab,ib->a", born, moved) - expected) ** 2).sum()
            sums[1] += ((np.einsum("iba,ib->a", born, moved) - expected) ** 2).sum()
    return float(np.sqrt(sums[0])), float(np.sqrt(sums[1]))


def check_born_charges(view: View) -> list[Finding]:
    """Sum rules of Born charges: over atoms the total charge; under rotation the dipole, which tells their order."""
    found = []
    odd, worst = [], 0.0
    for n in view.with_label("born_charges"):
        born = view.samples[n].labels["born_charges"].double().numpy()
        total = float(view.info[n].get("total_charge", 0.0))
        excess = float(np.abs(born.sum(axis=0) - total * np.eye(3)).max()) / np.sqrt(len(born))
        worst = max(worst, excess)
        if excess > 0.05:
            odd.append(n)
    if odd:
        message = (
            f"Born charges do not add up to the total charge in {view.frames(odd)} (the sum divided by √N is off by "
            "up to "
            f"{worst:.2g} e)"
        )
        found.append(Finding("warning", "born charges", message, view.numbers_of(odd)))
    open_ones = [n for n in view.with_label("born_charges", "dipole") if not bool(view.samples[n].batch.pbc.any())]
    if open_ones:
        given, exchanged = _rotation_errors(view, open_ones)
        if exchanged < 0.5 * given:
            message = (
                f"Born charges obey the rotational sum rule {given / max(exchanged, 1e-12):.1f} times better with "
                "their "
                "indices exchanged: the file seems to hold the other index order; set `conventions.born_charges`"
            )
            found.append(Finding("warning", "born charges", message))
    return found
