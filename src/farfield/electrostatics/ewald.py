r"""Reciprocal-space sum of Gaussian multipoles in a periodic cell, with separable phase factors.

The energy is a quadratic form of the structure factor (full sphere of k ≠ 0, w its Gaussian Coulomb
weight)

    E = Σ_k w(k) |S(k)|² ,   w(k) = (2π k_e/V) e^{−σ²k²/2}/k² · switch(|k|) ,   S(k) = Σ_i L_i e^{i k·r_i} ,
    L_i = q_i + u_i·∇ + ½ Q_i:∇∇ .

In fractional coordinates s = r·A⁻¹ (rows of A are the cell vectors) k·r = 2π h·s with integers h, and e^{ik·r} is a
product of one factor per axis. The sum over atoms then is one matrix product of an (axis 1 × axis 2) table with an axis
3 table,

    T[(h₁h₂), h₃] = Σ_i Σ_p ( Xᵢᵀ Mᵢᵖ Yᵢ )[h₁, h₂] · Zᵢᵖ[h₃] ,

with X, Y, Z the real tables (cos 2πhs, sin 2πhs) for h ≥ 0 and their first and second derivatives in s, and M the
multipoles in fractional coordinates. A table of all atoms and all k is never made. The eight products of cosines and
sines give S(±h₁, ±h₂, ±h₃) by sums and differences; half of them, those with +h₁, are enough as S(−k) = S(k)*.
Potentials and their derivatives at the atoms are the transpose of the same map, which makes the operator self-adjoint
to rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from farfield.electrostatics.boundary import Truncation, kernel_factor
from farfield.electrostatics.cutoff import switch
from farfield.electrostatics.trilinear import triple_contract, triple_sum
from farfield.electrostatics.waves import wave_tables
from farfield.units import INVERSE_TWO_EPSILON_0

#: Signs (σ₂, σ₃) of h₂ and h₃ in the four octants with h₁ ≥ 0.
_OCTANTS = ((1, 1), (1, -1), (-1, 1), (-1, -1))


def _octant_matrix() -> list[list[float]]:
    """Matrix from the products of cosines (0) and sines (1), numbered 4a+2b+c, to Re S, Im S of the octants."""
    rows = []
    for s2, s3 in _OCTANTS:
        real = [0.0] * 8
        real[0b000], real[0b011], real[0b110], real[0b101] = 1.0, -s2 * s3, -s2, -s3
        rows.append(real)
    for s2, s3 in _OCTANTS:
        imaginary = [0.0] * 8
        imaginary[0b100], imaginary[0b010], imaginary[0b001], imaginary[0b111] = 1.0, s2, s3, -s2 * s3
        rows.append(imaginary)
    return rows


def reciprocal_weights(
    cell: Tensor,
    smearing: Tensor,
    ranges: tuple[int, int, int],
    cutoff: Tensor,
    truncation: Truncation | None = None,
) -> Tensor:
    """Weights w(k) of |S(k)|², times the number of k that each stored one stands for.

    Parameters
    ----------
    cell
        Cell vectors as rows (Å), float64, shape (members, 3, 3).
    smearing
        σ (Å), shape (members,).
    ranges
        Largest index along each axis.
    cutoff
        σ|k| at which the switch reaches zero, shape (members,).
    truncation
        How the kernel ends where ``cell`` is padded; None for systems periodic along all axes.

    Returns
    -------
    Tensor
        Shape (members, 4, (n₁+1)(n₂+1)(n₃+1)) (eV/e²): octants with signs (+,±,±) of h. Where all members share one
        fixed cell there is only one row, for all of them.
    """
    device = cell.device
    # Not on a GPU, which the comparison would hold up.
    if device.type == "cpu" and not cell.requires_grad and all(_alike(part) for part in (cell, smearing, cutoff)):
        cell, smearing, cutoff = cell[:1], smearing[:1], cutoff[:1]
    axes = [torch.arange(n + 1, dtype=cell.dtype, device=device) for n in ranges]
    grid = torch.cartesian_prod(*axes)
    signs = torch.tensor([[1.0, *pair] for pair in _OCTANTS], dtype=cell.dtype, device=device)
    h = (grid[None] * signs[:, None]).reshape(-1, 3)
    # Every k and −k are one term; a zero index makes two octants coincide.
    count = torch.pow(0.5, (grid == 0).sum(1).to(cell.dtype)) * 2.0
    if truncation is None:
        # k = 0 is left out: its count is zero, and the one added there keeps 1/k² finite in the backward pass.
        count = torch.where((grid == 0).all(1), 0.0, count)
        squared = (smearing**2)[:, None] * _squared_lengths(h, cell)
        kernel = (smearing**2)[:, None] / (squared + (h == 0).all(1).to(cell.dtype))
    else:
        squared, kernel = kernel_factor(h, cell, truncation)
        squared = (smearing**2)[:, None] * squared
    weight = torch.exp(-0.5 * squared) * switch(squared / (cutoff**2)[:, None]) * kernel
    volume = torch.linalg.det(cell).abs()
    weight = weight * (INVERSE_TWO_EPSILON_0 / volume)[:, None]
    return weight.reshape(len(cell), 4, -1) * count


def _squared_lengths(h: Tensor, cell: Tensor) -> Tensor:
    """k² of reciprocal vectors (k, 3) of cells (members, 3, 3) (Å⁻²), shape (members, k)."""
    reciprocal = torch.linalg.inv(cell).mT * (2.0 * math.pi)
    metric = reciprocal @ reciprocal.mT
    # k² = Σ h_a h_b g_ab, a matrix product over the six pairs of axes.
    pairs = torch.stack(
        [h[:, 0] ** 2, h[:, 1] ** 2, h[:, 2] ** 2, 2 * h[:, 0] * h[:, 1], 2 * h[:, 0] * h[:, 2], 2 * h[:, 1] * h[:, 2]]
    )
    elements = torch.stack(
        [metric[:, 0, 0], metric[:, 1, 1], metric[:, 2, 2], metric[:, 0, 1], metric[:, 0, 2], metric[:, 1, 2]], 1
    )
    return elements @ pairs


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


def _fractional_multipoles(
    dipoles: Tensor | None, quadrupoles: Tensor | None, inverse: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Dipoles and quadrupoles in fractional coordinates, so that u·∇ and Q:∇∇ act on s."""
    u = None if dipoles is None else dipoles @ inverse
    q = None if quadrupoles is None else inverse.mT[:, None] @ quadrupoles @ inverse[:, None]
    return u, q


