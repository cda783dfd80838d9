r"""Structure factors of point multipoles, and their transpose, from one factor per axis and atom.

In fractional coordinates s a wave e^{2πi h·s} is a product of one factor per axis. Let X^p[h] be the table of ∂^p of
(cos 2πhs₁, sin 2πhs₁), h = 0 … n₁, and Y, Z the same of the other axes. With multi-indices p = (p₁, p₂, p₃), |p| ≤ L,
and coefficients c_i^p of the derivatives that an atom's multipoles stand for,

    T[h₃, h₂, h₁] = Σ_i Σ_p c_i^p Z_i^{p₃}[h₃] Y_i^{p₂}[h₂] X_i^{p₁}[h₁]      (`structure_factors`)
    d_i^p = Σ_h G[h₃, h₂, h₁] Z_i^{p₃}[h₃] Y_i^{p₂}[h₂] X_i^{p₁}[h₁]           (`moments`)

are transposes of each other, linear in c and in G. The derivative of either in s raises p by one,

    ∂(G·T)/∂c_i^p = d_i^p ,   ∂(G·T)/∂s_iα = Σ_p c_i^p d_i^{p+e_α} ,

so they are each other's backward pass, to any order, and no table is ever differentiated by autograd.

Per atom both are two small matrix products, per block of atoms one large one over atoms and p₃ together. The planes
(h₂, h₁) of the atoms, hundreds of numbers each, live only in blocks that stay in the processor's cache.
"""

from __future__ import annotations

import functools
import math
import threading
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from farfield.electrostatics.graphs import constant, is_traced, operator

#: Numbers in a block of planes: a MiB of float64, which stays in a core's second-level cache; more on an accelerator,
#: where the launch of each block costs more than memory does.
_BLOCK = {"cpu": 1 << 17}
_BLOCK_ELSEWHERE = 1 << 25

_scratch = threading.local()


def _buffer(like: Tensor, blocks: list[_Block], plane: int) -> Tensor:
    """Memory for one block of planes, kept from call to call on the CPU, where new pages cost more than the planes."""
    # The first block is the largest.
    size = (blocks[0].atoms.stop - blocks[0].atoms.start) * plane if blocks else 0
    if like.device.type != "cpu":
        return like.new_empty(size)
    kept: dict[str, Tensor] = _scratch.__dict__
    key = str(like.dtype)
    if key not in kept or kept[key].numel() < size:
        with torch.inference_mode(False):  # made in inference mode, it could be written to in no other
            kept[key] = torch.empty(size, dtype=like.dtype)
    return kept[key]


def count_of(level: int) -> int:
    """Return the number of multi-indices with |p| ≤ level."""
    return (level + 1) * (level + 2) * (level + 3) // 6


@functools.cache
def multi_indices(level: int) -> tuple[tuple[int, int, int], ...]:
    """All p = (p₁, p₂, p₃) with |p| ≤ level, by their sum: those of a lower level come first."""
    axis = range(level + 1)
    every = [(p1, p2, p3) for p3 in axis for p2 in axis for p1 in axis]
    return tuple(sorted((p for p in every if sum(p) <= level), key=sum))


