"""Reduced lattice vectors: the same lattice, and none of them can be shortened by another."""

from __future__ import annotations

import numpy as np

from farfield.electrostatics.lattice import reduced_basis


def test_reduction_keeps_the_lattice_and_shortens_its_vectors():
    generator = np.random.default_rng(0)
    for _ in range(50):
        compact = np.eye(3) * 5.0 + generator.normal(size=(3, 3))
        mixing = np.eye(3)
        for _ in range(4):
            i, j = generator.permutation(3)[:2]
            mixing[i] += generator.integers(-4, 5) * mixing[j]
        cell = mixing @ compact
        basis = reduced_basis(cell)
        assert np.array_equal(basis, np.round(basis))
        assert abs(abs(np.linalg.det(basis)) - 1.0) < 1e-9
        vectors = basis @ cell
        lengths = np.linalg.norm(vectors, axis=1)
        assert np.all(np.diff(lengths) >= -1e-12)
        # As short as the compact cell that was hidden, or shorter.
        assert np.all(lengths <= np.sort(np.linalg.norm(compact, axis=1)) + 1e-9)
        for i, j in ((0, 1), (0, 2), (1, 2)):
            assert abs(vectors[i] @ vectors[j]) <= 0.5 * lengths[i] ** 2 * (1 + 1e-6)
