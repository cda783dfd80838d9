"""The damped 1/r⁶ attraction: its kernel, its sums, and the laws that tie them to sums over pairs in real space."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from electrostatic_systems import TRICLINIC, one_system, random_multipoles, random_system, salt, water
from torch import Tensor

from farfield.atoms.batch import AtomicBatch, concatenate
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.dispersion import Dispersion
from farfield.electrostatics.dispersion_kernels import dispersion_kernel, dispersion_transform
from farfield.electrostatics.multipoles import Multipoles

ONE = torch.ones((), dtype=torch.float64)
CUBE = torch.eye(3, dtype=torch.float64)


def coefficients(atoms: int, seed: int = 0) -> Tensor:
    """Mostly attractive coefficients of different size."""
    generator = torch.Generator().manual_seed(seed)
    return 0.8 + 0.5 * torch.randn(atoms, generator=generator, dtype=torch.float64)


def with_pbc(batch: AtomicBatch, *pbc: bool) -> AtomicBatch:
    return batch.replace(pbc=torch.tensor([pbc]))


def forces_and_strain(solver: Dispersion, batch: AtomicBatch, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Energy (systems,), forces (atoms, 3) and dE/dstrain of all systems together (3, 3)."""
    positions, cell = (tensor.detach().clone().requires_grad_() for tensor in (batch.positions, batch.cell))
    energy = solver(batch.replace(positions=positions, cell=cell), c).energy
    by_position, by_cell = torch.autograd.grad(energy.sum(), (positions, cell), materialize_grads=True)
    strain = positions.detach().mT @ by_position + (cell.detach().mT @ by_cell).sum(0)
    return energy.detach(), -by_position, strain


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).norm() / reference.norm())


def plain_kernel(r: Tensor, sigma: float) -> Tensor:
    """f as it is written, which loses its digits near r = 0."""
    y = r**2 / (2.0 * sigma**2)
    return (1.0 - (1.0 + y + y**2 / 2.0) * torch.exp(-y)) / r**6


def lattice_sum(batch: AtomicBatch, c: Tensor, sigma: float, centre: float = 40.0, width: float = 8.0) -> Tensor:
    """−½ Σ c_i c_j f over all pairs and images, in real space, with its gradients.

    What a wide smooth window leaves out is slowly varying, and as good as its average over space (or the plane).
    """
    periodic = batch.pbc[0]
    axes = [torch.arange(-18.0, 19.0, dtype=torch.float64) if p else torch.zeros(1).double() for p in periodic]
    images = torch.cartesian_prod(*axes)
    bonds = batch.positions[:, None] - batch.positions[None] + (images @ batch.cell[0])[:, None, None]
    own = (images == 0).all(1)[:, None, None] & torch.eye(len(c), dtype=torch.bool)
    r = torch.where(own, 1.0, bonds.square().sum(-1)).sqrt()
    window = 0.5 * torch.erfc((r - centre) / width)
    energy = -0.5 * (torch.where(own, 0.0, plain_kernel(r, sigma) * window) * c[:, None] * c).sum()
    radii = (torch.arange(200000, dtype=torch.float64) + 0.5) * 0.005
    outside = 0.5 * torch.erfc((centre - radii) / width) * plain_kernel(radii, sigma) * 0.005
    vectors = batch.cell[0][periodic]
    size = torch.linalg.det(vectors @ vectors.mT).sqrt()
    shells = {1: torch.full_like(radii, 2.0), 2: 2.0 * math.pi * radii, 3: 4.0 * math.pi * radii**2}[len(vectors)]
    return energy - 0.5 * c.sum() ** 2 / size * (shells @ outside)


