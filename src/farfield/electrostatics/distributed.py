r"""Sums over the atoms of several processes, differentiable to any order: the collectives of a distributed solver.

Each rank of a process group holds some of the atoms and runs the same program. Two kinds of tensors occur:

* *local* ones differ from rank to rank: positions and multipoles of a rank's atoms, their share of a structure factor,
  the potentials at them. Their gradients are local, too: a rank has those at its own atoms.
* *global* ones are equal on all ranks: the whole structure factor, the energy. So are their gradients: each rank has
  the whole gradient, and what is made of global tensors alone needs no communication.

A value crosses between the two kinds only here, so that gradients do as well:

================  ============  ==============================  ==================================================
function          forward       backward                        what for
================  ============  ==============================  ==================================================
`sum_over_ranks`  Σ over ranks  the same gradient to each rank  local → global: structure factors, meshes
`to_each_rank`    nothing       Σ over ranks of gradients       global → local: what potentials are taken from
`shared`          nothing       1/ranks of the gradient         local → global of what each has a copy of: cells
================  ============  ==============================  ==================================================

The first two are transposes of each other and each other's backward pass; the backward pass of `shared` is
`to_each_rank` over the number of ranks. So first, second and any further derivatives communicate as they must:

* The energy is global. Every rank calls backward on it once, and its atoms get the gradient that one process would give
  them, not that times the number of ranks: the structure factor's gradient goes to each rank's share as it is.
* Forces of a rank's atoms, made with ``create_graph=True``, depend on all atoms through the structure factor. When
  every rank calls backward on a loss of its own atoms, the gradients at the structure factor are added up first: each
  atom gets the gradient of the *sum over ranks* of these losses. Terms of a loss that are made of energies, and so
  equal on all ranks, count once.
* What all ranks hold a copy of, the cell and parameters that charges were made with, gets a share of its gradient on
  each rank: the sum of these over the ranks is the gradient.

Collectives are called in the order of the program, in a backward pass in the reverse order. So all ranks have to make
the same calls, forward and backward, also ranks that hold no atoms.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: How many numbers `together` compares at most.
_COMPARED = 16


def check_process_group(group: Any) -> None:
    """Refuse what is no process group, or one that this process is not part of.

    Raises
    ------
    TypeError
        For another object than a process group.
    """
    if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(
            f"`process_group` is {group!r} but must be a torch.distributed.ProcessGroup that this process is part of, "
            "or None: give torch.distributed.group.WORLD for all processes"
        )


def ranks_of(group: dist.ProcessGroup | None) -> int:
    """Return the number of ranks of a process group; 1 where there is none."""
    return 1 if group is None else dist.get_world_size(group)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local, group):  # type: ignore[no-untyped-def]
        ctx.group = group
        total = local.clone(memory_format=torch.contiguous_format)
        if total.numel():  # as on all other ranks
            dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return _ToEach.apply(gradient, ctx.group), None


class _ToEach(torch.autograd.Function):
    @staticmethod
    def forward(ctx, whole, group):  # type: ignore[no-untyped-def]
        ctx.group = group
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return _Sum.apply(gradient, ctx.group), None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, copy, group):  # type: ignore[no-untyped-def]
        ctx.group = group
        return copy.view_as(copy)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return _ToEach.apply(gradient, ctx.group) / ranks_of(ctx.group), None


def sum_over_ranks(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Sum of what the ranks hold, equal on all of them. Its gradient goes to each rank as it is.

    Parameters
    ----------
    local
        A tensor of the same shape and dtype on each rank.
    group
        The process group; without one the tensor is returned.
    """
    return local if group is None else _Sum.apply(local, group)