def _weighted_waves(
    charges: Tensor, dipoles: Tensor | None, quadrupoles: Tensor | None, y: tuple[Tensor, ...], levels: int
) -> list[Tensor]:
    """Fold the multipoles into the waves of the second axis: what goes with ∂₁^p₁ ∂₃^p₃ for every p₁ + p₃ < levels.

    L = q + u·∇ + ½ Q:∇∇ in fractional coordinates is sorted by the powers of ∂₃ and ∂₁; those of ∂₂ act on ``y``.
    One tensor (members, slots, levels − p₃, 2(n₂ + 1)) for each p₃.
    """
    if levels == 1:
        return [(charges[..., None] * y[0])[:, :, None]]
    q = charges[..., None]
    u = torch.zeros_like(q).expand(*charges.shape, 3) if dipoles is None else dipoles
    u1, u2, u3 = u.split(1, -1)
    rows = [[q * y[0] + u2 * y[1], u1 * y[0]], [u3 * y[0]]]
    if levels == 3:
        if quadrupoles is None:
            quadrupoles = torch.zeros_like(q)[..., None].expand(*charges.shape, 3, 3)
        half = 0.5 * (quadrupoles + quadrupoles.mT).flatten(2)
        q11, q12, q13, _, q22, q23, _, _, q33 = half.split(1, -1)
        rows[0][0] = rows[0][0] + 0.5 * q22 * y[2]
        rows[0][1] = rows[0][1] + q12 * y[1]
        rows[0].append(0.5 * q11 * y[0])
        rows[1][0] = rows[1][0] + q23 * y[1]
        rows[1].append(q13 * y[0])
        rows.append([0.5 * q33 * y[0]])
    return [torch.stack(row, 2) for row in rows]


