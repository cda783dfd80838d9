"""Compiled pass over the half spectrum of a mesh on the CPU: influence function and energy at once, in place."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from farfield.electrostatics.compiled import POOL, compiled


@compiled
def _multiply(spectrum, kernel, counts, first, last, energies, task):  # type: ignore[no-untyped-def]
    total = 0.0
    for row in range(first, last):
        for column in range(spectrum.shape[1]):
            value, factor = spectrum[row, column], kernel[row, column]
            total += counts[column] * factor * (value.real * value.real + value.imag * value.imag)
            spectrum[row, column] = value * factor
    energies[task] = total


def multiply(spectrum: Tensor, kernel: Tensor, counts: Tensor) -> Tensor:
    """Multiply a half spectrum by a real function Ĝ, in place.

    Parameters
    ----------
    spectrum
        ρ̂, complex, contiguous, shape (n₁, n₂, n₃/2 + 1).
    kernel
        Ĝ, real, of the same shape.
    counts
        How many reciprocal vectors of the full spectrum an entry stands for, shape (n₃/2 + 1,).

    Returns
    -------
    Tensor
        ½ Σ_k Ĝ |ρ̂|² over the full spectrum, shape (), float64.
    """
    rows, columns = spectrum.shape[0] * spectrum.shape[1], spectrum.shape[2]
    values = spectrum.view(rows, columns).numpy()
    factors = kernel.detach().contiguous().numpy().reshape(rows, columns)
    tasks = torch.get_num_threads()
    energies = np.zeros(tasks)
    edges = [task * rows // tasks for task in range(tasks + 1)]
    POOL.run(
        functools.partial(_multiply, values, factors, counts.numpy(), edges[task], edges[task + 1], energies, task)
        for task in range(tasks)
    )
    return torch.tensor(0.5 * energies.sum(), dtype=torch.float64)
