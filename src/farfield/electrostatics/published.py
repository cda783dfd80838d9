"""The published sum, as models trained with it need: a hard cutoff in k, and the constant that they were trained with.

Equations of arXiv 2408.15165 and 2605.05746, see the page on theory. New models do better with `farfield.Coulomb`: the
energy of this sum jumps whenever a cell gains or loses a k-vector, and lacks what lies beyond the cutoff.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.coulomb import Coulomb, CoulombResult
from farfield.electrostatics.group_sums import pair_energies
from farfield.electrostatics.multipoles import Multipoles, traceless
from farfield.electrostatics.plan import CoulombPlan
from farfield.units import INVERSE_TWO_EPSILON_0

#: Whether a wave on the cutoff belongs to the sum must not hang on rounding, nor differ between waves of one length.
_ROUNDING = 1e-9


class PublishedCoulomb(Coulomb):
    """The sum of models made with the library ``les``: with its constant, its cutoff, its self energies.

    Systems that are periodic along all axes are summed over 0 < |k| ≤ 2π/dl, E = c Σ exp(−σ²k²/2)/k² |S(k)|²/V less the
    self energies. All others are summed as `Coulomb` does, times c·2ε₀: the publications know no slabs and wires.

    Parameters
    ----------
    smearing
        σ (Å).
    dl
        Resolution (Å) that the cutoff follows from. None: the smooth cutoff of `Coulomb`.
    norm_factor
        c = 1/(2ε₀) (eV·Å/e²); 90.0474 in models from before 2026-04.
    self_interaction, accuracy
        As in `Coulomb`; the accuracy is that of what is not summed over the hard cutoff.

    Raises
    ------
    ValueError
        If ``dl`` or ``norm_factor`` is not positive, or as `Coulomb`.
    """

    def __init__(
        self,
        smearing: float = 1.0,
        *,
        dl: float | None = 2.0,
        norm_factor: float = INVERSE_TWO_EPSILON_0,
        self_interaction: bool = False,
        accuracy: float = 1e-4,
    ) -> None:
        super().__init__(smearing, accuracy=accuracy, self_interaction=self_interaction)
        for name, value in (("dl", dl), ("norm_factor", norm_factor)):
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` is {value} but must be positive")
        self.sigma, self.dl, self.norm_factor = float(smearing), dl, float(norm_factor)
        # self energies are taken off all systems at once where there is a hard cutoff
        self._other = Coulomb(smearing, accuracy=accuracy, self_interaction=self_interaction or dl is not None)

    def config(self) -> dict[str, Any]:
        """Arguments that build the same solver, as plain values."""
        return {
            "smearing": self.sigma, "dl": self.dl, "norm_factor": self.norm_factor,
            "self_interaction": self.self_interaction, "accuracy": self.accuracy,
        }  # fmt: skip

    def __call__(
        self, batch: AtomicBatch, multipoles: Multipoles, plan: CoulombPlan | None = None, outputs: str = "all"
    ) -> CoulombResult:
        """Sum the interactions of a batch: as `Coulomb`, but that a plan is not used.

        Without quadrupoles there is no field gradient where there is a hard cutoff. Raises as `Coulomb` does.
        """
        factor = self.norm_factor / INVERSE_TWO_EPSILON_0
        if self.dl is None:
            out = self._other(batch, multipoles, outputs=outputs)
            return CoulombResult(
                factor * out.energy,
                *(None if part is None else factor * part for part in (out.potential, out.field, out.field_gradient)),
                _find_atom_energies=lambda: factor * out.atom_energies,
            )
        if outputs == "energy":
            energy = self._truncated(batch, multipoles, factor)
            return CoulombResult(energy, _find_atom_energies=lambda: self(batch, multipoles).atom_energies)
        with torch.enable_grad():
            leaves = _with_leaves(batch, multipoles)
            energy = self._truncated(batch, leaves, factor)
            given = [part for part in (leaves.charges, leaves.dipoles, leaves.quadrupoles) if part is not None]
            potential, gradient, *rest = torch.autograd.grad(energy.sum(), given, create_graph=True)
            second = 2.0 * traceless(0.5 * (rest[0] + rest[0].mT)) if rest else None
        if not torch.is_grad_enabled():
            energy, potential, gradient = energy.detach(), potential.detach(), gradient.detach()
            second = None if second is None else second.detach()
        shares = pair_energies(multipoles, potential, gradient, second)
        return CoulombResult(
            energy, potential, -gradient, None if second is None else -second, _find_atom_energies=lambda: shares
        )

    def operator(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: only the whole sum is here.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError("`PublishedCoulomb` gives no operator: use `Coulomb`")

    def _truncated(self, batch: AtomicBatch, multipoles: Multipoles, factor: float) -> Tensor:
        inside = batch.pbc.all(1)
        energy = self.norm_factor * truncated_energy(
            batch, multipoles, smearing=self.sigma, dl=float(self.dl or 0.0), keep_self=self.self_interaction
        )
        energy = energy.double()
        if bool(inside.all()):
            return energy
        # the others; systems that are done take part without multipoles, as open ones
        done = inside[batch.system]
        dipoles, quadrupoles = multipoles.dipoles, multipoles.quadrupoles
        kept = Multipoles(
            torch.where(done, 0.0, multipoles.charges),
            None if dipoles is None else torch.where(done[:, None], 0.0, dipoles),
            None if quadrupoles is None else torch.where(done[:, None, None], 0.0, quadrupoles),
        )
        apart = batch.replace(pbc=batch.pbc & ~inside[:, None])
        return energy + factor * self._other(apart, kept, outputs="energy").energy


def _with_leaves(batch: AtomicBatch, multipoles: Multipoles) -> Multipoles:
    """Multipoles that derivatives can be taken by, plus zeros that require a gradient; dipoles in any case."""

    def leaf(given: Tensor | None, *shape: int) -> Tensor:
        added = batch.positions.new_zeros(batch.n_atoms, *shape).requires_grad_()
        return added if given is None else given + added

    quadrupoles = multipoles.quadrupoles
    return Multipoles(
        leaf(multipoles.charges),
        leaf(multipoles.dipoles, 3),
        None if quadrupoles is None else leaf(quadrupoles, 3, 3),
    )


def truncated_energy(
    batch: AtomicBatch, multipoles: Multipoles, *, smearing: float, dl: float, keep_self: bool
) -> Float[Tensor, " systems"]:
    """Σ over 0 < |k| ≤ 2π/dl of exp(−σ²k²/2)/k² |S(k)|²/V of systems periodic along all axes, for 1/(2ε₀) = 1.

    Parameters
    ----------
    batch, multipoles
        The systems and what their atoms carry.
    smearing
        σ (Å).
    dl
        Resolution (Å) that the cutoff follows from.
    keep_self
        Keep the interaction of each Gaussian with itself.

    Returns
    -------
    Tensor
        Shape (systems,), e²/Å, in the dtype of the positions; 0 for systems that are open.
    """
    energies = []
    for system in range(batch.n_systems):
        if not bool(batch.pbc[system].all()):
            energies.append(batch.positions.new_zeros(()))
            continue
        atoms = (batch.system == system).nonzero()[:, 0]
        energies.append(
            _energy_of_one(batch.positions[atoms], batch.cell[system], _part(multipoles, atoms), smearing, dl)
        )
    energy = torch.stack(energies)
    return energy if keep_self else energy - self_energy(batch, multipoles, smearing)


def _part(multipoles: Multipoles, atoms: Tensor) -> Multipoles:
    dipoles, quadrupoles = multipoles.dipoles, multipoles.quadrupoles
    return Multipoles(
        multipoles.charges[atoms],
        None if dipoles is None else dipoles[atoms],
        None if quadrupoles is None else quadrupoles[atoms],
    )


def _energy_of_one(positions: Tensor, cell: Tensor, multipoles: Multipoles, smearing: float, dl: float) -> Tensor:
    waves = half_sphere(cell, dl).to(cell.dtype) @ (2.0 * math.pi * torch.linalg.inv(cell).mT)
    squares = waves.square().sum(1)
    phases = positions @ waves.mT
    even: Tensor = multipoles.charges[:, None]
    if multipoles.quadrupoles is not None:
        even = even - 0.5 * torch.einsum("kx,axy,ky->ak", waves, multipoles.quadrupoles, waves)
    odd = 0.0 if multipoles.dipoles is None else multipoles.dipoles @ waves.mT
    cosine, sine = phases.cos(), phases.sin()
    real, imaginary = (even * cosine - odd * sine).sum(0), (even * sine + odd * cosine).sum(0)
    weights = 2.0 * torch.exp(-0.5 * smearing**2 * squares) / squares
    return (weights * (real.square() + imaginary.square())).sum() / torch.linalg.det(cell).abs()


@torch.no_grad()
def half_sphere(cell: Float[Tensor, "3 3"], dl: float) -> Int[Tensor, "waves 3"]:
    """Integers h of the vectors k = 2π h·A⁻ᵀ with 0 < |k| ≤ 2π/dl, one of each pair ±k."""
    # h = k·a/2π for each cell vector a
    limit = (1.0 + _ROUNDING) / dl
    reach = [int(length * limit) for length in cell.norm(dim=1).tolist()]
    ranges = [torch.arange(-n, n + 1, device=cell.device) for n in reach]
    h = torch.cartesian_prod(*ranges)
    h = h[len(h) // 2 + 1 :]  # the list is symmetric about 0
    lengths = (h.double() @ torch.linalg.inv(cell.double()).mT).norm(dim=1)
    return h[lengths <= limit]


def self_energy(batch: AtomicBatch, multipoles: Multipoles, smearing: float) -> Float[Tensor, " systems"]:
    """k_e/√(2π) Σ [q²/σ + u²/(3σ³) + Q:Q/(10σ⁵)] for 1/(2ε₀) = 2π k_e = 1, shape (systems,), e²/Å."""
    atoms = multipoles.charges.square() / smearing
    if multipoles.dipoles is not None:
        atoms = atoms + multipoles.dipoles.square().sum(1) / (3.0 * smearing**3)
    if multipoles.quadrupoles is not None:
        atoms = atoms + multipoles.quadrupoles.square().sum((1, 2)) / (10.0 * smearing**5)
    total = atoms.new_zeros(batch.n_systems).index_add(0, batch.system, atoms)
    return total / (2.0 * math.pi) ** 1.5
