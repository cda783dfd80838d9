r"""Sums of triple products, T = Σ_i (Σ_r a_ir ⊗ b_ir) ⊗ z_i, with derivatives of any order and little memory.

This is the heart of the separable Ewald sum: a, b, z are tables of cosines and sines of one axis each, i runs over
atoms (and, for dipoles and quadrupoles, over derivatives along the third axis), T is the structure factor on the grid
of k. Plain autograd would keep the plane Σ_r a ⊗ b of every atom for the backward passes, hundreds of numbers per atom.
It is cheaper to make it again: here planes live only in blocks that stay in the processor's cache.

T is linear in each of a, b, z. So its derivative along G is a contraction of the same kind, and so are the derivatives
of that: `triple_sum` and `triple_contract` are each other's backward pass, to any order.

Shapes: a (members, items, rank, n1), b (members, items, rank, n2), z (members, items, n3), T (members, n3, n1·n2).
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

#: Numbers in a block of planes: a MiB of float64, which stays in a core's second-level cache; more on an
#: accelerator, where the launch of each block costs more than memory does.
_BLOCK = {"cpu": 1 << 17}
_BLOCK_ELSEWHERE = 1 << 25


_scratch = threading.local()


def _buffer(like: Tensor, size: int) -> Tensor:
    """Memory for one block of planes, kept from call to call on the CPU, where new pages cost more than the planes."""
    if like.device.type != "cpu" or torch.compiler.is_compiling():
        return like.new_empty(size)
    kept: dict[str, Tensor] = _scratch.__dict__
    key = str(like.dtype)
    if key not in kept or kept[key].numel() < size:
        with torch.inference_mode(False):  # made in inference mode, it could be written to in no other
            kept[key] = torch.empty(size, dtype=like.dtype)
    return kept[key]


def _blocks(z: Tensor, plane: int) -> list[tuple[slice, slice]]:
    """Slices of members and of items whose planes fill a block."""
    members, items = z.shape[:2]
    size = _BLOCK.get(z.device.type, _BLOCK_ELSEWHERE)
    step = max(1, size // max(plane, 1))
    if step >= items:
        group = max(1, step // max(items, 1))
        return [(slice(first, first + group), slice(None)) for first in range(0, members, group)]
    # Blocks of equal size: a small remainder would cost as many calls as a full block.
    step = math.ceil(items / math.ceil(items / step))
    return [
        (slice(member, member + 1), slice(first, first + step))
        for member in range(members)
        for first in range(0, items, step)
    ]


def _planes(a: Tensor, b: Tensor, memory: Tensor) -> Tensor:
    """Σ_r a ⊗ b of a block, shape (members, items, n1·n2), written into ``memory``."""
    shape = (a.shape[0], a.shape[1], a.shape[3], b.shape[3])
    planes = memory[: math.prod(shape)].view(shape)
    if a.shape[2] == 1:
        torch.mul(a.mT, b, out=planes)
    else:
        torch.matmul(a.mT, b, out=planes)
    return planes.flatten(2)


def _largest(blocks: list[tuple[slice, slice]], z: Tensor, plane: int) -> int:
    """Numbers in the planes of the first block, which is the largest."""
    if not blocks:
        return 0
    member, item = blocks[0]
    return len(range(*member.indices(z.shape[0]))) * len(range(*item.indices(z.shape[1]))) * plane


def _sum(a: Tensor, b: Tensor, z: Tensor) -> Tensor:
    total = z.new_zeros((len(z), z.shape[2], a.shape[3] * b.shape[3]))
    blocks = _blocks(z, total.shape[2])
    memory = _buffer(z, _largest(blocks, z, total.shape[2]))
    for member, item in blocks:
        total[member].baddbmm_(z[member, item].mT, _planes(a[member, item], b[member, item], memory))
    return total


def _contract(
    g: Tensor, a: Tensor | None, b: Tensor | None, z: Tensor | None, wanted: tuple[bool, bool, bool], n1: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """G contracted with (b, z), with (a, z) and with (a, b), as far as wanted."""
    n2 = g.shape[2] // n1
    some = next(table for table in (z, a, b) if table is not None)
    along_a = g.new_empty((*b.shape[:3], n1)) if wanted[0] and b is not None else None
    along_b = g.new_empty((*a.shape[:3], n2)) if wanted[1] and a is not None else None
    along_z = g.new_empty((*a.shape[:2], g.shape[1])) if wanted[2] and a is not None else None
    blocks = _blocks(some, n1 * n2)
    memory = _buffer(g, _largest(blocks, some, n1 * n2))
    for member, item in blocks:
        if z is not None and (wanted[0] or wanted[1]):
            waves = z[member, item]
            shape = (*waves.shape[:2], n1, n2)
            plane = memory[: math.prod(shape)].view(shape)
            torch.bmm(waves, g[member], out=plane.flatten(2))
            if along_a is not None and b is not None:
                torch.matmul(b[member, item], plane.mT, out=along_a[member, item])
            if along_b is not None and a is not None:
                torch.matmul(a[member, item], plane, out=along_b[member, item])
        if along_z is not None and a is not None and b is not None:
            torch.bmm(_planes(a[member, item], b[member, item], memory), g[member].mT, out=along_z[member, item])
    return along_a, along_b, along_z


class _TripleSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, z):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(a, b, z)
        return _sum(a, b, z)

    @staticmethod
    def backward(ctx, g):  # type: ignore[no-untyped-def]
        a, b, z = ctx.saved_tensors
        return _TripleContract.apply(g, a, b, z, ctx.needs_input_grad, a.shape[3])


class _TripleContract(torch.autograd.Function):
    @staticmethod
    def forward(ctx, g, a, b, z, wanted, n1):  # type: ignore[no-untyped-def]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(g, a, b, z)
        ctx.n1 = n1
        return _contract(g, a, b, z, wanted, n1)

    @staticmethod
    def backward(ctx, along_a, along_b, along_z):  # type: ignore[no-untyped-def]
        # The scalar behind the three cotangents is T(a', b, z)·G + T(a, b', z)·G + T(a, b, z')·G. The first two share
        # z: they are one sum with the ranks of (a', b) and (a, b') side by side.
        g, a, b, z = ctx.saved_tensors
        need_g, need_a, need_b, need_z = ctx.needs_input_grad[:4]
        grad_g = grad_a = grad_b = grad_z = None
        pairs = [pair for pair in ((along_a, b), (a, along_b)) if pair[0] is not None and pair[1] is not None]
        if pairs:
            left = torch.cat([pair[0] for pair in pairs], 2)
            right = torch.cat([pair[1] for pair in pairs], 2)
            if need_g:
                grad_g = _TripleSum.apply(left, right, z)
            need_left, need_right = need_a and along_b is not None, need_b and along_a is not None
            on_left, on_right, grad_z = _TripleContract.apply(
                g, left, right, z, (need_left, need_right, need_z), ctx.n1
            )
            if need_left:
                grad_a = on_left[:, :, -a.shape[2] :]
            if need_right:
                grad_b = on_right[:, :, : b.shape[2]]
        if along_z is not None:
            if need_g:
                grad_g = _plus(grad_g, _TripleSum.apply(a, b, along_z))
            if need_a or need_b:
                more_a, more_b, _ = _TripleContract.apply(g, a, b, along_z, (need_a, need_b, False), ctx.n1)
                grad_a, grad_b = _plus(grad_a, more_a), _plus(grad_b, more_b)
        return grad_g, grad_a, grad_b, grad_z, None, None


def _plus(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right


def triple_sum(a: Tensor, b: Tensor, z: Tensor) -> Tensor:
    """T[h₃, h₁h₂] = Σ_i Σ_r a_ir[h₁] b_ir[h₂] z_i[h₃].

    Parameters
    ----------
    a, b, z
        Tables of shape (members, items, rank, n1), (members, items, rank, n2), (members, items, n3).

    Returns
    -------
    Tensor
        Shape (members, n3, n1·n2), differentiable to any order.
    """
    return _TripleSum.apply(a, b, z)


def triple_contract(g: Tensor, b: Tensor, z: Tensor) -> Tensor:
    """V_ir[h₁] = Σ_{h₂h₃} G[h₃, h₁h₂] b_ir[h₂] z_i[h₃]: the transpose of `triple_sum` in its first argument.

    Parameters
    ----------
    g
        Shape (members, n3, n1·n2).
    b, z
        Tables of shape (members, items, rank, n2), (members, items, n3).

    Returns
    -------
    Tensor
        Shape (members, items, rank, n1), differentiable to any order.
    """
    return _TripleContract.apply(g, None, b, z, (True, False, False), g.shape[2] // b.shape[3])[0]
