"""The quick fit: its forces and virial are derivatives of its energy, and it sees how far a force law reaches."""

import numpy as np
import pytest
import torch

from farfield.atoms.batch import AtomicBatch
from farfield.datasets.quickfit import CUTOFFS, Basis, quick_fit


@pytest.fixture(scope="module")
def system():
    generator = torch.Generator().manual_seed(0)
    return AtomicBatch(
        positions=3 * torch.rand(6, 3, generator=generator, dtype=torch.float64),
        numbers=torch.tensor([1, 8, 6, 1, 1, 8]),
        cell=torch.tensor([[[4.0, 0, 0], [0.5, -4.2, 0], [0.3, 0.2, 3.9]]], dtype=torch.float64),
        pbc=torch.ones(1, 3, dtype=torch.bool),
        system=torch.zeros(6, dtype=torch.int64),
    )


@pytest.fixture(scope="module", params=[False, True], ids=["elements told apart", "merged"])
def basis(request):
    found = Basis([1, 6, 8])
    if request.param:  # as for many elements
        found = Basis([1, 6, 8, 9, 15, 16, 17, 35])
        assert found.kinds == 1
    return found


def energy(basis, weights, batch):
    return float(basis.design(batch).energy @ weights)


def test_forces_and_virial_by_finite_differences(system, basis):
    weights = torch.randn(len(basis.reach), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    design = basis.design(system)
    step = 1e-5
    for atom, axis in ((0, 0), (3, 2), (5, 1)):
        energies = []
        for sign in (1, -1):
            moved = system.positions.clone()
            moved[atom, axis] += sign * step
            energies.append(energy(basis, weights, system.replace(positions=moved)))
        force = -(energies[0] - energies[1]) / (2 * step)
        assert float((design.forces @ weights)[3 * atom + axis]) == pytest.approx(force, rel=1e-6, abs=1e-6)
    for a, b in ((0, 0), (0, 1), (2, 1)):
        energies = []
        for sign in (1, -1):
            strain = torch.eye(3, dtype=torch.float64)
            strain[a, b] += sign * step
            strained = system.replace(positions=system.positions @ strain, cell=system.cell @ strain)
            energies.append(energy(basis, weights, strained))
        virial = (energies[0] - energies[1]) / (2 * step)
        assert float((design.virial @ weights)[3 * a + b]) == pytest.approx(virial, rel=1e-6, abs=1e-5)


def test_rotation_and_permutation(system, basis):
    weights = torch.ones(len(basis.reach), dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    order = torch.tensor([4, 2, 0, 1, 5, 3])
    turned = system.replace(
        positions=(system.positions @ rotation)[order], cell=system.cell @ rotation, numbers=system.numbers[order]
    )
    assert energy(basis, weights, turned) == pytest.approx(energy(basis, weights, system), rel=1e-12)


def pairwise(distance_law, count=40):
    """Clusters of 8 atoms with central forces."""
    generator = torch.Generator().manual_seed(4)
    batches, forces = [], []
    for _ in range(count):
        grid = torch.cartesian_prod(*[torch.arange(2, dtype=torch.float64)] * 3) * 3.2
        positions = grid + 0.8 * torch.rand(8, 3, generator=generator, dtype=torch.float64)
        vectors = positions[None] - positions[:, None]
        distances = vectors.norm(dim=-1) + torch.eye(8, dtype=torch.float64)
        force = (distance_law(distances) / distances)[..., None] * vectors
        batches.append(
            AtomicBatch(
                positions=positions,
                numbers=torch.full((8,), 10),
                cell=torch.zeros(1, 3, 3, dtype=torch.float64),
                pbc=torch.zeros(1, 3, dtype=torch.bool),
                system=torch.zeros(8, dtype=torch.int64),
            )
        )
        forces.append(force.sum(dim=1))
    return batches, forces


def test_error_falls_until_the_range_of_the_law():
    short = quick_fit(*pairwise(lambda r: torch.where(r < 4.0, (4.0 - r) ** 2, 0.0)))
    far = quick_fit(*pairwise(lambda r: 1.0 / r**2))
    error = dict(zip(CUTOFFS, short.rmse, strict=True))
    assert error[4.0] < 0.1 * short.spread
    assert error[8.0] > 0.8 * error[5.0]  # nothing left to learn beyond
    error = dict(zip(CUTOFFS, far.rmse, strict=True))
    assert error[8.0] < 0.6 * error[5.0]


def test_the_same_choice_of_frames_every_time():
    data = pairwise(lambda r: 1.0 / r**2, count=12)
    one, other = quick_fit(*data, seed=3), quick_fit(*data, seed=3)
    assert one.used == other.used
    assert one.rmse == other.rmse
    assert one.n_fitted + one.n_held_out == 12
    np.testing.assert_array_equal(one.energies, other.energies)


def test_too_few_frames_are_no_fit():
    assert quick_fit(*pairwise(lambda r: r, count=5)) is None
