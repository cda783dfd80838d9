"""Reduced lattice vectors: the same lattice from short ones, so that a skewed cell costs no more than a cubic one."""

from __future__ import annotations

import numpy as np


def reduced_basis(cell: np.ndarray) -> np.ndarray:
    """Find an integer matrix whose rows make a pairwise-reduced basis of the lattice, ordered by length.

    Vectors are shortened by whole multiples of each other (Selling/Gauss steps) until none gets shorter.

    Parameters
    ----------
    cell
        Cell vectors as rows, shape (3, 3), not degenerate.

    Returns
    -------
    ndarray
        Unimodular integer matrix M, shape (3, 3): ``M @ cell`` are the reduced vectors, the longest last.
    """
    basis = np.eye(3)
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
