"""Make a large, cheap training set of polar dipeptides, to start models from before they see density-functional labels.

    OMP_NUM_THREADS=1 python scripts/make_peptides.py OUTPUT.extxyz

After ``pip install farfield[peptides]``. Molecules: ACE–X–Y–NME with one cationic and one anionic side chain (His⁺,
Lys⁺, Arg⁺ with Asp⁻, Glu⁻, both orders). Geometries as SPICE makes its own (Eastman et al., Sci. Data 10, 11, 2023):
Amber14 dynamics in vacuum at 500 K from several conformers each; every other frame is relaxed part of the way and
shaken at 100 K. Labels are GFN2-xTB energies and forces (Bannwarth, Ehlert and Grimme, JCTC 15, 1652, 2019): wrong by
far more than a model's error, but right in shape, and thousands of frames cost minutes.

Beside them small ions, whose total charges say what the molecules' charged groups have; ``kind`` in the info of a frame
says which it is: molecule or ion. For trainings on labels of another method ``OUTPUT.ions.extxyz`` has some of the ions
without energies and forces.

``OUTPUT.probes.extxyz`` has the same molecules with a methylammonium ion, so far away that no neighbour list with a
cutoff of 4.5 Å joins the two. Its labels are what the two do to each other, energies and forces of both less those of
each alone: the short range has no say in them, and they hold nothing of what it has wrong.

Each conformer and each block of probed molecules has a random generator of its own, and what is made is kept in
``OUTPUT.parts`` until all is there, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import read, write

#: Side chains at pH 7 as SMILES, by the names of Amber's residues.
SIDE_CHAINS = {
    "HIP": "Cc1c[nH]c[nH+]1",
    "LYS": "CCCC[NH3+]",
    "ARG": "CCCNC(N)=[NH2+]",
    "ASP": "CC(=O)[O-]",
    "GLU": "CCC(=O)[O-]",
}
CATIONS, ANIONS = ("HIP", "LYS", "ARG"), ("ASP", "GLU")
SEQUENCES = [pair for c in CATIONS for a in ANIONS for pair in ((c, a), (a, c))]

#: Frames of each conformer, half at 500 K and half relaxed and shaken.
FRAMES_PER_CONFORMER = 20
#: Side chains' own groups as ions: SMILES, charge (e). The first one probes molecules from afar; anions will not do for
#: that: in part their electrons leave them for a molecule's cationic end, at any distance, as is known of
#: semi-empirical and semi-local methods.
IONS = (("C[NH3+]", 1), ("NC(N)=[NH2+]", 1), ("c1c[nH]c[nH+]1", 1), ("CC(=O)[O-]", -1), ("C(=O)[O-]", -1))
#: Probed molecules that are made at a time; range of the distances between nearest atoms (Å); displacements of the
#: ion's atoms from rest (Å).
PROBES_PER_BLOCK = 50
GAPS = (4.6, 8.0)
SHAKE = 0.04
#: How many ions are written without labels.
UNLABELLED = 100


def conformer(sequence: tuple[str, str], seed: int):  # type: ignore[no-untyped-def]
    """OpenMM topology and rough positions (Å) of one conformer."""
    from openmm.app import Topology, element
    from rdkit import Chem
    from rdkit.Chem import AllChem

    pieces = ["CC(=O)", *(f"N[C@@H]({SIDE_CHAINS[name]})C(=O)" for name in sequence), "NC"]
    names = ["ACE", *sequence, "NME"]
    residue_of = [
        index
        for index, piece in enumerate(pieces)
        for _ in range(Chem.MolFromSmiles(piece, sanitize=False).GetNumAtoms())
    ]
    molecule = Chem.AddHs(Chem.MolFromSmiles("".join(pieces)))
    if AllChem.EmbedMolecule(molecule, randomSeed=seed, useRandomCoords=True) != 0:
        raise RuntimeError(f"no conformer of {sequence} with seed {seed}")
    for atom in list(molecule.GetAtoms())[len(residue_of) :]:
        residue_of.append(residue_of[atom.GetNeighbors()[0].GetIdx()])
    # residues one after the other, as OpenMM wants them
    order = np.argsort(residue_of, kind="stable")
    topology = Topology()
    chain = topology.addChain()
    residues = [topology.addResidue(name, chain) for name in names]
    atoms = {}
    for number, index in enumerate(order):
        kind = element.Element.getByAtomicNumber(molecule.GetAtomWithIdx(int(index)).GetAtomicNum())
        atoms[int(index)] = topology.addAtom(f"{kind.symbol}{number}", kind, residues[residue_of[index]])
    for bond in molecule.GetBonds():
        topology.addBond(atoms[bond.GetBeginAtomIdx()], atoms[bond.GetEndAtomIdx()])
    return topology, molecule.GetConformer().GetPositions()[order]


def geometries(sequence: tuple[str, str], seed: int, frames: int) -> list[Atoms]:
    """Snapshots of Amber14 dynamics of one conformer."""
    import openmm
    from openmm import unit
    from openmm.app import ForceField, NoCutoff, Simulation

    topology, positions = conformer(sequence, seed)
    system = ForceField("amber14-all.xml").createSystem(topology, nonbondedMethod=NoCutoff, constraints=None)
    integrator = openmm.LangevinMiddleIntegrator(500.0, 5.0, 0.001)
    integrator.setRandomNumberSeed(seed)
    run = Simulation(topology, system, integrator, openmm.Platform.getPlatformByName("Reference"))
    run.context.setPositions(positions * unit.angstrom)
    run.minimizeEnergy(maxIterations=200)
    run.context.setVelocitiesToTemperature(500.0, seed)
    run.step(5000)
    numbers = [atom.element.atomic_number for atom in topology.atoms()]

    def snapshot() -> np.ndarray:
        state = run.context.getState(getPositions=True)
        return state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)

    kept = []
    for _ in range(frames // 2):
        integrator.setTemperature(500.0)
        run.step(2000)
        hot = run.context.getState(getPositions=True, getVelocities=True)
        kept.append(Atoms(numbers, snapshot()))
        run.minimizeEnergy(maxIterations=50)
        integrator.setTemperature(100.0)
        run.context.setVelocitiesToTemperature(100.0, seed)
        run.step(1000)
        kept.append(Atoms(numbers, snapshot()))
        run.context.setPositions(hot.getPositions())
        run.context.setVelocities(hot.getVelocities())
    return kept


def label(atoms: Atoms) -> Atoms | None:
    """Return the frame with GFN2-xTB labels; None where the charges do not converge or forces are beyond reason."""
    from ase.calculators.singlepoint import SinglePointCalculator
    from tblite.ase import TBLite

    charge = atoms.info.get("total_charge", 0)
    calculator = TBLite(method="GFN2-xTB", charge=charge, verbosity=0)
    labelled = atoms.copy()
    try:
        energy = calculator.get_potential_energy(labelled)
        forces = calculator.get_forces(labelled)
    except Exception as error:  # noqa: BLE001 - tblite raises its own kinds by release
        print(f"left out: {error}", flush=True)
        return None
    if np.abs(forces).max() > 15.0:
        return None
    labelled.info["total_charge"] = charge
    labelled.calc = SinglePointCalculator(labelled, energy=energy, forces=forces)
    return labelled


def make_part(task: tuple[int, int, Path]) -> None:
    """Make and write the frames of one conformer, unless they are there."""
    molecule, number, folder = task
    path = folder / f"{molecule:02d}-{number:04d}.extxyz"
    if path.exists():
        return
    made = geometries(SEQUENCES[molecule], 1000 * molecule + number + 1, FRAMES_PER_CONFORMER)
    write_part(path, map(label, made))


def ion(smiles: str, charge: int) -> Atoms:
    """Return an ion, relaxed with GFN2-xTB."""
    from ase.optimize import BFGS
    from rdkit import Chem
    from rdkit.Chem import AllChem
    from tblite.ase import TBLite

    molecule = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
    atoms = Atoms(numbers, molecule.GetConformer().GetPositions(), info={"total_charge": charge})
    atoms.calc = TBLite(method="GFN2-xTB", charge=charge, verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=0.05, steps=200)
    atoms.calc = None
    return atoms


def shake(atoms: Atoms, random: np.random.Generator) -> np.ndarray:
    """Draw displacements of an ion's atoms (Å)."""
    return SHAKE * random.normal(size=(len(atoms), 3))


