r"""The open sum of Gaussian multipoles on CPUs, by compiled kernels, with its derivatives in closed form.

The sum is bilinear: with A m the potential that multipoles m make at the atoms, and its first and second derivatives,

    ⟨w, A m⟩ = Σ_i L^w_i φ^m(r_i) ,   ∂⟨w, A m⟩/∂r_i = L^w_i ∇φ^m(r_i) + L^m_i ∇φ^w(r_i) ,   L = q + u·∇ + ½ Q:∇∇ ,

so the derivatives of A m along weights w, which a backward pass asks for, are made of the fields of m and of w
(`farfield.electrostatics.open_kernels`), and those of E = ½⟨m, A m⟩ of the fields of m alone
(`farfield.electrostatics.open_energy`). A backward pass through these, as training on forces asks for, needs how the
fields change along given changes of positions and multipoles: once more a loop over all pairs for m, and one for w.
Third derivatives are left to `OpenGeometry` and autograd.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from farfield.electrostatics.compiled import POOL, kernels_for
from farfield.electrostatics.graphs import is_traced
from farfield.electrostatics.multipoles import traceless
from farfield.electrostatics.open_sum import OpenGeometry
from farfield.electrostatics.padding import Padding

#: From this many pairs on compiled kernels are worth their compilation (some seconds, once on a machine).
LEAST_PAIRS = 4096

#: Fewer pairs than this are not worth a second thread.
_PAIRS_PER_TASK = 4096


class Sources(NamedTuple):
    """Multipoles of a block as the kernels take them; those beyond the order are empty."""

    order: int
    charges: np.ndarray
    dipoles: np.ndarray
    quadrupoles: np.ndarray

    @staticmethod
    def order_of(parts: Sequence[Tensor | None]) -> int:
        """Return the highest order that is given, 0 if none is."""
        return max((level for level, part in enumerate(parts) if part is not None), default=0)

    @classmethod
    def of(cls, shape: Sequence[int], dtype: np.dtype, parts: Sequence[Tensor | None]) -> Sources:
        """From charges (members, slots), dipoles and quadrupoles, any of which may be missing."""
        order = cls.order_of(parts)
        arrays = []
        for level, part in itertools.zip_longest(range(3), parts):
            if part is not None:
                arrays.append(part.detach().contiguous().numpy())
            else:
                arrays.append(np.zeros((*(shape if level <= order else (1, 0)), *(3,) * level), dtype))
        return cls(order, *arrays)


class OpenPairs:
    """The open systems of a group, for the compiled kernels.

    Parameters
    ----------
    padding
        Where their atoms stand.
    smearing
        σ (Å), shape (members,).
    dtype
        Of positions and multipoles.
    whole
        Whether the block holds the atoms of each system from its first slot on: not if other ranks have some.
    """

    def __init__(self, padding: Padding, smearing: Tensor, dtype: torch.dtype, *, whole: bool) -> None:
        self.smearing = smearing
        self._scales = smearing.reciprocal().to(dtype).numpy()
        slots = padding.mask.shape[1]
        self._counts = padding.mask.sum(1).numpy() if whole else np.full(len(smearing), slots, np.int64)

    @staticmethod
    def suit(positions: Tensor) -> bool:
        """Whether the compiled kernels can sum over atoms at positions (members, slots, 3), and are worth it."""
        members, slots, _ = positions.shape
        if positions.device.type != "cpu" or is_traced(positions) or members * slots**2 < LEAST_PAIRS:
            return False
        return kernels_for("cpu") is not None

    def sources(self, positions: Tensor, *parts: Tensor | None) -> Sources:
        """Lay out charges, dipoles and quadrupoles, as far as they are given."""
        return Sources.of(positions.shape[:2], self._scales.dtype, parts)

    def fields(self, positions: Tensor, sources: Sources, degree: int) -> Tensor:
        """Fields of multipoles at the atoms up to a degree, (members, slots, numbers)."""
        from farfield.electrostatics import open_kernels

        kernel = open_kernels.fields(sources.order, degree, self._scales.dtype)
        return self._run(kernel, degree, array_of(positions), *sources[1:])

    def tangents(
        self, positions: Tensor, sources: Sources, along_position: Tensor | None, changes: Sources, degree: int
    ) -> Tensor:
        """Change of the fields along changes of positions and multipoles."""
        from farfield.electrostatics import open_kernels

        along = np.zeros(positions.shape, self._scales.dtype) if along_position is None else array_of(along_position)
        kernel = open_kernels.tangents(sources.order, degree, self._scales.dtype)
        return self._run(kernel, degree, array_of(positions), *sources[1:], along, *changes[1:])

    def _run(self, kernel: Callable[..., None], degree: int, *arrays: np.ndarray) -> Tensor:
        members, slots, _ = arrays[0].shape
        out = np.empty((members, slots, (degree + 1) * (degree + 2) * (degree + 3) // 6), self._scales.dtype)
        atoms = members * slots
        tasks = max(1, min(torch.get_num_threads(), atoms * slots // _PAIRS_PER_TASK))
        edges = [atoms * task // tasks for task in range(tasks + 1)]
        POOL.run(
            functools.partial(kernel, *arrays, self._scales, self._counts, first, last, out)
            for first, last in itertools.pairwise(edges)
        )
        return torch.from_numpy(out)


def array_of(tensor: Tensor) -> np.ndarray:
    """Return the numbers of a tensor as the kernels take them."""
    return tensor.detach().contiguous().numpy()


def slopes(like: Tensor, *terms: tuple[Tensor, Sources]) -> Tensor:
    """Sum of L ∇φ over pairs of fields φ and multipoles, (members, slots, 3)."""
    from farfield.electrostatics.open_kernels import add_slopes

    out = torch.zeros_like(like, memory_format=torch.contiguous_format)
    for values, sources in terms:
        add_slopes(values.numpy(), *sources[1:], sources.order, out.numpy())
    return out


def unpacked(values: Tensor, degree: int, scale: float = 1.0) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Potential, its gradient and, times a scale, its traceless second derivatives from fields."""
    from farfield.electrostatics.open_kernels import unpack

    shape = values.shape[:2]
    found = [values.new_empty((*(shape if level <= degree else (1, 0)), *(3,) * level)) for level in range(3)]
    unpack(values.numpy(), degree, scale, *(part.numpy() for part in found))
    return found[0], found[1] if degree > 0 else None, found[2] if degree > 1 else None


