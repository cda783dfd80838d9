"""The test of known charges: its frames are what they are said to be, and what is written about a model."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from electrostatic_systems import one_system, point_charge_energy

import make_known_charges as frames
from farfield.units import COULOMB_CONSTANT


@pytest.fixture(scope="module")
def known_charges(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("known_charges", repository / "benchmarks" / "known_charges.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["known_charges"] = module
    spec.loader.exec_module(module)
    return module


def test_the_gas_is_labelled_with_one_energy_however_the_sum_is_divided() -> None:
    (gas,) = frames.gas(1, 3)
    charges, forces = gas.arrays[frames.COLUMN], gas.get_forces()
    assert charges.sum() == 0.0
    distances = gas.get_all_distances(mic=True)
    assert distances[np.triu_indices(len(gas), 1)].min() >= frames.LEAST
    divided = frames.label(gas.copy(), charges, smearing=0.8)
    assert divided.get_potential_energy() == pytest.approx(gas.get_potential_energy(), abs=1e-5)
    np.testing.assert_allclose(divided.get_forces(), forces, atol=1e-5)
    step = 1e-4 * np.random.default_rng(0).normal(size=forces.shape)
    ends = []
    for sign in (1.0, -1.0):
        moved = gas.copy()
        moved.positions += sign * step
        ends.append(frames.label(moved, charges).get_potential_energy())
    assert (ends[1] - ends[0]) / 2.0 == pytest.approx((forces * step).sum(), rel=1e-5)


def test_charges_of_the_electrolyte_act_between_its_molecules_alone() -> None:
    """Energy with the charges less that without: point charges, less the pairs within each molecule."""
    openmm = pytest.importorskip("openmm", reason="OpenMM is not here: pip install farfield[peptides]")
    edge, symbols = 13.0, frames.symbols_of_electrolyte()
    from make_polarizable import scattered

    positions = scattered(frames.WATERS, ("Na", "Cl") * frames.ION_PAIRS, edge / 5.0, np.random.default_rng(1))
    energies = []
    for charged in (True, False):
        system = frames.electrolyte_system(edge, 1e-6)
        force = next(f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
        for index in range(0 if charged else len(symbols)):
            _, sigma, epsilon = force.getParticleParameters(index)
            force.setParticleParameters(index, 0.0, sigma, epsilon)
        context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
        context.setPositions(0.1 * positions)
        energies.append(context.getState(getEnergy=True).getPotentialEnergy()._value * frames.EV)
    charges = torch.tensor([frames.PARAMETERS[symbol][0] for symbol in symbols], dtype=torch.float64)
    batch = one_system(torch.from_numpy(positions), edge * torch.eye(3, dtype=torch.float64))
    within = 0.0
    for first in range(0, 3 * frames.WATERS, 3):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            r = math.dist(positions[first + i], positions[first + j])
            within += COULOMB_CONSTANT * float(charges[first + i] * charges[first + j]) / r
    assert energies[0] - energies[1] == pytest.approx(float(point_charge_energy(batch, charges)) - within, rel=1e-5)


def test_errors_are_those_of_the_charges(known_charges: ModuleType) -> None:
    known, symbols = np.array([1.0, 1.0, -1.0, -1.0]), np.array(["Na", "Na", "Cl", "Cl"])
    found = known_charges.charge_errors(known + np.array([0.1, -0.1, 0.2, 0.2]), known, symbols)
    assert found["charge_mae"] == pytest.approx(0.15)
    assert found["charges"]["Na"] == pytest.approx([1.0, 0.1])
    assert found["charges"]["Cl"] == pytest.approx([-0.8, 0.0])


def test_a_model_is_trained_and_asked(known_charges: ModuleType, tmp_path: Path) -> None:
    result = known_charges.run("gas", known_charges.Setting(frames=4, kept=2, epochs=1), tmp_path)
    assert json.loads(json.dumps(result)) == result
    assert 0.0 < result["gas"]["charge_mae"] < 2.0
    # frames that are there are taken again, and the trained model is asked anew
    assert known_charges.run("gas", known_charges.Setting(frames=4, kept=2, epochs=1), tmp_path)["gas"][
        "charge_mae"
    ] == pytest.approx(result["gas"]["charge_mae"])
