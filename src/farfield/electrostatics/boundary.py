r"""Boundary conditions by the kernel: slabs, wires and clusters summed in reciprocal space without images.

A system that is open along some axes is put in a padded cell, and 4π/k² is replaced by the Fourier transform of a
Coulomb interaction cut off where the padding begins (Rozzi et al., Phys. Rev. B 73, 205119 (2006)): no atom then sees
its images along the open axes, and what the given cell is along them does not matter. With k_∥ along the periodic and
k_⊥ along the open directions, the factor on 4π/k² is

    slab     1 − e^{−k_∥R} cos(k_⊥R)                               −2πR² at k = 0
    wire     1 + k_⊥R J₁(k_⊥R) K₀(k_∥R) − k_∥R J₀(k_⊥R) K₁(k_∥R)    −πR² (2 ln R − 1) at k = 0
             1 − J₀(k_⊥R) − k_⊥R ln R J₁(k_⊥R) for k_∥ = 0
    cluster  1 − cos(kR)                                            +2πR² at k = 0

which are the interactions −2π|z| of charged planes and −2 ln(ρ/1 Å) of charged lines for k_∥ = 0, so that charged slabs
and wires have energies that do not depend on the padding.

Padded lengths and R are settled in the plan and are constants: a strain turns the open directions but does not stretch
them. So k_⊥ is a constant, and only the functions of k_∥R have derivatives.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from farfield.electrostatics.distributed import largest_of_ranks
from farfield.electrostatics.lattice import inverse

#: Beyond this many σ two Gaussian charges interact as points, to 10⁻¹⁰ of k_e q²/Å: the room between an atom and where
#: the kernel ends.
_REACH = 7.0

#: Share of its extent along the open directions by which a system may grow before its plan has to be renewed, and the
#: least room for it (Å): a plan can be kept while atoms move.
_GROWTH = 0.1
_LEAST_GROWTH = 0.5

#: Extents are rounded up to multiples of this (Å), so that small motions do not change the padding, nor with it the
#: last digits of the energy.
_QUANTUM = 1.0


@dataclass(frozen=True, eq=False)
class Truncation:
    """How the kernel ends for a group of systems with the same number of periodic axes.

    Attributes
    ----------
    periodic
        Number of periodic axes: 2 slabs, 1 wires, 0 clusters.
    axes
        Axes of each system, the periodic ones first, shape (members, 3).
    lengths
        Padded length of each axis in that order (Å), shape (members, 3); 1 for periodic axes, where it is not used.
    radius
        Where the kernel ends (Å), shape (members,).
    extents, diameter
        Largest extent along each open direction and largest distance along them all that the padding is good for (Å),
        shapes (members, 3 − periodic) and (members,).
    bessel
        For wires J₀(k_⊥R) and J₁(k_⊥R) on the grid of indices along the open directions, shape (members, 2, n₂ + 1, n₃
        + 1); empty for others. See `with_bessel`.
    """

    periodic: int
    axes: Int[Tensor, "members 3"]
    lengths: Float[Tensor, "members 3"]
    radius: Float[Tensor, " members"]
    extents: Float[Tensor, "members open"]
    diameter: Float[Tensor, " members"]
    bessel: Float[Tensor, "members two n2 n3"]

    def take(self, members: list[int]) -> Truncation:
        """Return that of some of the systems."""
        tensors = (self.axes, self.lengths, self.radius, self.extents, self.diameter, self.bessel)
        return Truncation(self.periodic, *(tensor[members] for tensor in tensors))

    def with_bessel(self, ranges: tuple[int, int, int]) -> Truncation:
        """Return the truncation with its Bessel functions for reciprocal vectors up to some index along each axis.

        From scipy: those of torch 2.13 are off by 4·10⁻⁷ above 5.
        """
        if self.periodic != 1:
            return self
        from scipy.special import j0, j1

        _, n2, n3 = (np.arange(n + 1.0) for n in ranges)
        lengths, radius = self.lengths.cpu().numpy(), self.radius.cpu().numpy()
        first, second = n2 / lengths[:, 1, None], n3 / lengths[:, 2, None]
        y = 2.0 * math.pi * radius[:, None, None] * np.hypot(first[:, :, None], second[:, None, :])
        table = torch.from_numpy(np.stack((j0(y), j1(y)), 1)).to(self.lengths.device)
        return dataclasses.replace(self, bessel=table)


def _extents(
    positions: Tensor, mask: Tensor, directions: Tensor, ranks: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Extents (members, open) along directions (members, open, 3), and an upper bound of the largest distance."""
    projected = positions @ directions.mT
    occupied = mask[..., None]
    top = projected.masked_fill(~occupied, -torch.inf).amax(1)
    bottom = projected.masked_fill(~occupied, torch.inf).amin(1)
    if ranks is not None:
        top, bottom = largest_of_ranks(torch.stack((top, -bottom)), ranks).unbind()
        bottom = -bottom
    # A ball about the centre of the box holds all atoms.
    off_centre = (projected - 0.5 * (top + bottom)[:, None]).square().sum(-1)
    ball = 2.0 * off_centre.masked_fill(~mask, 0.0).amax(1).sqrt()
    return top - bottom, largest_of_ranks(ball, ranks)