def present(gradients: Sequence[Tensor | None], given: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients in those tensors that were given."""
    return [None if part is None else gradient for gradient, part in zip(gradients, given, strict=True)]


def geometry_of(
    pairs: OpenPairs, degree: int, positions: Tensor, multipoles: Sequence[Tensor | None]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Apply A by operations that autograd can differentiate to any order."""
    charges, dipoles, quadrupoles = multipoles
    assert charges is not None  # narrows the type
    order = Sources.order_of(multipoles)
    if quadrupoles is not None:
        quadrupoles = traceless(0.5 * (quadrupoles + quadrupoles.mT))
    geometry = OpenGeometry(positions, pairs.smearing, order + degree)
    value, gradient, second = geometry.potential(charges, dipoles, quadrupoles, degree + 1)
    return value, gradient, None if second is None else traceless(second)


def _sum_of_products(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> Tensor:
    products = [(a * b).sum() for a, b in zip(left, right, strict=True) if a is not None and b is not None]
    return functools.reduce(torch.add, products)


def second_by_autograd(
    function: Callable[..., Tensor], given: Sequence[Tensor | None], along: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Differentiate the change of a function along steps of its first arguments; with the graph."""
    # Aliases: arguments may have been made of one another, but the derivatives are partial ones.
    aliases = [
        None if part is None else part.view_as(part) if part.requires_grad else part.detach().requires_grad_()
        for part in given
    ]
    pairs = zip(aliases, along, strict=False)
    steps = [(alias, step) for alias, step in pairs if alias is not None and step is not None]
    wanted = [alias for alias in aliases if alias is not None]
    firsts = torch.autograd.grad(
        function(*aliases), [alias for alias, _ in steps], create_graph=True, allow_unused=True
    )
    change = _sum_of_products(firsts, [step for _, step in steps])
    found = iter(torch.autograd.grad(change, wanted, create_graph=True, allow_unused=True))
    return [None if alias is None else next(found) for alias in aliases]


class _Potential(torch.autograd.Function):
    """A m: potential, gradient and traceless second derivatives, as far as a degree."""

    @staticmethod
    def forward(ctx, pairs, degree, moving, positions, *multipoles):  # type: ignore[no-untyped-def]
        ctx.set_materialize_grads(False)
        values = pairs.fields(positions, pairs.sources(positions, *multipoles), degree + int(moving))
        ctx.save_for_backward(positions, *multipoles, values)
        ctx.options = pairs, degree, moving
        return unpacked(values, degree)

    @staticmethod
    def backward(ctx, *weights):  # type: ignore[no-untyped-def]
        if all(weight is None for weight in weights):
            return (None,) * 7
        return None, None, None, *_Transposed.apply(*ctx.options, *ctx.saved_tensors, *weights)


class _Transposed(torch.autograd.Function):
    """Derivatives of ⟨w, A m⟩ in positions and m; the fields of m are known."""

    @staticmethod
    def forward(ctx, pairs, degree, moving, positions, q, u, t, values, *weights):  # type: ignore[no-untyped-def]
        ctx.set_materialize_grads(False)
        m, w = pairs.sources(positions, q, u, t), _as_sources(pairs, positions, weights)
        weighed = pairs.fields(positions, w, m.order + int(moving))
        ctx.save_for_backward(positions, q, u, t, *weights, values, weighed)
        ctx.options = pairs, degree, moving
        by_position = slopes(positions, (values, w), (weighed, m)) if moving else None
        return by_position, *present(unpacked(weighed, m.order, 0.5), (q, u, t))

    @staticmethod
    def backward(ctx, *along):  # type: ignore[no-untyped-def]
        if all(step is None for step in along):
            return (None,) * 11
        positions, q, u, t, *weights, values, weighed = ctx.saved_tensors
        pairs, degree, moving = ctx.options
        multipoles = (q, u, t)
        if torch.is_grad_enabled():

            def product(positions: Tensor, *parts: Tensor | None) -> Tensor:
                return _sum_of_products(parts[3:], geometry_of(pairs, degree, positions, parts[:3]))

            found = second_by_autograd(product, (positions, *multipoles, *weights), along)
            return None, None, None, *found[:4], None, *found[4:]
        m, w = pairs.sources(positions, *multipoles), _as_sources(pairs, positions, weights)
        h = pairs.sources(positions, *filled(along[1:], multipoles))
        change = pairs.tangents(positions, m, along[0], h, degree + int(moving))
        terms = [(change, w), (weighed, h)]
        on_multipoles: Sequence[Tensor | None] = (None, None, None)
        if along[0] is not None:
            still = pairs.sources(positions, *(None if part is None else torch.zeros_like(part) for part in weights))
            changed = pairs.tangents(positions, w, along[0], still, m.order + int(moving))
            terms.append((changed, m))
            on_multipoles = present(unpacked(changed, m.order, 0.5), multipoles)
        on_position = slopes(positions, *terms) if moving else None
        return None, None, None, on_position, *on_multipoles, None, *present(unpacked(change, degree), weights)


def _as_sources(pairs: OpenPairs, positions: Tensor, weights: Sequence[Tensor | None]) -> Sources:
    """Weights of a potential and its derivatives as multipoles: that of ∇∇φ is ½ Q."""
    value, gradient, second = weights
    return pairs.sources(positions, value, gradient, None if second is None else 2.0 * second)


def filled(changes: Sequence[Tensor | None], multipoles: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Fill changes up with zeros where multipoles are given but no change is."""
    return [
        None if part is None else torch.zeros_like(part) if change is None else change
        for change, part in zip(changes, multipoles, strict=True)
    ]


def open_potential(
    pairs: OpenPairs,
    positions: Tensor,
    charges: Tensor,
    dipoles: Tensor | None,
    quadrupoles: Tensor | None,
    levels: int,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Potential of the other atoms at each atom, its gradient and traceless second derivatives.

    Parameters
    ----------
    pairs
        The systems.
    positions
        Shape (members, slots, 3) (Å); any finite value in empty slots.
    charges, dipoles, quadrupoles
        Shapes (members, slots), (members, slots, 3) and (members, slots, 3, 3) (e, e·Å, e·Å²); zero in empty slots. Of
        quadrupoles the symmetric traceless part counts.
    levels
        1 for the potential alone, 2 with its gradient, 3 with its second derivatives.

    Returns
    -------
    tuple
        As `OpenGeometry.potential`, differentiable to any order.
    """
    moving = positions.requires_grad and torch.is_grad_enabled()
    found = _Potential.apply(pairs, levels - 1, moving, positions, charges, dipoles, quadrupoles)
    return found[0], found[1], found[2]
