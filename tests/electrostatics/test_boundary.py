"""Slabs, wires, clusters by the kernel: limits of thick vacuum, symmetries, charged sheets and lines, derivatives."""

from __future__ import annotations

import math

import pytest
import torch
from electrostatic_systems import (
    TRICLINIC,
    all_outputs,
    forces_and_strain,
    one_system,
    parts,
    random_multipoles,
    random_system,
    take,
    traceless,
)

from farfield.atoms.batch import AtomicBatch, concatenate
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles
from farfield.units import COULOMB_CONSTANT

SLAB, WIRE, CLUSTER = (True, True, False), (False, True, False), (False, False, False)
EYE = torch.eye(3, dtype=torch.float64)


def partly_periodic(
    atoms: int, pbc: tuple[bool, ...], cell: torch.Tensor = TRICLINIC, seed: int = 0, orthogonal: bool = False
) -> AtomicBatch:
    """Atoms within some Å along the open axes, whose cell vectors are NaN unless ``orthogonal``."""
    batch = random_system(atoms, EYE * 4.0 if orthogonal else cell, seed=seed)
    if orthogonal:
        return batch.replace(cell=(EYE * cell.diagonal())[None], pbc=torch.tensor([pbc]))
    cell = cell.clone()
    cell[~torch.tensor(pbc)] = float("nan")
    return batch.replace(cell=cell[None], pbc=torch.tensor([pbc]))


def total_dipole(batch: AtomicBatch, multipoles: Multipoles) -> torch.Tensor:
    return (multipoles.charges[:, None] * batch.positions + multipoles.dipoles).sum(0)


@pytest.mark.parametrize(("pbc", "share"), [(SLAB, 1.0), (WIRE, 0.5), (CLUSTER, 1.0 / 3.0)])
def test_limit_of_thick_vacuum_with_the_dipole_correction(pbc, share):
    """E = E_3D + 2π k_e s P²/V, P the dipole along the open axes; s = 1, ½, ⅓ in layered, square, cubic vacuum."""
    multipoles = random_multipoles(5)
    multipoles = multipoles.replace(charges=multipoles.charges - multipoles.charges.mean())
    opened = ~torch.tensor(pbc)
    gaps = []
    for vacuum in (30.0, 60.0):
        lengths = torch.where(opened, vacuum, torch.tensor([6.0, 7.0, 8.0], dtype=torch.float64))
        batch = partly_periodic(5, pbc, EYE * lengths, orthogonal=True)
        isolated = Coulomb(accuracy=1e-7, method="ewald")(batch, multipoles).energy
        periodic = Coulomb(accuracy=1e-7)(batch.replace(pbc=torch.ones(1, 3, dtype=torch.bool)), multipoles).energy
        squared = total_dipole(batch, multipoles)[opened].square().sum()
        corrected = periodic + 2.0 * math.pi * COULOMB_CONSTANT * share * squared / lengths.prod()
        gaps.append(float((corrected - isolated).abs()))
        assert float((periodic - isolated).abs()) > 20 * gaps[-1], "the correction must matter"
    # What is left of a slab is exponentially small, of a wire and a cluster the quadrupoles' interaction with images.
    assert gaps[1] < (1e-8 if pbc == SLAB else gaps[0] / 6.0)


