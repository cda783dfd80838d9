"""Reduced lattice vectors: the same lattice, and none of them can be shortened by another."""

from __future__ import annotations

import numpy as np

from farfield.electrostatics.lattice import reduced_bases, reduced_basis


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


def test_many_cells_at_once_are_reduced_like_each_alone():
    generator = np.random.default_rng(1)
    # compact cells, which take the short way, among strongly and barely skewed ones, which do not
    skewed = np.eye(3) * 5.0 + 3.0 * generator.normal(size=(40, 3, 3))
    barely = np.array([[[5.0, 0.0, 0.0], [x, 6.0, 0.0], [0.0, x, 7.0]] for x in (2.4, 2.5, 2.6, -2.5, 3.1)])
    together = np.array([[[5.0, 0.0, 0.0], [0.0, 5.2, 0.0], [2.4, 2.5, 1.0 + x]] for x in (0.5, 3.0, 6.0)])
    cells = np.concatenate((np.eye(3)[None] * 4.0, skewed, barely, together))
    assert np.array_equal(reduced_bases(cells), [reduced_basis(cell) for cell in cells])
