"""Make frames of polarizable water and ions whose dipoles, Born charges and polarizabilities are known exactly.

    python scripts/make_polarizable.py OUTPUT.extxyz [--clusters 100] [--boxes 8] [--seed 0] [--answers]

With OpenMM (``pip install farfield[peptides]``). Force field: AMOEBA (water: Ren and Ponder, J. Phys. Chem. B 107,
5933, 2003; ions: amoeba2018.xml): flexible molecules, permanent charges, dipoles and quadrupoles on atoms, induced
dipoles that feel each other (Thole damping). In water and monatomic ions no permanent multipole polarizes its own
molecule, so that one energy is behind everything: dipole −∂E/∂F, Born charges ∂(force)/∂F, polarizability −∂²E/∂F∂F.

A uniform field F is made by two opposite point charges ±10⁶ e at ∓10⁴ Å, which are not polarizable: it varies by
3·10⁻⁶ of itself over a cluster. Induced dipoles are linear in it and forces quadratic, so central differences over ±F
have no truncation error.

Frames: clusters of 4 to 8 water molecules without ions, with Na⁺, K⁺, Cl⁻, or with a pair of them, at 320 K; of every
second one the molecules are moved apart, each as it is, to up to 2.2 times their distances, so that there are energies
that only electrostatics explains. Boxes of 22 molecules and an ion pair, periodic, with energies and forces only.
"""

from __future__ import annotations

import argparse
import copy
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import ase.units
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

#: Elementary charge of each ion.
ION_CHARGES = {"Na": 1, "K": 1, "Cl": -1}

#: Ions of the clusters, and of the boxes.
CLUSTER_IONS = ((), ("Na",), ("K",), ("Cl",), ("Na", "Cl"), ("K", "Cl"))
BOX_IONS = (("Na", "Cl"), ("K", "Cl"))
BOX_WATERS = 22

#: Density of the boxes: molecules and ions per Å³.
DENSITY = 0.0334

TEMPERATURE = 320.0

#: Frames of one run of dynamics, and fs between them.
FRAMES_PER_RUN = 10
INTERVAL = 250

#: The charges (e) that make the field, and their distance (Å).
FAR_CHARGE, FAR_AWAY = 1e6, 1e4

EV = ase.units.kJ / ase.units.mol  # eV per kJ/mol
COULOMB = 138.935456 * 10.0 * EV  # eV·Å/e², OpenMM's


