r"""Energy of open systems by the compiled kernels, with what their atoms answer in one shot, and its derivatives.

    E = ½⟨m, A m⟩ + U ,   U = ½⟨d, A m⟩ ,   d = −K A m   (`farfield.electrostatics.susceptibility`) ,

with m the permanent multipoles and d the induced ones, of which no energy among themselves is in E. K is symmetric, so
that A m changes U by ⟨d, δ(A m)⟩, and with the fields φ of m and ψ of d

    ∂E/∂m = φ + ψ ,   ∂E/∂r_i = (L^m_i + L^d_i) ∇φ(r_i) + L^m_i ∇ψ(r_i) .

That is one loop over all pairs for the energy, and one more for its derivatives. What training on forces asks for, the
change of these along some direction in positions, multipoles, κ and α, takes the change of φ, then that of d, and with
it the change of ψ: two loops more. Without response they are one and one. Third derivatives are left to `OpenGeometry`
and autograd.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from farfield.electrostatics.open_multipoles import (
    OpenPairs,
    Sources,
    array_of,
    filled,
    geometry_of,
    present,
    second_by_autograd,
    slopes,
    unpacked,
)


class OpenEnergy(NamedTuple):
    """What `open_energy` gives.

    Attributes
    ----------
    energy
        Energy of each member (eV), U included, float64, shape (members,), differentiable to any order.
    fields
        Potential, gradient, … of the permanent multipoles at the atoms, without a graph, shape (members, slots,
        numbers).
    charges, dipoles
        Induced ones, without a graph; None where none are.
    """

    energy: Tensor
    fields: Tensor
    charges: Tensor | None
    dipoles: Tensor | None


class _Answer(NamedTuple):
    """κ and α of a block as the kernels take them: of α no, one or nine numbers an atom."""

    softness: np.ndarray
    polarizability: np.ndarray

    @classmethod
    def of(cls, like: np.ndarray, softness: Tensor | None, polarizability: Tensor | None) -> _Answer:
        """From tensors (members, slots, …), either of which may be missing; ``like`` is of their shape and dtype."""
        if polarizability is None:
            alpha = np.zeros((*like.shape, 0), like.dtype)
        else:
            alpha = array_of(polarizability).reshape(*like.shape, -1)
        return cls(np.zeros_like(like) if softness is None else array_of(softness), alpha)

    def empty(self) -> _Answer:
        """Return arrays of the same shapes to be written."""
        return _Answer(np.empty_like(self.softness), np.empty_like(self.polarizability))

    def induced(self) -> Sources:
        """Charges and, where there is α, dipoles to be written."""
        polar = self.polarizability.shape[2] > 0
        shape, dtype = self.softness.shape, self.softness.dtype
        dipoles = np.empty((*(shape if polar else (1, 0)), 3), dtype)
        return Sources(int(polar), np.empty(shape, dtype), dipoles, np.empty((1, 0, 3, 3), dtype))


class _Sum:
    """Fields φ of m, d = −K A m and, when asked for, the fields ψ of d: all that derivatives are made of.

    Parameters
    ----------
    pairs, conserved
        As in `open_energy`.
    moving
        Whether derivatives in the positions are wanted.
    positions, given
        Positions, and charges, dipoles, quadrupoles, κ and α as far as they are given.
    """

    def __init__(
        self, pairs: OpenPairs, conserved: bool, moving: bool, positions: Tensor, given: Sequence[Tensor | None]
    ) -> None:
        self.pairs, self.conserved, self.moving = pairs, conserved, moving
        self._positions, self._given = positions.detach(), given
        *multipoles, softness, alpha = given
        self._m = pairs.sources(positions, *multipoles)
        self._degree = max(self._m.order, int(alpha is not None)) + int(moving)
        self._fields = pairs.fields(positions, self._m, self._degree)
        from farfield.electrostatics.open_kernels import add_energies

        self.energy = np.zeros(len(positions))
        add_energies(self._fields.numpy(), *self._m[1:], self._m.order, self.energy)
        self._answer: _Answer | None = None
        self._d: Sources | None = None
        if softness is not None or alpha is not None:
            from farfield.electrostatics.response_kernels import induce

            self._answer = _Answer.of(self._m.charges, softness, alpha)
            self._d = self._answer.induced()
            induce(self._fields.numpy(), *self._answer, conserved, *self._d[1:3], self.energy)

    @property
    def found(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Fields of m, and induced charges and dipoles."""
        if self._d is None:
            return self._fields, None, None
        charges, dipoles = (torch.from_numpy(part) for part in self._d[1:3])
        return self._fields, charges, dipoles if self._d.order > 0 else None

    @functools.cached_property
    def _answered(self) -> Tensor | None:
        if self._d is None:
            return None
        return self.pairs.fields(self._positions, self._d, self._m.order + int(self.moving))

    @functools.cached_property
    def derivatives(self) -> list[Tensor | None]:
        """Derivatives of E in the positions (None if they do not move) and all that may be given."""
        terms, found = [(self._fields, self._m)], None
        if self._d is not None and self._answer is not None and self._answered is not None:
            from farfield.electrostatics.response_kernels import slopes as slopes_of_response

            terms += [(self._fields, self._d), (self._answered, self._m)]
            found = self._answer.empty()
            slopes_of_response(self._fields.numpy(), self._answer.softness, self.conserved, *found)
        return self._joined(terms, _sum(self._fields, self._answered), found)

    def changes(self, along: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Change of the derivatives along a change of the positions and of all that was given."""
        slide, *others = along
        steps = filled(others, self._given)
        h = self.pairs.sources(self._positions, *steps[:3])
        change = self.pairs.tangents(self._positions, self._m, slide, h, self._degree)
        terms, found, again = [(change, self._m), (self._fields, h)], None, None
        if self._d is not None and self._answer is not None and self._answered is not None:
            from farfield.electrostatics.response_kernels import change as change_of_response

            found, dh = self._answer.empty(), self._answer.induced()
            arrays = *self._answer, *_Answer.of(self._m.charges, *steps[3:]), self.conserved, *dh[1:3], *found
            change_of_response(self._fields.numpy(), change.numpy(), *arrays)
            again = self.pairs.tangents(self._positions, self._d, slide, dh, self._m.order + int(self.moving))
            terms += [(change, self._d), (self._fields, dh), (again, self._m), (self._answered, h)]
        return self._joined(terms, _sum(change, again), found)

    def _joined(
        self, terms: Sequence[tuple[Tensor, Sources]], fields: Tensor, found: _Answer | None
    ) -> list[Tensor | None]:
        by_position = slopes(self._positions, *terms) if self.moving else None
        by_multipole = present(unpacked(fields, self._m.order, 0.5), self._given[:3])
        by_response: list[Tensor | None] = [None, None]
        if found is not None:
            by_response = [
                None if part is None else torch.from_numpy(numbers).view(part.shape)
                for numbers, part in zip(found, self._given[3:], strict=True)
            ]
        return [by_position, *by_multipole, *by_response]


def _times(weight: Tensor, parts: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Weights of the members (members,) times things of their atoms (members, …)."""
    # Energies are mostly added up as they are.
    if weight.stride() == (0,) and not weight.requires_grad and float(weight[0]) == 1.0:
        return [None if part is None else part.clone() for part in parts]  # what is kept is nobody else's
    return [
        None if part is None else weight.to(part.dtype).reshape(-1, *[1] * (part.ndim - 1)) * part for part in parts
    ]


def _sum(fields: Tensor, others: Tensor | None) -> Tensor:
    """Sum of two fields up to the lower degree of the second."""
    return fields if others is None else fields[..., : others.shape[2]] + others


def _products(left: Sequence[Tensor | None], right: Sequence[Tensor | None], scale: float = 1.0) -> Tensor:
    """Sum products over the atoms of each member, in float64."""
    products = [
        (a * b).flatten(1).sum(1, dtype=torch.float64)
        for a, b in zip(left, right, strict=True)
        if a is not None and b is not None
    ]
    return scale * functools.reduce(torch.add, products)


def _plain_answer(
    potential: Tensor, gradient: Tensor | None, softness: Tensor | None, alpha: Tensor | None, conserved: bool
) -> Tensor:
    """U of each member by operations that autograd can differentiate to any order."""
    energies = []
    if softness is not None:
        if conserved:
            total = softness.sum(1, keepdim=True)
            mean = (softness * potential).sum(1, keepdim=True) / torch.where(total > 0, total, torch.ones_like(total))
            potential = potential - mean
        energies.append(softness * potential.square())
    if alpha is not None and gradient is not None:
        moments = alpha[..., None] * gradient if alpha.ndim == 2 else (alpha @ gradient[..., None]).squeeze(-1)
        energies.append((moments * gradient).sum(2))
    return -0.5 * functools.reduce(torch.add, energies).sum(1, dtype=torch.float64)


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pairs, conserved, moving, positions, *given):  # type: ignore[no-untyped-def]
        ctx.set_materialize_grads(False)
        ctx.sum = _Sum(pairs, conserved, moving, positions, given)
        ctx.save_for_backward(positions, *given)
        found = ctx.sum.found
        ctx.mark_non_differentiable(*(part for part in found if part is not None))
        return torch.from_numpy(ctx.sum.energy), *found

    @staticmethod
    def backward(ctx, weight, *_):  # type: ignore[no-untyped-def]
        if weight is None:
            return (None,) * 9
        return None, None, None, *_Derivatives.apply(ctx.sum, weight, *ctx.saved_tensors)