def make_ions(resting: list[Atoms], number: int) -> list[Atoms]:
    """Return so many labelled frames of ions, shaken, of each kind as many."""
    random = np.random.default_rng([number, 2])
    frames = []
    for index in range(number):
        atoms = resting[index % len(resting)].copy()
        atoms.positions += shake(atoms, random)
        frames.append(label(atoms))
    return [frame for frame in frames if frame is not None]


def together(molecule: Atoms, probe: Atoms, random: np.random.Generator) -> Atoms:
    """Both in one frame: the probe shaken, turned, and moved in a random direction until the gap is in `GAPS`."""
    from scipy.spatial.distance import cdist
    from scipy.spatial.transform import Rotation

    here = molecule.positions - molecule.positions.mean(axis=0)
    shaken = probe.positions - probe.positions.mean(axis=0) + shake(probe, random)
    there = Rotation.random(random_state=random).apply(shaken)
    direction = random.normal(size=3)
    direction /= np.linalg.norm(direction)
    gap = random.uniform(*GAPS)
    near, far = 0.0, 100.0
    for _ in range(40):  # bisection: from the centre outwards the gap grows, but for bays of the molecule
        middle = 0.5 * (near + far)
        near, far = (middle, far) if cdist(here, there + middle * direction).min() < gap else (near, middle)
    return Atoms(
        np.concatenate([molecule.numbers, probe.numbers]),
        np.concatenate([here, there + far * direction]),
        info={"total_charge": probe.info["total_charge"]},
    )