class Amoeba:
    """AMOEBA of some water molecules and ions, in eV, Å and e; atoms are O, H, H of each molecule, then the ions.

    Parameters
    ----------
    waters, ions
        Number of molecules, and the symbols of the ions.
    box
        Edge of a periodic cube (Å); None: open boundaries.
    polarization, tolerance
        ``"mutual"``, solved to the given tolerance (Debye), or ``"direct"``, where induced dipoles do not feel each
        other: cheaper dynamics.
    """

    def __init__(
        self,
        waters: int,
        ions: tuple[str, ...] = (),
        *,
        box: float | None = None,
        polarization: str = "mutual",
        tolerance: float = 1e-7,
    ) -> None:
        import openmm
        from openmm import app, unit

        self.waters, self.ions, self.box = waters, ions, box
        self.symbols = ["O", "H", "H"] * waters + list(ions)
        topology = _topology(waters, ions)
        options: dict[str, Any] = {"nonbondedMethod": app.NoCutoff}
        if box is not None:
            topology.setPeriodicBoxVectors(0.1 * box * np.eye(3) * unit.nanometer)
            reach = 0.0499 * box * unit.nanometer
            options = {"nonbondedMethod": app.PME, "nonbondedCutoff": reach, "vdwCutoff": reach}
        self.system = _force_field().createSystem(
            topology,
            polarization=polarization,
            mutualInducedTargetEpsilon=tolerance,
            mutualInducedMaxIterations=200,
            useDispersionCorrection=False,  # a constant of the box
            constraints=None,
            rigidWater=False,
            **options,
        )
        for index, force in reversed(list(enumerate(self.system.getForces()))):
            # Forces of larger molecules have no terms here, but take seconds to be made ready, for each context.
            compound = isinstance(force, openmm.CustomCompoundBondForce) and force.getNumBonds() == 0
            if compound or isinstance(force, openmm.AmoebaTorsionTorsionForce):
                self.system.removeForce(index)
        self.multipoles = next(f for f in self.system.getForces() if isinstance(f, openmm.AmoebaMultipoleForce))
        self.charges = np.array([self.multipoles.getMultipoleParameters(i)[0]._value for i in range(len(self.symbols))])

    @property
    def total_charge(self) -> int:
        """Total charge (e)."""
        return sum(ION_CHARGES[ion] for ion in self.ions)

    @cached_property
    def _plain(self) -> Any:
        return _context(self.system)

    @cached_property
    def _in_field(self) -> Any:
        """The electrostatics alone, with the two charges that make a field: all that depends on it."""
        import openmm

        if self.box is not None:
            raise ValueError("there is no uniform field in a periodic box of AMOEBA: give open boundaries")
        system = openmm.System()
        for index in range(self.system.getNumParticles()):
            system.addParticle(self.system.getParticleMass(index))
        force = copy.deepcopy(self.multipoles)
        for charge in (FAR_CHARGE, -FAR_CHARGE):
            system.addParticle(0.0)
            none = openmm.AmoebaMultipoleForce.NoAxisType
            force.addMultipole(charge, [0.0] * 3, [0.0] * 9, none, -1, -1, -1, 0.39, 0.0, 0.0)
        system.addForce(force)
        return _context(system), force

    def energy_and_forces(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy (eV) and forces (eV/Å, shape (atoms, 3))."""
        self._plain.setPositions(0.1 * positions)
        state = self._plain.getState(getEnergy=True, getForces=True)
        forces = state.getForces(asNumpy=True)._value
        return state.getPotentialEnergy()._value * EV, 0.1 * EV * np.array(forces)

    def dipole(self, positions: np.ndarray) -> np.ndarray:
        """Dipole about the origin, permanent and induced (e·Å)."""
        self._plain.setPositions(0.1 * positions)
        return self._moment(self._plain, self.multipoles, positions)

    def _moment(self, context: Any, force: Any, positions: np.ndarray) -> np.ndarray:
        dipoles = np.array(force.getTotalDipoles(context))[: len(positions)]
        return self.charges @ positions + 10.0 * dipoles.sum(axis=0)

    def response(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Born charges (e, shape (atoms, 3, 3), first index the dipole's) and polarizability (Å³, shape (3, 3)).

        Central differences of forces and dipole over a uniform field.
        """
        context, force = self._in_field
        born = np.zeros((len(positions), 3, 3))
        polarizability = np.zeros((3, 3))
        field = 2.0 * FAR_CHARGE / FAR_AWAY**2  # e/Å²
        for axis in range(3):
            for sign in (1.0, -1.0):
                far = np.zeros((2, 3))
                far[:, axis] = (-sign * FAR_AWAY, sign * FAR_AWAY)
                context.setPositions(0.1 * np.concatenate([positions, far]))
                forces = context.getState(getForces=True).getForces(asNumpy=True)._value[: len(positions)]
                born[:, axis] += 0.1 * EV * forces * sign / (2.0 * field * COULOMB)
                polarizability[:, axis] += self._moment(context, force, positions) * sign / (2.0 * field)
        return born, 0.5 * (polarizability + polarizability.T)

    def frame(self, positions: np.ndarray, kind: str, *, answers: bool = False) -> Atoms:
        """Return labelled structure, an open one about its geometric centre.

        Energy and forces; with ``answers`` also ``ref_dipole`` (e·Å, about the geometric centre), ``bec`` (e, an atom's
        nine, first index the displacement's, as `farfield.evaluation.evaluate` wants them) and ``polarizability`` (Å³).
        """
        periodic = self.box is not None
        positions = positions if periodic else positions - positions.mean(axis=0)
        atoms = Atoms(self.symbols, positions, cell=[self.box] * 3 if periodic else None, pbc=periodic)
        energy, forces = self.energy_and_forces(positions)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        atoms.info |= {"total_charge": self.total_charge, "kind": kind}
        if answers:
            born, polarizability = self.response(positions)
            atoms.info |= {"ref_dipole": self.dipole(positions), "polarizability": polarizability.ravel()}
            atoms.arrays["bec"] = born.transpose(0, 2, 1).reshape(len(atoms), 9)
        return atoms


def _context(system: Any) -> Any:
    import openmm

    # the only platform of the others that has these forces in double precision without a GPU
    return openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))


@cache
def _force_field() -> Any:
    from openmm.app import ForceField

    return ForceField("amoeba2018.xml")


def _topology(waters: int, ions: tuple[str, ...]) -> Any:
    from openmm.app import Topology, element

    topology = Topology()
    chain = topology.addChain()
    for _ in range(waters):
        residue = topology.addResidue("HOH", chain)
        oxygen, *hydrogens = (
            topology.addAtom(name, element.Element.getBySymbol(name[0]), residue) for name in ("O", "H1", "H2")
        )
        for hydrogen in hydrogens:
            topology.addBond(oxygen, hydrogen)
    for symbol in ions:
        residue = topology.addResidue(symbol if symbol == "Cl" else symbol.upper(), chain)
        topology.addAtom(symbol, element.Element.getBySymbol(symbol), residue)
    return topology


