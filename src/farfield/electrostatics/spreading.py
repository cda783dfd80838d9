r"""Spread multipoles over a mesh and gather what it holds, differentiable to any order.

Both maps are sums over atoms of products of B-splines: spreading coefficients c of the derivatives (a, b, c) of
`MULTI_INDICES` gives mesh(g) = Σ_i Σ_α c_iα ∂^α M(u_i − g), gathering gives v_iα = Σ_g mesh(g) ∂^α M(u_i − g). Each is
the transpose of the other, and a derivative in the coordinates u is the same map one degree higher:

    ∂/∂u_i ⟨mesh, spread(c)⟩ = Σ_α c_iα v_{i,α+e} .

So every backward pass, of any order, is made of these two maps again, and nothing of the size atoms × order³ is kept.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from farfield.electrostatics.compiled import POOL, kernels_for
from farfield.electrostatics.graphs import constant, is_traced, operator

#: Highest degree of derivatives: field gradients of quadrupoles, differentiated twice and once more to spare.
MAX_DEGREE = 5

#: (a, b, c) of the derivatives, by degree a + b + c.
MULTI_INDICES = tuple(
    (a, b, degree - a - b)
    for degree in range(MAX_DEGREE + 1)
    for a in range(degree, -1, -1)
    for b in range(degree - a, -1, -1)
)

#: Fewer atoms than this are not worth a second thread.
_ATOMS_PER_TASK = 500

#: Numbers in the stencils that the torch implementation works on at a time; more on an accelerator, where the launch of
#: each chunk costs more than memory does.
_CHUNK = {"cpu": 1 << 20}
_CHUNK_ELSEWHERE = 1 << 25

#: From this many atoms on they are sorted on a GPU: for 10⁶ that halves the time of spreading (H100). The mesh of 10⁵
#: fits into its cache, and sorting them takes longer than it saves.
LEAST_SORTED = 250_000

#: From this many atoms on compiled kernels are worth their compilation (some seconds, once on a machine).
LEAST_COMPILED = 256


def count_of(degree: int) -> int:
    """Return the number of derivatives up to a degree."""
    return (degree + 1) * (degree + 2) * (degree + 3) // 6


def _raised(degree: int) -> tuple[tuple[int, ...], ...]:
    places = {index: place for place, index in enumerate(MULTI_INDICES)}
    lower = MULTI_INDICES[: count_of(degree)]
    return (
        tuple(places[a + 1, b, c] for a, b, c in lower),
        tuple(places[a, b + 1, c] for a, b, c in lower),
        tuple(places[a, b, c + 1] for a, b, c in lower),
    )


#: By degree, for each axis the places of α + e among the derivatives, for all α up to the degree.
_RAISED = tuple(_raised(degree) for degree in range(MAX_DEGREE))


def _sorted_on_device(u: Tensor, shape: tuple[int, int, int]) -> Tensor | None:
    """Order of the atoms by mesh row, so that atoms at work at one time share parts of the mesh; None for few atoms."""
    if len(u) < LEAST_SORTED:
        return None
    first, second = (torch.remainder(torch.floor(u[:, axis]), shape[axis]).int() for axis in (0, 1))
    return torch.argsort(first * shape[1] + second)


class Stencil:
    """Where atoms stand on a mesh.

    Parameters
    ----------
    coordinates
        Mesh coordinates u, float64, shape (atoms, 3): fractional coordinates times the numbers of points. Taken without
        their graph.
    shape
        Numbers of mesh points along the axes.
    order
        Order of the B-splines.
    compiled
        Use the compiled kernels: those of numba by default on the CPU for systems that are not small, those of Triton
        on CUDA.
    """

    def __init__(
        self, coordinates: Tensor, shape: tuple[int, int, int], order: int, compiled: bool | None = None
    ) -> None:
        self.shape, self.order = shape, order
        self.kernels: str | None = None
        if is_traced(coordinates):  # the operators of the graph make their own
            return
        if compiled is None:
            compiled = coordinates.device.type != "cpu" or len(coordinates) >= LEAST_COMPILED
        if compiled:
            self.kernels = kernels_for(coordinates.device.type)
        if self.kernels == "triton":
            self.places = _sorted_on_device(coordinates.detach(), shape)
        if self.kernels != "numba":
            return
        self.u = np.ascontiguousarray(coordinates.detach().numpy())
        plane = np.mod(np.floor(self.u[:, 0]).astype(np.int64), shape[0])
        self.atoms = np.argsort(plane.astype(np.int32), kind="stable")
        self._sorted_plane = plane[self.atoms]

    def tasks_by_color(self) -> list[list[np.ndarray]]:
        """Return groups of atoms; those of one color touch no plane of the mesh that another of the color touches."""
        n, width = self.shape[0], self.order
        blocks = 2 * (n // (2 * width))
        blocks = min(blocks, 8 * torch.get_num_threads(), 2 * (len(self.atoms) // (2 * _ATOMS_PER_TASK)))
        if blocks < 2 or torch.get_num_threads() == 1:
            return [[self.atoms]]
        # Blocks of planes of about equal width, none narrower than the reach of an atom.
        edges = np.searchsorted(self._sorted_plane, np.arange(1, blocks) * n // blocks)
        parts = np.split(self.atoms, edges)
        return [[part for part in parts[color::2] if len(part)] for color in (0, 1)]

    def tasks(self) -> list[np.ndarray]:
        """Return groups of atoms of about equal size."""
        number = max(1, min(torch.get_num_threads(), len(self.atoms) // _ATOMS_PER_TASK))
        return np.array_split(self.atoms, number)


def _spread(u: Tensor, coefficients: Tensor, stencil: Stencil, degree: int) -> Tensor:
    mesh = coefficients.new_zeros(stencil.shape)
    if stencil.kernels is None:
        return _spread_by_torch(u, coefficients, mesh, stencil, degree)
    if stencil.kernels == "triton":
        from farfield.electrostatics import spline_triton

        spline_triton.spread(u, coefficients, stencil.places, mesh, stencil.order, degree)
        return mesh
    from farfield.electrostatics.spline_kernels import kernels

    kernel, _ = kernels(stencil.order, degree)
    values, target = coefficients.detach().contiguous().numpy(), mesh.numpy()
    for color in stencil.tasks_by_color():
        POOL.run(functools.partial(kernel, stencil.u, values, part, target) for part in color)
    return mesh


def _gather(u: Tensor, mesh: Tensor, stencil: Stencil, degree: int) -> Tensor:
    if stencil.kernels is None:
        return _gather_by_torch(u, mesh, stencil, degree)
    if stencil.kernels == "triton":
        from farfield.electrostatics import spline_triton

        out = mesh.new_empty((len(u), count_of(degree)))
        spline_triton.gather(u, mesh, stencil.places, out, stencil.order, degree)
        return out
    from farfield.electrostatics.spline_kernels import kernels

    _, kernel = kernels(stencil.order, degree)
    out = mesh.new_empty((len(stencil.u), count_of(degree)))
    values, target = mesh.detach().contiguous().numpy(), out.numpy()
    POOL.run(functools.partial(kernel, stencil.u, values, part, target) for part in stencil.tasks())
    return out


def spline_weights(x: Tensor, order: int, degree: int) -> list[Tensor]:
    """B-splines and derivatives at x = u − ⌊u⌋, M⁽ᵈ⁾(x + order − 1 − j): one (…, order) for each d ≤ degree."""
    levels = {1: torch.ones_like(x)[..., None]}
    for m in range(2, order + 1):
        i = torch.arange(m, dtype=x.dtype, device=x.device)
        left = torch.nn.functional.pad(levels[m - 1], (0, 1))
        right = torch.nn.functional.pad(levels[m - 1], (1, 0))
        levels[m] = ((x[..., None] + i) * left + (m - x[..., None] - i) * right) / (m - 1)
    weights = []
    for d in range(degree + 1):
        level = levels[order - d]
        for _ in range(d):
            level = torch.nn.functional.pad(level, (0, 1)) - torch.nn.functional.pad(level, (1, 0))
        weights.append(level.flip(-1))
    return weights


def _stencil_of_chunk(u: Tensor, stencil: Stencil, degree: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Flat mesh points (atoms, order³) and weights (atoms, derivatives, order³) of some atoms."""
    floor = torch.floor(u)
    offsets = torch.arange(stencil.order, device=u.device) - (stencil.order - 1)
    points = (floor.long()[..., None] + offsets) % constant(stencil.shape, u, torch.int64)[:, None]
    _, n2, n3 = stencil.shape
    flat = (points[:, 0, :, None, None] * n2 + points[:, 1, None, :, None]) * n3 + points[:, 2, None, None, :]
    tables = [weight.to(dtype) for weight in spline_weights(u - floor, stencil.order, degree)]
    weights = [
        (tables[a][:, 0, :, None, None] * tables[b][:, 1, None, :, None] * tables[c][:, 2, None, None, :]).flatten(1)
        for a, b, c in MULTI_INDICES[: count_of(degree)]
    ]
    return flat.flatten(1), torch.stack(weights, 1)