def interaction(molecule: Atoms, both: Atoms) -> Atoms | None:
    """Label what a labelled molecule and its probe do to each other; None where the charges do not converge."""
    here = len(molecule)
    probe = both[here:]
    probe.info = {"total_charge": both.info["total_charge"]}
    labelled, alone = label(both), label(probe)
    if labelled is None or alone is None:
        return None
    result = both.copy()
    result.info["interaction_energy"] = (
        labelled.get_potential_energy() - molecule.get_potential_energy() - alone.get_potential_energy()
    )
    apart = np.concatenate([molecule.get_forces(), alone.get_forces()])
    result.arrays["interaction_forces"] = labelled.get_forces() - apart
    result.arrays["fragment"] = np.repeat([0, 1], [here, len(probe)])
    result.info["fragment_charges"] = np.array([0.0, both.info["total_charge"]])
    return result


def make_probed(task: tuple[int, list[Atoms], Atoms, Path]) -> None:
    """Make and write a block of molecules with a probe each, unless they are there."""
    number, frames, probe, folder = task
    path = folder / f"interaction-{number:04d}.extxyz"
    if path.exists():
        return
    random = np.random.default_rng([number, 1])
    write_part(path, (interaction(frame, together(frame, probe, random)) for frame in frames))


def write_part(path: Path, labelled: Iterable[Atoms | None]) -> None:
    """Write the frames that could be labelled, in one piece."""
    written = path.with_suffix(".writing")
    write(written, [frame for frame in labelled if frame is not None], format="extxyz")
    written.rename(path)


def read_parts(folder: Path, pattern: str, seed: int) -> list[Atoms]:
    """Frames of all parts of a kind, shuffled."""
    frames = [frame for path in sorted(folder.glob(pattern)) for frame in read(path, ":")]
    np.random.default_rng(seed).shuffle(frames)
    return frames


def main() -> None:
    """Make the set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--frames", type=int, default=7200)
    parser.add_argument("--probes", type=int, default=2000)
    parser.add_argument("--ions", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    folder = arguments.output.with_suffix(".parts")
    folder.mkdir(parents=True, exist_ok=True)
    conformers = -(-arguments.frames // (FRAMES_PER_CONFORMER * len(SEQUENCES)))
    tasks = [(m, n, folder) for n in range(conformers) for m in range(len(SEQUENCES))]
    with multiprocessing.get_context("spawn").Pool(arguments.workers) as pool:
        for done, _ in enumerate(pool.imap(make_part, tasks), 1):
            if done % 12 == 0:
                print(f"{done} of {len(tasks)} conformers", flush=True)
        frames = read_parts(folder, "[0-9]*.extxyz", 0)[: arguments.frames]
        choose = np.random.default_rng(2)
        blocks = -(-arguments.probes // PROBES_PER_BLOCK)
        some = ([frames[i] for i in choose.choice(len(frames), PROBES_PER_BLOCK)] for _ in range(blocks))
        resting = [ion(smiles, charge) for smiles, charge in IONS]
        tasks_of_probes = ((number, few, resting[0], folder) for number, few in enumerate(some))
        for done, _ in enumerate(pool.imap(make_probed, tasks_of_probes), 1):
            print(f"{done} of {blocks} blocks of {PROBES_PER_BLOCK} probed molecules", flush=True)
    probed = read_parts(folder, "interaction-*.extxyz", 1)[: arguments.probes] if arguments.probes else []
    ions = make_ions(resting, arguments.ions)
    unlabelled = [
        Atoms(one.numbers, one.positions, info={"total_charge": one.info["total_charge"]}) for one in ions[:UNLABELLED]
    ]
    write(arguments.output.with_suffix(".ions.extxyz"), unlabelled, format="extxyz")
    write(arguments.output.with_suffix(".probes.extxyz"), probed, format="extxyz")
    kinds = {"molecule": frames, "ion": ions}
    for kind, members in kinds.items():
        for member in members:
            member.info["kind"] = kind
    write(arguments.output, [member for members in kinds.values() for member in members], format="extxyz")
    print(f"{len(frames)} molecules and {len(ions)} ions in {arguments.output}, {len(probed)} probed ones beside it")


if __name__ == "__main__":
    main()
