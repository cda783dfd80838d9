"""The plain way to sum latent multipoles, as a yardstick: every system in turn, dense tables, dense pair kernels.

This is what one writes straight from the equations: a Python loop over the systems, cosines and sines of k·r for every
atom and every k, all derivatives of erf(a r)/r up to fourth order as dense Cartesian tensors, everything left to
autograd. The k-sum ends sharply at ``k_cutoff``. It shares no code with farfield.electrostatics and serves the
benchmarks only.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

COULOMB = 14.399645478


def reciprocal_vectors(cell: Tensor, k_cutoff: float) -> Tensor:
    """Half of the reciprocal vectors with 0 < |k| ≤ k_cutoff, shape (k, 3)."""
    reciprocal = 2.0 * math.pi * torch.linalg.inv(cell).mT
    ranges = [int(k_cutoff * float(length) / (2.0 * math.pi)) for length in cell.detach().norm(dim=1)]
    axes = [torch.arange(-n, n + 1, dtype=cell.dtype, device=cell.device) for n in ranges]
    h = torch.cartesian_prod(*axes)
    first = (h[:, 0] > 0) | ((h[:, 0] == 0) & ((h[:, 1] > 0) | ((h[:, 1] == 0) & (h[:, 2] > 0))))
    k = h[first] @ reciprocal
    return k[(k.detach() ** 2).sum(1) <= k_cutoff**2]


def ewald_energy(
    positions: Tensor, cell: Tensor, q: Tensor, u: Tensor | None, t: Tensor | None, k_cutoff: float
) -> Tensor:
    """Energy of one periodic system with dense tables of cos k·r and sin k·r (σ = 1 Å), self-interaction included."""
    k = reciprocal_vectors(cell, k_cutoff)
    phase = positions @ k.mT
    cosine, sine = torch.cos(phase), torch.sin(phase)
    even = q[:, None]
    if t is not None:
        even = even - 0.5 * torch.einsum("ka,iab,kb->ik", k, t, k)
    real, imaginary = (even * cosine).sum(0), (even * sine).sum(0)
    if u is not None:
        odd = u @ k.mT
        real, imaginary = real - (odd * sine).sum(0), imaginary + (odd * cosine).sum(0)
    squared = (k * k).sum(1)
    weight = torch.exp(-0.5 * squared) / squared
    volume = torch.linalg.det(cell).abs()
    return 4.0 * math.pi * COULOMB / volume * (weight * (real**2 + imaginary**2)).sum()


def pair_tensors(positions: Tensor, order: int) -> list[Tensor]:
    """erf(a r)/r between all atoms and its Cartesian derivatives up to an order, as dense tensors (σ = 1 Å)."""
    a = math.sqrt(0.5)
    bond = positions[:, None] - positions[None]
    diagonal = torch.eye(len(positions), dtype=positions.dtype, device=positions.device)
    squared = (bond * bond).sum(-1) + diagonal
    r = torch.sqrt(squared)
    kernels = [torch.erf(a * r) / r]
    for n in range(order):
        gaussian = (2 * a * a) ** (n + 1) / (a * math.sqrt(math.pi)) * torch.exp(-squared * a * a)
        kernels.append(((2 * n + 1) * kernels[-1] - gaussian) / squared)
    off = 1.0 - diagonal
    b = [kernel * off for kernel in kernels]
    tensors = [b[0]]
    one = torch.eye(3, dtype=positions.dtype, device=positions.device)
    if order >= 1:
        tensors.append(-b[1][..., None] * bond)
    if order >= 2:
        two = torch.einsum("ija,ijb->ijab", bond, bond)
        tensors.append(b[2][..., None, None] * two - b[1][..., None, None] * one)
    if order >= 3:
        three = torch.einsum("ijab,ijc->ijabc", two, bond)
        mixed = (
            torch.einsum("ija,bc->ijabc", bond, one)
            + torch.einsum("ijb,ac->ijabc", bond, one)
            + torch.einsum("ijc,ab->ijabc", bond, one)
        )
        tensors.append(-b[3][..., None, None, None] * three + b[2][..., None, None, None] * mixed)
    if order >= 4:
        four = torch.einsum("ijab,ijcd->ijabcd", two, two)
        mixed = sum(
            torch.einsum(f"ij{left},{right}->ijabcd", two, one)
            for left, right in (("ab", "cd"), ("ac", "bd"), ("ad", "bc"), ("bc", "ad"), ("bd", "ac"), ("cd", "ab"))
        )
        unit = (
            torch.einsum("ab,cd->abcd", one, one)
            + torch.einsum("ac,bd->abcd", one, one)
            + torch.einsum("ad,bc->abcd", one, one)
        )
        tensors.append(
            b[4][..., None, None, None, None] * four
            - b[3][..., None, None, None, None] * mixed
            + b[2][..., None, None, None, None] * unit
        )
    return tensors


def open_potential(positions: Tensor, q: Tensor, u: Tensor | None, t: Tensor | None) -> tuple[Tensor, ...]:
    """Potential at the atoms of one open system, with the derivatives that its multipoles need."""
    order = 0 if u is None else 2 if t is None else 4
    tensors = pair_tensors(positions, order)
    if u is None:
        return (COULOMB * tensors[0] @ q,)
    value = tensors[0] @ q - torch.einsum("ija,ja->i", tensors[1], u)
    gradient = torch.einsum("ija,j->ia", tensors[1], q) - torch.einsum("ijab,jb->ia", tensors[2], u)
    if t is None:
        return COULOMB * value, COULOMB * gradient
    value = value + 0.5 * torch.einsum("ijab,jab->i", tensors[2], t)
    gradient = gradient + 0.5 * torch.einsum("ijabc,jbc->ia", tensors[3], t)
    second = (
        torch.einsum("ijab,j->iab", tensors[2], q)
        - torch.einsum("ijabc,jc->iab", tensors[3], u)
        + 0.5 * torch.einsum("ijabcd,jcd->iab", tensors[4], t)
    )
    return COULOMB * value, COULOMB * gradient, COULOMB * second


def open_energy(
    positions: Tensor,
    q: Tensor,
    u: Tensor | None,
    t: Tensor | None,
    softness: Tensor | None = None,
    polarizability: Tensor | None = None,
) -> Tensor:
    """Energy of one open system; with softness κ and polarizability α also the one-shot response −½Σκφ² − ½ΣαE²."""
    value, *rest = open_potential(positions, q, u, t)
    energy = 0.5 * (q * value).sum()
    if u is not None:
        energy = energy + 0.5 * (u * rest[0]).sum()
    if t is not None:
        energy = energy + 0.25 * (t * rest[1]).sum()
    if softness is not None:
        energy = energy - 0.5 * (softness * value**2).sum()
    if polarizability is not None:
        field = rest[0] if rest else torch.autograd.grad(value.sum(), positions, create_graph=True)[0]
        energy = energy - 0.5 * (polarizability * (field**2).sum(1)).sum()
    return energy


def self_energy(q: Tensor, u: Tensor | None, t: Tensor | None) -> Tensor:
    """Interaction of each Gaussian (σ = 1 Å) with itself."""
    total = (q * q).sum()
    if u is not None:
        total = total + (u * u).sum() / 3.0
    if t is not None:
        total = total + (t * t).sum() / 10.0
    return COULOMB / math.sqrt(2.0 * math.pi) * total


def batch_energies(
    positions: Tensor,
    cells: Tensor,
    counts: list[int],
    q: Tensor,
    u: Tensor | None,
    t: Tensor | None,
    k_cutoff: float | None,
    softness: Tensor | None = None,
    polarizability: Tensor | None = None,
) -> Tensor:
    """Energies of a batch, system by system: periodic with a ``k_cutoff`` (1/Å), open with None."""
    energies = []
    start = 0
    for cell, count in zip(cells, counts, strict=True):
        part = slice(start, start + count)
        u_part, t_part = (None if values is None else values[part] for values in (u, t))
        if k_cutoff is None:
            kappa, alpha = (None if values is None else values[part] for values in (softness, polarizability))
            energies.append(open_energy(positions[part], q[part], u_part, t_part, kappa, alpha))
        else:
            energy = ewald_energy(positions[part], cell, q[part], u_part, t_part, k_cutoff)
            energies.append(energy - self_energy(q[part], u_part, t_part))
        start += count
    return torch.stack(energies)