def scattered(waters: int, ions: tuple[str, ...], spacing: float, rng: np.random.Generator) -> np.ndarray:
    """Rough positions (Å): molecules and ions on the sites of a cubic lattice in random order and orientation."""
    count = waters + len(ions)
    edge = int(np.ceil(count ** (1.0 / 3.0)))
    sites = spacing * np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    # those in the middle, so that an open cluster is round
    nearest = np.argsort(np.linalg.norm(sites - sites.mean(axis=0), axis=1), kind="stable")[:count]
    sites = sites[rng.permutation(nearest)]
    half = np.deg2rad(104.5 / 2.0)
    positions = []
    for site in sites[:waters]:
        axis, other = np.linalg.qr(rng.normal(size=(3, 2)))[0].T
        along, across = 0.96 * np.cos(half) * axis, 0.96 * np.sin(half) * other
        positions += [site, site + along + across, site + along - across]
    return np.array([*positions, *sites[waters:]])


def dynamics(model: Amoeba, frames: int, seed: int) -> list[np.ndarray]:
    """Positions (Å) along a run at 320 K from a scattered, relaxed start."""
    import openmm

    rng = np.random.default_rng(seed)
    spacing = 3.2
    if model.box is not None:
        spacing = model.box / np.ceil((model.waters + len(model.ions)) ** (1.0 / 3.0))
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, 5.0, 0.001)
    integrator.setRandomNumberSeed(seed + 1)
    context = openmm.Context(model.system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(0.1 * scattered(model.waters, model.ions, spacing, rng))
    openmm.LocalEnergyMinimizer.minimize(context, 10.0, 100)
    context.setVelocitiesToTemperature(TEMPERATURE, seed + 1)
    integrator.step(2 * INTERVAL)
    kept = []
    for _ in range(frames):
        integrator.step(INTERVAL)
        kept.append(10.0 * np.array(context.getState(getPositions=True).getPositions(asNumpy=True)._value))
    return kept


def moved_apart(positions: np.ndarray, waters: int, factor: float) -> np.ndarray:
    """Positions with the places of molecules and ions, their oxygens', scaled; molecules stay as they are."""
    places = np.concatenate([np.repeat(positions[: 3 * waters : 3], 3, axis=0), positions[3 * waters :]])
    return positions + (factor - 1.0) * places


def clusters(count: int, seed: int, *, answers: bool = False) -> list[Atoms]:
    """Open clusters, half of them moved apart; their kind, ``bound`` or ``apart``, stands in the info."""
    rng = np.random.default_rng(seed)
    found: list[Atoms] = []
    run = 0
    while len(found) < count:
        ions = CLUSTER_IONS[run % len(CLUSTER_IONS)]
        model = Amoeba(int(rng.integers(4, 9)), ions)
        wanted = min(FRAMES_PER_RUN, count - len(found))
        for number, positions in enumerate(dynamics(model, wanted, 1000 * seed + run)):
            kind = ("bound", "apart")[number % 2]
            factor = rng.uniform(1.2, 2.2)
            placed = positions if kind == "bound" else moved_apart(positions, model.waters, factor)
            found.append(model.frame(placed, kind, answers=answers))
        run += 1
    return found


def boxes(count: int, seed: int) -> list[Atoms]:
    """Periodic boxes of liquid water with an ion pair, energies and forces only; their kind is ``periodic``."""
    found: list[Atoms] = []
    for run, ions in enumerate(BOX_IONS):
        share = (count + len(BOX_IONS) - 1 - run) // len(BOX_IONS)
        if share == 0:
            continue
        edge = ((BOX_WATERS + len(ions)) / DENSITY) ** (1.0 / 3.0)
        # Dynamics without mutual polarization visit the same structures at half the cost.
        rough = Amoeba(BOX_WATERS, ions, box=edge, polarization="direct")
        model = Amoeba(BOX_WATERS, ions, box=edge, tolerance=1e-6)
        found += [model.frame(p, "periodic") for p in dynamics(rough, share, 1000 * seed + 500 + run)]
    return found


def main() -> None:
    """Make a set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--boxes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--answers", action="store_true", help="label clusters with what they are to be asked for")
    arguments = parser.parse_args()
    frames = clusters(arguments.clusters, arguments.seed, answers=arguments.answers)
    frames += boxes(arguments.boxes, arguments.seed)
    write(arguments.output, frames, format="extxyz")
    print(f"{len(frames)} frames in {arguments.output}")


if __name__ == "__main__":
    main()
