"""The Coulomb solver: energy, potential, field and field gradient of Gaussian multipoles in batches of any systems."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.checks import (
    check_batch_shapes,
    check_batch_values,
    check_multipole_shapes,
    check_multipole_values,
)
from farfield.electrostatics.cutoff import reduced_cutoff, self_factors
from farfield.electrostatics.ewald import EwaldGeometry
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.open_sum import OpenGeometry
from farfield.electrostatics.plan import CoulombPlan, EwaldGroup, OpenGroup, make_plan
from farfield.units import COULOMB_CONSTANT

_BACKGROUNDS = ("gaussian", "point")
_METHODS = ("auto", "open", "ewald")
_OUTPUTS = ("all", "energy")


@dataclass(frozen=True, eq=False)
class CoulombResult:
    """What `Coulomb` gives; everything is differentiable twice in positions, cell and multipoles.

    Attributes
    ----------
    energy
        Energy of each system (eV), shape (systems,), float64.
    atom_energies
        Share of each atom (eV), shape (atoms,); they sum to the energy.
    potential
        ∂E/∂q: potential of the other atoms at each atom (V), shape (atoms,). None with ``outputs="energy"``.
    field
        −∂E/∂u: electric field of the other atoms (V/Å), shape (atoms, 3). None with ``outputs="energy"``.
    field_gradient
        −2 ∂E/∂Q = −∇∇φ without its trace (V/Å²), shape (atoms, 3, 3). None with ``outputs="energy"``.
    """

    energy: Float[Tensor, " systems"]
    atom_energies: Float[Tensor, " atoms"]
    potential: Float[Tensor, " atoms"] | None = None
    field: Float[Tensor, "atoms 3"] | None = None
    field_gradient: Float[Tensor, "atoms 3 3"] | None = None


def _traceless(matrix: Tensor) -> Tensor:
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    return matrix - torch.eye(3, dtype=matrix.dtype, device=matrix.device) * (trace / 3.0)[..., None, None]


class Coulomb:
    """Sum the Coulomb interaction of Gaussian charges, dipoles and quadrupoles (docs to come; PHYSICS.md §1)."""

    def __init__(
        self,
        smearing: float | Float[Tensor, " systems"] = 1.0,
        *,
        accuracy: float = 1e-4,
        background: str = "gaussian",
        self_interaction: bool = False,
        method: str = "auto",
    ) -> None:
        if isinstance(smearing, Tensor):
            smearing = smearing.detach().to("cpu", torch.float64)
            wrong = ~(torch.isfinite(smearing) & (smearing > 0))
            if smearing.ndim != 1 or bool(wrong.any()):
                raise ValueError(
                    f"`smearing` is {smearing.tolist()} but must be positive, one number or one per system (Å)"
                )
        elif not (math.isfinite(smearing) and smearing > 0):
            raise ValueError(f"`smearing` is {smearing} but must be positive (Å)")
        if not 1e-12 <= accuracy <= 0.1:
            raise ValueError(f"`accuracy` is {accuracy} but must lie between 1e-12 and 0.1 (relative RMS force error)")
        for name, value, allowed in (("background", background, _BACKGROUNDS), ("method", method, _METHODS)):
            if value not in allowed:
                raise ValueError(f"`{name}` is {value!r} but must be one of {', '.join(map(repr, allowed))}")
        self.smearing = smearing
        self.accuracy = float(accuracy)
        self.background = background
        self.self_interaction = bool(self_interaction)
        self.method = method

    def config(self) -> dict[str, Any]:
        """Arguments that build the same solver, as plain values."""
        smearing = self.smearing.tolist() if isinstance(self.smearing, Tensor) else float(self.smearing)
        return {
            "smearing": smearing,
            "accuracy": self.accuracy,
            "background": self.background,
            "self_interaction": self.self_interaction,
            "method": self.method,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Coulomb:
        """Build a solver from what `config` gives."""
        config = dict(config)
        smearing = config.pop("smearing", 1.0)
        if isinstance(smearing, list):
            smearing = torch.tensor(smearing, dtype=torch.float64)
        return cls(smearing, **config)

    def __repr__(self) -> str:
        return f"Coulomb({', '.join(f'{name}={value!r}' for name, value in self.config().items())})"

    def prepare(self, batch: AtomicBatch) -> CoulombPlan:
        """Check a batch and settle how it will be summed. Takes no part in gradients; may synchronize the device."""
        check_batch_shapes(batch)
        check_batch_values(batch)
        periodic = batch.pbc.all(dim=1)
        for method, wrong, kind in (("open", periodic, "periodic"), ("ewald", ~periodic, "open")):
            if self.method == method and bool(wrong.any()):
                raise ValueError(
                    f"`method` is {method!r} but system {int(wrong.nonzero()[0])} is {kind}: use method='auto' or change `pbc`"
                )
        if isinstance(self.smearing, Tensor):
            if len(self.smearing) != batch.n_systems:
                raise ValueError(
                    f"`smearing` has {len(self.smearing)} values but the batch has {batch.n_systems} systems: give one each"
                )
            smearing = self.smearing.numpy()
        else:
            smearing = np.full(batch.n_systems, float(self.smearing))
        return make_plan(batch, smearing, self.accuracy)

    def __call__(
        self,
        batch: AtomicBatch,
        multipoles: Multipoles,
        plan: CoulombPlan | None = None,
        outputs: str = "all",
    ) -> CoulombResult:
        """Sum the interactions of a batch."""
        if outputs not in _OUTPUTS:
            raise ValueError(f"`outputs` is {outputs!r} but must be one of {', '.join(map(repr, _OUTPUTS))}")
        if plan is None:
            plan = self.prepare(batch)
            check_multipole_shapes(multipoles, batch.positions)
            check_multipole_values(multipoles)
        else:
            check_batch_shapes(batch)
            check_multipole_shapes(multipoles, batch.positions)
            if (plan.n_atoms, plan.n_systems) != (batch.n_atoms, batch.n_systems):
                raise ValueError(
                    f"`plan` was prepared for {plan.n_atoms} atoms in {plan.n_systems} systems but the batch has {batch.n_atoms} "
                    f"in {batch.n_systems}: call prepare(batch) again"
                )
        charges, dipoles, quadrupoles = multipoles.charges, multipoles.dipoles, multipoles.quadrupoles
        order = 2 if quadrupoles is not None else 1 if dipoles is not None else 0
        levels = 3 if outputs == "all" else order + 1

        parts = [self._group(group, batch, charges, dipoles, quadrupoles, order, levels) for group in plan.groups]

        def collect(index: int) -> Tensor | None:
            values = [part[index] for part in parts]
            if not values:
                return charges.new_zeros((0, *[3] * index))
            if values[0] is None:
                return None
            joined = values[0] if len(values) == 1 else torch.cat(values)
            return joined if plan.order is None else joined.index_select(0, plan.order)

        potential, gradient, second = collect(0), collect(1), collect(2)
        atom_energies = charges * potential
        if dipoles is not None:
            atom_energies = atom_energies + (dipoles * gradient).sum(-1)
        if quadrupoles is not None:
            atom_energies = atom_energies + 0.5 * (quadrupoles * second).sum((-2, -1))
        atom_energies = 0.5 * atom_energies
        energy = batch.sum_over_atoms(atom_energies)
        if outputs == "energy":
            return CoulombResult(energy=energy, atom_energies=atom_energies)
        return CoulombResult(
            energy=energy,
            atom_energies=atom_energies,
            potential=potential,
            field=-gradient,
            field_gradient=-second,
        )

    def _group(
        self,
        group: OpenGroup | EwaldGroup,
        batch: AtomicBatch,
        charges: Tensor,
        dipoles: Tensor | None,
        quadrupoles: Tensor | None,
        order: int,
        levels: int,
    ) -> list[Tensor | None]:
        """Potential, gradient and traceless second derivatives at the atoms of one group, by the self-interaction rule."""
        pad = group.padding
        positions = pad.gather(batch.positions)
        q = pad.gather(charges)
        u = None if dipoles is None else pad.gather(dipoles)
        t = None if quadrupoles is None else pad.gather(quadrupoles)
        sigma = group.smearing.to(q.dtype)[:, None]
        if isinstance(group, OpenGroup):
            geometry = OpenGeometry(positions, group.smearing, order + levels - 1)
            value, gradient, second = geometry.potential(q, u, t, levels)
            share = (1.0, 1.0, 1.0) if self.self_interaction else None
        else:
            cell = batch.cell.index_select(0, pad.systems)
            cutoff = reduced_cutoff(self.accuracy, order)
            ewald = EwaldGeometry(
                positions, cell, group.basis, group.smearing, group.ranges[order], cutoff, order + 1, levels
            )
            value, gradient, second = ewald.potential(ewald.structure(q, u, t))
            if self.background == "point":
                volume = torch.linalg.det(cell.double()).abs()
                shift = (-2.0 * math.pi * COULOMB_CONSTANT * group.smearing**2 / volume).to(q.dtype)
                value = value + (shift * q.sum(1))[:, None]
            share = None if self.self_interaction else tuple(-f for f in self_factors(self.accuracy, order))
        if second is not None:
            second = _traceless(second)
        if share is not None:
            # E_self = k_e/√(2π) [q²/σ + u²/3σ³ + Q:Q/10σ⁵]; these are its derivatives in q, u and, as ∇∇φ, twice in Q.
            unit = 2.0 * COULOMB_CONSTANT / math.sqrt(2.0 * math.pi)
            value = value + share[0] * unit * q / sigma
            if u is not None and gradient is not None:
                gradient = gradient + (share[1] * unit / 3.0) * u / sigma[..., None] ** 3
            if t is not None and second is not None:
                second = second + (share[2] * unit / 5.0) * t / sigma[..., None, None] ** 5
        return [None if block is None else pad.release(block) for block in (value, gradient, second)]