@pytest.mark.parametrize("sigma", [0.7, 1.0, 1.6])
def test_kernel_is_the_damped_power_and_smooth_at_zero(sigma):
    exponent = torch.tensor(0.5**0.5 / sigma, dtype=torch.float64)
    r = torch.linspace(0.8, 12.0, 200, dtype=torch.float64)
    torch.testing.assert_close(dispersion_kernel(r**2, exponent), plain_kernel(r, sigma), rtol=1e-10, atol=0)
    torch.testing.assert_close(dispersion_kernel(0.0 * ONE, exponent), exponent**6 / 6.0, rtol=1e-14, atol=0)
    far = torch.tensor([1e2, 1e5], dtype=torch.float64)
    torch.testing.assert_close(dispersion_kernel(far**2, exponent) * far**6, torch.ones_like(far), rtol=1e-14, atol=0)
    near = torch.tensor([0.0, 0.1, 2.0, 9.0, 40.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: dispersion_kernel(x, exponent), near)
    assert torch.autograd.gradgradcheck(lambda x: dispersion_kernel(x, exponent), near)


def test_kernel_in_float32():
    exponent = torch.tensor(0.5**0.5)
    r = torch.logspace(-3, 4.5, 300)
    exact = dispersion_kernel(r.double() ** 2, exponent.double())
    torch.testing.assert_close(dispersion_kernel(r**2, exponent).double(), exact, rtol=2e-6, atol=0)


@pytest.mark.parametrize("sigma", [0.7, 1.3])
def test_transform_is_that_of_the_kernel(sigma):
    r = (torch.arange(400000, dtype=torch.float64) + 0.5) * 5e-4
    shells = 4.0 * math.pi * r**2 * dispersion_kernel(r**2, torch.tensor(0.5**0.5 / sigma, dtype=torch.float64)) * 5e-4
    tail = 4.0 * math.pi / (3.0 * 200.0**3)
    for k in (0.0, 0.3, 1.0, 2.0):
        expected = (shells * torch.sinc(k * r / math.pi)).sum() + (tail if k == 0 else 0.0)
        found = dispersion_transform((sigma * k) ** 2 * ONE, sigma * ONE)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("method", ["ewald", "mesh"])
def test_periodic_sum_is_the_sum_over_pairs_and_images(method):
    batch, c = random_system(5, TRICLINIC), coefficients(5)
    positions = batch.positions.clone().requires_grad_()
    direct = lattice_sum(batch.replace(positions=positions), c, 1.1)
    (by_position,) = torch.autograd.grad(direct, positions)
    energy, forces, _ = forces_and_strain(Dispersion(1.1, accuracy=1e-9, method=method), batch, c)
    torch.testing.assert_close(energy[0], direct.detach(), rtol=1e-7, atol=0)
    torch.testing.assert_close(forces, -by_position, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("pbc", [(True, True, False), (False, True, True), (False, True, False)])
@pytest.mark.parametrize("method", ["ewald", "mesh"])
def test_slabs_and_wires_are_sums_over_pairs_and_images(pbc, method):
    """There are images along the open directions, too, but they are as weak as the accuracy."""
    batch, c = with_pbc(random_system(5, TRICLINIC), *pbc), coefficients(5)
    positions = batch.positions.clone().requires_grad_()
    direct = lattice_sum(batch.replace(positions=positions), c, 1.0)
    (by_position,) = torch.autograd.grad(direct, positions)
    energy, forces, _ = forces_and_strain(Dispersion(1.0, accuracy=1e-5, method=method), batch, c)
    # the energy of the images falls off one power slower than their force
    assert relative(energy, direct.detach()[None]) < 5e-5
    assert relative(forces, -by_position) < 1e-5


def test_molecule_in_a_growing_cell_tends_to_the_open_one():
    """What is left are the images: −½ (Σc)² Σ_n |nL|⁻⁶, a lattice sum of 8.40192 for a simple cubic lattice."""
    batch, c = random_system(6), coefficients(6)
    alone = Dispersion(1.0)(batch, c).energy
    for length in (40.0, 80.0):
        periodic = Dispersion(1.0, accuracy=1e-11, method="ewald")(one_system(batch.positions, length * CUBE), c).energy
        images = -0.5 * 8.40192 * c.sum() ** 2 / length**6
        assert float((periodic - alone) / images) == pytest.approx(1.0, rel=(40.0 / length) ** 2 * 0.1)


@pytest.mark.parametrize("make", [water, salt])
@pytest.mark.parametrize("smearing", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("method", ["ewald", "mesh"])
def test_force_error_stays_below_the_accuracy_asked_for(make, smearing, method):
    batch, charges = make()
    c = torch.where(charges < 0, 1.0, 0.2).double()
    exact = forces_and_strain(Dispersion(smearing, accuracy=1e-9, method="ewald"), batch, c)[1]
    for accuracy in (1e-2, 1e-4, 1e-6):
        error = relative(forces_and_strain(Dispersion(smearing, accuracy=accuracy, method=method), batch, c)[1], exact)
        assert accuracy / 300.0 < error < accuracy


@pytest.mark.parametrize("pbc", [(True, True, False), (True, False, False), (False, False, False)])
@pytest.mark.parametrize("smearing", [0.7, 2.0])
def test_images_along_open_directions_stay_below_the_accuracy(pbc, smearing):
    batch, charges = water()
    batch, c = with_pbc(batch, *pbc), torch.where(charges < 0, 1.0, 0.2).double()
    best = Dispersion(smearing, accuracy=1e-7, method="ewald" if any(pbc) else "open")
    exact = forces_and_strain(best, batch, c)[1]
    for accuracy in (1e-2, 1e-4):
        for method in ("ewald", "mesh"):
            solver = Dispersion(smearing, accuracy=accuracy, method=method)
            assert relative(forces_and_strain(solver, batch, c)[1], exact) < accuracy


def test_vacuum_along_open_axes_does_not_matter():
    batch, c = with_pbc(random_system(5, TRICLINIC), True, False, True), coefficients(5)
    wide = batch.cell.clone()
    wide[0, 1] = torch.tensor([0.0, 50.0, 0.0], dtype=torch.float64)
    solver = Dispersion(1.0)
    assert torch.equal(solver(batch, c).energy, solver(batch.replace(cell=wide), c).energy)


@pytest.mark.parametrize(
    ("pbc", "accuracy"), [((True, True, True), 1e-8), ((True, True, False), 1e-6), ((False, False, True), 1e-5)]
)
def test_mesh_is_ewald(pbc, accuracy):
    batch, c = with_pbc(random_system(12, TRICLINIC), *pbc), coefficients(12)
    solvers = [Dispersion(1.0, accuracy=accuracy, method=method) for method in ("mesh", "ewald")]
    for mesh, ewald in zip(*(forces_and_strain(solver, batch, c) for solver in solvers), strict=True):
        assert relative(mesh, ewald) < 2.0 * accuracy
    assert relative(*(solver(batch, c).atom_energies for solver in solvers)) < accuracy


@pytest.mark.parametrize(
    ("pbc", "method"),
    [
        ((False, False, False), "open"),
        ((True, True, True), "ewald"),
        ((True, True, True), "mesh"),
        ((True, False, True), "ewald"),
        ((False, True, False), "mesh"),
    ],
)
def test_derivatives(pbc, method):
    """First and second derivatives of energy and shares, two atoms at one point included."""
    batch, c = with_pbc(random_system(4, TRICLINIC), *pbc), coefficients(4).requires_grad_()
    batch.positions[1] = batch.positions[0]
    solver = Dispersion(1.2, accuracy=1e-2, method=method)

    def outputs(positions: Tensor, cell: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        result = solver(batch.replace(positions=positions, cell=cell), c)
        return result.energy, result.atom_energies

    positions = batch.positions.clone().requires_grad_()
    given = (positions, batch.cell.clone().requires_grad_(any(pbc)), c)
    assert torch.autograd.gradcheck(outputs, given, atol=1e-7)
    assert torch.autograd.gradgradcheck(outputs, given, atol=1e-6)


@pytest.mark.parametrize("method", ["ewald", "mesh"])
def test_strain_derivative_is_that_of_the_energy(method):
    """Through a scan in which vectors k enter and leave the cutoff; the mesh of a plan stays."""
    batch, c = random_system(6, TRICLINIC), coefficients(6)
    solver = Dispersion(1.0, accuracy=1e-3, method=method)
    direction = torch.tensor([[1.0, 0.3, 0.0], [0.3, -0.2, 0.1], [0.0, 0.1, 0.6]], dtype=torch.float64)
    plan = solver.prepare(batch) if method == "mesh" else None

    def energy(step: float) -> Tensor:
        strain = CUBE + step * direction
        return solver(batch.replace(positions=batch.positions @ strain, cell=batch.cell @ strain), c, plan).energy[0]

    for centre in torch.linspace(-0.02, 0.02, 9).tolist():
        strain = CUBE + centre * direction
        moved = batch.replace(positions=batch.positions @ strain, cell=batch.cell @ strain)
        h = 1e-4
        difference = (
            8 * (energy(centre + h) - energy(centre - h)) - energy(centre + 2 * h) + energy(centre - 2 * h)
        ) / (12 * h)
        positions, cell = moved.positions.clone().requires_grad_(), moved.cell.clone().requires_grad_()
        total = solver(moved.replace(positions=positions, cell=cell), c, plan).energy.sum()
        by_position, by_cell = torch.autograd.grad(total, (positions, cell))
        slope = (by_position * (batch.positions @ direction)).sum() + (by_cell * (batch.cell @ direction)).sum()
        torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["auto", "ewald", "mesh"])
def test_batch_is_a_loop_over_its_systems(method, close):
    systems = [
        random_system(5),
        random_system(4, TRICLINIC, seed=1),
        with_pbc(random_system(6, TRICLINIC, seed=2), True, False, True),
        random_system(3, 9.0 * CUBE, seed=3),
        with_pbc(random_system(5, TRICLINIC, seed=4), False, True, False),
        random_system(1, seed=5),
    ]
    smearing = torch.tensor([1.0, 0.8, 1.1, 1.0, 0.9, 1.3], dtype=torch.float64)
    batch, c = concatenate(systems), coefficients(24)
    together = Dispersion(smearing, accuracy=1e-6, method=method)(batch, c)
    close(batch.sum_over_atoms(together.atom_energies), together.energy)
    assert together.energy[5] == pytest.approx(0.0, abs=1e-7)
    first = 0
    for index, system in enumerate(systems):
        mine = c[first : first + system.n_atoms]
        # the room to images is that of the largest σ in the batch
        alone = Dispersion(float(smearing[index]), accuracy=1e-6, method=method)(system, mine)
        close(together.energy[index], alone.energy[0], rtol=1e-5)
        first += system.n_atoms


@pytest.mark.parametrize("box", [TRICLINIC, None], ids=["periodic", "open"])
@pytest.mark.parametrize("method", ["auto", "mesh"])
def test_float32_keeps_forces(box, method):
    batch, c = random_system(20, box, size=6.0), coefficients(20)
    solver = Dispersion(1.0, accuracy=1e-6, method=method)
    energy, forces, strain = forces_and_strain(solver, batch, c)
    energy32, forces32, strain32 = forces_and_strain(solver, batch.to(dtype=torch.float32), c.float())
    assert energy32.dtype == torch.float64
    assert forces32.dtype == torch.float32
    assert relative(energy32, energy) < 1e-5
    assert relative(forces32, forces) < 2e-5
    assert relative(strain32, strain) < 2e-5


@pytest.mark.parametrize("method", ["ewald", "mesh"])
def test_supercell(method):
    batch, c = random_system(6, TRICLINIC), coefficients(6)
    shifts = torch.cartesian_prod(*[torch.arange(2, dtype=torch.float64)] * 3) @ TRICLINIC
    large = one_system((batch.positions + shifts[:, None]).reshape(-1, 3), 2.0 * TRICLINIC)
    solver = Dispersion(1.0, accuracy=1e-9, method=method)
    small, forces, _ = forces_and_strain(solver, batch, c)
    energy, repeated, _ = forces_and_strain(solver, large, c.repeat(8))
    torch.testing.assert_close(energy, 8.0 * small, rtol=1e-8, atol=0)
    assert relative(repeated, forces.repeat(8, 1)) < 1e-7


def test_empty_batches_and_cells_that_carry_nothing():
    nothing = random_system(0)
    result = Dispersion()(nothing, coefficients(0))
    assert result.energy.tolist() == [0.0]
    assert len(result.atom_energies) == 0
    batch = random_system(3).replace(cell=torch.full((1, 3, 3), math.nan, dtype=torch.float64))
    assert bool(torch.isfinite(Dispersion()(batch, coefficients(3)).energy))


def test_errors():
    batch, c = random_system(3), coefficients(3)
    solver = Dispersion()
    with pytest.raises(ValueError, match="`smearing` is -1.0 but must be positive"):
        Dispersion(-1.0)
    with pytest.raises(ValueError, match="`method` is 'pme' but must be one of"):
        Dispersion(method="pme")
    with pytest.raises(ValueError, match="`method` is 'open' but system 0 is periodic"):
        Dispersion(method="open")(random_system(3, TRICLINIC), c)
    with pytest.raises(ValueError, match="`coefficients` of atom 0 are nan but must be finite"):
        solver(batch, c * math.nan)
    with pytest.raises(TypeError, match="`coefficients` has the dtype torch.float32"):
        solver(batch, c.float())
    with pytest.raises(ValueError, match=r"`coefficients` has the shape \(4,\) but must be \(3,\)"):
        solver(batch, coefficients(4))
    with pytest.raises(ValueError, match="`plan` is that of another solver"):
        solver(batch, c, Coulomb().prepare(batch))
    with pytest.raises(ValueError, match="`plan` is that of another solver"):
        Coulomb()(batch, random_multipoles(3), solver.prepare(batch))


def test_configuration_builds_the_same_solver():
    solver = Dispersion(torch.tensor([1.0, 1.5]), accuracy=1e-3, method="ewald")
    assert Dispersion.from_config(solver.config()).config() == solver.config()
    assert repr(Dispersion(0.9)) == "Dispersion(smearing=0.9, accuracy=0.0001, method='auto')"
    assert copy.deepcopy(solver).config() == solver.config()


def test_a_kept_plan_gives_what_a_new_one_gives():
    """Its mesh is made for the cell: other coefficients and moved atoms use it again, and a Coulomb sum none of it."""
    batch, c = random_system(8, TRICLINIC), coefficients(8)
    solver = Dispersion(method="mesh")
    solver(batch, coefficients(8, seed=1))
    moved = batch.replace(positions=batch.positions + 0.1)
    assert torch.equal(solver(moved, c).energy, Dispersion(method="mesh")(moved, c).energy)
    charged = Coulomb(method="mesh")(moved, Multipoles(c)).energy
    assert float(charged) != float(solver(moved, c).energy)
