"""ASE calculator: energies, forces, stress, charges, dipoles and Born charges of a model for optimizers and MD."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from ase.calculators.calculator import Calculator as AseCalculator
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from farfield.card import EpsilonInfinity
from farfield.engines.skin import SkinNeighbors
from farfield.ensemble import Ensemble, combine
from farfield.model import Model, load
from farfield.observables.born import Mean
from farfield.potentials.augmented import AugmentedPotential

if TYPE_CHECKING:
    from ase import Atoms

_ALWAYS = ["energy", "free_energy", "forces", "stress"]
_ELECTRIC = ["charges", "dipole", "polarization", "born_effective_charges"]
_ANSWERS = ["polarizability", "induced_charges", "induced_dipoles"]


class Calculator(AseCalculator):
    """Run one or several farfield models from ASE.

    Energy, forces, charges and dipole are computed at every step; the stress once it has been asked for; polarization
    and Born charges only when asked for. Units are ASE's: eV, Å, e; stress tensile positive, as Voigt vector. The
    ``polarization`` is the cell dipole Σ q̃r + Σu (e·Å), whose changes along unwrapped positions mean something; Born
    charges have the polarization index first, the displacement second. Models with response also give
    ``polarizability`` (Å³, 3×3), ``induced_charges`` and ``induced_dipoles`` when asked. With several models the
    results are means, and ``results`` also holds ``energy_std``, ``forces_std`` and, where computed, ``stress_std``.

    Parameters
    ----------
    model
        A model, its file, the name of a shipped one, a potential without a card, or a list of several of these.
    skin
        Margin of the neighbour list (Å), which is reused until an atom has moved by half of it. Results do not depend
        on it.
    total_charge
        Total charge of the structure (e); by default ``atoms.info["total_charge"]`` where there is one.
    epsilon_infinity
        ε of periodic systems for charges, dipoles and Born charges, instead of the model card's.
    harmonics, fit, mean, sum_rule, exact
        How Born charges of periodic systems are made, as in `Model.compute`.
    external_field
        Uniform field (V/Å), three numbers; may be set anew at any time. It acts on energy and forces as `Model.compute`
        says; there is no stress in a field.
    allow_unstable
        As in `Model.compute`.
    device, dtype
        Where and in which precision to compute, if not as the model is.

    Attributes
    ----------
    screening
        How the last charges are to be read: ``"vacuum"``, ``"epsilon_infinity=…"``, ``"explicit"`` or ``"latent"``
        (`Model.screening`).

    Raises
    ------
    ValueError
        If there is no model, or as `farfield.load`.

    Examples
    --------
    >>> atoms.calc = farfield.Calculator("dipeptides")  # doctest: +SKIP
    >>> atoms.get_forces()  # doctest: +SKIP
    """

    name = "farfield"

    def __init__(
        self,
        model: Model | Ensemble | AugmentedPotential | str | Path | Sequence[Model | AugmentedPotential | str | Path],
        *,
        skin: float = 1.0,
        total_charge: float | None = None,
        epsilon_infinity: EpsilonInfinity | None = None,
        harmonics: int | None = None,
        fit: Literal["flat", "radius"] = "radius",
        mean: Mean | None = None,
        sum_rule: bool = False,
        exact: bool = False,
        external_field: Sequence[float] | None = None,
        allow_unstable: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.models = _models(model)
        if device is not None or dtype is not None:
            # Copies: the caller's models stay as they are.
            self.models = [copy.deepcopy(one).to(device=device, dtype=dtype) for one in self.models]
        if len(self.models) > 1:
            Ensemble(self.models)  # refuses models of different kinds
        self.total_charge = total_charge
        self.options: dict[str, Any] = {
            "epsilon_infinity": epsilon_infinity,
            "harmonics": harmonics,
            "fit": fit,
            "mean": mean,
            "sum_rule": sum_rule,
            "exact": exact,
            "allow_unstable": allow_unstable,
        }
        self.external_field = external_field
        self._computed_in: Sequence[float] | None = external_field
        self.neighbors = SkinNeighbors(max(one.potential.cutoff for one in self.models), skin)
        electric = _ELECTRIC if self.models[0].is_long_range else []
        answers = _ANSWERS if all(one.is_polarizable for one in self.models) else []
        self.implemented_properties = [*_ALWAYS, *electric, *answers]
        self.screening: str | None = None
        self._wants_stress = False
        self._told_latent = False

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """Tell what changed since the last calculation; ASE does not look at ``info["total_charge"]`` and the field."""
        changes = list(super().check_state(atoms, tol=tol))
        if self.atoms is not None and self._charge(atoms) != self._charge(self.atoms):
            changes.append("total_charge")
        if not np.array_equal(_as_field(self.external_field), _as_field(self._computed_in)):
            changes.append("external_field")
        return changes

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Compute properties of a structure into ``results``.

        Raises
        ------
        ValueError
            If the structure is unsound, holds elements the model does not know, or lacks a total charge it needs.
        PropertyNotImplementedError
            If a stress is asked for without three periodic axes, or in a field.

        Warns
        -----
        UserWarning
            Once, if charges of a periodic system are asked for and nobody said what its ε∞ is.
        """
        super().calculate(atoms, list(properties), list(system_changes))
        assert self.atoms is not None  # noqa: S101 - narrows the type
        wanted = self._wanted(self.atoms, properties)
        outputs = []
        for model in self.models:
            batch = model.as_batch(self.atoms, self._charge(self.atoms))
            # The lists differ only where the models' cutoffs do; the search is shared.
            batch = self.neighbors.within(batch, model.potential.cutoff)
            outputs.append(model.compute(batch, wanted, external_field=self.external_field, **self.options))
        found = combine(outputs) if len(outputs) > 1 else outputs[0]
        self._computed_in = None if self.external_field is None else list(self.external_field)
        self.screening = found["screening"][0] if "screening" in found else None
        if self.screening == "latent" and set(properties) & {*_ELECTRIC, *_ANSWERS}:
            self._tell_latent()
        # Unless the structure changed, what was computed before still holds.
        self.results = {**({} if system_changes else self.results), **_ase_results(found)}

    def _wanted(self, atoms: Atoms, properties: Sequence[str]) -> list[str]:
        wanted = ["energy", "forces"]
        if "stress" in properties:
            if not all(atoms.pbc):
                raise PropertyNotImplementedError(
                    f"stress needs a volume: pbc is {atoms.pbc.tolist()}, but must be periodic along all three axes"
                )
            if _as_field(self.external_field).any():
                raise PropertyNotImplementedError(
                    "stress is not defined in an external field: set calc.external_field = None"
                )
            self._wants_stress = True
        # Who asked once will ask at every step; a second pass for it would double the cost.
        if self._wants_stress and all(atoms.pbc) and not _as_field(self.external_field).any():
            wanted.append("stress")
        if self.models[0].is_long_range:
            if _as_field(self.external_field).any() and any(atoms.pbc):
                wanted.append("field_forces")
            wanted += ["charges", "dipole", *(name for name in [*_ELECTRIC[2:], *_ANSWERS] if name in properties)]
        return wanted

    def _charge(self, atoms: Atoms) -> float | None:
        return self.total_charge if self.total_charge is not None else atoms.info.get("total_charge")

    def _tell_latent(self) -> None:
        if not self._told_latent:
            warnings.warn(
                "charges, dipoles and Born charges of this periodic system are latent, that is divided by √ε∞: give "
                "`epsilon_infinity` to the calculator, or set it in the model's card, for physical ones",
                UserWarning,
                stacklevel=4,
            )
            self._told_latent = True


