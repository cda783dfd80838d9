"""Dipole, polarization and quadrupole of systems from the multipoles of their atoms."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.multipoles import Multipoles


@runtime_checkable
class MultipoleModel(Protocol):
    """What the observables need of a model: multipoles with their graph, and how far an atom feels others."""

    @property
    def receptive_radius(self) -> float:
        """Distance (Å) up to which the multipoles of an atom depend on other atoms."""
        ...

    def multipoles(self, batch: AtomicBatch, *, detach_total: bool = False) -> Multipoles:
        """Latent multipoles, differentiable in ``batch.positions``.

        With ``detach_total`` a uniform shift that fixes the total charge carries no gradient (see `born_charges`).
        """
        ...

    def add_neighbors(self, batch: AtomicBatch) -> AtomicBatch:
        """Return the batch with the neighbours the model needs."""
        ...


#: From latent to physical multipoles: one number, or one per system (gauge sign times √ε).
Scale = float | Float[Tensor, " systems"]


def scale_of_atoms(batch: AtomicBatch, scale: Scale) -> Float[Tensor, " atoms"]:
    """Spread a scale of systems over their atoms, in the dtype of the positions.

    Raises
    ------
    ValueError
        If ``scale`` is a tensor, but not of shape (systems,).
    """
    if not isinstance(scale, Tensor):
        return batch.positions.new_full((batch.n_atoms,), float(scale))
    if scale.shape != (batch.n_systems,):
        raise ValueError(
            f"`scale` has shape {tuple(scale.shape)} but must be a number or have shape ({batch.n_systems},): "
            "one value for each system"
        )
    return scale.to(batch.positions)[batch.system]


def physical(batch: AtomicBatch, multipoles: Multipoles, scale: Scale = 1.0) -> Multipoles:
    """Multiply latent multipoles by the scale of their system (gauge sign and √ε)."""
    factor = scale_of_atoms(batch, scale)
    return Multipoles(
        charges=multipoles.charges * factor,
        dipoles=None if multipoles.dipoles is None else multipoles.dipoles * factor[:, None],
        quadrupoles=None if multipoles.quadrupoles is None else multipoles.quadrupoles * factor[:, None, None],
    )


def balanced_charges(batch: AtomicBatch, charges: Float[Tensor, " atoms"]) -> Float[Tensor, " atoms"]:
    """Charges with their residual spread evenly, so that each system has its total charge.

    q̃_i = q_i − (Σq − Q_tot)/N, with Q_tot = ``batch.total_charge``, 0 where it is not known. With q̃ the
    polarization of a neutral system does not depend on the origin, whatever the model's charges add up to.

    Parameters
    ----------
    batch
        The systems.
    charges
        Physical charges (e), shape (atoms,).

    Returns
    -------
    Tensor
        q̃ (e), shape (atoms,), in the dtype of ``charges``.
    """
    total = batch.sum_over_atoms(charges)
    if batch.total_charge is not None:
        total = total - batch.total_charge.to(total)
    residual = total / batch.counts.clamp(min=1).to(total)
    return charges - residual.to(charges)[batch.system]


def centres(batch: AtomicBatch) -> Float[Tensor, "systems 3"]:
    """Geometric centre of each system (Å), shape (systems, 3), float64."""
    return batch.sum_over_atoms(batch.positions) / batch.counts.clamp(min=1)[:, None]


def dipole_moment(
    batch: AtomicBatch, multipoles: Multipoles, *, origin: Literal["zero", "centre"] = "zero"
) -> Float[Tensor, "systems 3"]:
    """Dipole of each system from physical multipoles, P = Σ q̃_i r_i + Σ u_i.

    Parameters
    ----------
    batch
        The systems; positions are taken as they are, never wrapped.
    multipoles
        Physical multipoles of the atoms (e, e·Å).
    origin
        Where r is counted from: ``"zero"`` of the coordinates, or the geometric ``"centre"`` of the system. It matters
        for charged systems only.

    Returns
    -------
    Tensor
        e·Å, shape (systems, 3), float64.

    Raises
    ------
    ValueError
        If ``origin`` is neither of the two.
    """
    if origin not in ("zero", "centre"):
        raise ValueError(f"`origin` is {origin!r} but must be one of 'zero', 'centre'")
    charges = balanced_charges(batch, multipoles.charges)
    positions = batch.positions
    if origin == "centre":
        positions = positions - centres(batch)[batch.system].to(positions)
    moment = charges[:, None] * positions
    if multipoles.dipoles is not None:
        moment = moment + multipoles.dipoles
    return batch.sum_over_atoms(moment)


def quadrupole_moment(batch: AtomicBatch, multipoles: Multipoles) -> Float[Tensor, "systems 3 3"]:
    """Traceless quadrupole of each system about its geometric centre, from physical multipoles.

    Q = Σ_i [q̃_i d_i⊗d_i + u_i⊗d_i + d_i⊗u_i + Q_i] minus a third of its trace, d_i = r_i − centre: the moment that
    stands in ½ Q:∇∇, without the factor 3/2 of Buckingham's convention.

    Parameters
    ----------
    batch
        The systems; positions are taken as they are, never wrapped.
    multipoles
        Physical multipoles of the atoms (e, e·Å, e·Å²).

    Returns
    -------
    Tensor
        e·Å², shape (systems, 3, 3), symmetric and traceless, float64.
    """
    charges = balanced_charges(batch, multipoles.charges)
    arm = batch.positions - centres(batch)[batch.system].to(batch.positions)
    second = charges[:, None, None] * arm[:, :, None] * arm[:, None, :]
    if multipoles.dipoles is not None:
        cross = multipoles.dipoles[:, :, None] * arm[:, None, :]
        second = second + cross + cross.transpose(1, 2)
    if multipoles.quadrupoles is not None:
        second = second + multipoles.quadrupoles
    total = batch.sum_over_atoms(second)
    third = total.diagonal(dim1=1, dim2=2).mean(dim=1)
    return total - third[:, None, None] * torch.eye(3, dtype=total.dtype, device=total.device)


def with_neighbors(model: MultipoleModel, batch: AtomicBatch) -> AtomicBatch:
    """Return the batch as it is if it has neighbours, else with those that the model needs."""
    return batch if batch.neighbors is not None else model.add_neighbors(batch)


def dipole(
    model: MultipoleModel, batch: AtomicBatch, *, scale: Scale = 1.0, origin: Literal["zero", "centre"] = "zero"
) -> Float[Tensor, "systems 3"]:
    """Dipole moment of each system (e·Å), shape (systems, 3), float64, differentiable in positions.

    For a periodic system this is the moment of the atoms where they stand: meaningful for a molecule in a box that does
    not cross its boundary. See `dipole_moment` and, for crystals and liquids, `polarization`.

    Parameters
    ----------
    model
        A model with latent multipoles.
    batch
        The systems; neighbours are found where they are missing.
    scale
        Physical over latent multipoles: gauge sign times √ε, one number or one per system.
    origin
        As in `dipole_moment`.
    """
    batch = with_neighbors(model, batch)
    return dipole_moment(batch, physical(batch, model.multipoles(batch), scale), origin=origin)


def polarization(model: MultipoleModel, batch: AtomicBatch, *, scale: Scale = 1.0) -> Float[Tensor, "systems 3"]:
    """Polarization of each system as a cell dipole, P = Σ q̃_i r_i + Σ u_i (e·Å; divide by the volume for C/m²).

    In a periodic system only changes of P along a path of *unwrapped* positions mean something: carrying atom i across
    the cell changes P by q̃_i times a cell vector, and P is known up to such quanta. Its derivatives in periodic
    directions are those of `born_charges`, not of this sum, whose residual Σq couples all of the cell.

    Parameters
    ----------
    model, batch, scale
        As in `dipole`.

    Returns
    -------
    Tensor
        e·Å, shape (systems, 3), float64, differentiable in positions.
    """
    return dipole(model, batch, scale=scale)


def quadrupole(model: MultipoleModel, batch: AtomicBatch, *, scale: Scale = 1.0) -> Float[Tensor, "systems 3 3"]:
    """Traceless quadrupole of each system about its geometric centre (e·Å²), shape (systems, 3, 3), float64.

    Parameters
    ----------
    model, batch, scale
        As in `dipole`; the convention is that of `quadrupole_moment`.
    """
    batch = with_neighbors(model, batch)
    return quadrupole_moment(batch, physical(batch, model.multipoles(batch), scale))
