"""The particle mesh against Ewald: convergence, promised accuracy, boundaries, derivatives, and when it is chosen."""

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
from farfield.electrostatics import mesh as mesh_module
from farfield.electrostatics.cost import mesh_size, mesh_spacing
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.mesh import MeshGeometry, good_size, influence, inverse_transform, transform
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.plan import MeshGroup

BULK, SLAB, WIRE, CLUSTER = (True,) * 3, (True, False, True), (False, True, False), (False,) * 3
EYE = torch.eye(3, dtype=torch.float64)


def system(atoms: int, pbc: tuple[bool, ...], cell: torch.Tensor = TRICLINIC, seed: int = 0) -> AtomicBatch:
    return random_system(atoms, cell, seed=seed).replace(pbc=torch.tensor([pbc]))


def water(edge: int, pbc: tuple[bool, ...] = BULK) -> tuple[AtomicBatch, torch.Tensor]:
    """Water molecules, turned at random, on a jittered grid at 1 g/cm³; SPC/E charges."""
    generator = torch.Generator().manual_seed(5)
    count = edge**3
    grid = torch.cartesian_prod(*[torch.arange(edge, dtype=torch.float64)] * 3) * 3.104
    turns, _ = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))
    shape = torch.tensor([[0.0, 0.0, 0.0], [0.757, 0.586, 0.0], [-0.757, 0.586, 0.0]], dtype=torch.float64)
    centres = grid + 0.3 * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    positions = (centres[:, None] + torch.einsum("mab,xb->mxa", turns, shape)).reshape(-1, 3)
    charges = torch.tensor([-0.8476, 0.4238, 0.4238], dtype=torch.float64).repeat(count)
    return one_system(positions, EYE * 3.104 * edge).replace(pbc=torch.tensor([pbc])), charges


def salt(edge: int) -> tuple[AtomicBatch, torch.Tensor]:
    """Ions of rock salt, shaken by a tenth of their distance and more."""
    generator = torch.Generator().manual_seed(6)
    grid = torch.cartesian_prod(*[torch.arange(edge, dtype=torch.float64)] * 3)
    positions = (grid + 0.15 * torch.randn(edge**3, 3, generator=generator, dtype=torch.float64)) * 2.82
    return one_system(positions, EYE * 2.82 * edge), 1.0 - 2.0 * (grid.sum(1) % 2)


def pair() -> tuple[AtomicBatch, torch.Tensor]:
    """Two opposite charges in a small cell."""
    positions = torch.tensor([[0.3, 0.1, 0.2], [1.5, 2.0, 0.9]], dtype=torch.float64)
    return one_system(positions, EYE * 4.0), torch.tensor([1.0, -1.0], dtype=torch.float64)


@pytest.mark.parametrize("order", [4, 5, 6, 7, 8])
def test_energy_tends_to_ewald_with_the_order_of_the_splines(order):
    batch, multipoles = random_system(6, TRICLINIC), random_multipoles(6, 0)
    positions = batch.positions.requires_grad_()
    exact, forces, _ = forces_and_strain(Coulomb(accuracy=1e-12, self_interaction=True), batch, multipoles)
    errors = []
    for points in (12, 18, 27):
        shape = (points, points, points + points % 2)
        kernel = influence(TRICLINIC, torch.tensor(1.0), shape, order)
        geometry = MeshGeometry(positions, TRICLINIC, EYE, kernel, shape, order, 0, 0)
        energy = geometry.energy(geometry.density(multipoles.charges, None, None))
        (slope,) = torch.autograd.grad(energy, positions)
        assert float((energy - exact[0]).detach().abs()) < 1e-2 * float(exact[0].abs()) / points
        errors.append(float((slope + forces).norm() / forces.norm()))
    # Splines of order p err as hᵖ in what they represent, and its derivative by one power less.
    rates = [math.log(a / b) / math.log(1.5) for a, b in zip(errors, errors[1:], strict=False)]
    assert rates[0] > order - 1
    assert rates[1] > order - 1


