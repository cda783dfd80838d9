"""The waves of a group of systems: structure factors in octants and their transpose, over a box or a sphere of indices.

With indices h ≥ 0 the eight products of cosines and sines along the axes give S(±h₁, ±h₂, ±h₃) by sums and differences;
half of the octants, those with +h₁, are enough as S(−k) = S(k)*.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from torch import Tensor

from farfield.electrostatics.compiled import kernels_for
from farfield.electrostatics.graphs import constant, is_traced
from farfield.electrostatics.separable import WaveTables, moments, structure_factors
from farfield.electrostatics.sphere import SphereTables, multiplicity, sphere_of

#: Signs (σ₂, σ₃) of h₂ and h₃ in the four octants with h₁ ≥ 0.
OCTANTS = ((1, 1), (1, -1), (-1, 1), (-1, -1))

#: From this many atoms on compiled kernels are worth their compilation (some seconds, once on a machine).
LEAST_COMPILED = 128


def _octant_matrix() -> tuple[tuple[float, ...], ...]:
    """Matrix from the products of cosines (0) and sines (1), numbered 4c+2b+a, to Re S, Im S of the octants."""
    rows = []
    for s2, s3 in OCTANTS:
        real = [0.0] * 8
        real[0b000], real[0b110], real[0b011], real[0b101] = 1.0, -s2 * s3, -s2, -s3
        rows.append(real)
    for s2, s3 in OCTANTS:
        imaginary = [0.0] * 8
        imaginary[0b001], imaginary[0b010], imaginary[0b100], imaginary[0b111] = 1.0, s2, s3, -s2 * s3
        rows.append(imaginary)
    return tuple(map(tuple, rows))


_OCTANT_MATRIX = _octant_matrix()


class Waves(ABC):
    """Waves with indices h ≥ 0 and the structure factors over them.

    Attributes
    ----------
    indices
        h of each, float64, shape (3, k).
    count
        How many of ±k each stands for in each octant, shape (k,).
    """

    indices: Tensor
    count: Tensor

    @abstractmethod
    def structure(self, c: Tensor, level: int) -> Tensor:
        """Re S and Im S in the four octants (members, 8, k) of coefficients, see `structure_factors`."""

    @abstractmethod
    def moments(self, adjoint: Tensor, level: int) -> Tensor:
        """Transpose of `structure`: moments (members, slots, coefficients) of amplitudes (members, 8, k)."""


class Box(Waves):
    """All waves up to the largest index along each axis: by torch, for any device and for graphs."""

    def __init__(self, fractional: Tensor, ranges: tuple[int, int, int], dtype: torch.dtype) -> None:
        axes = [torch.arange(n + 1, dtype=fractional.dtype, device=fractional.device) for n in reversed(ranges)]
        self.indices = torch.cartesian_prod(*axes).mT.flip(0).contiguous()
        self.count = multiplicity(self.indices)
        self._fractional = fractional
        self._tables = WaveTables(fractional, ranges, dtype)
        self._shape = tuple(n + 1 for n in reversed(ranges))

    def structure(self, c: Tensor, level: int) -> Tensor:
        """Re S and Im S of coefficients."""
        product = structure_factors(self._fractional, c, self._tables, level)
        n3, n2, n1 = self._shape
        product = product.reshape(-1, 2, n3, 2, n2, 2, n1).permute(0, 1, 3, 5, 2, 4, 6)
        return constant(_OCTANT_MATRIX, c) @ product.reshape(len(c), 8, -1)

    def moments(self, adjoint: Tensor, level: int) -> Tensor:
        """Take the moments of amplitudes."""
        members = len(adjoint)
        n3, n2, n1 = self._shape
        product = (constant(_OCTANT_MATRIX, adjoint).mT @ adjoint).reshape(members, 2, 2, 2, n3, n2, n1)
        product = product.permute(0, 1, 4, 2, 5, 3, 6).reshape(members, 2 * n3, -1)
        return moments(product, self._fractional, self._tables, level)


class Ball(Waves):
    """The waves inside the cutoff: by compiled kernels, on the CPU."""

    def __init__(self, fractional: Tensor, to_fractional: Tensor, cutoff: Tensor, ranges: tuple[int, int, int]) -> None:
        sphere = sphere_of(to_fractional, cutoff, ranges)
        self.indices, self.count = sphere.indices, sphere.count
        self._fractional = fractional
        self._tables = SphereTables(fractional, sphere)

    def structure(self, c: Tensor, level: int) -> Tensor:
        """Re S and Im S of coefficients."""
        return structure_factors(self._fractional, c, self._tables, level)

    def moments(self, adjoint: Tensor, level: int) -> Tensor:
        """Take the moments of amplitudes."""
        return moments(adjoint, self._fractional, self._tables, level)


def waves_of(
    fractional: Tensor,
    to_fractional: Tensor,
    cutoff: Tensor,
    ranges: tuple[int, int, int],
    dtype: torch.dtype,
    ranks: dist.ProcessGroup | None = None,
) -> Waves:
    """Return the waves of a group of systems.

    Parameters
    ----------
    fractional
        Fractional coordinates, float64, shape (members, slots, 3).
    to_fractional
        Inverse cells (1/Å), float64, shape (members, 3, 3).
    cutoff
        Of |k| in each (1/Å), shape (members,).
    ranges
        Largest index along each axis.
    dtype
        Of the structure factors.
    ranks
        The process group that shares the systems. All of its ranks sum over the same waves, whatever atoms each has.
    """
    compiled = (
        ranks is None
        and fractional.device.type == "cpu"
        and not is_traced(fractional)
        and fractional.shape[0] * fractional.shape[1] >= LEAST_COMPILED
        and kernels_for("cpu") is not None
    )
    return Ball(fractional, to_fractional, cutoff, ranges) if compiled else Box(fractional, ranges, dtype)
