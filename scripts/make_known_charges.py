"""Make frames of a gas of point charges and of an aqueous electrolyte, whose charges are known exactly.

    python scripts/make_known_charges.py OUTPUT.extxyz [--system gas|electrolyte] [--frames 900] [--seed 0]

Gas: 64 charges of +1 e (called Na) and 64 of −1 e (Cl) in a periodic cube of 20 Å, at random places no nearer to each
other than 2 Å, repel each other softly, by the same law whatever their charges:

    E = ½ Σ_{i≠j} [ q_i q_j k_e/r_ij + A exp(−r_ij/ρ) ] ,   A = 1256 eV, ρ = 0.317 Å, all images.

The sum of 1/r is Ewald's: that of Gaussians of σ = 1 Å, and q_i q_j k_e erfc(r/√2σ)/r for what they lack up to 7 Å,
where 10⁻¹² of 1/r is left; farfield's, in float64.

Electrolyte (OpenMM, ``pip install farfield[peptides]``): 60 flexible water molecules, SPC/Fw (Wu, Tepper and Voth,
J. Chem. Phys. 124, 024503, 2006: −0.82 and 0.41 e), 4 Na⁺ and 4 Cl⁻ (Joung and Cheatham, J. Phys. Chem. B 112, 9020,
2008, those for SPC/E) in a periodic cube, along dynamics at 300 K. Within a molecule no charges interact. Particle mesh
Ewald to 10⁻⁶; Lennard-Jones forces end smoothly at 6 Å.

Files hold energies and forces, and the charges under ``known_charges``, which no training reads.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import ase.units
import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from farfield.atoms.neighbors import bond_vectors, find_neighbors
from farfield.atoms.structures import from_ase
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles
from farfield.units import COULOMB_CONSTANT

#: Charges of each sign in a cell, its edge and the least distance (Å).
PAIRS, EDGE, LEAST = 64, 20.0, 2.0

#: A (eV) and ρ (Å) of the repulsion.
REPULSION, RANGE = 1256.0, 0.317

#: Array that the charges stand in.
COLUMN = "known_charges"

#: Pairs are summed up to here (Å): the repulsion is 10⁻⁷ eV there, and erfc(r/√2σ) 10⁻¹².
_REACH = 7.0


#: Molecules and pairs of ions of the electrolyte, its molecules and ions per Å³.
WATERS, ION_PAIRS, DENSITY = 60, 4, 0.0334

#: Charge (e), σ (Å) and ε (kcal/mol) of Lennard-Jones.
PARAMETERS = {
    "O": (-0.82, 3.165492, 0.1554253),
    "H": (0.41, 1.0, 0.0),
    "Na": (1.0, 2.1595, 0.3526418),
    "Cl": (-1.0, 4.8305, 0.0127850),
}

#: Bonds of water (Å, kcal/mol/Å²) and their angle (degrees, kcal/mol/rad²): ½ k times a square.
BOND, ANGLE = (1.012, 1059.162), (113.24, 75.90)

KCAL = 4.184  # kJ
EV = ase.units.kJ / ase.units.mol  # eV per kJ/mol

#: Frames of one run of dynamics, steps of 0.5 fs between them and before them.
FRAMES_PER_RUN, INTERVAL, BEFORE = 40, 100, 2000


def sites(rng: np.random.Generator) -> np.ndarray:
    """Random positions (Å), each no nearer to those before it than the least distance."""
    positions = np.empty((0, 3))
    while len(positions) < 2 * PAIRS:
        site = rng.uniform(0.0, EDGE, 3)
        bonds = positions - site
        bonds -= EDGE * np.round(bonds / EDGE)
        if not len(bonds) or np.linalg.norm(bonds, axis=1).min() >= LEAST:
            positions = np.concatenate([positions, site[None]])
    return positions


def label(atoms: Atoms, charges: np.ndarray, smearing: float = 1.0) -> Atoms:
    """Return periodic atoms with energy, forces and charges; ``smearing`` (Å, up to 1) only divides the sum in two."""
    batch = find_neighbors(from_ase([atoms], dtype=torch.float64), _REACH)
    positions = batch.positions.clone().requires_grad_()
    batch = batch.replace(positions=positions)
    q = torch.from_numpy(charges)
    energy = Coulomb(smearing, accuracy=1e-9, background="point")(batch, Multipoles(q), outputs="energy").energy.sum()
    r = bond_vectors(batch).norm(dim=1)
    assert batch.neighbors is not None  # narrows the type
    products = COULOMB_CONSTANT * q[batch.neighbors.i] * q[batch.neighbors.j]
    near = products * torch.erfc(r / (math.sqrt(2.0) * smearing)) / r
    energy = energy + 0.5 * (near + REPULSION * torch.exp(-r / RANGE)).sum()
    (slope,) = torch.autograd.grad(energy, positions)
    atoms.calc = SinglePointCalculator(atoms, energy=energy.item(), forces=-slope.numpy())
    atoms.arrays[COLUMN] = charges
    atoms.info["total_charge"] = 0
    return atoms


def gas(count: int, seed: int) -> list[Atoms]:
    """Frames of the gas."""
    rng = np.random.default_rng(seed)
    charges = np.repeat([1.0, -1.0], PAIRS)
    symbols = ["Na"] * PAIRS + ["Cl"] * PAIRS
    return [label(Atoms(symbols, sites(rng), cell=[EDGE] * 3, pbc=True), charges) for _ in range(count)]


def electrolyte_system(edge: float, tolerance: float) -> Any:
    """OpenMM's system of the electrolyte in a cube; atoms are O, H, H of each molecule, then Na⁺ and Cl⁻ by turns."""
    import openmm
    from openmm import app

    system = openmm.System()
    system.setDefaultPeriodicBoxVectors(*(0.1 * edge * np.eye(3)))
    bonds, angles, others = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.NonbondedForce()
    for symbol in symbols_of_electrolyte():
        charge, sigma, epsilon = PARAMETERS[symbol]
        system.addParticle(app.Element.getBySymbol(symbol).mass)
        others.addParticle(charge, 0.1 * sigma, KCAL * epsilon)
    for first in range(0, 3 * WATERS, 3):
        for hydrogen in (first + 1, first + 2):
            bonds.addBond(first, hydrogen, 0.1 * BOND[0], 100.0 * KCAL * BOND[1])
            others.addException(first, hydrogen, 0.0, 0.1, 0.0)
        others.addException(first + 1, first + 2, 0.0, 0.1, 0.0)
        angles.addAngle(first + 1, first, first + 2, np.deg2rad(ANGLE[0]), KCAL * ANGLE[1])
    others.setNonbondedMethod(openmm.NonbondedForce.PME)
    others.setCutoffDistance(0.6)
    others.setUseSwitchingFunction(True)
    others.setSwitchingDistance(0.5)
    others.setUseDispersionCorrection(False)
    others.setEwaldErrorTolerance(tolerance)
    for force in (bonds, angles, others):
        system.addForce(force)
    return system