@functools.lru_cache(maxsize=64)
def _selection(places: tuple[int, ...], size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Matrix of zeros and ones that puts column i in ``places[i]`` of ``size``; its transpose takes it from there.

    Faster than an index, whose backward pass scatters.
    """
    with torch.inference_mode(False):  # made in inference mode, autograd could not keep it
        matrix = torch.zeros(len(places), size, dtype=dtype, device=device)
        matrix[range(len(places)), places] = 1.0
    return matrix


@functools.cache
def _raised_places(level: int) -> tuple[int, ...]:
    """Place of p + e_α among the multi-indices of the next level: for all p, |p| ≤ level, once for each α."""
    place = {p: index for index, p in enumerate(multi_indices(level + 1))}
    return tuple(
        place[p1 + (alpha == 0), p2 + (alpha == 1), p3 + (alpha == 2)]
        for alpha in range(3)
        for p1, p2, p3 in multi_indices(level)
    )


@runtime_checkable
class Tables(Protocol):
    """What both maps are made with for one set of waves: each without a graph, the other's transpose."""

    def structure_factors(self, c: Tensor, level: int) -> Tensor:
        """Structure factors, of any shape, of coefficients (members, slots, coefficients)."""

    def moments(self, g: Tensor, level: int) -> Tensor:
        """Moments (members, slots, coefficients) of amplitudes, of the shape of the structure factors."""


class WaveTables:
    """Cosines and sines of 2πhs of a group of systems along each axis, with their derivatives as far as asked for.

    Parameters
    ----------
    fractional
        Fractional coordinates s, float64, shape (members, slots, 3). Phases are taken in float64: in a long cell they
        are many turns, which float32 would blur.
    ranges
        Largest h along each axis.
    dtype
        Of the tables.
    """

    def __init__(self, fractional: Tensor, ranges: tuple[int, int, int], dtype: torch.dtype) -> None:
        self.members, self.slots = fractional.shape[:2]
        self.ranges, self._dtype = ranges, dtype
        self._coordinates = fractional.detach().reshape(-1, 3)
        self._axes: list[_Axis] = []

    def up_to(self, level: int) -> tuple[Tensor, ...]:
        """X, Y, Z of the derivatives 0 … level, each of shape (members · slots, level + 1, 2(n + 1))."""
        if not self._axes:
            columns = self._coordinates[:, :, None].unbind(1)
            self._axes = [_Axis(column, n, self._dtype) for column, n in zip(columns, self.ranges, strict=True)]
        return tuple(axis.up_to(level) for axis in self._axes)

    def structure_factors(self, c: Tensor, level: int) -> Tensor:
        """T of coefficients, without a graph."""
        return _structure_factors(c, self, level)

    def moments(self, g: Tensor, level: int) -> Tensor:
        """Take the moments of amplitudes, without a graph."""
        return _moments(g, self, level)


class _Axis:
    """Tables along one axis: level p holds (2πh)^p times cosines and sines."""

    def __init__(self, coordinate: Tensor, highest: int, dtype: torch.dtype) -> None:
        frequencies = torch.arange(highest + 1, dtype=coordinate.dtype, device=coordinate.device) * (2.0 * math.pi)
        self._frequencies = frequencies.to(dtype)
        self._minus_squares = -(torch.cat((frequencies, frequencies)).to(dtype) ** 2)
        angle = coordinate * frequencies
        # Room for what training on forces asks of quadrupoles; it is touched only when it is used.
        self._table = angle.new_empty(len(angle), 5, 2 * (highest + 1), dtype=dtype)
        self._table[:, 0, : highest + 1] = torch.cos(angle)
        self._table[:, 0, highest + 1 :] = torch.sin(angle)
        self._known = 1

    def up_to(self, level: int) -> Tensor:
        if level >= self._table.shape[1]:
            self._table = torch.cat((self._table, torch.empty_like(self._table)), 1)
        table, half = self._table, len(self._frequencies)
        for p in range(self._known, level + 1):
            if p == 1:
                torch.mul(table[:, 0, half:], -self._frequencies, out=table[:, 1, :half])
                torch.mul(table[:, 0, :half], self._frequencies, out=table[:, 1, half:])
            else:
                torch.mul(table[:, p - 2], self._minus_squares, out=table[:, p])
        self._known = max(self._known, level + 1)
        return table[:, : level + 1]


class _Block(NamedTuple):
    """Some members, all slots of them or some slots of one: ``atoms`` counts the slots of all members."""

    members: slice
    atoms: slice


def _blocks(tables: WaveTables, plane: int, device: torch.device) -> list[_Block]:
    """Blocks whose planes fill the cache."""
    members, slots = tables.members, tables.slots
    step = max(1, _BLOCK.get(device.type, _BLOCK_ELSEWHERE) // max(plane, 1))
    if step >= slots:
        group = max(1, step // max(slots, 1))
        starts = range(0, members, group)
        return [_Block(slice(m, m + group), slice(m * slots, min(m + group, members) * slots)) for m in starts]
    # Blocks of equal size: a small remainder would cost as many calls as a full block.
    step = math.ceil(slots / math.ceil(slots / step))
    return [
        _Block(slice(m, m + 1), slice(m * slots + first, m * slots + min(first + step, slots)))
        for m in range(members)
        for first in range(0, slots, step)
    ]


@functools.cache
def _cube_places(level: int) -> tuple[int, ...]:
    """Place of each multi-index in a cube (p₁, p₃, p₂) of edge level + 1."""
    return tuple((p1 * (level + 1) + p3) * (level + 1) + p2 for p1, p2, p3 in multi_indices(level))


def _structure_factors(c: Tensor, tables: WaveTables, level: int) -> Tensor:
    x, y, z = tables.up_to(level)
    rank, n1, n2, n3 = level + 1, x.shape[2], y.shape[2], z.shape[2]
    cubes = c.reshape(len(x), -1) @ _selection(_cube_places(level), rank**3, c.dtype, c.device)
    cubes = cubes.view(-1, rank * rank, rank)
    total = c.new_zeros(tables.members, n3, n2 * n1)
    blocks = _blocks(tables, rank * n1 * n2, c.device)
    memory = _buffer(c, blocks, rank * n1 * n2)
    for members, atoms in blocks:
        # Σ_{p₂} c Y, then the planes of all p₃ and h₂ by h₁
        rows = torch.bmm(cubes[atoms], y[atoms]).view(-1, rank, rank * n2)
        planes = memory[: len(rows) * rank * n2 * n1].view(-1, rank * n2, n1)
        torch.bmm(rows.mT, x[atoms], out=planes)
        sums = total[members]
        sums.baddbmm_(z[atoms].reshape(len(sums), -1, n3).mT, planes.view(len(sums), -1, n2 * n1))
    return total


def _moments(g: Tensor, tables: WaveTables, level: int) -> Tensor:
    x, y, z = tables.up_to(level)
    rank, n1, n2, n3 = level + 1, x.shape[2], y.shape[2], z.shape[2]
    cubes = g.new_empty(len(x), rank * rank, rank)
    blocks = _blocks(tables, rank * n1 * n2, g.device)
    memory = _buffer(g, blocks, rank * n1 * n2)
    for members, atoms in blocks:
        amplitudes, count = g[members], atoms.stop - atoms.start
        planes = memory[: count * rank * n2 * n1].view(len(amplitudes), -1, n2 * n1)
        torch.bmm(z[atoms].reshape(len(amplitudes), -1, n3), amplitudes, out=planes)
        rows = torch.bmm(x[atoms], planes.view(count, rank * n2, n1).mT)
        torch.bmm(rows.view(count, rank * rank, n2), y[atoms].mT, out=cubes[atoms])
    d = cubes.view(len(x), rank**3) @ _selection(_cube_places(level), rank**3, g.dtype, g.device).mT
    return d.view(tables.members, tables.slots, -1)


def _along(c: Tensor, d: Tensor, level: int) -> Tensor:
    """Σ_p c^p d^{p+e_α}, |p| ≤ level, shape (members, slots, 3)."""
    if is_traced(d):
        raised = d.index_select(2, constant(_raised_places(level), d, torch.int64))
    else:
        raised = d @ _selection(_raised_places(level), d.shape[2], d.dtype, d.device).mT
    return (raised.unflatten(-1, (3, -1)) * c[:, :, None]).sum(-1)


class _StructureFactors(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fractional, c, tables, level):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(fractional, c)
        ctx.tables, ctx.level = tables, level
        return tables.structure_factors(c, level)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        fractional, c = ctx.saved_tensors
        on_position = ctx.needs_input_grad[0]
        d = moments(g, fractional, ctx.tables, ctx.level + on_position)
        by_position = _along(c, d, ctx.level).to(fractional.dtype) if on_position else None
        return by_position, d[:, :, : c.shape[2]], None, None


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g, fractional, tables, level, reserve):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(g, fractional)
        ctx.tables, ctx.level = tables, level
        d = tables.moments(g, level + reserve)
        ctx.raised = d if reserve else None
        return d[:, :, : len(multi_indices(level))].clone() if reserve else d

    @staticmethod
    def backward(ctx, c):  # type: ignore[no-untyped-def]
        g, fractional = ctx.saved_tensors
        by_grid = by_position = None
        if ctx.needs_input_grad[0]:
            by_grid = structure_factors(fractional, c, ctx.tables, ctx.level)
        if ctx.needs_input_grad[1]:
            d = ctx.raised
            if d is None or torch.is_grad_enabled():
                d = moments(g, fractional, ctx.tables, ctx.level + 1)
            by_position = _along(c, d, ctx.level).to(fractional.dtype)
        return by_grid, by_position, None, None, None


def _structure_factors_afresh(fractional: Tensor, c: Tensor, ranges: list[int], level: int) -> Tensor:
    return WaveTables(fractional, (ranges[0], ranges[1], ranges[2]), c.dtype).structure_factors(c, level)


def _moments_afresh(g: Tensor, fractional: Tensor, ranges: list[int], level: int) -> Tensor:
    return WaveTables(fractional, (ranges[0], ranges[1], ranges[2]), g.dtype).moments(g, level)


def _structure_factors_save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    fractional, c, ctx.ranges, ctx.level = inputs
    ctx.save_for_backward(fractional, c)


def _structure_factors_backward(ctx, g):  # type: ignore[no-untyped-def]
    fractional, c = ctx.saved_tensors
    moving = ctx.needs_input_grad[0]
    d = _moments_operator(g, fractional, ctx.ranges, ctx.level + int(moving))
    by_position = _along(c, d, ctx.level).to(fractional.dtype) if moving else None
    return by_position, d[:, :, : c.shape[2]], None, None


def _moments_save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    g, fractional, ctx.ranges, ctx.level = inputs
    ctx.save_for_backward(g, fractional)


def _moments_backward(ctx, c):  # type: ignore[no-untyped-def]
    g, fractional = ctx.saved_tensors
    by_grid = by_position = None
    if ctx.needs_input_grad[0]:
        by_grid = _structure_factors_operator(fractional, c, ctx.ranges, ctx.level)
    if ctx.needs_input_grad[1]:
        d = _moments_operator(g, fractional, ctx.ranges, ctx.level + 1)
        by_position = _along(c, d, ctx.level).to(fractional.dtype)
    return by_grid, by_position, None, None


_structure_factors_operator = operator(
    "structure_factors(Tensor fractional, Tensor c, int[] ranges, int level) -> Tensor",
    _structure_factors_afresh,
    shapes=lambda fractional, c, ranges, level: c.new_empty(
        (c.shape[0], 2 * (ranges[2] + 1), 4 * (ranges[1] + 1) * (ranges[0] + 1))
    ),
    save=_structure_factors_save,
    backward=_structure_factors_backward,
)
_moments_operator = operator(
    "moments(Tensor g, Tensor fractional, int[] ranges, int level) -> Tensor",
    _moments_afresh,
    shapes=lambda g, fractional, ranges, level: g.new_empty(
        (fractional.shape[0], fractional.shape[1], count_of(level))
    ),
    save=_moments_save,
    backward=_moments_backward,
)


def structure_factors(fractional: Tensor, c: Tensor, tables: Tables, level: int) -> Tensor:
    """T of coefficients c.

    Parameters
    ----------
    fractional
        s, the coordinates that ``tables`` were made of, shape (members, slots, 3): what gradients go to.
    c
        Coefficients of the `multi_indices` of the level, shape (members, slots, coefficients).
    tables
        Those of s: `WaveTables`, or the ones of `farfield.electrostatics.sphere`.
    level
        L, 0 or more.

    Returns
    -------
    Tensor
        From `WaveTables` of shape (members, 2(n₃ + 1), 2(n₂ + 1) · 2(n₁ + 1)), along each axis cosines first;
        differentiable to any order.
    """
    if is_traced(c) and isinstance(tables, WaveTables):
        return _structure_factors_operator(fractional, c, tables.ranges, level)
    return _StructureFactors.apply(fractional, c, tables, level)


def moments(g: Tensor, fractional: Tensor, tables: Tables, level: int) -> Tensor:
    """Take the derivatives d^p of the field with amplitudes G at the atoms: the transpose of `structure_factors`.

    Parameters
    ----------
    g
        Of the shape that `structure_factors` gives.
    fractional, tables, level
        As there.

    Returns
    -------
    Tensor
        Shape (members, slots, coefficients), differentiable to any order.
    """
    if is_traced(g) and isinstance(tables, WaveTables):
        return _moments_operator(g, fractional, tables.ranges, level)
    # One level more than asked for costs less now than all of them again in the backward pass.
    reserve = torch.is_grad_enabled() and fractional.requires_grad
    return _Moments.apply(g, fractional, tables, level, int(reserve))
