"""What induced multipoles of a batch are found with and driven by: potentials, fields, and the energy in a field."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.frames import open_projectors
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.operator import CoulombOperator
from farfield.electrostatics.susceptibility import Susceptibility


@dataclass(frozen=True, eq=False)
class Setting:
    """What the response of one batch is found with; ``arms`` are the r of F·r that acts on charges, if one does."""

    batch: AtomicBatch
    operator: CoulombOperator
    susceptibility: Susceptibility
    arms: Tensor | None


def drive_of(
    setting: Setting, potential: Tensor, gradient: Tensor | None, external_field: Tensor | None
) -> Float[Tensor, "atoms columns"]:
    """Columns of the potentials that induce: φ − F·r where the field acts on charges, and −(E + F)."""
    if external_field is not None:
        field = external_field.to(potential.dtype)[setting.batch.system]
        if setting.arms is not None:
            potential = potential - (field * setting.arms).sum(1)
        if gradient is not None:
            gradient = gradient - field
    return setting.susceptibility.join(potential, gradient)


def unit_drives(setting: Setting) -> list[Float[Tensor, "atoms columns"]]:
    """Columns of what a field of 1 V/Å along each axis induces by."""
    batch = setting.batch
    unit = torch.eye(3, dtype=batch.positions.dtype, device=batch.positions.device)
    nothing = batch.positions.new_zeros(batch.n_atoms, 3)
    return [drive_of(setting, nothing[:, 0], nothing, row.expand(batch.n_systems, 3)) for row in unit]


def field_energy(
    batch: AtomicBatch, multipoles: Multipoles, field: Tensor, total_charge: Tensor | None
) -> Float[Tensor, " systems"]:
    """−F·(Σ q̃ r + Σ u) of each system (eV), without F·Σq̃r along periodic directions.

    Parameters
    ----------
    batch, multipoles
        The systems and their permanent multipoles.
    field
        External field F (V/Å), shape (systems, 3).
    total_charge
        Q_tot in q̃ = q − (Σq − Q_tot)/N (e), shape (systems,); 0 if None.
    """
    field = field.double()
    along = torch.einsum("sab,sb->sa", open_projectors(batch), field)[batch.system]
    excess = batch.sum_over_atoms(multipoles.charges)
    if total_charge is not None:
        excess = excess - total_charge.double()
    balanced = multipoles.charges.double() - (excess / batch.counts.clamp(min=1))[batch.system]
    moments = balanced * (batch.positions.double() * along).sum(1)
    if multipoles.dipoles is not None:
        moments = moments + (multipoles.dipoles.double() * field[batch.system]).sum(1)
    return -batch.sum_over_atoms(moments)


def shares_of(setting: Setting, drive: Tensor, induced: Multipoles) -> tuple[Tensor, Tensor]:
    """Halves of ⟨g, m⟩ that belong to induced charges and to induced dipoles."""
    potential, gradient = setting.susceptibility.split(drive)
    sums = []
    for mine, what in ((induced.charges, potential), (induced.dipoles, gradient)):
        part = None if mine is None or what is None else mine.double() * what.double()
        if part is not None and part.ndim == 2:
            part = part.sum(1)
        sums.append(setting.batch.sum_over_atoms(drive.new_zeros(len(drive)) if part is None else 0.5 * part))
    return sums[0], sums[1]