def _chunks(u: Tensor, stencil: Stencil, degree: int) -> list[slice]:
    """Atoms whose stencils are worked on at a time."""
    step = max(1, _CHUNK.get(u.device.type, _CHUNK_ELSEWHERE) // (stencil.order**3 * count_of(degree)))
    return [slice(first, first + step) for first in range(0, len(u), step)]


def _spread_by_torch(u: Tensor, coefficients: Tensor, mesh: Tensor, stencil: Stencil, degree: int) -> Tensor:
    flat = mesh.view(-1)
    for part in _chunks(u, stencil, degree):
        points, weights = _stencil_of_chunk(u.detach()[part], stencil, degree, mesh.dtype)
        values = torch.einsum("ac,acp->ap", coefficients.detach()[part], weights)
        flat.index_add_(0, points.flatten(), values.flatten())
    return mesh


def _gather_by_torch(u: Tensor, mesh: Tensor, stencil: Stencil, degree: int) -> Tensor:
    flat = mesh.detach().reshape(-1)
    parts = []
    for part in _chunks(u, stencil, degree):
        points, weights = _stencil_of_chunk(u.detach()[part], stencil, degree, mesh.dtype)
        parts.append(torch.einsum("ap,acp->ac", flat[points], weights))
    return torch.cat(parts) if parts else mesh.new_empty((0, count_of(degree)))


def _check_degree(degree: int, order: int) -> None:
    if degree > min(MAX_DEGREE, order - 1):
        raise ValueError(
            f"derivatives of degree {degree} are needed but a mesh of order {order} gives them up to "
            f"{min(MAX_DEGREE, order - 1)}: differentiate less often, or use method='ewald'"
        )


def _slope(coefficients: Tensor, values: Tensor, degree: int) -> Tensor:
    """Σ_α c_α v_{α+e} along each axis, float64, shape (atoms, 3)."""
    raised = constant(_RAISED[degree], values, torch.int64)
    picked = values.index_select(1, raised.flatten()).unflatten(1, raised.shape)
    return (coefficients[:, None] * picked).sum(-1).double()


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, coefficients, stencil, degree):  # type: ignore[no-untyped-def]
        _check_degree(degree, stencil.order)
        ctx.save_for_backward(u, coefficients)
        ctx.stencil, ctx.degree = stencil, degree
        return _spread(u, coefficients, stencil, degree)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        u, coefficients = ctx.saved_tensors
        moving = ctx.needs_input_grad[0]
        values = _Gather.apply(u, gradient, ctx.stencil, ctx.degree + int(moving))
        slope = _slope(coefficients, values, ctx.degree) if moving else None
        return slope, values[:, : count_of(ctx.degree)], None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, mesh, stencil, degree):  # type: ignore[no-untyped-def]
        _check_degree(degree, stencil.order)
        ctx.save_for_backward(u, mesh)
        ctx.stencil, ctx.degree = stencil, degree
        return _gather(u, mesh, stencil, degree)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        u, mesh = ctx.saved_tensors
        slope = on_mesh = None
        if ctx.needs_input_grad[0]:
            slope = _slope(gradient, _Gather.apply(u, mesh, ctx.stencil, ctx.degree + 1), ctx.degree)
        if ctx.needs_input_grad[1]:
            on_mesh = _Spread.apply(u, gradient, ctx.stencil, ctx.degree)
        return slope, on_mesh, None, None