def to_each_rank(whole: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Return a tensor that is equal on all ranks, to be combined with what is not. Its gradients are summed over ranks.

    Parameters
    ----------
    whole
        A tensor that is equal on all ranks, and whose gradient is wanted whole on each.
    group
        The process group; without one nothing is done.
    """
    return whole if group is None else _ToEach.apply(whole, group)


def shared(copy: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Make a tensor global that every rank holds its own copy of. The copies get equal shares of its gradient.

    Parameters
    ----------
    copy
        A tensor of the same values on each rank, with a graph of the rank's own.
    group
        The process group; without one nothing is done.
    """
    return copy if group is None else _Shared.apply(copy, group)


def _home(group: dist.ProcessGroup) -> torch.device:
    """Device that small tensors have to be on for a collective."""
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def largest_of_ranks(local: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Largest of the ranks' values, element by element; without a graph."""
    if group is None or not local.numel():
        return local
    largest = local.detach().to(_home(group), copy=True).contiguous()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    return largest.to(local.device)


def counts_of_ranks(counts: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Integers (n,) of every rank, shape (ranks, n), on the CPU."""
    table = torch.zeros(ranks_of(group), len(counts), dtype=torch.int64, device=_home(group))
    table[dist.get_rank(group)] = counts.to(table.device)
    if table.numel():
        dist.all_reduce(table, group=group)
    return table.cpu()


def everywhere(flag: bool, group: dist.ProcessGroup | None) -> bool:
    """Whether a condition holds on all ranks."""
    if group is None:
        return flag
    return not bool(largest_of_ranks(torch.tensor([int(not flag)]), group))


def together(group: dist.ProcessGroup | None) -> AbstractContextManager[dict[str, float]]:
    """Let all ranks raise where one of them does, instead of waiting for it forever: for checks without collectives.

    Gives a dictionary for numbers, by name, that have to be the same on all ranks. Without a process group errors pass
    as they come.

    Raises
    ------
    ValueError, TypeError
        On the ranks that raised nothing: what the first of the others did. For a number that differs.
    """
    return nullcontext({}) if group is None else _together(group)


@contextmanager
def _together(group: dist.ProcessGroup) -> Iterator[dict[str, float]]:
    same: dict[str, float] = {}
    error: Exception | None = None
    try:
        yield same
    except Exception as caught:
        error = caught
    values = [0.0] * _COMPARED
    if error is None:
        values[: len(same)] = map(float, same.values())
    given = torch.tensor([float(error is not None), *values, *(-value for value in values)], dtype=torch.float64)
    largest = largest_of_ranks(given, group).tolist()
    if largest[0] > 0:
        _raise_together(error, group)
    for index, name in enumerate(same):
        high, low = largest[1 + index], -largest[1 + _COMPARED + index]
        if high != low:
            raise ValueError(
                f"{name} must be the same on all ranks of the process group but lies between {low:g} and {high:g}"
            )


def graph_of(**tensors: Tensor | None) -> dict[str, float]:
    """Which tensors are given and carry gradients, for `together`: unless all ranks agree, backward passes hang."""
    found: dict[str, float] = {"whether gradients are enabled (1)": torch.is_grad_enabled()}
    for name, tensor in tensors.items():
        state = 0 if tensor is None else 1 + tensor.requires_grad
        found[f"whether `{name}` are given (1) and carry a gradient (2)"] = state
    return found


def _raise_together(error: Exception | None, group: dist.ProcessGroup) -> None:
    """Raise this rank's error, or that of the first rank that has one."""
    errors: list[Any] = [None] * ranks_of(group)
    dist.all_gather_object(errors, None if error is None else (isinstance(error, TypeError), str(error)), group=group)
    if error is not None:
        raise error
    rank, (of_type, message) = next((rank, given) for rank, given in enumerate(errors) if given is not None)
    raise (TypeError if of_type else ValueError)(f"rank {rank} of the process group cannot go on: {message}")


def check_same(name: str, values: Tensor, group: dist.ProcessGroup) -> None:
    """Refuse, on all ranks, values that are not the same on all of them.

    Raises
    ------
    ValueError
        Naming the largest difference.
    """
    if not values.numel():
        return
    values = values.detach().to("cpu", torch.float64)
    largest, opposite = largest_of_ranks(torch.stack((values, -values)), group)
    differ = largest != -opposite
    if bool(differ.any()):
        raise ValueError(
            f"`{name}` must be the same on all ranks of the process group but differs by up to "
            f"{float((largest + opposite)[differ].max()):.3g}: broadcast it from one rank"
        )