class _Derivatives(torch.autograd.Function):
    """Derivatives of E times the weight of each member; a loss of energy and forces asks for them twice."""

    @staticmethod
    def forward(ctx, known, weight, positions, *given):  # type: ignore[no-untyped-def]
        ctx.set_materialize_grads(False)
        ctx.sum = known
        ctx.save_for_backward(weight, positions, *given)
        return tuple(_times(weight, known.derivatives))

    @staticmethod
    def backward(ctx, *along):  # type: ignore[no-untyped-def]
        if all(step is None for step in along):
            return (None,) * 8
        weight, positions, *given = ctx.saved_tensors
        if torch.is_grad_enabled():
            energy = functools.partial(_weighed, ctx.sum.pairs, ctx.sum.conserved)
            found = second_by_autograd(energy, (positions, weight, *given), (along[0], None, *along[1:]))
            return None, found[1], found[0], *found[2:]
        on_weight = _products(along, ctx.sum.derivatives) if ctx.needs_input_grad[1] else None
        return None, on_weight, *_times(weight, ctx.sum.changes(along))


def _weighed(
    pairs: OpenPairs,
    conserved: bool,
    positions: Tensor,
    weight: Tensor,
    q: Tensor,
    u: Tensor | None,
    t: Tensor | None,
    softness: Tensor | None,
    alpha: Tensor | None,
) -> Tensor:
    """Weighted sum of the energies, by operations that autograd can differentiate to any order."""
    order = Sources.order_of((q, u, t))
    value, gradient, second = geometry_of(pairs, max(order, int(alpha is not None)), positions, (q, u, t))
    energy = _products((q, u, t), (value, gradient, None if second is None else 0.5 * second), 0.5)
    if softness is not None or alpha is not None:
        energy = energy + _plain_answer(value, gradient, softness, alpha, conserved)
    return (weight * energy).sum()


def open_energy(
    pairs: OpenPairs,
    positions: Tensor,
    charges: Tensor,
    dipoles: Tensor | None,
    quadrupoles: Tensor | None,
    softness: Tensor | None = None,
    polarizability: Tensor | None = None,
    *,
    conserved: bool = True,
) -> OpenEnergy:
    """Energy of each system, without self-interaction, with what its atoms answer where κ or α are given.

    Parameters
    ----------
    pairs, positions, charges, dipoles, quadrupoles
        As in `farfield.electrostatics.open_multipoles.open_potential`.
    softness
        κ (e²/eV), shape (members, slots); zero in empty slots.
    polarizability
        α (e²·Å²/eV), shape (members, slots) or (members, slots, 3, 3), of which the symmetric part counts; zero in
        empty slots.
    conserved
        Whether the induced charges of each system add up to zero.

    Returns
    -------
    OpenEnergy
        The energies, and what they are made of.
    """
    moving = positions.requires_grad and torch.is_grad_enabled()
    given = (charges, dipoles, quadrupoles, softness, polarizability)
    return OpenEnergy(*_Energy.apply(pairs, conserved, moving, positions, *given))