def _spread_afresh(u: Tensor, coefficients: Tensor, shape: list[int], order: int, degree: int) -> Tensor:
    return _spread(u, coefficients, Stencil(u, (shape[0], shape[1], shape[2]), order), degree)


def _gather_afresh(u: Tensor, mesh: Tensor, order: int, degree: int) -> Tensor:
    return _gather(u, mesh, Stencil(u, (mesh.shape[0], mesh.shape[1], mesh.shape[2]), order), degree)


def _spread_save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    u, coefficients, _, ctx.order, ctx.degree = inputs
    ctx.save_for_backward(u, coefficients)


def _spread_backward(ctx, gradient):  # type: ignore[no-untyped-def]
    u, coefficients = ctx.saved_tensors
    moving = ctx.needs_input_grad[0]
    values = _gather_operator(u, gradient, ctx.order, ctx.degree + int(moving))
    slope = _slope(coefficients, values, ctx.degree) if moving else None
    return slope, values[:, : count_of(ctx.degree)], None, None, None


def _gather_save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    u, mesh, ctx.order, ctx.degree = inputs
    ctx.save_for_backward(u, mesh)


def _gather_backward(ctx, gradient):  # type: ignore[no-untyped-def]
    u, mesh = ctx.saved_tensors
    slope = on_mesh = None
    if ctx.needs_input_grad[0]:
        slope = _slope(gradient, _gather_operator(u, mesh, ctx.order, ctx.degree + 1), ctx.degree)
    if ctx.needs_input_grad[1]:
        on_mesh = _spread_operator(u, gradient, mesh.shape, ctx.order, ctx.degree)
    return slope, on_mesh, None, None