class FieldWork:
    """Work ∫F·J dt of a calculator's field on the charges along periodic directions, during dynamics (eV).

    Those forces are derivatives of no energy: what dynamics in a field conserve is the total energy less this work.
    Attach it to ASE dynamics at every step; it adds up the mean of the forces at both ends of a step times the
    displacement. The work on all that is open or induced is in the energy already.

    Parameters
    ----------
    atoms
        Structure with a `Calculator`; its positions must not be wrapped between steps.

    Attributes
    ----------
    work
        Work so far (eV).

    Examples
    --------
    >>> work = FieldWork(atoms)  # doctest: +SKIP
    >>> dynamics.attach(work)  # doctest: +SKIP
    """

    def __init__(self, atoms: Atoms) -> None:
        self.atoms = atoms
        self.work = 0.0
        self._positions, self._forces = self._state()

    def __call__(self) -> None:
        """Add the work since the last call."""
        positions, forces = self._state()
        self.work += float((0.5 * (self._forces + forces) * (positions - self._positions)).sum())
        self._positions, self._forces = positions, forces

    def _state(self) -> tuple[np.ndarray, np.ndarray]:
        positions = self.atoms.get_positions()
        self.atoms.get_forces()  # computed already within dynamics
        found = self.atoms.calc.results.get("field_forces")
        return positions, np.zeros_like(positions) if found is None else found


def _as_field(field: Sequence[float] | None) -> np.ndarray:
    return np.zeros(3) if field is None else np.array(field, dtype=np.float64)


def _models(
    given: Model | Ensemble | AugmentedPotential | str | Path | Sequence[Model | AugmentedPotential | str | Path],
) -> list[Model]:
    if isinstance(given, Ensemble):
        return given.models
    listed = [given] if isinstance(given, Model | AugmentedPotential | str | Path) else list(given)
    if not listed:
        raise ValueError("`model` is an empty list: give at least one model")
    return [_model(one) for one in listed]


def _model(given: Model | AugmentedPotential | str | Path) -> Model:
    if isinstance(given, AugmentedPotential):
        return Model(given)
    return given if isinstance(given, Model) else load(given)


def _ase_results(found: dict[str, Any]) -> dict[str, Any]:
    """Results of one structure under ASE's names and in its shapes."""
    results: dict[str, Any] = {"energy": float(found["energy"][0]), "forces": found["forces"].astype(np.float64)}
    results["free_energy"] = results["energy"]
    if "stress" in found:
        results["stress"] = full_3x3_to_voigt_6_stress(found["stress"][0]).astype(np.float64)
    for name in ("dipole", "polarization", "polarizability"):
        if name in found:
            results[name] = found[name][0].astype(np.float64)
    for name in ("charges", "born_effective_charges", "induced_charges", "induced_dipoles", "field_forces"):
        if name in found:
            results[name] = found[name].astype(np.float64)
    if "energy_std" in found:
        results["energy_std"] = float(found["energy_std"][0])
        results["forces_std"] = found["forces_std"].astype(np.float64)
        if "stress_std" in found:
            results["stress_std"] = full_3x3_to_voigt_6_stress(found["stress_std"][0]).astype(np.float64)
    return results
