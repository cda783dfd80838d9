"""Where the reciprocal sum ends: the cutoff from the accuracy asked for, and the smooth switch to zero before it.

A sum cut sharply jumps whenever a change of the cell moves a vector k through the cutoff. Here the Gaussian factor is
multiplied by a switch that goes from 1 to 0 with three continuous derivatives, so that energy, forces and stress are
continuous and differentiable functions of the cell.

In a large cell the cutoff is a constant: waves of all lengths are there, and the force that lies beyond it is a fixed
share of the whole. A cell of few σ has no long waves. The force is then what little its shortest waves carry, and the
same share of *that* lies further out: where σ|k| ≥ x carry a share exp(−x²/2) of what the waves from k = 0 on carry, it
takes x² + σ²k_min² to leave out only that share of what those from k_min on carry. What is added to the square of the
cutoff has to be a smooth function of the cell, too, and of the lattice rather than of the vectors that describe it;
also, a direction along which the cell is short needs it even if others are long (the waves along a flat sheet of ions
are all there is). `short_cell` sums over short lattice vectors R: each makes waves of 2π/R and longer along it.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from farfield.electrostatics.graphs import constant

#: The switch acts on SWITCH_START · cutoff ≤ |k| ≤ cutoff.
SWITCH_START = 0.92

#: Lattice vectors longer than this many σ leave the cutoff as it is.
SHORT = 8.0

#: Factor on (2π/R)² in `short_cell`: a single short vector R has to reach k_min = 2π/R below the start of the switch.
_SHORT_FACTOR = 1.5

#: Measured ratio of the relative RMS force error to `_tail` for charges, dipoles and quadrupoles, with a margin, at
#: σ = 1 Å: the worst of liquid water (whose neutral molecules cancel most of the long waves, and with them of the
#: force: 8 for charges), molten salt and random points (1 to 1.5). Between 0.7 and 2 Å it grows at most as these powers
#: of max(σ, 1/σ).
_RATIO = (9.5, 2.0, 1.6)
_POWER = (2, 1, 1)

#: Forces of N atoms may err by a factor 1 + this/N more: with few, those of a pair may nearly cancel.
_FEW = 3.0


def _tail(x: float, order: int) -> float:
    """Share of the RMS force that lies beyond σ|k| = x for uncorrelated multipoles of an order.

    Forces between multipoles of order l have the spectrum k^{4l} exp(−σ²k²), so this is the square root of the
    regularized incomplete gamma function Γ(2l+½, x²)/Γ(2l+½). Forces between them and lower ones, where there are any,
    end earlier.
    """
    argument = torch.tensor([2 * order + 0.5, x * x], dtype=torch.float64)
    return math.sqrt(float(torch.special.gammaincc(argument[0], argument[1])))


@functools.lru_cache(maxsize=4096)
def reduced_cutoff(accuracy: float, order: int, smearing: float, atoms: int) -> float:
    """Cutoff σ|k| at which the relative RMS force error reaches ``accuracy`` in a large cell.

    Parameters
    ----------
    accuracy
        Relative RMS error of the forces.
    order
        Highest multipoles in the sum: 0 charges, 1 dipoles, 2 quadrupoles.
    smearing
        σ (Å).
    atoms
        Number of atoms, at least one.
    """
    ratio = _RATIO[order] * max(smearing, 1.0 / smearing) ** _POWER[order] * (1.0 + _FEW / atoms)
    low, high = 0.0, 40.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _tail(middle, order) * ratio > accuracy:
            low = middle
        else:
            high = middle
    # The switch takes about half of what lies between its start and its end.
    return high / (0.5 * (1.0 + SWITCH_START))


def switch(squared: Tensor) -> Tensor:
    """Smooth step of (|k|/cutoff)²: 1 up to SWITCH_START², 0 from 1 on, with three continuous derivatives."""
    start = SWITCH_START**2
    t = (squared * (1.0 / (1.0 - start)) - start / (1.0 - start)).clamp(0.0, 1.0)
    # 1 − t⁴ (35 − 84 t + 70 t² − 20 t³), in few passes over the array
    minus_84, one, thirty_five = constant(((-84.0,), (1.0,), (35.0,)), t).unbind()
    polynomial = torch.addcmul(minus_84, torch.rsub(t, 70.0, alpha=20.0), t)
    polynomial = torch.addcmul(thirty_five, polynomial, t)
    t2 = t * t
    return torch.addcmul(one, polynomial * t2, t2, value=-1.0)


def short_vectors(cells: np.ndarray, smearing: np.ndarray) -> np.ndarray | None:
    """Find the indices of lattice vectors, one of each pair ±R, that are shorter than `SHORT` σ in some cell.

    Parameters
    ----------
    cells
        Cells as rows, padded along open directions (Å), shape (cells, 3, 3).
    smearing
        σ of each (Å), shape (cells,).

    Returns
    -------
    ndarray or None
        Integers, shape (vectors, 3); None if there are none.
    """
    # R = n A has n_a = R·b_a/2π, so |n_a| ≤ |R| |b_a|/2π, with the columns of A⁻¹ as b_a/2π.
    widest = SHORT * (smearing[:, None] * np.linalg.norm(np.linalg.inv(cells), axis=1)).max(0)
    if widest.max() < 1.0:
        return None
    axes = [np.arange(-int(n), int(n) + 1) for n in widest]
    n = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    n = n[len(n) // 2 + 1 :]  # the other half are their opposites; between them 0
    lengths = np.linalg.norm(n @ cells, axis=2) / smearing[:, None]
    near = (lengths < SHORT).any(0)
    return n[near].astype(float) if near.any() else None


def short_cell(cutoff: Tensor, cell: Tensor, smearing: Tensor, vectors: Tensor | None) -> Tensor:
    """Cutoff σ|k| in cells that may be short: c² + Σ_R h(R/σ), h(r) = 1.5 (2π/r)² (1 − r²/8²)⁴ where r < 8.

    Parameters
    ----------
    cutoff
        c, that in a large cell, shape (…, members).
    cell
        Cells as rows, padded along open directions (Å), float64, shape (members, 3, 3).
    smearing
        σ (Å), shape (members,).
    vectors
        What `short_vectors` gives.

    Returns
    -------
    Tensor
        The cutoff, as differentiable as the switch, shape (…, members).
    """
    if vectors is None:
        return cutoff
    squared = (vectors @ cell).square().sum(-1) / smearing[:, None] ** 2
    share = (1.0 - squared / SHORT**2).clamp(min=0.0) ** 4
    return torch.sqrt(cutoff**2 + _SHORT_FACTOR * (2.0 * math.pi) ** 2 * (share / squared).sum(1))


def switched_nodes(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes on 0 … 1 and weights of a quadrature of what is even and smooth times the switch, which is in the weights.

    The midpoint rule is as good as any there: all odd derivatives vanish at 0, three derivatives at 1.
    """
    count = 200
    nodes = (torch.arange(count, dtype=like.dtype, device=like.device) + 0.5) * (1.0 / count)
    return nodes, switch(nodes * nodes) * (1.0 / count)


def self_factors(cutoff: Tensor) -> Tensor:
    """Shares of the self-energy of charges, dipoles and quadrupoles that a sum truncated at σ|k| = ``cutoff`` holds.

    The reciprocal sum contains each Gaussian's interaction with itself only up to the cutoff; subtracting just that,
    and not the whole self-energy, keeps the truncation from shifting energies and potentials. In a large cell it is,
    for order l, the fraction ∫ x^{2l} e^{−x²/2} switch dx / ∫ x^{2l} e^{−x²/2} dx.

    Parameters
    ----------
    cutoff
        Float64, any shape.

    Returns
    -------
    Tensor
        The three shares along a last axis; differentiable in the cutoff.
    """
    nodes, weights = switched_nodes(cutoff)
    squared = (cutoff[..., None] * nodes) ** 2
    charge = torch.exp(-0.5 * squared) * (weights * math.sqrt(2.0 / math.pi)) * cutoff[..., None]
    dipole = charge * squared
    return torch.stack((charge.sum(-1), dipole.sum(-1), (dipole * squared).sum(-1) / 3.0), -1)