_spread_operator = operator(
    "mesh_spread(Tensor u, Tensor coefficients, SymInt[] shape, int order, int degree) -> Tensor",
    _spread_afresh,
    shapes=lambda u, coefficients, shape, order, degree: coefficients.new_empty(shape),
    save=_spread_save,
    backward=_spread_backward,
)
_gather_operator = operator(
    "mesh_gather(Tensor u, Tensor mesh, int order, int degree) -> Tensor",
    _gather_afresh,
    shapes=lambda u, mesh, order, degree: mesh.new_empty((u.shape[0], count_of(degree))),
    save=_gather_save,
    backward=_gather_backward,
)


def spread(u: Tensor, coefficients: Tensor, stencil: Stencil, degree: int) -> Tensor:
    """Mesh (n₁, n₂, n₃) of coefficients (atoms, derivatives up to ``degree``) at coordinates u (atoms, 3), float64.

    ``stencil`` is that of the same coordinates. The mesh has the dtype of the coefficients.
    """
    if is_traced(coefficients):
        _check_degree(degree, stencil.order)
        return _spread_operator(u, coefficients, stencil.shape, stencil.order, degree)
    return _Spread.apply(u, coefficients, stencil, degree)


def gather(u: Tensor, mesh: Tensor, stencil: Stencil, degree: int) -> Tensor:
    """Values and derivatives in u up to ``degree`` of what a mesh holds, at coordinates u: (atoms, derivatives)."""
    if is_traced(mesh):
        _check_degree(degree, stencil.order)
        return _gather_operator(u, mesh, stencil.order, degree)
    return _Gather.apply(u, mesh, stencil, degree)
