r"""Energy of Gaussian charges under open boundary conditions, with its derivatives in closed form.

    E = ½ Σ_{i≠j} q_i q_j k_e B_0(r_ij) ,   φ_i = Σ_j q_j k_e B_0 ,   ∂E/∂r_i = −Σ_j q_i q_j k_e B_1 R ,   R = r_i − r_j
    .

The energy alone, of charges alone, is what most trainings ask for. Its first derivatives cost almost nothing beside the
kernels, so they are found together with it; a backward pass only scales them. Training on forces asks for a backward
pass through those, the derivative of E' = Σ h_i φ_i + Σ H_i·∂E/∂r_i for some h (atoms,) and H (atoms, 3):

    ∂E'/∂q_i = Σ_j [ h_j B_0 − q_j B_1 R·(H_i − H_j) ] ,
    ∂E'/∂r_i = Σ_j [ q_i q_j B_2 R·(H_i − H_j) − (h_i q_j + q_i h_j) B_1 ] R − q_i q_j B_1 (H_i − H_j) .

Each pair is visited once: atom i meets i + s (cyclically) for the offsets s = 1 … n/2, so pairs stand in rectangles
(offsets, atoms) whose second atoms are shifted views of the first; for even n the last offset meets each pair twice and
counts half. All pair arrays live in blocks of offsets, so memory grows with the atoms and not with the pairs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from farfield.electrostatics.graphs import is_traced, operator
from farfield.electrostatics.kernels import gaussian_kernels
from farfield.units import COULOMB_CONSTANT

#: Pairs in a block: arrays of a quarter MiB in float64, small against the cost of calling; more on an accelerator.
_BLOCK = {"cpu": 1 << 15}
_BLOCK_ELSEWHERE = 1 << 24


class _Pairs:
    """Some members, and their pairs at the offsets first … last."""

    def __init__(self, members: slice, first: int, last: int, slots: int) -> None:
        self.members, self.slots = members, slots
        self._first, self._last = first, last

    def others(self, values: Tensor) -> Tensor:
        """Values of the second atoms, (members, …, offsets, atoms), from those of all atoms, (members, …, atoms)."""
        twice = torch.cat((values, values[..., : self._last]), -1)
        # Laid out plainly: of a view with overlapping rows, torch would make sums in any order of dimensions.
        return twice.unfold(-1, self.slots, 1)[..., self._first : self._last + 1, :].contiguous()

    def add_to_others(self, values: Tensor) -> Tensor:
        """Sum what pairs give to their second atoms: the transpose of `others`, (members, …, atoms)."""
        offsets = self._last - self._first + 1
        # Rows that are read one number shorter than they were written are shifted by one more each.
        rows = torch.nn.functional.pad(values, (0, offsets)).flatten(-2)[..., :-offsets]
        sums = rows.unflatten(-1, (offsets, self.slots + offsets - 1)).sum(-2)
        sums = torch.cat((sums[..., : offsets - 1] + sums[..., self.slots :], sums[..., offsets - 1 : self.slots]), -1)
        return sums.roll(self._first, -1)

    def kernels(self, bond: Tensor, exponent: Tensor, highest: int) -> tuple[Tensor, ...]:
        """B_n of bonds (members, 3, offsets, atoms), times one half where pairs are met twice."""
        x, y, z = bond.unbind(1)
        squared = torch.addcmul(torch.addcmul(x * x, y, y), z, z)
        kernels = gaussian_kernels(squared, exponent[:, None, None], highest)
        if 2 * self._last != self.slots:
            return kernels
        share = torch.ones(self._last - self._first + 1, 1, dtype=bond.dtype, device=bond.device)
        share[-1] = 0.5
        return tuple(kernel * share for kernel in kernels)


def _blocks(charges: Tensor) -> Iterator[_Pairs]:
    """Blocks of pairs of all members."""
    members, slots = charges.shape
    size = _BLOCK.get(charges.device.type, _BLOCK_ELSEWHERE)
    offsets = slots // 2
    if offsets == 0:
        return
    group = max(1, size // (offsets * slots))
    step = max(1, min(offsets, size // slots))
    for first in range(0, members, group):
        for offset in range(1, offsets + 1, step):
            yield _Pairs(slice(first, first + group), offset, min(offset + step - 1, offsets), slots)


def _first(positions: Tensor, charges: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Energy of each member, ∂E/∂r and ∂E/∂q."""
    by_position = torch.zeros_like(positions)
    by_charge = torch.zeros_like(charges)
    for pairs in _blocks(charges):
        q, r = charges[pairs.members], positions[pairs.members].mT
        bond = pairs.others(r) - r[:, :, None]
        zeroth, first = pairs.kernels(bond, exponent[pairs.members], 1)
        other = pairs.others(q)
        # What a pair gives to its first atom, and to its second.
        pull = bond * (first * other * q[:, None])[:, None]
        by_position[pairs.members] += (pull.sum(2) - pairs.add_to_others(pull)).mT
        by_charge[pairs.members] += (zeroth * other).sum(1) + pairs.add_to_others(zeroth * q[:, None])
    by_charge *= COULOMB_CONSTANT
    by_position *= COULOMB_CONSTANT
    energy = 0.5 * (charges * by_charge).sum(1, dtype=torch.float64)
    return energy, by_position, by_charge


