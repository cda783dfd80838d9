"""Systems with permanent multipoles and a response, in every boundary condition, and their energy in pieces."""

from __future__ import annotations

import torch
from electrostatic_systems import TRICLINIC, random_multipoles, random_system
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.response import LinearResponse, ResponseResult
from farfield.electrostatics.susceptibility import Response

BOUNDARIES = {
    "bulk": (TRICLINIC, (True, True, True)),
    "left-handed": (TRICLINIC[[1, 0, 2]], (True, True, True)),
    "slab": (TRICLINIC, (True, False, True)),
    "wire": (TRICLINIC, (False, False, True)),
    "open": (None, (False, False, False)),
}
#: Order of the permanent multipoles, whether charges are induced, and what polarizability there is.
MODELS = {
    "q+k": (0, True, None),
    "q+a": (0, False, "isotropic"),
    "q+A": (0, False, "anisotropic"),
    "q+u+k+a": (1, True, "isotropic"),
    "q+u+Q+k+A": (2, True, "anisotropic"),
}
MODES = ("one-shot", "scf")


def system_of(boundary: str, atoms: int = 4, seed: int = 0) -> AtomicBatch:
    """Atoms at random, charged, with the boundary of that name."""
    cell, pbc = BOUNDARIES[boundary]
    batch = random_system(atoms, cell, seed=seed, size=4.0)
    return batch.replace(pbc=torch.tensor([pbc]))


def random_response(atoms: int, softness: bool, polarizability: str | None, seed: int = 0) -> Response:
    """κ and α of usual size: positive definite interactions at σ = 1 Å."""
    generator = torch.Generator().manual_seed(50 + seed)
    kappa = 0.04 * torch.rand(atoms, generator=generator, dtype=torch.float64) if softness else None
    if polarizability is None:
        return Response(kappa, None)
    root = 0.15 * torch.randn(atoms, 3, 3, generator=generator, dtype=torch.float64)
    alpha = root @ root.mT
    return Response(kappa, alpha if polarizability == "anisotropic" else alpha.diagonal(dim1=1, dim2=2).mean(1))


def given(model: str, atoms: int = 4, seed: int = 0) -> tuple[Multipoles, Response]:
    """Multipoles and response of the model of that name."""
    order, softness, polarizability = MODELS[model]
    return random_multipoles(atoms, order, seed), random_response(atoms, softness, polarizability, seed)


def solver(mode: str, *, accuracy: float = 1e-4, **options: object) -> LinearResponse:
    """Response with a tight tolerance."""
    return LinearResponse(Coulomb(1.0, accuracy=accuracy), mode=mode, tolerance=1e-11, **options)


def across(batch: AtomicBatch) -> Tensor:
    """Projector on the open directions of one system: what the span of its periodic vectors leaves."""
    periodic = batch.cell[0][batch.pbc[0]]
    return torch.eye(3, dtype=torch.float64) - torch.linalg.pinv(periodic) @ periodic


def functional(
    coulomb: Coulomb,
    batch: AtomicBatch,
    multipoles: Multipoles,
    response: Response,
    induced: Multipoles,
    field: Tensor,
) -> Tensor:
    """W of one system less −F·P_perm, from the sum over all multipoles and the cost of inducing some of them.

    The field acts on induced charges along open directions alone.
    """
    dipoles = multipoles.dipoles
    if induced.dipoles is not None:
        dipoles = induced.dipoles if dipoles is None else dipoles + induced.dipoles
    total = Multipoles(multipoles.charges + induced.charges, dipoles, multipoles.quadrupoles)
    energy = coulomb(batch, total).energy[0]
    if response.softness is not None:
        energy = energy + 0.5 * (induced.charges**2 / response.softness).sum()
        energy = energy - induced.charges @ (batch.positions @ across(batch) @ field)
    if response.polarizability is not None:
        alpha = response.polarizability
        u = induced.dipoles
        cost = u / alpha[:, None] if alpha.ndim == 1 else torch.linalg.solve(alpha, u)
        energy = energy + 0.5 * (u * cost).sum() - (u @ field).sum()
    return energy


def values(result: ResponseResult) -> list[Tensor]:
    """Everything that a result holds."""
    found = (
        result.energy, result.permanent_energy, result.response_energy, result.field_energy, result.charge_energy,
        result.dipole_energy, result.potential, result.field, result.induced.charges, result.induced.dipoles,
    )  # fmt: skip
    return [value for value in found if value is not None]
