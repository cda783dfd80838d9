"""Geometries: molecules relaxed and shaken by GFN2-xTB, joined to dimers, curves and clusters."""

from __future__ import annotations

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS

from demo_data.contents import CURVE_DISTANCES, MOLECULES, SEED, charge_class

#: Smallest contact between atoms of two molecules (Å), by number of hydrogens in the contact.
CONTACT = {0: 2.6, 1: 1.75, 2: 1.8}


def start(name: str) -> Atoms:
    """Return a rough geometry of a molecule."""
    if name == "water":
        return molecule("H2O")
    if name == "methanol":
        return molecule("CH3OH")
    if name == "acetonitrile":
        return molecule("CH3CN")
    if name == "formate":
        return Atoms("CO2H", [[0, 0, 0], [1.1, 0.6, 0], [-1.1, 0.6, 0], [0, -1.1, 0]])
    if name == "formamide":
        xyz = [[0, 0, 0], [1.05, 0.62, 0], [-1.15, 0.7, 0], [0, -1.1, 0], [-1.15, 1.7, 0], [-2.05, 0.25, 0]]
        return Atoms("CONHHH", xyz)
    if name == "acetate":
        acid = molecule("CH3COOH")
        i, j = neighbor_list("ij", acid, {("O", "H"): 1.2})
        del acid[[int(b) for a, b in zip(i, j, strict=True) if acid.numbers[a] == 8]]
        return acid
    amine = molecule({"ammonium": "NH3", "methylammonium": "H3CNH2"}[name])
    nitrogen = int(np.flatnonzero(amine.numbers == 7)[0])
    bonds = amine.positions[nitrogen] - np.delete(amine.positions, nitrogen, axis=0)
    bonds = bonds[np.linalg.norm(bonds, axis=1) < 1.7]
    lone = (bonds / np.linalg.norm(bonds, axis=1, keepdims=True)).sum(0)
    return amine + Atoms("H", [amine.positions[nitrogen] + 1.03 * lone / np.linalg.norm(lone)])


def xtb(atoms: Atoms, charge: float) -> Atoms:
    """Attach a GFN2-xTB calculator."""
    from tblite.ase import TBLite

    atoms.calc = TBLite(method="GFN2-xTB", charge=charge, verbosity=0)
    return atoms


def dynamics(atoms: Atoms, frames: int, rng: np.random.Generator, temperature: float) -> list[np.ndarray]:
    """Positions from Langevin dynamics, one every 60 fs after .5 ps."""
    thermalize_momenta(atoms, temperature_K=temperature, rng=rng)
    run = Langevin(atoms, 1.0 * units.fs, temperature_K=temperature, friction=0.02 / units.fs, rng=rng, fixcm=False)
    run.run(500)
    kept = []
    for _ in range(frames):
        run.run(60)
        kept.append(atoms.positions - atoms.get_center_of_mass())
    return kept


def rotation(rng: np.random.Generator) -> np.ndarray:
    """Uniformly random proper rotation."""
    w, x, y, z = (lambda q: q / np.linalg.norm(q))(rng.normal(size=4))
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def clash(a: Atoms, b: Atoms) -> bool:
    """Whether atoms of two molecules come closer than `CONTACT` allows."""
    distance = np.linalg.norm(a.positions[:, None] - b.positions[None], axis=-1)
    hydrogens = (a.numbers == 1)[:, None].astype(int) + (b.numbers == 1)[None]
    return bool((distance < np.vectorize(CONTACT.get)(hydrogens)).any())


def assemble(parts: list[Atoms], names: list[str], **info: object) -> Atoms:
    """Join molecules into one open system, centred, each atom knowing its molecule."""
    atoms = Atoms(np.concatenate([p.numbers for p in parts]), np.concatenate([p.positions for p in parts]))
    atoms.positions -= atoms.positions.mean(0)  # dipoles of ions depend on the origin: have it in the middle
    atoms.arrays["molecule"] = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    atoms.info.update(info, molecules=" ".join(names), total_charge=sum(MOLECULES[n] for n in names))
    return atoms


class Pool:
    """Relaxed and thermally distorted molecules."""

    def __init__(self, frames: int = 40, temperature: float = 400.0) -> None:
        self.relaxed: dict[str, Atoms] = {}
        self.distorted: dict[str, list[np.ndarray]] = {}
        for index, (name, charge) in enumerate(MOLECULES.items()):
            atoms = xtb(start(name), charge)
            BFGS(atoms, logfile=None).run(0.01, 500)
            self.relaxed[name] = Atoms(atoms.numbers, atoms.positions)
            rng = np.random.default_rng([SEED, 1, index])
            self.distorted[name] = dynamics(atoms, frames, rng, temperature)

    def draw(self, name: str, rng: np.random.Generator) -> Atoms:
        """Return a distorted molecule, turned at random, its centre of mass in the origin."""
        frames = self.distorted[name]
        return Atoms(self.relaxed[name].numbers, frames[rng.integers(len(frames))] @ rotation(rng).T)

    def dimer(self, pair: tuple[str, str], rng: np.random.Generator, largest: float) -> Atoms:
        """Return a dimer in a random orientation, at a random distance that is not too short."""
        like_charged = MOLECULES[pair[0]] * MOLECULES[pair[1]] > 0
        while True:
            distance = rng.uniform(4.5 if like_charged else 3.0, largest)
            a, b = (self.draw(name, rng) for name in pair)
            b.positions[:, 2] += distance
            if not clash(a, b):
                return assemble([a, b], list(pair), kind=charge_class(pair), distance=round(distance, 4))

    def curve(self, pair: tuple[str, str], rng: np.random.Generator, label: str) -> list[Atoms]:
        """Two rigid molecules pulled apart, starting from the best bound of a few random orientations."""
        best, lowest = None, np.inf
        while best is None or rng.random() > 0.05:
            a, b = (self.draw(name, rng) for name in pair)
            for distance in CURVE_DISTANCES:
                shifted = b.copy()
                shifted.positions[:, 2] += distance
                if not clash(a, shifted):
                    break
            both = xtb(a + shifted, sum(MOLECULES[name] for name in pair))
            separate = sum(
                xtb(p.copy(), MOLECULES[n]).get_potential_energy() for p, n in zip((a, b), pair, strict=True)
            )
            energy = both.get_potential_energy() - separate
            if energy < lowest:
                best, lowest = (a, b), energy
        a, b = best
        frames = []
        for distance in CURVE_DISTANCES:
            moved = b.copy()
            moved.positions[:, 2] += distance
            if not clash(a, moved):
                frames.append(assemble([a, moved], list(pair), kind=charge_class(pair), curve=label, distance=distance))
        return frames

    def cluster(self, ion: str | None, waters: int, frames: int, rng: np.random.Generator) -> list[Atoms]:
        """Snapshots of water molecules around an ion, or among themselves."""
        names = ([ion] if ion else []) + ["water"] * waters
        parts: list[Atoms] = []
        for name in names:
            while True:
                new = self.draw(name, rng)
                new.positions += rng.normal(size=3) * 2.2 * (1.0 if parts else 0.0)
                if not any(clash(new, other) for other in parts):
                    break
            parts.append(new)
        atoms = assemble(parts, names, kind="cluster")
        system = xtb(Atoms(atoms.numbers, atoms.positions), atoms.info["total_charge"])
        BFGS(system, logfile=None).run(0.3, 200)
        kept = []
        for positions in dynamics(system, frames, rng, 300.0):
            frame = atoms.copy()
            frame.positions = positions - positions.mean(0)
            kept.append(frame)
        return kept
