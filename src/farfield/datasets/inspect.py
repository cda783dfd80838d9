"""Look at data before any training: what is in them, and what looks wrong.

Every check says what it compares and stays silent where it cannot know. A finding is a *warning* where the data
contradict physics or themselves, and a *note* where a user should know something. None of them changes the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from farfield.atoms.structures import read_structures
from farfield.datasets import charge_checks, fit_checks, label_checks, range_checks, structure_checks
from farfield.datasets.dataset import LABEL_SHAPES, Dataset, Sample, label_structures
from farfield.datasets.findings import Finding, View
from farfield.datasets.quantities import OWN_UNITS, Columns, Conventions, Units
from farfield.datasets.quickfit import QuickFit, quick_fit
from farfield.datasets.registry import DATASETS, resolve_data

if TYPE_CHECKING:
    from ase import Atoms

#: Frames that are looked at; of longer files, this many evenly spaced ones.
MOST_FRAMES = 2000


@dataclass(frozen=True, eq=False)
class Inspection:
    """Result of `inspect`.

    Attributes
    ----------
    name
        What was looked at.
    facts
        What is in the data, by name, ready for printing.
    findings
        What looks wrong or is good to know.
    fit
        The quick short-range fit, where the data have forces.
    """

    name: str
    facts: dict[str, str]
    findings: list[Finding] = field(default_factory=list)
    fit: QuickFit | None = None

    @property
    def warnings(self) -> list[Finding]:
        """Findings of level ``"warning"``."""
        return [finding for finding in self.findings if finding.level == "warning"]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        fit = None
        if self.fit is not None:
            fit = {
                "unit": "meV/Å",
                "cutoffs": list(self.fit.cutoffs),
                "force_rmse": [1e3 * value for value in self.fit.rmse],
                "force_rms": 1e3 * self.fit.spread,
            }
        findings = [
            {"level": f.level, "topic": f.topic, "message": f.message, "frames": list(f.frames)} for f in self.findings
        ]
        return {"data": self.name, "facts": self.facts, "findings": findings, "short_range_fit": fit}


def inspect(
    data: str | Path | Sequence[Atoms] | Dataset,
    *,
    columns: Columns | None = None,
    units: Units | None = None,
    conventions: Conventions | None = None,
    fit: bool = True,
    seed: int = 0,
) -> Inspection:
    """Look at data before training.

    Parameters
    ----------
    data
        Registry name, path, ASE structures, or a `Dataset`.
    columns, units, conventions
        As in `farfield.datasets.dataset.load_dataset`; the checks are made after conversion.
    fit
        Make the quick short-range fit, on which the checks of energy against forces, of stress and of the range rest.
    seed
        Of the choice of frames for the fit.

    Returns
    -------
    Inspection

    Raises
    ------
    FileNotFoundError, ValueError
        If the data cannot be read, or no frame is usable.
    """
    findings: list[Finding] = []
    if isinstance(data, Dataset):
        name, samples, info, index = data.name, list(data), data.info, list(range(len(data)))
    else:
        name, samples, info, index = _read(data, columns, units, conventions, findings)
    view = View(samples, info, index)
    facts = _facts(view)

    result = None
    if fit:
        chosen = [n for n, sample in enumerate(samples) if "forces" in sample.labels]
        found = quick_fit([samples[n].batch for n in chosen], [samples[n].labels["forces"] for n in chosen], seed=seed)
        if found is not None:
            result = QuickFit(**{**vars(found), "used": tuple(chosen[n] for n in found.used)})

    checks: list[Callable[[View], list[Finding]]] = [
        structure_checks.check_lengths,
        structure_checks.check_isolated,
        structure_checks.check_duplicates,
        structure_checks.check_order,
        label_checks.check_missing,
        label_checks.check_energies,
        label_checks.check_force_unit,
        label_checks.check_force_outliers,
        label_checks.check_net_forces,
        charge_checks.check_total_charges,
        charge_checks.check_dipoles,
        charge_checks.check_born_charges,
        range_checks.check_fragments,
    ]
    for check in checks:
        findings += check(view)
    if result is not None:
        findings += fit_checks.check_against_fit(view, result)
        findings += range_checks.check_range(result)
    findings.sort(key=lambda finding: finding.level != "warning")
    return Inspection(name, facts, findings, result)


def _read(
    data: str | Path | Sequence[Atoms],
    columns: Columns | None,
    units: Units | None,
    conventions: Conventions | None,
    findings: list[Finding],
) -> tuple[str, list[Sample], list[dict[str, Any]], list[int]]:
    """Read frame by frame, so that an unsound one is a finding and not the end."""
    name = "structures"
    if isinstance(data, str | Path):
        name = str(data)
        structures = read_structures(resolve_data(data))
        entry = DATASETS.get(name)
        if entry is not None:
            columns = columns if columns is not None else Columns(**entry.columns)  # type: ignore[arg-type]
            units = units if units is not None else Units(**entry.units)
    else:
        structures = list(data)
    chosen = list(range(len(structures)))
    if len(structures) > MOST_FRAMES:
        chosen = [round(x) for x in np.linspace(0, len(structures) - 1, MOST_FRAMES)]
        message = f"the file has {len(structures)} frames; {MOST_FRAMES} evenly spaced ones were looked at"
        findings.append(Finding("note", "frames", message))
    samples: list[Sample] = []
    info: list[dict[str, Any]] = []
    index: list[int] = []
    broken: list[tuple[int, str]] = []
    for n in chosen:
        try:
            one = label_structures(
                [structures[n]], columns=columns, units=units, conventions=conventions, name=f"{name}, frame {n}"
            )
        except ValueError as error:
            broken.append((n, str(error)))
            continue
        samples += one.samples
        info += one.info
        index.append(n)
    if broken:
        message = f"{len(broken)} of {len(chosen)} frames cannot be used; the first: {broken[0][1]}"
        if not samples:
            raise ValueError(message)
        findings.append(Finding("warning", "frames", message, tuple(n for n, _ in broken)))
    if not samples:
        raise ValueError(f"{name} has no structures")
    return name, samples, info, index


def _facts(view: View) -> dict[str, str]:
    from ase.data import chemical_symbols

    samples = view.samples
    sizes = [sample.batch.n_atoms for sample in samples]
    elements = Counter(int(z) for sample in samples for z in sample.batch.numbers)
    formulas = Counter(view.formula(n) for n in range(len(samples)))
    periodic = Counter("".join("TF"[not axis] for axis in sample.batch.pbc[0].tolist()) for sample in samples)
    kinds = {"TTT": "periodic", "FFF": "open"}
    facts = {
        "frames": str(len(samples)),
        "atoms": f"{sum(sizes)} ({min(sizes)} to {max(sizes)} in a frame)" if min(sizes) < max(sizes) else
        f"{sum(sizes)} ({sizes[0]} in each frame)",
        "elements": ", ".join(f"{chemical_symbols[z]} {count}" for z, count in sorted(elements.items())),
        "compositions": str(len(formulas)),
        "boundaries": ", ".join(f"{count} {kinds.get(kind, 'pbc ' + kind)}" for kind, count in periodic.items()),
    }  # fmt: skip
    for label in LABEL_SHAPES:
        having = view.with_label(label)
        if not having:
            continue
        values = np.concatenate([samples[n].labels[label].double().numpy().ravel() for n in having])
        if label == "energy":
            values = values / np.array([samples[n].batch.n_atoms for n in having])
        what = "energy per atom" if label == "energy" else label.replace("_", " ")
        share = "" if len(having) == len(samples) else f", in {len(having)} frames"
        rms = float(np.sqrt((values**2).mean()))
        facts[what] = f"{values.min():.4g} to {values.max():.4g} {OWN_UNITS[label]}, rms {rms:.4g}{share}"
    charges = Counter(float(entry["total_charge"]) + 0.0 for entry in view.info if "total_charge" in entry)
    if charges:
        facts["total charge"] = ", ".join(f"{charge:+g} e in {count}" for charge, count in sorted(charges.items()))
    return facts