def _second(
    positions: Tensor, charges: Tensor, exponent: Tensor, along_position: Tensor, along_charge: Tensor
) -> tuple[Tensor, Tensor]:
    """Derive E' along given directions in r and q; differentiable itself, where a third order is asked for."""
    by_position: dict[int, Tensor] = {}
    by_charge: dict[int, Tensor] = {}
    for pairs in _blocks(charges):
        q, r = charges[pairs.members], positions[pairs.members].mT
        h, slide = along_charge[pairs.members], along_position[pairs.members].mT
        bond, change = pairs.others(r) - r[:, :, None], pairs.others(slide) - slide[:, :, None]
        zeroth, first, second = pairs.kernels(bond, exponent[pairs.members], 2)
        other_q, other_h = pairs.others(q), pairs.others(h)
        q, h = q[:, None], h[:, None]
        product = q * other_q
        advance = (bond * change).sum(1)
        # ∂E'/∂(r_j − r_i) of each pair
        along = second * advance * product - first * (h * other_q + other_h * q)
        stretch = along[:, None] * bond - (first * product)[:, None] * change
        slope = first * advance
        on_position = (pairs.add_to_others(stretch) - stretch.sum(2)).mT
        on_charge = (zeroth * other_h - slope * other_q).sum(1) + pairs.add_to_others(zeroth * h - slope * q)
        start = pairs.members.start
        by_position[start] = by_position[start] + on_position if start in by_position else on_position
        by_charge[start] = by_charge[start] + on_charge if start in by_charge else on_charge
    if not by_charge:
        return torch.zeros_like(positions), torch.zeros_like(charges)
    return (
        COULOMB_CONSTANT * torch.cat(list(by_position.values())),
        COULOMB_CONSTANT * torch.cat(list(by_charge.values())),
    )


class _Energy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, positions, charges, exponent):  # type: ignore[no-untyped-def]
        energy, by_position, by_charge = _first(positions, charges, exponent)
        ctx.save_for_backward(positions, charges, exponent)
        ctx.derivatives = by_position, by_charge
        return energy

    @staticmethod
    def backward(ctx, weight):  # type: ignore[no-untyped-def]
        return *_Derivatives.apply(weight, *ctx.saved_tensors, *ctx.derivatives), None


class _Derivatives(torch.autograd.Function):
    """∂E/∂r and ∂E/∂q times the weight of each member; the values are known, the derivatives of them are not."""

    @staticmethod
    def forward(ctx, weight, positions, charges, exponent, by_position, by_charge):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight, positions, charges, exponent)
        ctx.derivatives = by_position, by_charge
        weight = weight.to(charges.dtype)
        return weight[:, None, None] * by_position, weight[:, None] * by_charge

    @staticmethod
    def backward(ctx, along_position, along_charge):  # type: ignore[no-untyped-def]
        weight, positions, charges, exponent = ctx.saved_tensors
        if torch.is_grad_enabled():
            # A third derivative is asked for: the first ones are needed with their graph.
            one = torch.ones_like(weight)
            by_position, by_charge = _Derivatives.apply(one, positions, charges, exponent, *ctx.derivatives)
        else:
            by_position, by_charge = ctx.derivatives
        by_weight = (along_position * by_position).sum((1, 2)) + (along_charge * by_charge).sum(1)
        cast = weight.to(charges.dtype)
        on_position, on_charge = _second(positions, charges, exponent, along_position, along_charge)
        return (
            by_weight.to(weight.dtype),
            cast[:, None, None] * on_position,
            cast[:, None] * on_charge,
            None,
            None,
            None,
        )


def _charges_save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs, output[1], output[2])


def _charges_backward(ctx, weight, along_position, along_charge):  # type: ignore[no-untyped-def]
    # The first derivatives are results of the operator, so that what is made of them here has derivatives, too.
    positions, charges, exponent, by_position, by_charge = ctx.saved_tensors
    on_position = on_charge = None
    if weight is not None:
        weight = weight.to(charges.dtype)
        on_position, on_charge = weight[:, None, None] * by_position, weight[:, None] * by_charge
    if along_position is not None or along_charge is not None:
        along_position = torch.zeros_like(positions) if along_position is None else along_position
        along_charge = torch.zeros_like(charges) if along_charge is None else along_charge
        more = _second_operator(positions, charges, exponent, along_position, along_charge)
        on_position = more[0] if on_position is None else on_position + more[0]
        on_charge = more[1] if on_charge is None else on_charge + more[1]
    return on_position, on_charge, None


def _no_save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    pass


def _no_backward(ctx, *gradients):  # type: ignore[no-untyped-def]
    raise RuntimeError("the energy of open charges has no third derivatives in a compiled graph: call it uncompiled")


_charges_operator = operator(
    "open_charges(Tensor positions, Tensor charges, Tensor exponent) -> (Tensor, Tensor, Tensor)",
    _first,
    shapes=lambda positions, charges, exponent: (
        charges.new_empty((charges.shape[0],), dtype=torch.float64),
        torch.empty_like(positions),
        torch.empty_like(charges),
    ),
    save=_charges_save,
    backward=_charges_backward,
)
_second_operator = operator(
    "open_charges_second(Tensor positions, Tensor charges, Tensor exponent, Tensor along_position, "
    "Tensor along_charge) -> (Tensor, Tensor)",
    _second,
    shapes=lambda positions, charges, *rest: (torch.empty_like(positions), torch.empty_like(charges)),
    save=_no_save,
    backward=_no_backward,
)


def open_charge_energy(positions: Tensor, charges: Tensor, smearing: Tensor) -> Tensor:
    """Energy of each open system of Gaussian charges, without self-interaction.

    Parameters
    ----------
    positions
        Shape (members, slots, 3) (Å); any finite value in empty slots.
    charges
        Shape (members, slots) (e); zero in empty slots.
    smearing
        σ (Å), shape (members,). No gradient in it.

    Returns
    -------
    Tensor
        Energies (eV), float64, shape (members,), differentiable to any order in positions and charges.
    """
    exponent = (0.5**0.5 / smearing).to(positions.dtype)
    if is_traced(positions):
        return _charges_operator(positions, charges, exponent)[0]
    return _Energy.apply(positions, charges, exponent)
