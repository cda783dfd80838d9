"""A small smooth model with latent multipoles, energies and nothing to train: fast enough to test laws with."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.neighbors import bond_vectors, find_neighbors
from farfield.electrostatics.multipoles import Multipoles


class FakeModel(nn.Module):
    """Charges and dipoles that neighbours within a short cutoff induce, on top of one charge for each element.

    With ``layers=2`` charges also feel the neighbours' neighbours. ``constraint`` moves the charges evenly to the total
    charge of the batch. ``pairwise`` charges are only passed on from one atom to another, and so add up to zero.
    """

    def __init__(
        self,
        cutoff: float = 2.5,
        *,
        layers: int = 1,
        dipoles: bool = True,
        constraint: bool = False,
        pairwise: bool = False,
        strength: float = 0.3,
    ) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.layers = layers
        self.with_dipoles = dipoles
        self.constraint = constraint
        self.pairwise = pairwise
        self.strength = nn.Parameter(torch.tensor(strength, dtype=torch.float64))
        number = torch.arange(119, dtype=torch.float64)
        self.register_buffer("element_charge", 0.4 * torch.sin(0.7 * number + 0.3))
        self.register_buffer("giving", torch.cos(1.3 * number))

    @property
    def receptive_radius(self) -> float:
        return self.cutoff * self.layers

    def add_neighbors(self, batch: AtomicBatch) -> AtomicBatch:
        return find_neighbors(batch, self.cutoff)

    def multipoles(self, batch: AtomicBatch, *, detach_total: bool = False) -> Multipoles:
        pairs = batch.neighbors
        assert pairs is not None
        vectors = bond_vectors(batch)
        x = vectors.norm(dim=1) / self.cutoff
        weight = torch.where(x < 1, (1 - x**2).clamp(min=0) ** 4, torch.zeros_like(x))
        own = self.element_charge[batch.numbers].to(vectors) * (0.0 if self.pairwise else 1.0)
        giving = self.giving[batch.numbers].to(vectors)
        strength = self.strength.to(vectors)
        charges = own
        for _ in range(self.layers):
            gift = giving[pairs.j] - (1.0 if self.pairwise else 0.5) * giving[pairs.i]
            message = strength * weight * (gift if self.pairwise else gift + charges[pairs.j] ** 2)
            charges = own + torch.zeros_like(own).index_add(0, pairs.i, message)
        if self.constraint:
            assert batch.total_charge is not None
            excess = (batch.sum_over_atoms(charges) - batch.total_charge.double()) / batch.counts
            excess = excess.detach() if detach_total else excess
            charges = charges - excess.to(charges)[batch.system]
        dipoles = None
        if self.with_dipoles:
            push = 0.2 * (weight * giving[pairs.j])[:, None] * vectors
            dipoles = torch.zeros_like(batch.positions).index_add(0, pairs.i, push)
        return Multipoles(charges, dipoles, self._quadrupoles(batch, vectors, weight) if self.with_dipoles else None)

    @staticmethod
    def _quadrupoles(batch: AtomicBatch, vectors: Tensor, weight: Tensor) -> Tensor:
        assert batch.neighbors is not None
        square = vectors[:, :, None] * vectors[:, None, :]
        square = square - vectors.square().sum(1)[:, None, None] / 3 * torch.eye(3).to(vectors)
        zero = vectors.new_zeros(batch.n_atoms, 3, 3)
        return zero.index_add(0, batch.neighbors.i, 0.1 * weight[:, None, None] * square)


def molecule(n_atoms: int = 6, seed: int = 0, charge: float | None = None, size: float = 1.6) -> AtomicBatch:
    """Return an open system of a few atoms at random places."""
    generator = torch.Generator().manual_seed(seed)
    positions = size * torch.randn(n_atoms, 3, generator=generator, dtype=torch.float64)
    numbers = torch.randint(1, 10, (n_atoms,), generator=generator)
    return AtomicBatch(
        positions=positions,
        numbers=numbers,
        cell=torch.zeros(1, 3, 3, dtype=torch.float64),
        pbc=torch.zeros(1, 3, dtype=torch.bool),
        system=torch.zeros(n_atoms, dtype=torch.int64),
        total_charge=None if charge is None else torch.tensor([charge], dtype=torch.float64),
    )


#: Oblique and left-handed; its smallest perpendicular height is 6.4 Å.
TRICLINIC = torch.tensor([[7.5, 0.0, 0.6], [2.1, -7.2, 0.3], [-1.0, 0.8, 6.6]], dtype=torch.float64)


def crystal(
    n_atoms: int = 12, seed: int = 0, cell: Tensor | None = None, pbc: tuple[bool, bool, bool] = (True, True, True)
) -> AtomicBatch:
    """Return a periodic system of random atoms, some of them outside the home cell."""
    generator = torch.Generator().manual_seed(seed)
    cell = TRICLINIC if cell is None else cell
    fractions = 1.3 * torch.rand(n_atoms, 3, generator=generator, dtype=torch.float64) - 0.2
    return AtomicBatch(
        positions=fractions @ cell,
        numbers=torch.randint(1, 10, (n_atoms,), generator=generator),
        cell=cell[None],
        pbc=torch.tensor([pbc]),
        system=torch.zeros(n_atoms, dtype=torch.int64),
    )


def replicated(batch: AtomicBatch, times: tuple[int, int, int] = (2, 2, 2)) -> AtomicBatch:
    """Return the supercell of a batch of one system; its first atoms are the original ones."""
    grid = torch.cartesian_prod(*[torch.arange(n) for n in times]).to(batch.positions)
    offsets = grid @ batch.cell[0]
    n = batch.n_atoms
    return AtomicBatch(
        positions=(offsets[:, None, :] + batch.positions[None]).reshape(-1, 3),
        numbers=batch.numbers.repeat(len(grid)),
        cell=batch.cell * torch.tensor(times).to(batch.cell)[None, :, None],
        pbc=batch.pbc,
        system=torch.zeros(n * len(grid), dtype=torch.int64),
        total_charge=None if batch.total_charge is None else batch.total_charge * len(grid),
    )
