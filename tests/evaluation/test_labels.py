"""Origins and conventions of labels."""

import numpy as np
import pytest

from farfield.evaluation.comparison import Comparison
from farfield.evaluation.labels import (
    UPPER,
    best_shift,
    check_born_order,
    check_scale,
    label_origin,
    shifted_quadrupole,
    traceless,
)


@pytest.fixture
def cloud():
    generator = np.random.default_rng(3)
    return generator.normal(size=(7, 3)), generator.normal(size=7)


def second_moment(positions, charges, origin):
    return np.einsum("i,ia,ib->ab", charges, positions - origin, positions - origin)


@pytest.mark.parametrize("total", [0.0, 1.0])
def test_shift_of_origin(cloud, total):
    positions, charges = cloud
    charges = charges - charges.mean() + total / len(charges)
    old, new = np.array([0.3, -1.0, 2.0]), np.array([-0.4, 0.2, 0.1])
    dipole = charges @ (positions - old)
    moved = shifted_quadrupole(second_moment(positions, charges, old), dipole, total, old - new)
    np.testing.assert_allclose(moved, second_moment(positions, charges, new), atol=1e-12)


def test_traceless_keeps_the_off_diagonal(cloud):
    tensor = second_moment(*cloud, np.zeros(3))
    bare = traceless(tensor)
    assert np.trace(bare) == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_allclose(bare - np.diag(np.diag(bare)), tensor - np.diag(np.diag(tensor)))
    np.testing.assert_allclose(traceless(bare + 4.2 * np.eye(3)), bare, atol=1e-12)


def test_best_shift_finds_the_origin(cloud):
    positions, charges = cloud
    charges = charges - charges.mean()
    shift = np.array([0.5, -0.2, 0.8])
    one = traceless(second_moment(positions, charges, np.zeros(3)))
    other = traceless(second_moment(positions, charges, shift))
    found = best_shift(one - other, charges @ positions)
    np.testing.assert_allclose(found, shift, atol=1e-10)


def test_origins():
    positions, masses = np.array([[0.0, 0, 0], [1.0, 0, 0]]), np.array([1.0, 3.0])
    np.testing.assert_allclose(label_origin(positions, masses, "centre"), [0.5, 0, 0])
    np.testing.assert_allclose(label_origin(positions, masses, "mass"), [0.75, 0, 0])
    np.testing.assert_allclose(label_origin(positions, masses, "zero"), [0, 0, 0])
    with pytest.raises(ValueError, match="quadrupole_origin"):
        label_origin(positions, masses, "here")


def comparison(key, predicted, reference):
    rows = len(predicted)
    return Comparison(key, predicted.reshape(rows, -1), reference.reshape(rows, -1), np.arange(rows))


@pytest.fixture
def tensors():
    return np.random.default_rng(0).normal(size=(40, 3, 3)) * 0.3 + np.eye(3)


def test_transposed_born_charges_are_noticed(tensors):
    noise = np.random.default_rng(1).normal(0, 0.1, tensors.shape)
    assert check_born_order(comparison("born_charges", tensors + noise, tensors)) is None
    message = check_born_order(comparison("born_charges", tensors + noise, np.swapaxes(tensors, 1, 2)))
    assert "polarization-first" in message


def test_symmetric_born_charges_tell_no_order(tensors):
    symmetric = tensors + np.swapaxes(tensors, 1, 2)
    noise = np.random.default_rng(1).normal(0, 0.1, tensors.shape)
    assert check_born_order(comparison("born_charges", symmetric + noise, symmetric)) is None


@pytest.mark.parametrize(
    ("key", "factor", "expected"),
    [
        ("forces", 23.06, "kcal/mol/Å"),
        ("forces", 1 / 51.42, "Ha/bohr"),
        ("energy_per_atom", 1 / 27.21, "Ha"),
        ("stress", 160.2, "GPa"),
        ("dipole", 4.803, "Debye"),
        ("forces", -1.0, "opposite"),
        ("stress", -1.0, "compressive"),
        ("dipole", -1.0, "gauge"),
    ],
)
def test_units_and_signs_are_noticed(key, factor, expected):
    generator = np.random.default_rng(5)
    truth = generator.normal(size=(60, 3)) + (200 if key == "energy_per_atom" else 0)
    predicted = truth + generator.normal(0, 0.1, truth.shape)
    assert check_scale(comparison(key, predicted, truth)) is None
    assert expected in check_scale(comparison(key, predicted, factor * truth))


def test_a_bad_model_is_no_reason_to_doubt_the_labels():
    generator = np.random.default_rng(5)
    truth = generator.normal(size=(60, 3))
    assert check_scale(comparison("forces", generator.normal(size=(60, 3)), -23 * truth)) is None
    assert check_scale(comparison("forces", 1.5 * truth, truth)) is None


def test_upper_components_in_order():
    assert list(zip(*UPPER, strict=True)) == [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
