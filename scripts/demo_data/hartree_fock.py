"""Restricted Hartree–Fock and what follows from it: forces, dipoles, Born charges, atomic charges."""

from __future__ import annotations

import numpy as np
from ase import Atoms, units
from ase.data import chemical_symbols, vdw_radii

BOHR, HARTREE = units.Bohr, units.Hartree
BASIS = "6-31g*"


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
