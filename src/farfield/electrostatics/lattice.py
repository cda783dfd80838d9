"""Cells: inverse and volume, and reduced lattice vectors, with which a skewed cell costs no more than a cubic one."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def inverse(matrices: Tensor) -> Tensor:
    """Inverse of matrices (…, n, n), without the check that would wait for the device: plans have checked the cells."""
    return torch.linalg.inv_ex(matrices).inverse


def volume_of(cells: Tensor) -> Tensor:
    """Volumes (…,) of cells (…, 3, 3)."""
    a, b, c = cells.unbind(-2)
    return (a * torch.linalg.cross(b, c)).sum(-1).abs()


def reduced_bases(cells: np.ndarray, periodic: int = 3) -> np.ndarray:
    """`reduced_basis` of many cells (n, 3, 3): at once for those that need no more than the order of their vectors."""
    if periodic < 3:
        return np.stack([reduced_basis(cell, periodic) for cell in cells])
    order = np.argsort((cells**2).sum(axis=2), axis=1, kind="stable")
    bases = np.eye(3)[order]
    a, b, c = (bases @ cells).transpose(1, 0, 2)
    gram = np.einsum("xnd,ynd->xyn", (a, b, c), (a, b, c))
    steps = [np.abs(gram[i, j]) > (0.5 + 1e-9) * gram[j, j] for i, j in ((1, 0), (2, 0), (2, 1))]
    shorter = [((c + i * a + j * b) ** 2).sum(axis=1) < gram[2, 2] * (1 - 1e-9) for i in (1, -1) for j in (1, -1)]
    for index in np.flatnonzero(np.any(steps + shorter, axis=0)):
        bases[index] = reduced_basis(cells[index])
    return bases


def reduced_basis(cell: np.ndarray, periodic: int = 3) -> np.ndarray:
    """Find an integer matrix whose rows make a pairwise-reduced basis of the lattice, ordered by length.

    Vectors are shortened by whole multiples of each other (Selling/Gauss steps) until none gets shorter.

    Parameters
    ----------
    cell
        Cell vectors as rows, shape (3, 3), not degenerate.
    periodic
        How many of them, the first ones, are vectors of a lattice; the others are orthogonal to these and left alone.

    Returns
    -------
    ndarray
        Unimodular integer matrix M, shape (3, 3): ``M @ cell`` are the reduced vectors, the longest last.
    """
    basis = np.eye(3)
    if periodic < 3:
        if periodic == 2:
            # A third vector that is longest and orthogonal to the others stays last and enters nothing.
            third = np.cross(cell[0], cell[1])
            third *= 2.0 * np.linalg.norm(cell[:2]) / np.linalg.norm(third)
            basis[:2, :2] = reduced_basis(np.stack((cell[0], cell[1], third)))[:2, :2]
        return basis
    for _ in range(1000):
        vectors = basis @ cell
        order = np.argsort((vectors**2).sum(1), kind="stable")
        basis, vectors = basis[order], vectors[order]
        gram = vectors @ vectors.T
        changed = False
        for i, j in ((1, 0), (2, 0), (2, 1)):
            steps = np.round(gram[i, j] / gram[j, j] - 1e-9 * np.sign(gram[i, j]))
            if steps:
                basis[i] -= steps * basis[j]
                changed = True
                break
        if changed:
            continue
        # Two vectors together may still shorten the longest one.
        for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            candidate = vectors[2] + signs[0] * vectors[0] + signs[1] * vectors[1]
            if candidate @ candidate < gram[2, 2] * (1 - 1e-9):
                basis[2] += signs[0] * basis[0] + signs[1] * basis[1]
                changed = True
                break
        if not changed:
            break
    return basis