@pytest.mark.parametrize("pbc", [BULK, SLAB, CLUSTER])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_force_error_stays_below_the_accuracy_asked_for(pbc, order):
    batch, charges = water(3, pbc)
    higher = random_multipoles(batch.n_atoms, order)
    multipoles = Multipoles(charges, *(0.4 * part for part in parts(higher)[1:]))
    _, exact, _ = forces_and_strain(Coulomb(accuracy=1e-9, method="ewald"), batch, multipoles)
    for accuracy in (1e-2, 3e-4, 1e-5):
        _, forces, _ = forces_and_strain(Coulomb(accuracy=accuracy, method="mesh"), batch, multipoles)
        error = float((forces - exact).norm() / exact.norm())
        assert error < accuracy
        assert error > accuracy / 100.0, "a mesh finer than needed"


SMALL_AND_LARGE = {
    "2 ions": pair,
    "8 ions": lambda: salt(2),
    "64 ions": lambda: salt(4),
    "3 atoms of water": lambda: water(1),
    "24 atoms of water": lambda: water(2),
    "slab of 24 atoms of water": lambda: water(2, SLAB),
}


@pytest.mark.parametrize("name", SMALL_AND_LARGE)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_accuracy_holds_for_few_atoms_and_any_smearing(name, order):
    """Where an atom's pull on itself, by where it stands on the mesh, is largest beside the forces of the others."""
    batch, charges = SMALL_AND_LARGE[name]()
    higher = random_multipoles(batch.n_atoms, order)
    multipoles = Multipoles(charges, *(0.4 * part for part in parts(higher)[1:]))
    for smearing in (0.4, 0.7, 2.0):
        _, exact, _ = forces_and_strain(Coulomb(smearing, accuracy=1e-7, method="ewald"), batch, multipoles)
        _, forces, _ = forces_and_strain(Coulomb(smearing, accuracy=1e-4, method="mesh"), batch, multipoles)
        assert float((forces - exact).norm() / exact.norm()) < 1e-4, smearing


@pytest.mark.parametrize(("smearing", "order"), [(0.7, 0), (1.0, 2), (2.0, 1)])
def test_accuracy_holds_for_a_thousand_atoms(smearing, order):
    batch, charges = salt(10)
    higher = random_multipoles(batch.n_atoms, order)
    multipoles = Multipoles(charges, *(0.4 * part for part in parts(higher)[1:]))
    _, exact, _ = forces_and_strain(Coulomb(smearing, accuracy=1e-6, method="mesh"), batch, multipoles)
    _, forces, _ = forces_and_strain(Coulomb(smearing, accuracy=1e-4, method="mesh"), batch, multipoles)
    assert float((forces - exact).norm() / exact.norm()) < 1e-4


