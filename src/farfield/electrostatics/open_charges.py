r"""Energy of Gaussian charges under open boundary conditions, with its derivatives in closed form.

    E = ½ Σ_{i≠j} q_i q_j k_e B_0(r_ij) ,   φ_i = Σ_j q_j k_e B_0 ,   ∂E/∂r_i = −Σ_j q_i q_j k_e B_1 R ,   R = r_i − r_j
    .

The energy alone, of charges alone, is what most trainings ask for. Its first derivatives cost almost nothing beside the
kernels, so they are found together with it; a backward pass only scales them. Training on forces asks for a backward
pass through those, the derivative of E' = Σ h_i φ_i + Σ H_i·∂E/∂r_i for some h (atoms,) and H (atoms, 3):

    ∂E'/∂q_i = Σ_j [ h_j B_0 − q_j B_1 R·(H_i − H_j) ] ,
    ∂E'/∂r_i = Σ_j [ q_i q_j B_2 R·(H_i − H_j) − (h_i q_j + q_i h_j) B_1 ] R − q_i q_j B_1 (H_i − H_j) .

All pair arrays live in blocks of rows, so memory grows with the atoms and not with the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from farfield.electrostatics.kernels import gaussian_kernels
from farfield.units import COULOMB_CONSTANT

#: Pairs in a block: arrays of half a MiB in float64, small against the cost of calling; more on an accelerator.
_BLOCK = {"cpu": 1 << 16}
_BLOCK_ELSEWHERE = 1 << 24


def _blocks(charges: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of members and rows whose pairs fill a block."""
    members, slots = charges.shape
    size = _BLOCK.get(charges.device.type, _BLOCK_ELSEWHERE)
    if slots * slots <= size:
        step = max(1, size // (slots * slots))
        for first in range(0, members, step):
            yield slice(first, first + step), slice(None)
        return
    step = max(1, size // slots)
    for member in range(members):
        for first in range(0, slots, step):
            yield slice(member, member + 1), slice(first, first + step)


def _differences(values: Tensor, member: slice, row: slice) -> Tensor:
    """v_i − v_j of the rows i of a block with all j, components first: (3, members, rows, slots)."""
    block = values[member].permute(2, 0, 1)
    return block[:, :, row, None] - block[:, :, None, :]


def _kernels(bond: Tensor, exponent: Tensor, highest: int) -> tuple[Tensor, ...]:
    """B_n of a block, also between an atom and itself: there R = 0, so that only B_0 has to be taken off again."""
    squared = bond[0] * bond[0]
    squared = torch.addcmul(torch.addcmul(squared, bond[1], bond[1]), bond[2], bond[2])
    return gaussian_kernels(squared, exponent[:, None, None], highest)


def _without_self(by_charge: Tensor, charges: Tensor, exponent: Tensor) -> Tensor:
    """Σ_j B_0 q_j less the term j = i, B_0(0) = 2a/√π."""
    return by_charge - charges * (exponent * (2.0 / math.sqrt(math.pi)))[:, None]


def _pulls(weights: Tensor, columns: Tensor, row: slice) -> tuple[Tensor, ...]:
    """Σ_j w_ij (v_i − v_j) of each row for vectors v side by side in ``columns`` (members, slots, 3 per vector)."""
    product = weights @ torch.cat((columns, torch.ones_like(columns[..., :1])), -1)
    return (product[..., -1:] * columns[:, row] - product[..., :-1]).split(3, -1)


def _first(positions: Tensor, charges: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Energy of each member, ∂E/∂r and ∂E/∂q."""
    by_position = torch.empty_like(positions)
    by_charge = torch.empty_like(charges)
    # Sums over weighted positions, below, keep more digits about a point within the system.
    positions = positions - positions.mean(1, keepdim=True)
    for member, row in _blocks(charges):
        q = charges[member]
        zeroth, first = _kernels(_differences(positions, member, row), exponent[member], 1)
        by_charge[member, row] = (zeroth @ q[..., None]).squeeze(-1)
        (pull,) = _pulls(first * q[:, None, :], positions[member], row)
        by_position[member, row] = pull * -q[:, row, None]
    by_charge = COULOMB_CONSTANT * _without_self(by_charge, charges, exponent)
    by_position *= COULOMB_CONSTANT
    energy = 0.5 * (charges * by_charge).sum(1, dtype=torch.float64)
    return energy, by_position, by_charge


def _second(
    positions: Tensor, charges: Tensor, exponent: Tensor, along_position: Tensor, along_charge: Tensor
) -> tuple[Tensor, Tensor]:
    """Derive E' along given directions in r and q; differentiable itself, where a third order is asked for."""
    blocks: dict[int, list[tuple[Tensor, Tensor]]] = {}
    positions = positions - positions.mean(1, keepdim=True)
    own = (positions * along_position).sum(-1, keepdim=True)
    one = torch.ones_like(own)
    # R·(H_i − H_j) as one matrix product over the atoms' own vectors.
    left = torch.cat((positions, along_position, own, one), -1)
    right = torch.cat((-along_position, -positions, one, own), -1)
    both = torch.cat((positions, along_position), -1)
    for member, row in _blocks(charges):
        q, h = charges[member], along_charge[member]
        zeroth, first, second = _kernels(_differences(positions, member, row), exponent[member], 2)
        advance = left[member, row] @ right[member].mT
        by_charge = (zeroth @ h[..., None] - (first * advance) @ q[..., None]).squeeze(-1)
        # Rows carry q_i or h_i outside the sums over j.
        other, slide = _pulls(first * q[:, None, :], both[member], row)
        (stretch,) = _pulls(second * advance * q[:, None, :] - first * h[:, None, :], positions[member], row)
        by_position = q[:, row, None] * (stretch - slide) - h[:, row, None] * other
        blocks.setdefault(member.start or 0, []).append((by_position, by_charge))
    rows = [[torch.cat(parts, 1) for parts in zip(*block, strict=True)] for block in blocks.values()]
    by_position, by_charge = (torch.cat(parts) for parts in zip(*rows, strict=True))
    by_charge = _without_self(by_charge, along_charge, exponent)
    return COULOMB_CONSTANT * by_position, COULOMB_CONSTANT * by_charge


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
    return _Energy.apply(positions, charges, exponent)
