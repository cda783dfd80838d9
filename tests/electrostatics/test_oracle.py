"""Independent brute-force values for charges, dipoles and quadrupoles together, in every boundary condition."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from electrostatic_systems import forces_and_strain, one_system

from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles


def _load(place: Path) -> list[dict]:
    file = place / "gaussian_multipoles.json" if place.is_dir() else place
    return json.loads(file.read_text())["systems"]


def _close(actual, expected, tolerance=1e-6):
    expected = torch.tensor(expected, dtype=torch.float64)
    assert float((actual - expected).norm()) <= tolerance * float(expected.norm())


def _setup(system):
    def tensor(name):
        return torch.tensor(system[name], dtype=torch.float64)

    batch = one_system(tensor("positions"), tensor("cell"))
    batch = batch.replace(pbc=torch.tensor([system["pbc"]]))
    return batch, Multipoles(tensor("charges"), tensor("dipoles"), tensor("quadrupoles"))


@pytest.mark.parametrize("method", ["auto", "ewald", "mesh"])
def test_every_system_agrees(oracle, method):
    systems = _load(oracle)
    assert {sum(system["pbc"]) for system in systems} == {0, 1, 2, 3}
    for system in systems:
        batch, multipoles = _setup(system)
        reference = system["reference"]
        # a mesh for 10⁻⁸ of quadrupoles in vacuum would take gigabytes
        coulomb = Coulomb(system["smearing"], accuracy=1e-7 if method == "mesh" else 1e-8, method=method)
        result = coulomb(batch, multipoles)
        _close(result.energy[0], reference["energy"])
        _close(result.atom_energies.sum(), reference["energy"])
        _close(result.potential, reference["potential"])
        _close(result.field, reference["field"])
        _close(-0.5 * result.field_gradient, reference["dE_dquadrupole"])
        energy, forces, strain = forces_and_strain(coulomb, batch, multipoles)
        _close(energy[0], reference["energy"])
        _close(forces, reference["forces"])
        _close(0.5 * (strain[0] + strain[0].mT), reference["dE_dstrain"])
