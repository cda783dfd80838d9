"""What lets the solver be traced by torch.compile and run on an accelerator without waiting for it.

Under ``torch.compile`` the kernels are operators of the namespace ``farfield``, which the compiler takes as they are;
their derivatives are given by the same formulas as in eager mode. Eager calls do not go through these operators: the
dispatcher takes 20 to 30 µs for each on the way forward and as much on the way back, which for small systems would be a
good part of the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_KEPT: dict[tuple[object, torch.dtype, torch.device], Tensor] = {}


def is_traced(tensor: Tensor) -> bool:
    """Whether this is no computation but the tracing of one: by the compiler, or of a backward pass for it."""
    return torch.compiler.is_compiling() or type(tensor) not in (Tensor, torch.nn.Parameter)


def constant(values: object, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Tensor of constant numbers (nested tuples) where ``like`` is, of its dtype if no other is given.

    It is made once for each device: making it there from Python's numbers waits for the device. Not to be changed.
    """
    dtype = like.dtype if dtype is None else dtype
    if is_traced(like):
        return torch.tensor(values, dtype=dtype, device=like.device)
    key = (values, dtype, like.device)
    kept = _KEPT.get(key)
    if kept is None:
        with torch.inference_mode(False):  # made in inference mode, autograd could not keep it
            kept = _KEPT[key] = torch.tensor(values, dtype=dtype, device=like.device)
    return kept


def operator(
    schema: str,
    kernel: Callable[..., Any],
    *,
    shapes: Callable[..., Any],
    save: Callable[..., None],
    backward: Callable[..., Any],
) -> Any:
    """Register an operator ``farfield::NAME`` for tracing.

    Parameters
    ----------
    schema
        ``NAME(arguments) -> results`` in torch's notation.
    kernel
        What it does, on real tensors without a graph. Results must not share memory with the arguments.
    shapes
        Empty results, of the right shapes, from the same arguments.
    save, backward
        ``save(ctx, inputs, output)`` and ``backward(ctx, *gradients)``, as for `torch.library.register_autograd`.
    """
    name, _, signature = schema.partition("(")
    made = torch.library.custom_op(f"farfield::{name}", kernel, mutates_args=(), schema=f"({signature}")
    made.register_fake(shapes)
    made.register_autograd(backward, setup_context=save)
    return made
