"""The compiled open sum of multipoles: it is the plain one, to the third derivative, however its work is divided."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from electrostatic_systems import parts, random_multipoles, random_system, traceless

from farfield.atoms.batch import concatenate
from farfield.electrostatics import open_multipoles
from farfield.electrostatics.compiled import kernels_for
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.kernels import gaussian_kernels
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.open_energy import open_energy
from farfield.electrostatics.open_multipoles import OpenPairs, open_potential
from farfield.electrostatics.open_sum import OpenGeometry
from farfield.electrostatics.padding import make_padding, take_census
from farfield.electrostatics.response import LinearResponse
from farfield.electrostatics.susceptibility import Response
from farfield.units import COULOMB_CONSTANT

pytestmark = pytest.mark.skipif(kernels_for("cpu") is None, reason="numba is not installed")

SIZES = (5, 3, 4)
SMEARING = torch.tensor([0.8, 1.1, 1.0], dtype=torch.float64)


def pairs_of(batch, dtype=torch.float64):
    padding = make_padding(list(range(batch.n_systems)), take_census(batch, None), batch.positions.device)
    return padding, OpenPairs(padding, SMEARING[: batch.n_systems], dtype, whole=True)


@pytest.fixture
def systems():
    """Three systems of different sizes; the first has two atoms at one point, the second a distant one."""
    batch = concatenate([random_system(size, seed=size, size=3.0) for size in SIZES])
    positions = batch.positions.clone()
    positions[1], positions[7] = positions[0], positions[5] + torch.tensor([25.0, 3.0, 0.0])
    return batch.replace(positions=positions), random_multipoles(sum(SIZES))


def plain(pairs, positions, charges, dipoles, quadrupoles, levels):
    order = max(level for level, part in enumerate((charges, dipoles, quadrupoles)) if part is not None)
    geometry = OpenGeometry(positions, pairs.smearing, order + levels - 1)
    value, gradient, second = geometry.potential(charges, dipoles, quadrupoles, levels)
    return value, gradient, None if second is None else traceless(second)


def derivatives(values, leaves, orders):
    """Values and gradients of random functions of them, of those, …; the last backward pass is one without a graph."""
    generator = torch.Generator().manual_seed(1)
    found = list(values)
    for n in range(orders):
        weights = [torch.randn(value.shape, generator=generator, dtype=torch.float64) for value in values]
        total = sum((weight * value.square()).sum() for weight, value in zip(weights, values, strict=True))
        values = torch.autograd.grad(total, leaves, create_graph=n < orders - 1)
        found.extend(values)
    return found


@pytest.mark.parametrize(("order", "levels"), [(0, 2), (1, 2), (2, 1), (2, 3)])
@pytest.mark.parametrize("orders", [2, 3])
def test_potential_is_that_of_the_plain_sum(order, levels, orders, systems, close):
    """Second derivatives by the compiled kernels, third ones by the plain sum again."""
    batch, multipoles = systems
    padding, pairs = pairs_of(batch)
    leaves = [part.clone().requires_grad_() for part in (batch.positions, *parts(multipoles)[: order + 1])]

    def outcome(potential):
        positions, *given = (padding.gather(leaf) for leaf in leaves)
        if order == 2:
            given[2] = traceless(given[2])
        made = potential(pairs, positions, *given, *[None] * (2 - order), levels)
        return [padding.release(block) for block in made if block is not None]

    for mine, theirs in zip(
        derivatives(outcome(open_potential), leaves, orders),
        derivatives(outcome(plain), leaves, orders),
        strict=True,
    ):
        close(mine, theirs, rtol=1e-11, atol=1e-11 * float(theirs.detach().abs().max()))


@pytest.mark.parametrize("order", [0, 2])
def test_energy_is_half_the_potential_and_twice_differentiable(order, systems, close):
    batch, multipoles = systems
    padding, pairs = pairs_of(batch)
    leaves = [part.clone().requires_grad_() for part in (batch.positions, *parts(multipoles)[: order + 1])]

    def energy(positions, *given):
        return open_energy(pairs, *map(padding.gather, (positions, *given)), *[None] * (2 - order)).energy

    def slopes(*given):
        return torch.autograd.grad(energy(*given).square().sum(), given, create_graph=True)

    charges, dipoles, quadrupoles = (*map(padding.gather, leaves[1:]), *[None] * (2 - order))
    made = open_potential(pairs, padding.gather(leaves[0]), charges, dipoles, quadrupoles, order + 1)
    halves = charges * made[0]
    if order == 2:
        halves = halves + (dipoles * made[1]).sum(2) + 0.5 * (quadrupoles * made[2]).sum((2, 3))
    close(energy(*leaves), 0.5 * halves.sum(1))
    assert torch.autograd.gradcheck(energy, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(energy, leaves, fast_mode=True)
    # Third derivatives by the plain sum, whose table of kernels grows, and rounds anew, when higher ones are asked for.
    assert torch.autograd.gradgradcheck(slopes, leaves, fast_mode=True, nondet_tol=1e-9)


#: Order of the permanent multipoles, whether charges are induced, numbers of α per atom, whether charge is conserved.
ANSWERS = [(0, True, 0, True), (0, False, 1, True), (1, True, 1, False), (2, True, 9, True), (2, True, 9, False)]


def answering(order, softness, polar, batch, multipoles):
    """Leaves r, m, κ, α of a batch, and the κ and α among given ones."""
    generator = torch.Generator().manual_seed(3)
    atoms = batch.n_atoms
    given = [batch.positions, *parts(multipoles)[: order + 1]]
    if softness:
        given.append(0.04 * torch.rand(atoms, generator=generator, dtype=torch.float64))
    if polar:
        root = 0.15 * torch.randn(atoms, 3, 3, generator=generator, dtype=torch.float64)
        given.append((root @ root.mT) if polar == 9 else root.square().mean((1, 2)))

    def split(leaves):
        answers = list(leaves[order + 2 :])
        return answers.pop(0) if softness else None, answers.pop(0) if polar else None

    return [part.clone().requires_grad_() for part in given], split


@pytest.mark.parametrize(("order", "softness", "polar", "conserved"), ANSWERS)
def test_energy_with_response_and_its_derivatives(order, softness, polar, conserved, systems):
    """Three times, by finite differences; third derivatives are made by the plain sum."""
    batch, multipoles = systems
    padding, pairs = pairs_of(batch)
    leaves, split = answering(order, softness, polar, batch, multipoles)

    def energy(*given):
        blocks = [padding.gather(part) for part in given]
        found = open_energy(pairs, *blocks[: order + 2], *[None] * (2 - order), *split(blocks), conserved=conserved)
        return found.energy

    def slopes(*given):
        return torch.autograd.grad(energy(*given).square().sum(), given, create_graph=True)

    assert torch.autograd.gradcheck(energy, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(energy, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(slopes, leaves, fast_mode=True, nondet_tol=1e-9)


@pytest.mark.parametrize(("order", "softness", "polar", "conserved"), ANSWERS)
def test_response_found_with_the_energy_is_that_of_the_potential(
    order, softness, polar, conserved, systems, close, monkeypatch
):
    """Energies, what they are made of, and the gradients of a loss on energy and slopes; with the kernels and without.

    Some atoms answer to nothing.
    """
    batch, multipoles = systems
    leaves, split = answering(order, softness, polar, batch, multipoles)
    with torch.no_grad():
        for part in split(leaves):
            if part is not None:
                part[:3] = 0.0
    coulomb, weights = Coulomb(SMEARING), torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    found = []
    for least in (0, 1 << 40):
        monkeypatch.setattr(open_multipoles, "LEAST_PAIRS", least)
        given = list(leaves)
        if order == 2:
            given[3] = traceless(given[3])
        linear = LinearResponse(coulomb, conserve_charge=conserved)
        result = linear(batch.replace(positions=given[0]), Multipoles(*given[1 : order + 2]), Response(*split(given)))
        first = torch.autograd.grad((weights * result.energy).sum(), leaves, create_graph=True)
        loss = result.energy.square().sum() + sum((slope - 1.0).square().sum() for slope in first)
        second = torch.autograd.grad(loss, leaves)
        bare = result.detached()
        seen = [(one.permanent_energy, one.response_energy, one.potential, one.field, one.charge_energy,
                 one.dipole_energy, one.induced.charges, one.induced.dipoles) for one in (result, bare)]  # fmt: skip
        assert not any(part.requires_grad for part in seen[1] if part is not None)
        found.append([result.energy, *first, *second, *seen[0], *seen[1]])
    for mine, theirs in zip(*found, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            close(mine, theirs)


def test_multipoles_that_depend_on_positions_have_third_derivatives(systems, close):
    """The plain sum, which gives them, must not find its way through what the multipoles were made of."""
    batch, multipoles = systems
    padding, pairs = pairs_of(batch)
    positions = batch.positions.clone().requires_grad_()
    found = []
    for sum_of in (open_potential, plain):
        charges = multipoles.charges * positions.square().sum(1).sin()
        made = sum_of(pairs, padding.gather(positions), padding.gather(charges), None, None, 1)[0]
        found.append(derivatives([padding.release(made)], [positions], 3))
    for mine, theirs in zip(*found, strict=True):
        close(mine, theirs, rtol=1e-11, atol=1e-11 * float(theirs.detach().abs().max()))


def test_single_precision_is_that_of_the_kernels(systems):
    batch, multipoles = systems
    padding, pairs = pairs_of(batch)
    _, short = pairs_of(batch, torch.float32)
    blocks = [padding.gather(part) for part in (batch.positions, *parts(multipoles))]
    for exact, rounded in zip(
        open_potential(pairs, *blocks, 3), open_potential(short, *(block.float() for block in blocks), 3), strict=True
    ):
        assert float((exact - rounded).abs().max() / exact.abs().max()) < 3e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_radial_kernels_hold_at_every_distance(dtype):
    """Potential and third derivatives along x of one charge, from 10⁻³ to 50 σ: B_0 and −3 B_2 x³ … of the kernels."""
    distances = torch.cat((torch.logspace(-3, 1.7, 400, dtype=torch.float64), torch.tensor([0.0]))).to(dtype)
    positions = torch.zeros(len(distances), 2, 3, dtype=dtype)
    positions[:, 0, 0] = distances
    scales, counts = np.ones(len(distances), positions.numpy().dtype), np.full(len(distances), 2)
    charges = torch.tensor([[0.0, 1.0]], dtype=dtype).repeat(len(distances), 1)
    from farfield.electrostatics import open_kernels

    exponent = torch.tensor(0.5**0.5, dtype=torch.float64)
    x = distances.double()
    b = gaussian_kernels(x.square(), exponent, 3)
    nothing = np.zeros((1, 0, 3), scales.dtype), np.zeros((1, 0, 3, 3), scales.dtype)
    out = np.empty((len(distances), 2, 20), scales.dtype)
    kernel = open_kernels.fields(0, 3, scales.dtype)
    kernel(positions.numpy(), charges.numpy(), *nothing, scales, counts, 0, 2 * len(distances), out)
    found = torch.from_numpy(out[:, 0]).double() / COULOMB_CONSTANT
    epsilon = torch.finfo(dtype).eps
    expected = {0: b[0], 1: -x * b[1], 4: x.square() * b[2] - b[1], 10: 3.0 * x * b[2] - x**3 * b[3]}
    scale = {0: b[0], 1: x * b[1], 4: x.square() * b[2] + b[1], 10: 3.0 * x * b[2] + x**3 * b[3]}
    for place, value in expected.items():
        error = (found[:, place] - value).abs() / scale[place].clamp(min=1e-30)
        assert float(error.max()) < 30.0 * epsilon


def test_any_division_into_tasks_gives_the_same(systems, monkeypatch):
    batch, multipoles = systems
    padding, pairs = pairs_of(batch)
    blocks = [padding.gather(part) for part in (batch.positions, *parts(multipoles))]
    whole = open_potential(pairs, *blocks, 3)
    monkeypatch.setattr(open_multipoles, "_PAIRS_PER_TASK", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        divided = open_potential(pairs, *blocks, 3)
    finally:
        torch.set_num_threads(threads)
    for mine, theirs in zip(divided, whole, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("mode", ["energy", "one-shot", "scf"])
def test_sums_of_a_batch_take_the_kernels(mode, systems, close, monkeypatch):
    """Energy, forces and the gradients of a loss on them, with the compiled kernels and without."""
    batch, multipoles = systems
    coulomb = Coulomb(SMEARING, self_interaction=True)
    plan = coulomb.prepare(batch)
    softness, alpha = torch.full_like(multipoles.charges, 0.02), torch.full_like(multipoles.charges, 0.05)
    found = []
    for least in (0, 1 << 40):
        monkeypatch.setattr(open_multipoles, "LEAST_PAIRS", least)
        leaves = [part.clone().requires_grad_() for part in (batch.positions, *parts(multipoles), softness, alpha)]
        given = Multipoles(*leaves[1:3], traceless(leaves[3]))
        moved = batch.replace(positions=leaves[0])
        if mode == "energy":
            energy = coulomb(moved, given, plan, outputs="energy").energy
        else:
            linear = LinearResponse(coulomb, mode=mode, tolerance=1e-13 if mode == "scf" else None)
            energy = linear(moved, given, Response(*leaves[4:]), plan).energy
        (slope,) = torch.autograd.grad(energy.sum(), leaves[0], create_graph=True)
        loss = (slope - 1.0).square().sum() + energy.square().sum()
        found.append([energy, slope, *torch.autograd.grad(loss, leaves, allow_unused=True)])
    for mine, theirs in zip(*found, strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            close(mine, theirs)


def test_the_plain_sum_serves_small_batches_and_what_numba_cannot(systems, monkeypatch):
    positions = torch.zeros(1, 64, 3)
    assert OpenPairs.suit(positions)
    assert not OpenPairs.suit(positions[:, :16])
    assert not OpenPairs.suit(positions.to("meta"))
    monkeypatch.setattr(open_multipoles, "kernels_for", lambda device: None)
    assert not OpenPairs.suit(positions)


def test_gradients_share_no_memory_with_what_is_kept(monkeypatch):
    """Whoever gets them may change them in place, or add the next ones to them."""
    monkeypatch.setattr(open_multipoles, "LEAST_PAIRS", 0)
    batch = concatenate([random_system(5, seed=seed, size=3.0) for seed in (1, 2)])
    positions = batch.positions.clone().requires_grad_()
    energy = Coulomb()(batch.replace(positions=positions), random_multipoles(10), outputs="energy").energy.sum()
    (gradient,) = torch.autograd.grad(energy, positions, retain_graph=True)
    expected = gradient.clone()
    gradient.neg_()
    torch.testing.assert_close(torch.autograd.grad(energy, positions, retain_graph=True)[0], expected)
    for _ in range(3):
        energy.backward(retain_graph=True)
    torch.testing.assert_close(positions.grad, 3 * expected)


@pytest.mark.parametrize("least", [0, 1 << 40])
def test_what_is_asked_without_a_graph_first_has_one_later(least, monkeypatch):
    monkeypatch.setattr(open_multipoles, "LEAST_PAIRS", least)
    batch = random_system(6, size=3.0)
    batch = batch.replace(positions=batch.positions.requires_grad_())
    few = torch.full((6,), 0.02, dtype=torch.float64)
    result = LinearResponse(Coulomb())(batch, random_multipoles(6), Response(few, few))
    with torch.no_grad():
        assert not bool(result.response_energy.isnan())
        assert result.induced is not None
    assert result.potential.requires_grad
    assert result.induced.charges.requires_grad
