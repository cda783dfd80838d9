"""The force field of the truth test: dipole, Born charges and polarizability are those of one energy."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("openmm", reason="OpenMM is not here: pip install farfield[peptides]")

from numpy.testing import assert_allclose

from farfield.datasets.dataset import label_structures
from farfield.units import COULOMB_CONSTANT
from make_polarizable import COULOMB, ION_CHARGES, Amoeba, clusters, moved_apart, scattered


@pytest.fixture(scope="module")
def cluster() -> tuple[Amoeba, np.ndarray]:
    """Two molecules and an ion pair, near each other."""
    model = Amoeba(2, ("K", "Cl"), tolerance=1e-9)
    return model, scattered(2, ("K", "Cl"), 3.0, np.random.default_rng(4))


def differences(function, positions: np.ndarray, step: float = 1e-4) -> np.ndarray:
    """Central differences of a function of the positions, shape (atoms, 3, …)."""
    slopes = []
    for index in np.ndindex(positions.shape):
        shift = np.zeros_like(positions)
        shift[index] = step
        slopes.append((function(positions + shift) - function(positions - shift)) / (2.0 * step))
    return np.array(slopes).reshape(*positions.shape, *np.shape(slopes[0]))


def test_forces_are_slopes_of_the_energy(cluster: tuple[Amoeba, np.ndarray]) -> None:
    model, positions = cluster
    slopes = differences(lambda x: model.energy_and_forces(x)[0], positions)
    assert_allclose(model.energy_and_forces(positions)[1], -slopes, atol=1e-5)


def test_born_charges_both_ways(cluster: tuple[Amoeba, np.ndarray]) -> None:
    """∂(force)/∂F = ∂(dipole)/∂r: one energy is behind both, and the field is uniform."""
    model, positions = cluster
    born, _ = model.response(positions)
    assert_allclose(born, differences(model.dipole, positions).transpose(0, 2, 1), atol=2e-5)
    assert_allclose(born.sum(axis=0), model.total_charge * np.eye(3), atol=2e-5)


@pytest.mark.parametrize("ion", ION_CHARGES)
def test_a_lone_ion_has_its_own_charge_and_polarizability(ion: str) -> None:
    model = Amoeba(0, (ion,))
    born, polarizability = model.response(np.zeros((1, 3)))
    alpha = 1000.0 * model.multipoles.getMultipoleParameters(0)[9]._value
    assert_allclose(born[0], ION_CHARGES[ion] * np.eye(3), atol=1e-6)
    assert_allclose(polarizability, alpha * np.eye(3), rtol=1e-5, atol=1e-8)


def test_two_ions_polarize_each_other_as_silberstein_says() -> None:
    """α_∥ = (α₁ + α₂ + 4α₁α₂/r³)/(1 − 4α₁α₂/r⁶), α_⊥ with −2 and 1 (Silberstein 1917); no damping at 5 Å."""
    model, distance = Amoeba(0, ("K", "Cl"), tolerance=1e-10), 5.0
    _, polarizability = model.response(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, distance]]))
    first, second = (1000.0 * model.multipoles.getMultipoleParameters(i)[9]._value for i in range(2))

    def law(c: float) -> float:
        return (first + second + 2.0 * c * first * second / distance**3) / (1.0 - c**2 * first * second / distance**6)

    assert_allclose(np.diag(polarizability), [law(-1.0), law(-1.0), law(2.0)], rtol=1e-5)


def test_no_field_in_a_box() -> None:
    with pytest.raises(ValueError, match="periodic"):
        Amoeba(4, box=8.0).response(np.zeros((12, 3)))


def test_units_are_those_of_the_library() -> None:
    assert pytest.approx(COULOMB_CONSTANT, rel=1e-7) == COULOMB


def test_moving_apart_leaves_molecules_as_they_are(cluster: tuple[Amoeba, np.ndarray]) -> None:
    _, positions = cluster
    moved = moved_apart(positions, 2, 2.0)
    assert_allclose(moved[[1, 2]] - moved[0], positions[[1, 2]] - positions[0])
    assert_allclose(moved[[0, 3, 6, 7]], 2.0 * positions[[0, 3, 6, 7]])


def test_frames_are_read_with_all_their_labels() -> None:
    frames = clusters(2, 5, answers=True)
    data = label_structures(frames, total_charge="total_charge")
    assert {"energy", "forces", "dipole", "born_charges", "polarizability"} <= set(data[0].labels)
    assert [frame.info["kind"] for frame in frames] == ["bound", "apart"]
    again = clusters(2, 5, answers=True)
    assert_allclose(again[1].positions, frames[1].positions, atol=0)
