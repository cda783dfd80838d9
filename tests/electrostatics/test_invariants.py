"""Laws that hold for every system: symmetries, batches, supercells, and what open and periodic sums have in common."""

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
)
from hypothesis import given, settings
from hypothesis import strategies as st

from farfield.atoms.batch import AtomicBatch, concatenate
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles
from farfield.units import COULOMB_CONSTANT

COULOMB = Coulomb(1.0, accuracy=1e-4)
BOXES = [TRICLINIC, None]


def rotation(seed: int, proper: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    matrix, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    return matrix if (torch.linalg.det(matrix) > 0) == proper else -matrix


@pytest.mark.parametrize("box", BOXES, ids=["periodic", "open"])
@pytest.mark.parametrize("proper", [True, False], ids=["rotation", "reflection"])
def test_rotation_and_reflection(box, proper, close):
    batch, m = random_system(6, box), random_multipoles(6)
    turn = rotation(1, proper)
    turned = batch.replace(positions=batch.positions @ turn.mT, cell=batch.cell @ turn.mT)
    moments = Multipoles(m.charges, m.dipoles @ turn.mT, turn @ m.quadrupoles @ turn.mT)
    before, after = COULOMB(batch, m), COULOMB(turned, moments)
    close(after.energy, before.energy)
    close(after.potential, before.potential)
    close(after.field, before.field @ turn.mT)
    close(after.field_gradient, turn @ before.field_gradient @ turn.mT)
    _, forces, strain = forces_and_strain(COULOMB, batch, m)
    _, turned_forces, _ = forces_and_strain(COULOMB, turned, moments)
    close(turned_forces, forces @ turn.mT)
    # Torques on the dipoles and quadrupoles balance those of the forces: the strain derivative is symmetric once they
    # are counted, and for charges alone by itself.
    _, _, strain = forces_and_strain(COULOMB, batch, Multipoles(m.charges))
    close(strain, strain.mT)


@pytest.mark.parametrize("box", BOXES, ids=["periodic", "open"])
def test_translation_permutation_and_wrapping(box, close):
    batch, m = random_system(6, box), random_multipoles(6)
    expected = all_outputs(COULOMB(batch, m))
    moved = batch.positions + torch.tensor([3.3, -17.0, 0.4], dtype=torch.float64)
    for value, reference in zip(all_outputs(COULOMB(batch.replace(positions=moved), m)), expected, strict=True):
        close(value, reference)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = COULOMB(batch.replace(positions=batch.positions[order]), take(m, order))
    for value, reference in zip(all_outputs(permuted)[1:], expected[1:], strict=True):
        close(value, reference[order])
    if box is not None:
        images = torch.randint(-3, 4, (6, 3), generator=torch.Generator().manual_seed(0)).double()
        wrapped = COULOMB(batch.replace(positions=batch.positions + images @ box), m)
        for value, reference in zip(all_outputs(wrapped), expected, strict=True):
            close(value, reference)
    _, forces, _ = forces_and_strain(COULOMB, batch, m)
    close(forces.sum(0), torch.zeros(3))


def test_supercell(close):
    batch, m = random_system(3, TRICLINIC), random_multipoles(3)
    coulomb = Coulomb(1.0, accuracy=1e-9)
    single = coulomb(batch, m)
    copies = torch.cartesian_prod(*[torch.arange(n, dtype=torch.float64) for n in (2, 1, 2)])
    positions = (batch.positions + (copies @ TRICLINIC)[:, None]).reshape(-1, 3)
    cell = TRICLINIC * torch.tensor([2.0, 1.0, 2.0], dtype=torch.float64)[:, None]
    repeated = Multipoles(*(part.repeat(4, *[1] * (part.ndim - 1)) for part in parts(m)))
    large = coulomb(one_system(positions, cell), repeated)
    close(large.energy, 4.0 * single.energy)
    close(large.field, single.field.repeat(4, 1))
    close(large.field_gradient, single.field_gradient.repeat(4, 1, 1), atol=1e-7)


def test_any_cell_of_a_lattice_is_as_good_as_another(close):
    """Skewed and left-handed cells of one lattice give the same energy, field and strain derivative, at no more k."""
    batch, m = random_system(4, TRICLINIC), random_multipoles(4)
    energy, forces, strain = forces_and_strain(COULOMB, batch, m)
    ranges = COULOMB.prepare(batch).groups[0].ranges
    for rows in (
        [[1, 0, 0], [3, 1, 0], [-2, 4, 1]],
        [[0, 1, 0], [1, 0, 0], [0, 0, 1]],
        [[1, 1, 1], [0, 1, 5], [0, 0, -1]],
    ):
        cell = torch.tensor(rows, dtype=torch.float64) @ TRICLINIC
        other = batch.replace(cell=cell[None])
        assert COULOMB.prepare(other).groups[0].ranges == ranges
        again = forces_and_strain(COULOMB, other, m)
        close(again[0], energy)
        close(again[1], forces)
        close(again[2], strain)


KINDS = st.sampled_from(["open", "small", "large", "skew"])


@settings(max_examples=12)
@given(st.lists(st.tuples(st.integers(0, 5), KINDS), min_size=1, max_size=6))
def test_batch_equals_loop(systems):
    cells = {"open": None, "small": TRICLINIC * 0.5, "large": TRICLINIC * 1.6, "skew": TRICLINIC[[2, 0, 1]]}
    batches = [random_system(n, cells[kind], seed=i) for i, (n, kind) in enumerate(systems)]
    smearing = torch.linspace(0.8, 1.3, len(systems), dtype=torch.float64)
    batch = concatenate(batches)
    m = random_multipoles(batch.n_atoms)
    together = all_outputs(Coulomb(smearing, accuracy=1e-3, background="point")(batch, m))
    alone = []
    start = 0
    for system, sigma in zip(batches, smearing.tolist(), strict=True):
        part = take(m, slice(start, start + system.n_atoms))
        alone.append(all_outputs(Coulomb(sigma, accuracy=1e-3, background="point")(system, part)))
        start += system.n_atoms
    for value, single in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(value, torch.cat(single), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("odd", ["nothing", "cell", "smearing"])
def test_frames_of_one_cell_equal_a_loop_over_them(odd, close):
    """Systems that share a cell share the weights of their waves, and must not where one of them differs."""
    frames = [random_system(4, TRICLINIC, seed=seed) for seed in range(3)]
    smearing = torch.ones(3, dtype=torch.float64)
    if odd == "cell":
        frames[2] = frames[2].replace(cell=frames[2].cell * 1.01)
    if odd == "smearing":
        smearing[2] = 1.01
    m = random_multipoles(12)
    together = Coulomb(smearing, accuracy=1e-3)(concatenate(frames), m)
    for i, (frame, sigma) in enumerate(zip(frames, smearing.tolist(), strict=True)):
        atoms = slice(4 * i, 4 * i + 4)
        alone = Coulomb(sigma, accuracy=1e-3)(frame, take(m, atoms))
        close(together.energy[i], alone.energy[0])
        close(together.potential[atoms], alone.potential)
        close(together.field_gradient[atoms], alone.field_gradient)


@pytest.mark.parametrize("self_interaction", [False, True])
def test_open_sum_is_the_limit_of_a_large_box(self_interaction):
    """Neutral systems in cubic cells: E_periodic → E_open − 2πk_e|P|²/3V, by either convention for the self term."""
    positions = random_system(5, size=3.0).positions
    m = random_multipoles(5)
    m = m.replace(charges=m.charges - m.charges.mean())
    coulomb = Coulomb(1.0, accuracy=1e-7, self_interaction=self_interaction)
    open_energy = float(coulomb(one_system(positions), m).energy)
    dipole = (m.charges[:, None] * positions).sum(0) + m.dipoles.sum(0)
    errors = []
    for edge in (12.0, 24.0):
        box = torch.eye(3, dtype=torch.float64) * edge
        correction = 2.0 * math.pi * COULOMB_CONSTANT * float(dipole @ dipole) / (3.0 * edge**3)
        errors.append(abs(float(coulomb(one_system(positions, box), m).energy) + correction - open_energy))
    # What is left falls as L⁻⁵: a factor 32 from one box to the next.
    assert errors[1] < errors[0] / 20.0
    assert errors[1] < 1e-3 * abs(open_energy)


def test_self_interaction_of_one_atom(close):
    """E_self = k_e/√(2π) [q²/σ + u²/3σ³ + Q:Q/10σ⁵], kept or taken off."""
    m, sigma = random_multipoles(1), 0.8
    u, q = m.dipoles[0], m.quadrupoles[0]
    bracket = m.charges[0] ** 2 / sigma + u @ u / (3 * sigma**3) + (q * q).sum() / (10 * sigma**5)
    expected = COULOMB_CONSTANT / math.sqrt(2.0 * math.pi) * bracket
    batch = one_system(torch.zeros(1, 3, dtype=torch.float64))
    close(Coulomb(sigma, self_interaction=True)(batch, m).energy[0], expected)
    for outputs in ("all", "energy"):
        assert float(Coulomb(sigma)(batch, m, outputs=outputs).energy.abs()) == 0.0


def test_no_atoms_and_no_systems():
    empty = AtomicBatch(
        positions=torch.zeros(0, 3, dtype=torch.float64),
        numbers=torch.zeros(0, dtype=torch.int64),
        cell=torch.stack([TRICLINIC, TRICLINIC]),
        pbc=torch.tensor([[True] * 3, [False] * 3]),
        system=torch.zeros(0, dtype=torch.int64),
    )
    for batch in (empty, empty.replace(cell=empty.cell[:0], pbc=empty.pbc[:0])):
        for order in (0, 1, 2):
            for outputs in ("all", "energy"):
                result = COULOMB(batch, random_multipoles(0, order), outputs=outputs)
                assert result.energy.shape == (batch.n_systems,)
                assert not bool(result.energy.any())
                assert result.atom_energies.shape == (0,)
                if outputs == "all":
                    assert result.potential.shape == (0,)
                    assert result.field.shape == (0, 3)
                    assert result.field_gradient.shape == (0, 3, 3)


@pytest.mark.parametrize("box", BOXES, ids=["periodic", "open"])
@pytest.mark.parametrize("order", [0, 2])
def test_coincident_atoms(box, order, close):
    """Two atoms at one point interact through the finite B_n(0): all is as at a tiny distance."""
    batch, m = random_system(4, box), random_multipoles(4, order)
    together = batch.positions.clone()
    together[1] = together[0]
    apart = together.clone()
    apart[1, 0] += 1e-6
    outcomes = []
    for positions in (together, apart):
        leaf = positions.clone().requires_grad_()
        result = COULOMB(batch.replace(positions=leaf), m)
        energy = COULOMB(batch.replace(positions=leaf), m, outputs="energy").energy
        close(energy, result.energy)
        (forces,) = torch.autograd.grad(energy.sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(forces.pow(2).sum(), leaf)
        outcomes.append([*all_outputs(result), forces, second])
    for at, near in zip(*outcomes, strict=True):
        assert bool(torch.isfinite(at).all())
        close(at, near, rtol=1e-4, atol=1e-4 * float(near.detach().abs().max()))


def test_frozen_plan_follows_moving_atoms(close):
    batch, m = random_system(5, TRICLINIC), random_multipoles(5)
    plan = COULOMB.prepare(batch)
    moved = batch.replace(positions=batch.positions + 0.3 * torch.randn_like(batch.positions))
    for value, reference in zip(all_outputs(COULOMB(moved, m, plan)), all_outputs(COULOMB(moved, m)), strict=True):
        close(value, reference)


def test_config_round_trip():
    coulomb = Coulomb(
        torch.tensor([0.8, 1.2]), accuracy=1e-3, background="point", self_interaction=True, method="ewald"
    )
    assert Coulomb.from_config(coulomb.config()).config() == coulomb.config()
    assert "background='point'" in repr(coulomb)