def make_truncation(
    positions: Tensor,
    mask: Tensor,
    cell: Tensor,
    pbc: np.ndarray,
    smearing: Tensor,
    gap: float | None = None,
    ranks: dist.ProcessGroup | None = None,
) -> tuple[Truncation, Tensor]:
    """Settle padded lengths and the end of the kernel for systems with the same number of periodic axes.

    The kernel must reach past the largest distance of two atoms along the open directions, and the cell past the
    kernel; for a slab exactly to twice its end, where cos(k_⊥R) = ±1 and the kernel has no tail.

    Parameters
    ----------
    positions, mask
        Atoms in padded slots (Å), shapes (members, slots, 3) and (members, slots).
    cell
        Cells (Å), shape (members, 3, 3).
    pbc
        Shape (members, 3).
    smearing
        σ (Å), shape (members,).
    gap
        Room (Å) between a system and its images along open directions, for an interaction that needs no other end.
    ranks
        The process group whose ranks hold the other atoms of the systems.

    Returns
    -------
    tuple
        The truncation and the padded cells, float64, shape (members, 3, 3).
    """
    count = int(pbc[0].sum())
    axes = torch.from_numpy(np.argsort(~pbc, axis=1, kind="stable").astype(np.int64)).to(cell.device)
    positions, cell = positions.detach().double(), cell.detach().double()
    directions = _open_directions(_periodic_vectors(cell, axes, count), count)
    extents, diameter = _extents(positions, mask, directions, ranks)
    growth = (_GROWTH * diameter).clamp(min=_LEAST_GROWTH)
    extents = torch.ceil((extents + growth[:, None]) / _QUANTUM) * _QUANTUM
    diameter = torch.ceil((diameter + growth) / _QUANTUM) * _QUANTUM
    reach = _REACH * smearing
    radius = diameter + reach
    if gap is not None:
        lengths = extents + gap
    else:
        lengths = (2.0 * radius)[:, None] if count == 2 else extents + (radius + reach)[:, None]
    whole = torch.cat((torch.ones(len(cell), count, dtype=lengths.dtype, device=lengths.device), lengths), 1)
    truncation = Truncation(count, axes, whole, radius, extents, diameter, extents.new_zeros(len(cell), 2, 0, 0))
    return truncation, padded_cell(cell, truncation)


def spread_beyond(
    positions: Tensor, mask: Tensor, cell: Tensor, truncation: Truncation, ranks: dist.ProcessGroup | None = None
) -> Tensor:
    """How far each system has spread beyond what its padding is good for (Å), negative within it, shape (members,)."""
    count = truncation.periodic
    cell = cell.detach()
    directions = _open_directions(_periodic_vectors(cell, truncation.axes, count), count)
    extents, diameter = _extents(positions.detach(), mask, directions, ranks)
    return torch.cat((extents - truncation.extents, (diameter - truncation.diameter)[:, None]), 1).amax(1)


def check_room(
    positions: Tensor,
    mask: Tensor,
    cell: Tensor,
    systems: Tensor,
    truncation: Truncation,
    ranks: dist.ProcessGroup | None = None,
) -> None:
    """Refuse systems that have spread beyond what their plan's padding is good for. Synchronizes the device.

    Raises
    ------
    ValueError
        Naming the system and by how much.
    """
    beyond = spread_beyond(positions, mask, cell, truncation, ranks)
    if bool((beyond > 0).any()):
        member = int(beyond.argmax())
        raise ValueError(
            f"`plan` has no room for system {int(systems[member])}: its atoms have spread {float(beyond[member]):.3g} "
            "Å further along the open directions than the plan was made for: call prepare(batch) again"
        )


def _periodic_vectors(cell: Tensor, axes: Tensor, count: int) -> Tensor:
    return torch.gather(cell, 1, axes[:, :count, None].expand(-1, -1, 3))


