"""Pair repulsion at very short distances (Ziegler, Biersack, Littmark)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.neighbors import bond_vectors
from farfield.potentials.radial import polynomial_cutoff
from farfield.units import BOHR, COULOMB_CONSTANT


def zbl_energy(batch: AtomicBatch, cutoff: float = 1.5) -> Float[Tensor, " systems"]:
    """Screened nuclear repulsion of each system (eV), shape (systems,), brought smoothly to zero at ``cutoff`` (Å).

    ½ Σ k_e Z_i Z_j/r φ(r/a), a = 0.8854 a₀/(Z_i^0.23 + Z_j^0.23), φ the universal screening function (Ziegler,
    Biersack, Littmark, The Stopping and Range of Ions in Solids, 1985).

    Raises
    ------
    ValueError
        If the batch has no neighbours.
    """
    vectors = bond_vectors(batch)
    pairs = batch.neighbors
    assert pairs is not None  # bond_vectors has refused that
    inside = vectors.detach().square().sum(-1) < cutoff**2
    i, j = pairs.i[inside], pairs.j[inside]
    r = vectors[inside].square().sum(-1).sqrt()
    charges = batch.numbers.to(r.dtype)
    length = 0.8854 * BOHR / (charges[i] ** 0.23 + charges[j] ** 0.23)
    x = r / length
    screening = (
        0.1818 * torch.exp(-3.2 * x)
        + 0.5099 * torch.exp(-0.9423 * x)
        + 0.2802 * torch.exp(-0.4029 * x)
        + 0.02817 * torch.exp(-0.2016 * x)
    )
    energies = 0.5 * COULOMB_CONSTANT * charges[i] * charges[j] / r * screening * polynomial_cutoff(r, cutoff)
    total = torch.zeros(batch.n_systems, dtype=torch.float64, device=r.device)
    return total.index_add(0, batch.system[i], energies.double())
