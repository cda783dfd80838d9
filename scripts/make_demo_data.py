"""Make the quantum-chemistry set that `farfield demo` trains on: src/farfield/datasets/data/demo/*.extxyz.gz.

After ``pip install farfield[demo-data]``: ``OMP_NUM_THREADS=1 python scripts/make_demo_data.py``; it takes about
half an hour of one core. Every frame has a random generator of its own, so that the same frames come out again.

What is in the set, and why
---------------------------
Eight small molecules of H, C, N and O: two cations, two anions, four polar molecules. Their dimers at 3 to 15 Å between
the centres of mass, in random orientations; water clusters and ions with a few waters. All are open systems.

Geometries come from molecular dynamics of the separate molecules (and of the clusters) with GFN2-xTB; labels from
restricted Hartree–Fock in the 6-31G* basis with density fitting. Hartree–Fock is chosen because it has no
self-interaction error: two ions that are pulled apart in vacuum keep whole charges. GFN2-xTB and semi-local functionals
do not: they move .1 e from the anion to the cation at 12 Å, since there the anion's highest level lies above the
cation's lowest empty one. The script checks it: frames whose molecules carry charges that are not whole numbers when
far apart are refused.

Energies are relative to the separate molecules, each relaxed, so that a model need not learn formation energies. Born
charges dμ_b/dr_na are finite differences of the forces in a uniform field, dF_na/dE_b: the same second derivative of
the energy. The script checks them once against finite differences of the dipole. They stand with the displacement first
in the column ``bec``. Reference atomic charges (``esp_charges``) are fitted to the electrostatic potential around the
molecule (Merz and Kollman's shells, with a weak restraint towards zero).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols, vdw_radii
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.neighborlist import neighbor_list
from ase.optimize import BFGS

BOHR, HARTREE = units.Bohr, units.Hartree
SEED = 20261123
BASIS = "6-31g*"
HERE = Path(__file__).resolve().parents[1] / "src" / "farfield" / "datasets" / "data" / "demo"

#: Total charge of each molecule.
MOLECULES = {
    "ammonium": 1,
    "methylammonium": 1,
    "formate": -1,
    "acetate": -1,
    "water": 0,
    "methanol": 0,
    "formamide": 0,
    "acetonitrile": 0,
}
#: Pairs that never occur in training, at any distance.
UNSEEN = [
    ("methylammonium", "acetate"),
    ("formate", "formamide"),
    ("methylammonium", "acetonitrile"),
    ("formamide", "acetonitrile"),
]
#: Held-back dissociation curves: the unseen pairs, and two pairs of which other geometries are in training.
CURVES = [UNSEEN[0], ("ammonium", "formate"), UNSEEN[1], UNSEEN[2], UNSEEN[3], ("water", "formamide")]
CURVE_DISTANCES = (3.0, 3.4, 3.8, 4.2, 4.6, 5.0, 5.5, 6.0, 6.5, 7.0, 8.0, 9.0, 10.0, 11.5, 13.0, 15.0)
#: Points of the curves that get Born charges, which cost most; all other frames held back get them.
BORN_DISTANCES = (5.0, 7.0, 10.0)
#: Frames that are labelled of those planned for training: the first of a random order.
TRAINING_FRAMES = 370
#: Largest distance of a training dimer (Å): the curves go beyond it.
TRAINED_RANGE = 10.0
#: Ions surrounded by waters, and how many.
CLUSTERS = [
    (None, 2),
    (None, 3),
    (None, 4),
    (None, 5),
    ("ammonium", 3),
    ("methylammonium", 2),
    ("formate", 3),
    ("acetate", 2),
]
#: Smallest contact between atoms of two molecules (Å), by number of hydrogens in the contact.
CONTACT = {0: 2.6, 1: 1.75, 2: 1.8}


# --- geometries ------------------------------------------------------------------------------------------------------


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
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
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


def charge_class(pair: tuple[str, str]) -> str:
    """Return CC, CP or PP."""
    return "".join(sorted("C" if MOLECULES[name] else "P" for name in pair))


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


# --- labels ----------------------------------------------------------------------------------------------------------


def hartree_fock(atoms: Atoms, field: np.ndarray | None = None, guess: np.ndarray | None = None):
    """Converged restricted Hartree–Fock, optionally in a uniform electric field (atomic units)."""
    from pyscf import gto, scf

    geometry = [(chemical_symbols[z], x) for z, x in zip(atoms.numbers, atoms.positions / BOHR, strict=True)]
    mol = gto.M(atom=geometry, unit="bohr", basis=BASIS, charge=atoms.info["total_charge"], verbose=0)
    mf = scf.RHF(mol).density_fit()
    mf.conv_tol, mf.conv_tol_grad = 1e-10, 3e-6
    if field is not None:
        # An electron has charge -1: its energy in the field E is +E·r.
        core = mf.get_hcore() + np.einsum("a,auv->uv", field, mol.intor("int1e_r", comp=3))
        mf.get_hcore = lambda *_: core
    mf.kernel(dm0=guess)
    if not mf.converged:
        raise RuntimeError(f"Hartree–Fock did not converge for {atoms.info['molecules']}")
    return mf


def forces(mf, field: np.ndarray | None = None) -> np.ndarray:
    """Return the forces (hartree/bohr), the uniform field included."""
    mol = mf.mol
    gradient = mf.nuc_grad_method().kernel()
    if field is not None:
        # pyscf's gradient knows nothing of the added term: its nuclear part -E Z, and the basis functions' motion
        # -2 Σ D_uv <∇u|E·r|v>, from ∫ r_b u ∇_a v (integral "irp", order b, a).
        gradient -= np.outer(mol.atom_charges(), field)
        bra = np.einsum("bauv,b->avu", mol.intor("int1e_irp").reshape(3, 3, mol.nao, mol.nao), field)
        per_function = -2 * np.einsum("auv,uv->ua", bra, mf.make_rdm1())
        gradient += np.array([per_function[first:last].sum(0) for _, _, first, last in mol.aoslice_by_atom()])
    return -gradient


def dipole(mf) -> np.ndarray:
    """Dipole about the origin (e·bohr)."""
    return mf.dip_moment(unit="AU", verbose=0)


def born_charges(atoms: Atoms, mf, step: float = 2e-3) -> np.ndarray:
    """dμ_b/dr_na = dF_na/dE_b (e), shape (atoms, 3, 3), the displacement first."""
    columns = []
    for axis in range(3):
        pair = []
        for sign in (1, -1):
            field = np.zeros(3)
            field[axis] = sign * step
            pair.append(forces(hartree_fock(atoms, field, mf.make_rdm1()), field))
        columns.append((pair[0] - pair[1]) / (2 * step))
    return np.stack(columns, axis=-1)


def esp_charges(atoms: Atoms, mf, restraint: float = 5e-4) -> np.ndarray:
    """Charges (e) fitted to the potential on shells at 1.4 to 2 van der Waals radii, their sum being exact."""
    golden = np.pi * (3 - np.sqrt(5))
    n = np.arange(60)
    z = 1 - (2 * n + 1) / len(n)
    sphere = np.stack([np.sqrt(1 - z * z) * np.cos(golden * n), np.sqrt(1 - z * z) * np.sin(golden * n), z], axis=1)
    radii = np.where(atoms.numbers == 1, 1.2, vdw_radii[atoms.numbers])
    points = []
    for scale in (1.4, 1.6, 1.8, 2.0):
        shell = atoms.positions[:, None] + scale * radii[:, None, None] * sphere[None]
        shell = shell.reshape(-1, 3)
        distance = np.linalg.norm(shell[:, None] - atoms.positions[None], axis=-1)
        points.append(shell[(distance > scale * radii - 1e-6).all(1)])
    grid = np.concatenate(points) / BOHR
    centres = atoms.positions / BOHR
    inverse = 1 / np.linalg.norm(grid[:, None] - centres[None], axis=-1)
    density = mf.make_rdm1()
    potential = inverse @ mf.mol.atom_charges()
    for part in np.array_split(np.arange(len(grid)), len(grid) // 200 + 1):
        potential[part] -= np.einsum("guv,uv->g", mf.mol.intor("int1e_grids", grids=grid[part]), density)
    size = len(atoms)
    matrix = np.zeros((size + 1, size + 1))
    matrix[:size, :size] = inverse.T @ inverse + restraint * np.eye(size)
    matrix[:size, size] = matrix[size, :size] = 1
    right = np.append(inverse.T @ potential, atoms.info["total_charge"])
    return np.linalg.solve(matrix, right)[:size]


def molecule_charges(atoms: Atoms, mf) -> np.ndarray:
    """Mulliken charge (e) of each molecule of the system."""
    return np.bincount(atoms.arrays["molecule"], weights=mf.mulliken_pop(verbose=0)[1])


def separate_energies(pool: Pool) -> dict[str, float]:
    """Energy (hartree) of each molecule, relaxed at the level of the labels."""
    from scipy.optimize import minimize

    found = {}
    for name, charge in MOLECULES.items():
        atoms = pool.relaxed[name].copy()
        atoms.info.update(total_charge=charge, molecules=name)

        def energy(x: np.ndarray, atoms: Atoms = atoms) -> tuple[float, np.ndarray]:
            atoms.positions = x.reshape(-1, 3) * BOHR
            mf = hartree_fock(atoms)
            return mf.e_tot, -forces(mf).ravel()

        start_from = atoms.positions.ravel() / BOHR
        found[name] = float(minimize(energy, start_from, jac=True, method="BFGS", options={"gtol": 2e-4}).fun)
    return found


class Labeller:
    """Labels frames and refuses those whose physics is not sound.

    ``separate`` holds the energy (hartree) of each relaxed molecule, which the labels are relative to.
    """

    def __init__(self, separate: dict[str, float]) -> None:
        self.separate = separate
        self.refused: list[str] = []

    def _apart(self, atoms: Atoms) -> float:
        """Energy (eV) of the distorted molecules, each on its own: what a dissociation curve tends to."""
        total = 0.0
        for index, name in enumerate(atoms.info["molecules"].split()):
            alone = atoms[atoms.arrays["molecule"] == index]
            alone.info.update(total_charge=MOLECULES[name])
            total += hartree_fock(alone).e_tot - self.separate[name]
        return total * HARTREE

    def __call__(self, atoms: Atoms, kept_back: bool) -> Atoms | None:
        """Return the frame with its labels, or None; ``kept_back`` adds those that no training sees."""
        names = atoms.info["molecules"].split()
        mf = hartree_fock(atoms)
        charges = molecule_charges(atoms, mf)
        wanted = np.array([MOLECULES[name] for name in names])
        far = atoms.info.get("distance", 0.0) >= 7.0
        if (far and abs(charges - wanted).max() > 0.01) or mf.mo_energy[mf.mo_occ > 0].max() > 0:
            self.refused.append(f"{atoms.info} {charges.round(3).tolist()}")
            return None
        energy = (mf.e_tot - sum(self.separate[name] for name in names)) * HARTREE
        frame = atoms.copy()
        if kept_back:
            frame.info["ref_dipole"] = dipole(mf) * BOHR
            frame.arrays["esp_charges"] = esp_charges(atoms, mf)
            if "curve" not in atoms.info or atoms.info["distance"] in BORN_DISTANCES:
                frame.arrays["bec"] = born_charges(atoms, mf).reshape(-1, 9)
        if "curve" in atoms.info:
            frame.info["energy_apart"] = self._apart(atoms)
        frame.calc = SinglePointCalculator(frame, energy=energy, forces=forces(mf) * HARTREE / BOHR)
        return frame


def check_born_charges(pool: Pool, step: float = 2e-3) -> float:
    """Largest difference between Born charges from forces in a field and from dipoles of displaced atoms."""
    rng = np.random.default_rng([SEED, 9])
    atoms = pool.dimer(("ammonium", "water"), rng, 4.0)
    wanted = born_charges(atoms, hartree_fock(atoms))
    other = np.zeros_like(wanted)
    for atom in range(len(atoms)):
        for axis in range(3):
            for sign in (1, -1):
                moved = atoms.copy()
                moved.positions[atom, axis] += sign * step * BOHR
                other[atom, axis] += sign * dipole(hartree_fock(moved)) / (2 * step)
    return float(abs(wanted - other).max())


# --- the set ---------------------------------------------------------------------------------------------------------


def pairs() -> list[tuple[str, str]]:
    """All pairs of molecules, in order; a polar molecule also pairs with its like."""
    names = list(MOLECULES)
    return [(a, b) for i, a in enumerate(names) for b in names[i:]]


def plan(pool: Pool, scale: float) -> dict[str, list[Atoms]]:
    """Frames of each split, without labels."""

    def number(full: int) -> int:
        return max(1, round(full * scale))

    splits: dict[str, list[Atoms]] = {"train": [], "val": [], "test": []}
    for index, pair in enumerate(pairs()):
        held = pair in UNSEEN or pair[::-1] in UNSEEN
        count = {"CC": 16, "CP": 11, "PP": 11}[charge_class(pair)]
        for split, frames, largest in (
            ("train", 0 if held else number(count), TRAINED_RANGE),
            ("val", 0 if held else 1, TRAINED_RANGE),
            ("test", 2 if held else int(index % 4 == 1), 15.0),
        ):
            for k in range(frames):
                rng = np.random.default_rng([SEED, 2, len(split), index, k])
                splits[split].append(pool.dimer(pair, rng, largest))
    for index, name in enumerate(MOLECULES):
        rng = np.random.default_rng([SEED, 3, index])
        for split, frames in (("train", number(8)), ("val", 1)):
            single = [assemble([pool.draw(name, rng)], [name], kind="molecule") for _ in range(frames)]
            splits[split].extend(single)
    for index, (ion, waters) in enumerate(CLUSTERS):
        rng = np.random.default_rng([SEED, 4, index])
        count = number(8)
        # One trajectory: training first, then a gap, then what is held back.
        frames = pool.cluster(ion, waters, count + 7, rng)
        for split, chosen in (("train", frames[:count]), ("val", frames[-4:-3]), ("test", frames[-1:])):
            splits[split].extend(chosen)
    for index, pair in enumerate(CURVES):
        rng = np.random.default_rng([SEED, 5, index])
        splits["test"].extend(pool.curve(pair, rng, f"{pair[0]}-{pair[1]}"))
    return splits


def prepare(cache: Path, scale: float) -> dict[str, list[Atoms]]:
    """Make the plan and the energies of the relaxed molecules, or read them where an earlier run left them."""
    splits = ("train", "val", "test")
    energies = cache / "separate.json"
    if not energies.exists():
        pool = Pool()
        difference = check_born_charges(pool)
        print(f"Born charges: field against displacement differ by at most {difference:.1e} e", flush=True)
        if difference > 5e-4:
            sys.exit("the two finite differences disagree")
        for split, frames in plan(pool, scale).items():
            write(cache / f"plan-{split}.extxyz", frames, format="extxyz")
        energies.write_text(json.dumps(separate_energies(pool), indent=1) + "\n", encoding="utf-8")
    return {split: read(cache / f"plan-{split}.extxyz", ":") for split in splits}


def main() -> None:
    """Make the three files and a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE)
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the training frames, to try things out")
    parser.add_argument("--cache", type=Path, help="directory that keeps plan and labelled frames, to go on later")
    parser.add_argument("--most", type=int, default=TRAINING_FRAMES, help="label at most so many frames of a file")
    parser.add_argument("--splits", nargs="*", default=["train", "val", "test"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        cache = arguments.cache or Path(temporary)
        cache.mkdir(parents=True, exist_ok=True)
        arguments.output.mkdir(parents=True, exist_ok=True)
        make(arguments.output, cache, arguments.scale, arguments.splits, arguments.most)


def make(output: Path, cache: Path, scale: float, parts: list[str], most: int | None) -> None:
    """Plan, label and write."""
    started = time.time()
    splits = prepare(cache, scale)
    labeller = Labeller(json.loads((cache / "separate.json").read_text(encoding="utf-8")))
    print(f"{ {name: len(frames) for name, frames in splits.items()} } after {time.time() - started:.0f} s", flush=True)
    for split in parts:
        frames, labelled = splits[split], {}
        # In random order, so that `most` takes some of every kind.
        order = np.random.default_rng([SEED, 6]).permutation(len(frames))[:most]
        for done, index in enumerate(order):
            kept = cache / f"{split}-{index}.extxyz"
            if kept.exists():
                labelled[index] = read(kept)
            elif (frame := labeller(frames[index], kept_back=split == "test")) is not None:
                labelled[index] = frame
                write(kept, frame, format="extxyz")
            if done % 25 == 0:
                print(f"{split} {done}/{len(order)} after {time.time() - started:.0f} s", flush=True)
        write(output / f"{split}.extxyz.gz", [labelled[index] for index in sorted(labelled)], format="extxyz")
    for text in labeller.refused:
        print("refused:", text)
    summary = {"seed": SEED, "separate_molecules_hartree": labeller.separate}
    (output / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(f"done after {time.time() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