@pytest.mark.parametrize("pbc", [BULK, SLAB, WIRE, CLUSTER])
def test_forces_and_strain_derivative_by_finite_differences(pbc):
    """On a frozen mesh, charged and triclinic; energy and derivatives are those of the same function to rounding."""
    coulomb = Coulomb(accuracy=1e-3, method="mesh")
    batch, multipoles = system(4, pbc), random_multipoles(4)
    plan = coulomb.prepare(batch)
    positions, cell = batch.positions.clone().requires_grad_(), batch.cell.clone().requires_grad_()
    energy = coulomb(batch.replace(positions=positions, cell=cell), multipoles, plan).energy
    on_positions, on_cell = torch.autograd.grad(energy.sum(), (positions, cell))
    strain = batch.positions.T @ on_positions + batch.cell[0].T @ on_cell[0]
    step = 1e-4

    def at(deformation, shift):
        one = EYE + deformation
        moved = batch.replace(positions=(batch.positions + shift) @ one, cell=batch.cell @ one)
        return float(coulomb(moved, multipoles, plan, outputs="energy").energy)

    none = torch.zeros_like(batch.positions)
    for row, column in ((0, 0), (0, 1), (2, 1), (1, 2), (2, 2)):
        deformation = torch.zeros(3, 3, dtype=torch.float64)
        deformation[row, column] = step
        slope = (at(deformation, none) - at(-deformation, none)) / (2 * step)
        assert slope == pytest.approx(float(strain[row, column]), rel=1e-6, abs=1e-6)
    for atom, axis in ((0, 2), (3, 1)):
        shift = none.clone()
        shift[atom, axis] = step
        slope = (at(0 * EYE, shift) - at(0 * EYE, -shift)) / (2 * step)
        assert slope == pytest.approx(float(on_positions[atom, axis]), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("pbc", [BULK, SLAB, WIRE])
@pytest.mark.parametrize("outputs", ["all", "energy"])
def test_every_output_is_twice_differentiable(pbc, outputs):
    cell = torch.tensor([[3.0, 0.3, 0.0], [-0.2, 3.2, 0.4], [0.3, 0.1, 2.9]], dtype=torch.float64)
    batch, multipoles = system(2, pbc, cell), random_multipoles(2)
    coulomb = Coulomb(accuracy=3e-2, method="mesh", background="point")
    plan = coulomb.prepare(batch)

    def outcome(positions, cell, *given):
        given = Multipoles(*given[:2], traceless(given[2]))
        return tuple(all_outputs(coulomb(batch.replace(positions=positions, cell=cell), given, plan, outputs)))

    leaves = [t.clone().requires_grad_() for t in (batch.positions, batch.cell, *parts(multipoles))]
    assert torch.autograd.gradcheck(outcome, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(outcome, leaves, fast_mode=True)


def test_field_gradient_of_charges_is_twice_differentiable_on_the_coarsest_mesh():
    batch, multipoles = system(3, BULK), random_multipoles(3, 0)
    positions = batch.positions.clone().requires_grad_()
    result = Coulomb(accuracy=0.1, method="mesh")(batch.replace(positions=positions), multipoles)
    (slope,) = torch.autograd.grad(result.field_gradient.square().sum(), positions, create_graph=True)
    slope.square().sum().backward()
    assert bool((positions.grad.abs() > 0).any())


def test_operator_is_self_adjoint():
    batch = system(5, BULK)
    one, other = random_multipoles(5, seed=1), random_multipoles(5, seed=2)
    operator = Coulomb(accuracy=1e-2, method="mesh").operator(batch)

    def product(left, right):
        out = operator(right)
        return float(
            (left.charges * out.potential).sum()
            - (left.dipoles * out.field).sum()
            - 0.5 * (left.quadrupoles * out.field_gradient).sum()
        )

    assert product(one, other) == pytest.approx(product(other, one), rel=1e-12)


def test_batch_of_meshes_and_all_else_is_a_loop():
    kinds = [BULK, CLUSTER, WIRE, SLAB, BULK]
    sizes = [3, 4, 2, 5, 300]
    cells = [TRICLINIC, TRICLINIC, TRICLINIC, TRICLINIC[[1, 0, 2]] * 1.2, TRICLINIC * 3.0]
    systems = [system(n, pbc, cell, seed=i) for i, (n, pbc, cell) in enumerate(zip(sizes, kinds, cells, strict=True))]
    batch, multipoles = concatenate(systems), random_multipoles(sum(sizes))
    coulomb = Coulomb(accuracy=1e-3, method="mesh")
    together = coulomb(batch, multipoles)
    energy, forces, strain = forces_and_strain(coulomb, batch, multipoles)
    start = 0
    for index, one in enumerate(systems):
        atoms = slice(start, start + sizes[index])
        start += sizes[index]
        alone = coulomb(one, take(multipoles, atoms))
        one_energy, one_force, one_strain = forces_and_strain(coulomb, one, take(multipoles, atoms))
        for mine, whole in (
            (one_energy[0], energy[index]),
            (one_force, forces[atoms]),
            (one_strain[0], strain[index]),
            (alone.potential, together.potential[atoms]),
            (alone.field_gradient, together.field_gradient[atoms]),
        ):
            torch.testing.assert_close(mine, whole, rtol=1e-8, atol=1e-8)


def test_gradients_in_the_cell_after_a_call_in_inference_mode():
    batch, multipoles = system(5, BULK), random_multipoles(5)
    coulomb = Coulomb(accuracy=1e-2, method="mesh")
    plan = coulomb.prepare(batch)
    mesh_module._kept_spline_factor.cache_clear()
    with torch.inference_mode():
        coulomb(batch.replace(cell=1.001 * batch.cell), multipoles, plan)
    cell = batch.cell.clone().requires_grad_()
    (slope,) = torch.autograd.grad(coulomb(batch.replace(cell=cell), multipoles, plan).energy.sum(), cell)
    assert float(slope.abs().max()) > 0.0


def test_a_sweep_of_the_cell_on_a_frozen_mesh_is_smooth():
    coulomb = Coulomb(accuracy=1e-3, method="mesh")
    batch, multipoles = system(6, BULK), random_multipoles(6, 0)
    plan = coulomb.prepare(batch)

    def sweep(steps):
        return torch.stack(
            [
                coulomb(
                    batch.replace(positions=batch.positions * scale, cell=batch.cell * scale), multipoles, plan
                ).energy
                for scale in torch.linspace(0.95, 1.05, steps, dtype=torch.float64)
            ]
        )

    rough, smooth = sweep(21).diff(n=2, dim=0).abs().max(), sweep(41).diff(n=2, dim=0).abs().max()
    assert float(smooth) < 0.3 * float(rough)


@pytest.mark.parametrize("pbc", [BULK, SLAB])
def test_single_precision_follows_double(pbc):
    batch, charges = water(3, pbc)
    coulomb = Coulomb(accuracy=1e-4, method="mesh")
    energy, forces, strain = forces_and_strain(coulomb, batch, Multipoles(charges))
    single = batch.to(dtype=torch.float32)
    rounded_energy, rounded, rounded_strain = forces_and_strain(coulomb, single, Multipoles(charges.float()))
    assert rounded.dtype == torch.float32
    assert rounded_energy.dtype == torch.float64
    assert float((rounded.double() - forces).norm() / forces.norm()) < 1e-5
    assert float((rounded_strain.double() - strain).norm() / strain.norm()) < 1e-5


def test_compiled_and_plain_meshes_agree_in_energy_and_training(monkeypatch):
    """Energy, forces, and the gradient of a loss on forces, by both backends."""
    batch, charges = water(5)
    coulomb = Coulomb(accuracy=1e-3, method="mesh")
    outcomes = []
    for least in (0, 10**9):
        monkeypatch.setattr("farfield.electrostatics.spreading.LEAST_COMPILED", least)
        positions, q = batch.positions.clone().requires_grad_(), charges.clone().requires_grad_()
        energy = coulomb(batch.replace(positions=positions), Multipoles(q), outputs="energy").energy.sum()
        (slope,) = torch.autograd.grad(energy, positions, create_graph=True)
        outcomes.append([energy, slope, *torch.autograd.grad(slope.square().sum(), (positions, q))])
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_plan_made_in_inference_mode_serves_training():
    batch, charges = water(2)
    coulomb = Coulomb(method="mesh")
    with torch.inference_mode():
        plan = coulomb.prepare(batch)
        expected = float(coulomb(batch, Multipoles(charges), plan).energy)
    positions = batch.positions.clone().requires_grad_()
    energy = coulomb(batch.replace(positions=positions), Multipoles(charges), plan).energy.sum()
    (slope,) = torch.autograd.grad(energy, positions, create_graph=True)
    slope.square().sum().backward()
    assert float(energy.detach()) == pytest.approx(expected, rel=1e-12)


def chosen(batch: AtomicBatch, **options) -> list[str]:
    return [type(group).__name__ for group in Coulomb(**options).prepare(batch).groups]


def test_large_systems_take_the_mesh_and_small_ones_do_not():
    assert chosen(water(3)[0]) == ["EwaldGroup"]
    assert chosen(water(12)[0]) == ["MeshGroup"]
    assert chosen(water(3, SLAB)[0]) == ["EwaldGroup"]
    assert chosen(water(14, SLAB)[0]) == ["MeshGroup"]
    assert chosen(water(3, CLUSTER)[0]) == ["OpenGroup"]
    assert chosen(water(3, CLUSTER)[0], method="mesh") == ["MeshGroup"]
    assert sorted(chosen(concatenate([water(2)[0], water(12)[0], water(2, CLUSTER)[0]]))) == [
        "EwaldGroup",
        "MeshGroup",
        "OpenGroup",
    ]


def test_the_choice_depends_on_the_multipoles(monkeypatch):
    """Where pairs of charges cost nothing and pairs of quadrupoles very much, only these go on the mesh."""
    monkeypatch.setattr(
        "farfield.electrostatics.planning.open_cost", lambda atoms, degree: 1e15 if degree == 2 else 0.0
    )
    batch = water(6, CLUSTER)[0]
    groups = [Coulomb().prepare(batch, order).groups for order in (0, 2)]
    assert [type(group).__name__ for (group,) in groups] == ["OpenGroup", "MeshGroup"]
    with pytest.raises(ValueError, match="`order` is 3"):
        Coulomb().prepare(batch, 3)


def test_closer_accuracy_needs_a_finer_mesh():
    for order in (6, 8):
        spacings = [mesh_spacing(accuracy, 0, order, 1.0) for accuracy in (0.1, 1e-2, 1e-4, 1e-6, 1e-9)]
        assert spacings == sorted(spacings, reverse=True)
        assert len(set(spacings)) == 5
    assert mesh_spacing(1e-4, 0, 6, 1.0) > mesh_spacing(1e-4, 1, 6, 1.0) > mesh_spacing(1e-4, 2, 6, 1.0)
    fine, coarse = (mesh_size(accuracy, 0, 1.0, 10_000, (46.0, 46.0, 46.0), 46.0**3) for accuracy in (1e-5, 1e-3))
    assert fine.cost > coarse.cost


def test_sizes_of_meshes_are_fast_to_transform():
    for least in range(1, 400):
        for even in (False, True):
            size = good_size(least, even=even)
            rest = size
            for prime in (2, 3, 5, 7):
                while rest % prime == 0:
                    rest //= prime
            assert rest == 1
            assert size >= least
            assert not (even and size % 2)


def test_plans_of_meshes_move_between_devices_and_dtypes():
    batch, charges = water(2)
    coulomb = Coulomb(method="mesh")
    plan = coulomb.prepare(batch).to("cpu")
    assert isinstance(plan.groups[0], MeshGroup)
    coulomb(batch, Multipoles(charges), plan)
    elsewhere = plan.to("meta").groups[0]
    assert [kernel.device.type for kernel in elsewhere.kernels.values()] == ["meta"]
    expected = coulomb(batch, Multipoles(charges), plan).energy
    rounded = coulomb(batch.to(dtype=torch.float32), Multipoles(charges.float()), plan).energy
    torch.testing.assert_close(rounded, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(12, 9, 10), (7, 5, 9), (16, 512, 512)])
def test_transforms_bring_a_mesh_back(shape, dtype):
    """Also for shapes at which torch's own transforms write beyond its memory."""
    mesh = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    spectrum = transform(mesh)
    assert spectrum.dtype == (torch.complex128 if dtype == torch.float64 else torch.complex64)
    torch.testing.assert_close(spectrum[0, 0, 0].real, mesh.sum(), rtol=1e-3, atol=1e-2)
    kept = spectrum.clone()
    for _ in range(4):
        found = inverse_transform(spectrum, shape[2]) / mesh.numel()
        torch.testing.assert_close(found, mesh, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)
    assert torch.equal(spectrum, kept), "the argument must not change"
    found = inverse_transform(spectrum, shape[2], overwrite=True) / mesh.numel()
    torch.testing.assert_close(found, mesh, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(32, 30, 36), (35, 32, 33)])
def test_energy_and_potential_of_one_pass_over_the_spectrum(shape, dtype):
    """Parseval's theorem, and the convolution as torch does it, with odd and even last axes."""
    density = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    cell = torch.diag(torch.tensor([11.0, 12.0, 13.0], dtype=torch.float64))
    kernel = influence(cell, torch.tensor(1.0, dtype=torch.float64), shape, 6).to(dtype)
    energy, potential = mesh_module._energy(density, kernel)
    expected = torch.fft.irfftn(torch.fft.rfftn(density.double()) * kernel, s=shape, norm="forward")
    close = {"rtol": 0, "atol": float(expected.abs().max()) * (1e-12 if dtype == torch.float64 else 1e-5)}
    torch.testing.assert_close(potential.double(), expected, **close)
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(energy, 0.5 * (density.double() * expected).sum(), rtol=rtol, atol=0)
    assert energy.dtype == torch.float64
