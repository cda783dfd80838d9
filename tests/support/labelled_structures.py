"""Structures with labels whose errors, units and defects are known, for the tests of evaluation and inspection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from farfield.atoms.batch import AtomicBatch
from farfield.datasets.dataset import Dataset
from farfield.units import COULOMB_CONSTANT


class Oracle:
    """A model that answers with the labels of a data set, changed by functions of the label: perfect by default."""

    is_long_range = True

    def __init__(self, data: Dataset, **changes: Any) -> None:
        self.known = {self._key(sample.batch.positions): sample for sample in data}
        self.changes = changes
        self.calls: list[int] = []
        self.card = None

    @staticmethod
    def _key(positions: torch.Tensor) -> bytes:
        return positions.double().numpy().tobytes()

    def compute(self, batch: AtomicBatch, properties: Sequence[str], **options: Any) -> dict[str, np.ndarray]:
        self.calls.append(batch.n_atoms)
        samples = [self.known[self._key(part)] for part in batch.positions.split(batch.counts.tolist())]
        values = {}
        for name in properties:
            value = torch.cat([sample.labels[name] for sample in samples]).double().numpy()
            values[name] = self.changes.get(name, lambda label: label)(value)
        return values


def _water(positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Energy and charges of two flexible, polarizable toy water molecules (O H H O H H)."""
    charges = []
    energy = positions.new_zeros(())
    for start in (0, 3):
        oxygen, one, other = positions[start : start + 3]
        lengths = torch.stack([(one - oxygen).norm(), (other - oxygen).norm()])
        angle = torch.arccos(((one - oxygen) @ (other - oxygen)) / lengths.prod())
        energy = energy + 20.0 * ((lengths - 0.96) ** 2).sum() + 2.0 * (angle - 1.82) ** 2
        protons = 0.4 + 0.5 * (lengths - 0.96) + 0.1 * (angle - 1.82)
        charges += [-protons.sum(), protons[0], protons[1]]
    total = torch.stack(charges)
    pairs = torch.cdist(positions[:3], positions[3:])
    energy = energy + COULOMB_CONSTANT * (total[:3, None] * total[None, 3:] / pairs).sum()
    return energy + 5.0 * ((1.6 / pairs) ** 8).sum(), total


def water_dimers(count: int = 40, seed: int = 0) -> list[Atoms]:
    """Pairs of toy water molecules 3.5 to 4.5 Å apart with all labels of an open system, displacement first."""
    generator = np.random.default_rng(seed)
    monomer = np.array([[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.76, 0.59, 0.0]])
    frames = []
    for _ in range(count):
        rotations = [np.linalg.qr(generator.normal(size=(3, 3)))[0] for _ in range(2)]
        direction = generator.normal(size=3)
        shift = direction / np.linalg.norm(direction) * generator.uniform(3.5, 4.5)
        start = np.concatenate([monomer @ rotations[0], monomer @ rotations[1] + shift])
        positions = torch.tensor(start + generator.normal(0, 0.03, start.shape), requires_grad=True)
        energy, charges = _water(positions)
        forces = -torch.autograd.grad(energy, positions, retain_graph=True)[0]
        moments = charges @ positions
        born = torch.stack([torch.autograd.grad(moment, positions, retain_graph=True)[0] for moment in moments])
        second = torch.einsum("i,ia,ib->ab", charges, positions, positions).detach().numpy()
        atoms = Atoms("OH2OH2", positions.detach().numpy())
        atoms.info |= {"total_charge": 0, "ref_dipole": moments.detach().numpy(), "ref_quadrupole": second.ravel()}
        atoms.arrays["mbi_charges"] = charges.detach().numpy()
        # born is [polarization, atom, displacement]; the file has [atom, displacement, polarization]
        atoms.arrays["bec"] = born.permute(1, 2, 0).reshape(-1, 9).numpy()
        atoms.calc = SinglePointCalculator(atoms, energy=energy.item(), forces=forces.numpy())
        frames.append(atoms)
    return frames


def alloys(count: int = 24, seed: int = 0) -> list[Atoms]:
    """Strained and shaken Cu-Au cells with energy, forces and stress of effective medium theory."""
    generator = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        atoms = bulk("Cu", cubic=True).repeat((2, 2, 2))
        atoms.numbers[generator.permutation(32)[:8]] = 79
        atoms.set_cell(atoms.cell @ (1.04 * np.eye(3) + generator.normal(0, 0.015, (3, 3))), scale_atoms=True)
        atoms.positions += generator.normal(0, 0.08, atoms.positions.shape)
        atoms.calc = EMT()
        labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": atoms.get_stress()}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        frames.append(atoms)
    return frames


def changed(frames: Sequence[Atoms], **factors: float) -> list[Atoms]:
    """Return copies whose calculator's labels are multiplied by factors."""
    copies = []
    for atoms in frames:
        copy = atoms.copy()
        labels = {name: np.multiply(value, factors.get(name, 1.0)) for name, value in atoms.calc.results.items()}
        copy.calc = SinglePointCalculator(copy, **labels)
        copies.append(copy)
    return copies