def _stacked(waves: tuple[Tensor, ...], levels: int) -> Tensor:
    """First levels of a table, shape (members, slots, levels, 2(n + 1))."""
    return waves[0][:, :, None] if levels == 1 else torch.stack(waves[:levels], 2)


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
    ) -> None:
        dtype = positions.dtype
        self.dtype, self.source_levels, self.field_levels = dtype, source_levels, field_levels
        # Phases and weights in float64: a large cell has phases of many turns, which float32 would blur.
        reduced = basis @ cell.double()
        inverse = torch.linalg.inv(reduced)
        fractional = positions.double() @ inverse
        fractional = fractional - torch.round(fractional.detach())
        self.inverse = inverse.to(dtype)
        self.weights = reciprocal_weights(reduced, smearing, ranges, cutoff, truncation).to(dtype)
        levels = max(source_levels, field_levels)
        self.x, self.y, self.z = (
            wave_tables(coordinate, n, levels, dtype)
            for coordinate, n in zip(fractional.unbind(-1), ranges, strict=True)
        )
        self.octants = torch.tensor(_octant_matrix(), dtype=dtype, device=positions.device)
        self._grid = tuple(n + 1 for n in ranges)

    def structure(self, charges: Tensor, dipoles: Tensor | None, quadrupoles: Tensor | None) -> Tensor:
        """Re S and Im S in the four octants, shape (members, 8, k), of padded multipoles (members, slots, …)."""
        levels = self.source_levels
        if levels > 1:
            dipoles, quadrupoles = _fractional_multipoles(dipoles, quadrupoles, self.inverse)
        weighted = _weighted_waves(charges, dipoles, quadrupoles, self.y, levels)
        # One sum for each power of ∂₃; the powers of ∂₁ are the rank of a plane.
        product = triple_sum(_stacked(self.x, levels), weighted[0], self.z[0])
        for power in range(1, levels):
            product = product + triple_sum(_stacked(self.x, levels - power), weighted[power], self.z[power])
        n1, n2, n3 = self._grid
        product = product.reshape(-1, 2, n3, 2, n1, 2, n2).permute(0, 3, 5, 1, 4, 6, 2)
        return self.octants @ product.reshape(len(charges), 8, -1)

    def energy(self, structure: Tensor) -> Tensor:
        """Energy of each member (eV), float64, self-interaction included, shape (members,)."""
        return _Quadratic.apply(structure, torch.cat((self.weights, self.weights), 1))

    def potential(self, structure: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Potential (members, slots), its gradient and second derivatives, self-interaction included."""
        levels = self.field_levels
        members = len(structure)
        n1, n2, n3 = self._grid
        weights = 2.0 * torch.cat((self.weights, self.weights), 1)
        adjoint = (self.octants.mT @ (weights * structure)).reshape(members, 2, 2, 2, n1, n2, n3)
        adjoint = adjoint.permute(0, 3, 6, 1, 4, 2, 5).reshape(members, 2 * n3, 4 * n1 * n2)
        # d[p₃][…, p₁, p₂], as far as p₁, p₂ < levels − p₃
        d = []
        for power in range(levels):
            columns = triple_contract(adjoint, _stacked(self.y, levels - power), self.z[power])
            d.append(_stacked(self.x, levels - power) @ columns.mT)
        value = d[0][..., 0, 0]
        gradient = second = None
        if levels > 1:
            first = torch.stack((d[0][..., 1, 0], d[0][..., 0, 1], d[1][..., 0, 0]), -1)
            gradient = first @ self.inverse.mT
        if levels > 2:
            xx, yy, zz = d[0][..., 2, 0], d[0][..., 0, 2], d[2][..., 0, 0]
            xy, xz, yz = d[0][..., 1, 1], d[1][..., 1, 0], d[1][..., 0, 1]
            matrix = torch.stack((xx, xy, xz, xy, yy, yz, xz, yz, zz), -1).unflatten(-1, (3, 3))
            second = self.inverse[:, None] @ matrix @ self.inverse.mT[:, None]
        return value, gradient, second
