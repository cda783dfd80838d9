r"""Reciprocal-space sum of Gaussian multipoles in a periodic cell, with separable phase factors.

The energy is a quadratic form of the structure factor (full sphere of k ≠ 0, w its Gaussian Coulomb
weight)

    E = Σ_k w(k) |S(k)|² ,   w(k) = (2π k_e/V) e^{−σ²k²/2}/k² · switch(|k|) ,   S(k) = Σ_i L_i e^{i k·r_i} ,
    L_i = q_i + u_i·∇ + ½ Q_i:∇∇ .

In fractional coordinates s = r·A⁻¹ (rows of A are the cell vectors) k·r = 2π h·s with integers h, and e^{ik·r} is a
product of one factor per axis. L becomes a polynomial in ∂/∂s, its coefficients linear in q, u, Q; the sums over atoms
of products of cosines and sines for h ≥ 0, and which h these are, are `farfield.electrostatics.waves`. A table of all
atoms and all k is never made. Potentials and their derivatives at the atoms are the transpose of the same map, which
makes the operator self-adjoint to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from farfield.electrostatics.boundary import Truncation, kernel_factor
from farfield.electrostatics.cutoff import switch
from farfield.electrostatics.distributed import shared, sum_over_ranks, to_each_rank
from farfield.electrostatics.graphs import constant, is_traced
from farfield.electrostatics.lattice import inverse, volume_of
from farfield.electrostatics.separable import count_of, multi_indices
from farfield.electrostatics.waves import OCTANTS, Waves, waves_of
from farfield.units import INVERSE_TWO_EPSILON_0

#: Fourier transform v̂ of the interaction of two unit coefficients, from σ²k² and σ (Å).
Transform = Callable[[Tensor, Tensor], Tensor]


def reciprocal_weights(
    cell: Tensor,
    smearing: Tensor,
    waves: Waves,
    cutoff: Tensor,
    truncation: Truncation | None = None,
    transform: Transform | None = None,
) -> Tensor:
    """Weights w(k) of |S(k)|², times the number of k that each stored one stands for.

    Parameters
    ----------
    cell
        Cell vectors as rows (Å), float64, shape (members, 3, 3).
    smearing
        σ (Å), shape (members,).
    waves
        The k.
    cutoff
        σ|k| at which the switch reaches zero, shape (members,).
    truncation
        How the kernel ends where ``cell`` is padded; None for systems periodic along all axes.
    transform
        v̂(k) of another interaction than Coulomb's, finite at k = 0, which is kept: w = v̂/2V.

    Returns
    -------
    Tensor
        Shape (members, 4, k) (eV/e²): octants with signs (+,±,±) of h. Where all members share one
        fixed cell, periodic along all axes, there is only one row, for all of them.
    """
    device = cell.device
    # Not on a GPU, which the comparison would hold up, nor in a graph, which could not depend on it.
    fixed = truncation is None and device.type == "cpu" and not cell.requires_grad and not is_traced(cell)
    if fixed and all(_alike(part) for part in (cell, smearing, cutoff)):
        cell, smearing, cutoff = cell[:1], smearing[:1], cutoff[:1]
    h, count = waves.indices, waves.count
    if transform is not None:
        squared = _squared_lengths(h, cell * (1.0 / smearing)[:, None, None])
        strength, scale = transform(squared, smearing[:, None, None]), 0.5
    elif truncation is None:
        # k = 0 is left out: its count is zero, and the one added there keeps 1/k² finite in the backward pass.
        origin = (h == 0).all(0).to(count.dtype)
        count = count * (1.0 - origin)
        squared = _squared_lengths(h, cell * (1.0 / smearing)[:, None, None])
        strength = torch.exp(-0.5 * squared) * (smearing**2)[:, None, None] / (squared + origin)
        scale = INVERSE_TWO_EPSILON_0
    else:
        signs = constant(tuple((1.0, *pair) for pair in OCTANTS), cell)
        squared, kernel = kernel_factor((h.mT * signs[:, None]).reshape(-1, 3), cell, truncation)
        squared, kernel = (part.unflatten(1, (4, -1)) for part in ((smearing**2)[:, None] * squared, kernel))
        strength, scale = torch.exp(-0.5 * squared) * kernel, INVERSE_TWO_EPSILON_0
    volume = volume_of(cell)
    return strength * switch(squared / (cutoff**2)[:, None, None]) * ((scale / volume)[:, None, None] * count)


def _squared_lengths(h: Tensor, cell: Tensor) -> Tensor:
    """k² of reciprocal vectors with indices h ≥ 0 (3, k) of cells (members, 3, 3), by octants: (members, 4, k)."""
    reciprocal = inverse(cell).mT * (2.0 * math.pi)
    metric = reciprocal @ reciprocal.mT
    # k² = Σ h_a h_b g_ab, a matrix product over the six pairs of axes; octants differ by the signs of the last three.
    pairs = torch.cat((h * h, h[0] * h[1:], (h[1] * h[2])[None]))
    signs = constant(tuple((1.0, 1.0, 1.0, 2.0 * s2, 2.0 * s3, 2.0 * s2 * s3) for s2, s3 in OCTANTS), h)
    upper = torch.cat((metric.diagonal(dim1=1, dim2=2), metric[:, 0, 1:], metric[:, 1, 2:]), 1)
    return (upper[:, None] * signs) @ pairs


def _alike(rows: Tensor) -> bool:
    return bool((rows == rows[:1]).all())


class _Quadratic(torch.autograd.Function):
    """Σ_k w S² of each member, in float64, with fewer passes over S and its derivatives than autograd would make."""

    @staticmethod
    def forward(ctx, structure, weights):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(structure, weights)
        return (structure * weights * structure).sum((1, 2), dtype=torch.float64)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        structure, weights = ctx.saved_tensors
        gradient = gradient.to(structure.dtype)[:, None, None]
        on_weights = None
        if ctx.needs_input_grad[1]:
            on_weights = (gradient * structure**2).sum_to_size(weights.shape)
        return structure * (weights * (2.0 * gradient)), on_weights


#: Second derivatives as the upper triangle of multi_indices(2), and the entries of a matrix that make each of them.
_SECOND = {
    p: [3 * a + b for a in range(3) for b in range(3) if p == tuple((axis == a) + (axis == b) for axis in range(3))]
    for p in multi_indices(2)[4:]
}


def _multipole_map(to_fractional: Tensor, level: int) -> Tensor:
    """Matrices from (q, u, Q) to the coefficients of the fractional derivatives in L = q + u·∇ + ½ Q:∇∇.

    With ∇_a = Σ_α (A⁻¹)_aα ∂_α; their transpose takes the derivatives of a potential to (φ, ∇φ, ½∇∇φ).
    Shape (members, 1 + 3 + 9, 10), less for a lower level.
    """
    members = len(to_fractional)
    charge = to_fractional.new_ones(members, 1, 1)
    if level == 0:
        return charge
    blocks = [charge, to_fractional]
    if level == 2:
        # Q_ab ∂_α∂_β (A⁻¹)_aα (A⁻¹)_bβ
        twice = torch.einsum("mai,mbj->mabij", to_fractional, to_fractional).reshape(members, 9, 9)
        blocks.append(
            0.5 * torch.stack([torch.stack([twice[:, :, p] for p in places]).sum(0) for places in _SECOND.values()], 2)
        )
    rows = []
    width = sum(block.shape[2] for block in blocks)
    start = 0
    for block in blocks:
        rows.append(torch.nn.functional.pad(block, (start, width - start - block.shape[2])))
        start += block.shape[2]
    return torch.cat(rows, 1)


class EwaldGeometry:
    """Positions and cells of a group of periodic systems, ready to be applied to multipoles.

    Parameters
    ----------
    positions
        Shape (members, slots, 3) (Å); any finite value in empty slots.
    cell
        Cell vectors as rows (Å), shape (members, 3, 3).
    basis
        Integer matrices to reduced cell vectors, float64, shape (members, 3, 3).
    smearing
        σ (Å), float64, shape (members,).
    ranges
        Largest index of the reciprocal vectors along each axis.
    cutoff
        σ|k| at which the sum ends, float64, shape (members,).
    source_levels, field_levels
        Derivatives per axis, plus one, that the multipoles need (1 charges, 2 dipoles, 3 quadrupoles) and that are
        wanted of the potential (1 potential, 2 field, 3 field gradient).
    truncation
        How the kernel ends for systems that are open along some axes; ``cell`` is the padded one then.
    transform
        v̂(k) of another interaction than Coulomb's.
    ranks
        The process group whose ranks hold the other atoms of the systems.
    """

    def __init__(
        self,
        positions: Tensor,
        cell: Tensor,
        basis: Tensor,
        smearing: Tensor,
        ranges: tuple[int, int, int],
        cutoff: Tensor,
        source_levels: int,
        field_levels: int,
        truncation: Truncation | None = None,
        transform: Transform | None = None,
        ranks: dist.ProcessGroup | None = None,
    ) -> None:
        dtype, self._ranks = positions.dtype, ranks
        self.field_level = field_levels - 1
        # Phases and weights in float64: a large cell has phases of many turns, which float32 would blur.
        reduced = basis @ cell.double()
        to_fractional = inverse(reduced)
        fractional = positions.double() @ to_fractional
        fractional = fractional - torch.round(fractional.detach())
        self._waves = waves_of(fractional, to_fractional, cutoff / smearing, ranges, dtype, ranks)
        weights = reciprocal_weights(shared(reduced, ranks), smearing, self._waves, cutoff, truncation, transform)
        self.weights = weights.to(dtype)
        self._map = _multipole_map(to_fractional.to(dtype), max(source_levels, field_levels) - 1)

    def structure(self, charges: Tensor, dipoles: Tensor | None, quadrupoles: Tensor | None) -> Tensor:
        """Re S and Im S in the four octants, shape (members, 8, k), of padded multipoles (members, slots, …)."""
        given, level = [charges[..., None]], 0
        if dipoles is not None or quadrupoles is not None:
            level = 1
            given.append(charges.new_zeros(*charges.shape, 3) if dipoles is None else dipoles)
        if quadrupoles is not None:
            level = 2
            given.append(quadrupoles.flatten(2))
        joined = torch.cat(given, -1)
        c = joined @ self._map[:, : joined.shape[2], : count_of(level)]
        return sum_over_ranks(self._waves.structure(c, level), self._ranks)

    def energy(self, structure: Tensor) -> Tensor:
        """Energy of each member (eV), float64, self-interaction included, shape (members,)."""
        weights = torch.cat((self.weights, self.weights), 1)
        if is_traced(structure):
            return (structure * weights * structure).sum((1, 2), dtype=torch.float64)
        return _Quadratic.apply(structure, weights)

    def potential(self, structure: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Potential (members, slots), its gradient and second derivatives, self-interaction included."""
        level = self.field_level
        weighted = to_each_rank(2.0 * torch.cat((self.weights, self.weights), 1) * structure, self._ranks)
        d = self._waves.moments(weighted, level)
        found = d @ self._map[:, : (1, 4, 13)[level], : d.shape[2]].mT
        return (
            found[..., 0],
            found[..., 1:4] if level > 0 else None,
            2.0 * found[..., 4:].unflatten(-1, (3, 3)) if level > 1 else None,
        )
