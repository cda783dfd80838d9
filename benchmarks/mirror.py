"""Energies of a molecule, turned and mirrored, by a model that comes with SevenNet: why there is no adapter for it.

python -m benchmarks.mirror     # needs sevenn (pip install sevenn==0.13.0)
"""  # noqa: D205

from __future__ import annotations

from ase import Atoms

#: CHFClO, whose carbon has four different neighbours.
POSITIONS = [
    [0.0, 0.0, 0.0], [0.63, 0.63, 0.63], [-0.8, -0.8, 0.8], [-1.0, 1.0, -1.0], [0.85, -0.8, -0.8],
]  # fmt: skip


def main() -> None:
    from sevenn.calculator import SevenNetCalculator

    calculator = SevenNetCalculator("7net-0", device="cpu")
    given = Atoms("CHFClO", positions=POSITIONS)
    turned, mirrored = given.copy(), given.copy()
    turned.rotate(40, (1, 2, 3))
    mirrored.positions[:, 0] *= -1
    energies = {}
    for name, atoms in (("given", given), ("turned", turned), ("mirrored", mirrored)):
        atoms.center(8)
        atoms.pbc = True
        atoms.calc = calculator
        energies[name] = atoms.get_potential_energy()
        print(f"{name:9s} {1000 * (energies[name] - energies['given']):8.3f} meV")


if __name__ == "__main__":
    main()