def _open_directions(periodic: Tensor, count: int) -> Tensor:
    """Orthonormal directions that no periodic vector has a part along, shape (members, 3 − count, 3).

    ``periodic`` (members, count, 3) are the periodic vectors; the directions are differentiable functions of them, so
    that they turn with a strain and stay orthogonal to it.
    """
    members = len(periodic)
    eye = torch.eye(3, dtype=periodic.dtype, device=periodic.device)
    if count == 0:
        return eye.expand(members, 3, 3)
    if count == 2:
        normal = torch.linalg.cross(periodic[:, 0], periodic[:, 1])
        return torch.nn.functional.normalize(normal, dim=-1)[:, None]
    along = torch.nn.functional.normalize(periodic[:, 0], dim=-1)
    # The coordinate axis that the wire is farthest from can be made orthogonal to it safely.
    start = eye[along.detach().abs().argmin(-1)]
    first = torch.nn.functional.normalize(start - (start * along).sum(-1, keepdim=True) * along, dim=-1)
    return torch.stack((first, torch.linalg.cross(along, first)), 1)


def padded_cell(cell: Tensor, truncation: Truncation) -> Float[Tensor, "members 3 3"]:
    """Cells in which the sums run: the periodic vectors, then the open directions times their padded lengths."""
    count = truncation.periodic
    periodic = _periodic_vectors(cell, truncation.axes, count)
    directions = _open_directions(periodic, count)
    return torch.cat((periodic, directions * truncation.lengths[:, count:, None].to(cell.dtype)), 1)


def kernel_factor(
    h: Tensor, cell: Tensor, truncation: Truncation, crossed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """k² and the kernel over 4π of every reciprocal vector of padded cells.

    Parameters
    ----------
    h
        Integer indices of the reciprocal vectors, shape (k, 3).
    cell
        Padded cells (Å), float64, shape (members, 3, 3).
    truncation
        How the kernel ends.
    crossed
        Indices along the periodic axes that enter products of two of them, shape (k, periodic); by default those of
        ``h``.

    Returns
    -------
    tuple of Tensor
        k² (Å⁻²) and kernel/4π (Å²), both (members, k).
    """
    count = truncation.periodic
    radius = truncation.radius[:, None].to(cell.dtype)
    # Open directions are orthogonal to all else and their lengths constant: no gradient passes through k_⊥.
    across = 2.0 * math.pi * h[:, count:] / truncation.lengths[:, None, count:].to(cell.dtype)
    across_squared = across.square().sum(-1)
    if count:
        rows = cell[:, :count]
        metric = inverse(rows @ rows.mT) * (2.0 * math.pi) ** 2
        along = h[:, :count]
        parallel_squared = torch.einsum("ka,maa->mk", along.square(), metric)
        if count == 2:
            mixed = along if crossed is None else crossed
            parallel_squared = parallel_squared + 2.0 * metric[:, 0, 1, None] * (mixed[:, 0] * mixed[:, 1])
    else:
        parallel_squared = torch.zeros_like(across_squared)
    flat = (h[:, :count] == 0).all(-1)
    origin = (h == 0).all(-1)
    squared = parallel_squared + across_squared
    # Where k_∥ or k is zero another expression is taken; one in its place keeps the unused one finite.
    parallel = torch.where(flat, 1.0, parallel_squared).sqrt()
    perpendicular = across_squared.sqrt()
    if count == 2:
        # R is half the padded length: cos(k_⊥R) = (−1)^h to all digits
        sign = 1.0 - 2.0 * (h[:, 2].abs() % 2)
        decay = torch.where(flat, 1.0, torch.exp(-parallel * radius))
        factor = 1.0 - decay * sign
        centre = -0.5 * radius**2
    elif count == 1:
        place = h[:, 1].abs().long() * truncation.bessel.shape[3] + h[:, 2].abs().long()
        j0, j1 = truncation.bessel.flatten(2)[..., place].unbind(1)
        x, y = parallel * radius, perpendicular * radius
        wave = 1.0 + y * j1 * _BesselK.apply(x, 0) - x * j0 * _BesselK.apply(x, 1)
        factor = torch.where(flat, 1.0 - j0 - y * radius.log() * j1, wave)
        centre = -0.25 * radius**2 * (2.0 * radius.log() - 1.0)
    else:
        factor = 1.0 - torch.cos(perpendicular * radius)
        centre = 0.5 * radius**2
    kernel = factor / torch.where(origin, 1.0, squared)
    return squared, torch.where(origin, centre, kernel)


class _BesselK(torch.autograd.Function):
    """Modified Bessel functions K₀ and K₁, which torch gives without derivatives: K₀′ = −K₁, K₁′ = −K₀ − K₁/x."""

    @staticmethod
    def forward(ctx, x, order):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.order = order
        return torch.special.modified_bessel_k1(x) if order else torch.special.modified_bessel_k0(x)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        slope = -_BesselK.apply(x, 1)
        if ctx.order:
            slope = -_BesselK.apply(x, 0) + slope / x
        return gradient * slope, None
