"""Labels of frames, and the checks that they are sound."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from demo_data.contents import BORN_DISTANCES, MOLECULES, SEED
from demo_data.geometries import Pool
from demo_data.hartree_fock import (
    BOHR,
    HARTREE,
    born_charges,
    dipole,
    esp_charges,
    forces,
    hartree_fock,
    molecule_charges,
)


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