def symbols_of_electrolyte() -> list[str]:
    """Return the elements of its atoms."""
    return ["O", "H", "H"] * WATERS + ["Na", "Cl"] * ION_PAIRS


def electrolyte(count: int, seed: int) -> list[Atoms]:
    """Frames of the electrolyte, from runs of their own starts."""
    import openmm

    from make_polarizable import scattered

    symbols = symbols_of_electrolyte()
    molecules = WATERS + 2 * ION_PAIRS
    edge = (molecules / DENSITY) ** (1.0 / 3.0)
    platform = openmm.Platform.getPlatformByName
    # labels in double precision, dynamics as fast as may be
    system = electrolyte_system(edge, 1e-4)
    exact = openmm.Context(electrolyte_system(edge, 1e-6), openmm.VerletIntegrator(0.001), platform("Reference"))
    frames: list[Atoms] = []
    while len(frames) < count:
        run = 1000 * seed + len(frames) // FRAMES_PER_RUN + 1
        integrator = openmm.LangevinMiddleIntegrator(300.0, 5.0, 0.0005)
        integrator.setRandomNumberSeed(run)
        context = openmm.Context(system, integrator, platform("CPU"), {"Threads": "1"})
        spacing = edge / np.ceil(molecules ** (1.0 / 3.0))
        start = scattered(WATERS, ("Na", "Cl") * ION_PAIRS, spacing, np.random.default_rng(run))
        context.setPositions(0.1 * start)
        openmm.LocalEnergyMinimizer.minimize(context, 10.0, 200)
        context.setVelocitiesToTemperature(300.0, run)
        integrator.step(BEFORE)
        for _ in range(min(FRAMES_PER_RUN, count - len(frames))):
            integrator.step(INTERVAL)
            positions = np.array(context.getState(getPositions=True).getPositions(asNumpy=True)._value)
            exact.setPositions(positions)
            state = exact.getState(getEnergy=True, getForces=True)
            atoms = Atoms(symbols, 10.0 * positions, cell=[edge] * 3, pbc=True)
            atoms.arrays[COLUMN] = np.array([PARAMETERS[symbol][0] for symbol in symbols])
            atoms.info["total_charge"] = 0
            atoms.calc = SinglePointCalculator(
                atoms,
                energy=state.getPotentialEnergy()._value * EV,
                forces=0.1 * EV * np.array(state.getForces(asNumpy=True)._value),
            )
            frames.append(atoms)
    return frames


#: How frames of each system are made.
SYSTEMS = {"gas": gas, "electrolyte": electrolyte}


def main() -> None:
    """Make a set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--system", choices=SYSTEMS, default="gas")
    parser.add_argument("--frames", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    frames = SYSTEMS[arguments.system](arguments.frames, arguments.seed)
    write(arguments.output, frames, format="extxyz")
    print(f"{len(frames)} frames in {arguments.output}")


if __name__ == "__main__":
    main()
