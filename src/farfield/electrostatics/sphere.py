r"""The waves inside the cutoff of a group of systems, and sums over them by compiled kernels.

Of the box of all indices up to the largest along each axis about half lies inside the sphere |k| < cutoff; all others
have no weight. `Sphere` lists those that have, in any octant of any system of the group. It is made from the cells as
they are, so that waves enter as a cell changes; as the weights vanish at the cutoff with their first three derivatives,
nothing is missing from those either.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from farfield.electrostatics.compiled import POOL
from farfield.electrostatics.separable import count_of, multi_indices

#: Atoms times waves that are worth a second thread.
_LEAST_FOR_THREADS = 50_000

#: Fewer atoms than this are not worth a piece of their own.
_ATOMS_PER_PIECE = 32


@dataclass(frozen=True, eq=False)
class Sphere:
    """Waves with indices h ≥ 0 that are inside the cutoff, in blocks of neighbouring h₁.

    Attributes
    ----------
    indices
        h of each wave, float64, shape (3, waves).
    count
        How many of ±k in the octants each stands for, over their number 4; zero for those that only fill a block.
    arguments
        What the kernels are told of them (`farfield.electrostatics.sphere_kernels`).
    """

    indices: Tensor
    count: Tensor
    arguments: tuple[Any, ...]


def multiplicity(indices: Tensor) -> Tensor:
    """How many of ±k an index h ≥ 0 stands for in each of four octants; two coincide where one index is zero."""
    return torch.pow(0.5, (indices == 0).sum(0, dtype=indices.dtype)) * 2.0


def sphere_of(to_fractional: Tensor, cutoff: Tensor, ranges: tuple[int, int, int]) -> Sphere:
    """List the waves of some systems with |k| < cutoff.

    Parameters
    ----------
    to_fractional
        Inverse cells (1/Å), float64, shape (members, 3, 3).
    cutoff
        Of each (1/Å), shape (members,).
    ranges
        Largest index along each axis.
    """
    inverses, ends = to_fractional.detach().numpy(), cutoff.detach().numpy()
    metrics = inverses.transpose(0, 2, 1) @ inverses * (2.0 * math.pi / ends[:, None, None]) ** 2
    if (metrics == metrics[:1]).all():
        metrics = metrics[:1]
    return _sphere(metrics.tobytes(), ranges)


@functools.lru_cache(maxsize=32)
def _sphere(metrics: bytes, ranges: tuple[int, int, int]) -> Sphere:
    from farfield.electrostatics.sphere_kernels import WIDTH

    heights = _heights(np.frombuffer(metrics).reshape(-1, 3, 3), ranges)
    filled = np.zeros((len(heights), WIDTH * math.ceil(heights.shape[1] / WIDTH)), np.int64)
    filled[:, : heights.shape[1]] = heights
    of_block = filled.reshape(len(heights), -1, WIDTH).max(2)
    h2, block = of_block.nonzero()
    order = np.argsort(-of_block[h2, block], kind="stable")
    h2, block = h2[order], block[order]
    inside = of_block[h2, block] > np.arange(of_block.max())[:, None]
    blocks = inside.sum(1)
    h3, which = inside.nonzero()
    starts = WIDTH * (np.cumsum(blocks) - blocks)
    h1 = block[which][:, None] * WIDTH + np.arange(WIDTH)
    waves = np.stack((h1, *np.broadcast_arrays(h2[which][:, None], h3[:, None], h1)[:2]))
    with torch.inference_mode(False):  # made in inference mode, autograd could not keep it
        indices = torch.from_numpy(waves.reshape(3, -1)).double()
        count = multiplicity(indices) * (indices[0] <= ranges[0])
        # What fills a block beyond the range has no weight; elsewhere it might not be expected.
        indices[0].clamp_(max=ranges[0])
        return Sphere(indices, count, (len(heights), h2, block, blocks, starts, WIDTH))


def _heights(metrics: np.ndarray, ranges: tuple[int, int, int]) -> np.ndarray:
    """Count h₃ ≥ 0 up to the largest with h·g·h < 1, for any signs of the indices and any g of metrics (members, 3, 3).

    Shape (n₂ + 1, n₁ + 1).
    """
    h1, h2 = np.arange(ranges[0] + 1.0), np.arange(ranges[1] + 1.0)[:, None]
    g = metrics[:, None, None]
    heights = np.zeros((len(h2), len(h1)))
    for sign in (1.0, -1.0):
        # g₃₃h₃² ± 2bh₃ + c = 0, whose larger root is that of −b
        b = np.abs(g[..., 0, 2] * h1 + sign * g[..., 1, 2] * h2)
        c = g[..., 0, 0] * h1**2 + g[..., 1, 1] * h2**2 + 2.0 * sign * g[..., 0, 1] * h1 * h2 - 1.0
        discriminant = b**2 - g[..., 2, 2] * c
        root = (b + np.sqrt(np.maximum(discriminant, 0.0))) / g[..., 2, 2]
        inside = np.where(discriminant >= 0.0, np.floor(root + 1e-9) + 1.0, 0.0)
        heights = np.maximum(heights, inside.max(0))
    return np.minimum(heights, ranges[2] + 1.0).astype(np.int64)


@functools.cache
def _places(level: int) -> np.ndarray:
    """Place of each multi-index, shape (level + 1, level + 1, level + 1)."""
    places = np.zeros((level + 1,) * 3, np.int64)
    for place, index in enumerate(multi_indices(level)):
        places[index] = place
    return places


class SphereTables:
    """`farfield.electrostatics.separable.Tables` of the waves of a sphere, in octants, on the CPU.

    Structure factors and amplitudes have the shape (members, 8, waves): Re S and Im S in the octants (+, ±, ±) of h.

    Parameters
    ----------
    fractional
        Fractional coordinates s, float64, shape (members, slots, 3).
    sphere
        The waves.
    """

    def __init__(self, fractional: Tensor, sphere: Sphere) -> None:
        self.members, self.slots = fractional.shape[:2]
        self._s = fractional.detach().reshape(-1, 3).contiguous().numpy()
        self._sphere = sphere
        self._tasks, self._split = self._divide()
        first = np.arange(self.members)[:, None] * self.slots
        edges = first + np.linspace(0, self.slots, self._split + 1).astype(np.int64)
        self._pieces = np.stack((edges[:, :-1].ravel(), edges[:, 1:].ravel()), 1)
        self._systems = np.repeat(np.arange(self.members), self._split)

    def _divide(self) -> tuple[int, int]:
        """Return the number of tasks, and in how many pieces each system is taken to divide it evenly."""
        threads = torch.get_num_threads()
        if len(self._s) * self._sphere.indices.shape[1] < _LEAST_FOR_THREADS:
            return 1, 1
        most = min(max(1, self.slots // _ATOMS_PER_PIECE), math.ceil(4 * threads / self.members))
        even = (split for split in range(1, most) if self.members * split % threads == 0)
        return threads, next(even, most)

    def _run(self, kernel: Callable[..., None], *arguments: Any) -> None:
        chosen = np.array_split(np.arange(len(self._pieces)), min(self._tasks, len(self._pieces)))
        POOL.run(functools.partial(kernel, self._s, *arguments[:-1], part, *arguments[-1]) for part in chosen)

    def structure_factors(self, c: Tensor, level: int) -> Tensor:
        """Structure factors of coefficients (members, slots, coefficients)."""
        from farfield.electrostatics.sphere_kernels import structure_factors

        out = c.new_empty(len(self._pieces), 8, self._sphere.indices.shape[1])
        values = c.detach().reshape(len(self._s), -1).contiguous().numpy()
        self._run(
            structure_factors, values, _places(level), self._pieces, (*self._sphere.arguments, out.detach().numpy())
        )
        return out if self._split == 1 else out.unflatten(0, (self.members, self._split)).sum(1)

    def moments(self, g: Tensor, level: int) -> Tensor:
        """Moments (members, slots, coefficients) of amplitudes."""
        from farfield.electrostatics.sphere_kernels import moments

        out = g.new_empty(self.members, self.slots, count_of(level))
        rows = out.detach().numpy().reshape(len(self._s), -1)
        amplitudes = g.detach().contiguous().numpy()
        arguments = (amplitudes, _places(level), self._pieces, self._systems, (*self._sphere.arguments, rows))
        self._run(moments, *arguments)
        return out