@pytest.mark.parametrize("pbc", [SLAB, WIRE, CLUSTER])
def test_any_axes_in_any_order(pbc):
    """Cyclic permutations of the axes, and a rotation of all in space, change nothing."""
    multipoles = random_multipoles(4)
    batch = partly_periodic(4, pbc)
    coulomb = Coulomb(accuracy=1e-8, method="ewald")
    expected = coulomb(batch, multipoles).energy
    rotation = torch.linalg.qr(random_system(3, EYE).positions).Q
    turned = Multipoles(
        multipoles.charges,
        multipoles.dipoles @ rotation.T,
        traceless(rotation @ multipoles.quadrupoles @ rotation.T),
    )
    for shift in (0, 1, 2):
        moved = one_system(batch.positions @ rotation.T, torch.nan_to_num(batch.cell[0]).roll(shift, 0) @ rotation.T)
        moved = moved.replace(pbc=batch.pbc.roll(shift, 1))
        torch.testing.assert_close(coulomb(moved, turned).energy, expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("pbc", [SLAB, WIRE])
def test_supercell_and_translation(pbc):
    multipoles = random_multipoles(4)
    batch = partly_periodic(4, pbc)
    coulomb = Coulomb(accuracy=1e-7)
    energy, forces, _ = forces_and_strain(coulomb, batch, multipoles)
    axis = pbc.index(True)
    step = batch.cell[0, axis]
    cell = batch.cell.clone()
    cell[0, axis] *= 2.0
    doubled = one_system(torch.cat((batch.positions, batch.positions + step))).replace(cell=cell, pbc=batch.pbc)
    twice = Multipoles(*(torch.cat((part, part)) for part in parts(multipoles)))
    both, forces_of_both, _ = forces_and_strain(coulomb, doubled, twice)
    torch.testing.assert_close(both, 2.0 * energy, rtol=1e-7, atol=0.0)
    torch.testing.assert_close(forces_of_both, torch.cat((forces, forces)), rtol=1e-5, atol=1e-6)
    # Far away from the origin along an open axis, and one atom a lattice vector further.
    shift = torch.tensor([50.0, -3.0, 1000.0], dtype=torch.float64)
    positions = batch.positions + shift
    positions[1] += 3.0 * step
    torch.testing.assert_close(
        coulomb(batch.replace(positions=positions), multipoles).energy, energy, rtol=1e-7, atol=1e-7
    )
    assert float(forces.sum(0).abs().max()) < 1e-8 * float(forces.abs().max()), "no net force"


@pytest.mark.parametrize("pbc", [SLAB, WIRE, CLUSTER])
@pytest.mark.parametrize("order", [0, 2])
def test_forces_and_strain_derivative_by_finite_differences(pbc, order):
    """Along all axes, also those that turn the open directions; charged."""
    coulomb = Coulomb(accuracy=1e-6, method="ewald")
    batch, multipoles = partly_periodic(4, pbc), random_multipoles(4, order)
    batch = batch.replace(cell=torch.nan_to_num(batch.cell))
    _, forces, strain = forces_and_strain(coulomb, batch, multipoles)
    step = 1e-4

    def energy(deformation):
        one = EYE + deformation
        moved = batch.replace(positions=batch.positions @ one, cell=batch.cell @ one)
        return float(coulomb(moved, multipoles, outputs="energy").energy)

    for row, column in ((0, 0), (0, 1), (2, 1), (1, 2), (2, 2)):
        deformation = torch.zeros(3, 3, dtype=torch.float64)
        deformation[row, column] = step
        slope = (energy(deformation) - energy(-deformation)) / (2 * step)
        assert slope == pytest.approx(float(strain[0, row, column]), rel=1e-5, abs=1e-5)
    for atom, axis in ((0, 2), (3, 1)):
        shift = torch.zeros_like(batch.positions)
        shift[atom, axis] = step
        change = [
            float(coulomb(batch.replace(positions=batch.positions + sign * shift), multipoles).energy)
            for sign in (1, -1)
        ]
        assert -(change[0] - change[1]) / (2 * step) == pytest.approx(float(forces[atom, axis]), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("pbc", [SLAB, WIRE, CLUSTER])
def test_every_output_is_twice_differentiable(pbc):
    cell = torch.tensor([[3.0, 0.3, 0.0], [-0.2, 3.2, 0.4], [0.3, 0.1, 2.9]], dtype=torch.float64)
    batch = partly_periodic(2, pbc, cell)
    batch = batch.replace(cell=torch.nan_to_num(batch.cell))
    multipoles = random_multipoles(2)
    coulomb = Coulomb(accuracy=3e-2, method="ewald")
    plan = coulomb.prepare(batch)

    def outcome(positions, cell, *given):
        given = Multipoles(*given[:2], traceless(given[2]))
        return tuple(all_outputs(coulomb(batch.replace(positions=positions, cell=cell), given, plan)))

    leaves = [t.clone().requires_grad_() for t in (batch.positions, batch.cell, *parts(multipoles))]
    assert torch.autograd.gradcheck(outcome, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(outcome, leaves, fast_mode=True)


def test_batch_of_all_boundary_conditions_is_a_loop():
    kinds = [SLAB, CLUSTER, WIRE, (True, True, True), (True, False, True), SLAB, (False, False, True)]
    sizes = [3, 4, 1, 5, 2, 4, 3]
    systems = [
        partly_periodic(n, pbc, seed=i).replace(cell=torch.nan_to_num(partly_periodic(n, pbc, seed=i).cell))
        for i, (n, pbc) in enumerate(zip(sizes, kinds, strict=True))
    ]
    batch, multipoles = concatenate(systems), random_multipoles(sum(sizes))
    coulomb = Coulomb(accuracy=1e-5)
    together = coulomb(batch, multipoles)
    energy, forces, strain = forces_and_strain(coulomb, batch, multipoles)
    start = 0
    for index, system in enumerate(systems):
        atoms = slice(start, start + sizes[index])
        start += sizes[index]
        alone = coulomb(system, take(multipoles, atoms))
        one_energy, one_force, one_strain = forces_and_strain(coulomb, system, take(multipoles, atoms))
        for mine, whole in (
            (one_energy[0], energy[index]),
            (one_force, forces[atoms]),
            (one_strain[0], strain[index]),
            (alone.potential, together.potential[atoms]),
            (alone.field, together.field[atoms]),
            (alone.field_gradient, together.field_gradient[atoms]),
        ):
            torch.testing.assert_close(mine, whole, rtol=1e-9, atol=1e-9)


def slope_between(charges: list[float], pbc: tuple[bool, ...], edge: float, apart: float) -> float:
    """∂E/∂d of two lattices of charges (squares for a slab, rows for a wire), a distance apart along the third axis."""
    distance = torch.tensor(apart, dtype=torch.float64, requires_grad=True)
    positions = torch.stack((torch.zeros(3, dtype=torch.float64), torch.stack((0 * distance, 0 * distance, distance))))
    batch = one_system(positions, EYE * edge).replace(pbc=torch.tensor([pbc]))
    energy = Coulomb(accuracy=1e-8)(batch, Multipoles(torch.tensor(charges, dtype=torch.float64))).energy
    return float(torch.autograd.grad(energy.sum(), distance)[0])


@pytest.mark.parametrize("charges", [[1.0, -1.0], [1.0, 2.0]])
def test_charged_sheets_attract_and_repel_by_their_charge_per_area(charges):
    """Two flat square lattices of charges far apart: ∂E/∂d = −2π k_e q q′/A for each cell, at any distance."""
    expected = -2.0 * math.pi * COULOMB_CONSTANT * charges[0] * charges[1] / 3.0**2
    assert slope_between(charges, SLAB, 3.0, 9.0) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("charges", [[1.0, -1.0], [1.0, 2.0]])
def test_charged_lines_attract_and_repel_by_their_charge_per_length(charges):
    """Two parallel rows of charges far apart: ∂E/∂d = −2 k_e q q′/(L d)."""
    expected = -2.0 * COULOMB_CONSTANT * charges[0] * charges[1] / (3.0 * 12.0)
    assert slope_between(charges, WIRE, 3.0, 12.0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("pbc", [SLAB, WIRE, CLUSTER])
def test_energy_does_not_depend_on_the_padding(pbc):
    """A plan made for a wider arrangement of the atoms gives the energy of their own plan; charged."""
    coulomb = Coulomb(accuracy=1e-7, method="ewald")
    batch, multipoles = partly_periodic(4, pbc), random_multipoles(4)
    stretched = batch.replace(positions=batch.positions * 2.0)
    own = coulomb(batch, multipoles).energy
    other = coulomb(batch, multipoles, coulomb.prepare(stretched)).energy
    torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-6)
    assert coulomb.prepare(batch).groups[0].ranges != coulomb.prepare(stretched).groups[0].ranges


def test_single_precision_follows_double():
    batch, multipoles = partly_periodic(20, SLAB), random_multipoles(20)
    coulomb = Coulomb(accuracy=1e-5)
    _, forces, _ = forces_and_strain(coulomb, batch, multipoles)
    single = Multipoles(*(part.float() for part in parts(multipoles)))
    single = single.replace(quadrupoles=traceless(parts(multipoles)[2]).float())
    _, rounded, _ = forces_and_strain(coulomb, batch.to(dtype=torch.float32), single)
    assert float((rounded.double() - forces).norm() / forces.norm()) < 1e-5


def test_a_plan_without_room_is_refused():
    coulomb = Coulomb()
    for pbc in (SLAB, WIRE):
        batch, multipoles = partly_periodic(4, pbc), random_multipoles(4)
        plan = coulomb.prepare(batch)
        coulomb(batch.replace(positions=batch.positions * 1.01), multipoles, plan)
        with pytest.raises(ValueError, match=r"no room for system 0.*prepare\(batch\) again"):
            coulomb(batch.replace(positions=batch.positions * 3.0), multipoles, plan)


@pytest.mark.parametrize("pbc", [SLAB, WIRE])
def test_no_atom_and_one(pbc):
    coulomb = Coulomb(accuracy=1e-8)
    assert float(coulomb(partly_periodic(0, pbc), random_multipoles(0)).energy) == 0.0
    # One atom is its own lattice: the same as two of them in a cell of twice the length.
    one = partly_periodic(1, pbc)
    assert bool(torch.isfinite(coulomb(one, random_multipoles(1)).energy).all())


@pytest.mark.parametrize(
    ("pbc", "row", "values", "message"),
    [
        (SLAB, 1, [0.0, 0.0, 0.0], r"zero vector on axis 1 \(b\)"),
        (SLAB, 0, [3.0001, 14.0, 0.4], r"degenerate: its area.*two independent"),
        (WIRE, 1, [0.0, 0.0, 0.0], r"zero vector on axis 1 \(b\)"),
        (WIRE, 1, [float("nan"), 0.0, 0.0], "must be finite along its periodic axes"),
    ],
)
def test_periodic_axes_need_their_vectors(pbc, row, values, message):
    batch = partly_periodic(3, pbc)
    cell = batch.cell.clone()
    cell[0, row] = torch.tensor(values, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        Coulomb().prepare(batch.replace(cell=cell))
