"""Sums over the waves inside the cutoff against those over the whole box of indices, and the threads they run on."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics import openmp, sphere, waves
from farfield.electrostatics.compiled import POOL
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.separable import count_of
from farfield.electrostatics.sphere import sphere_of
from farfield.electrostatics.waves import Ball, Box

pytest.importorskip("numba")

CELLS = torch.tensor(
    [[[7.0, 0.0, 0.0], [1.5, 8.0, 0.0], [-2.0, 1.0, 9.0]], [[6.0, 0.5, 0.0], [0.0, 9.0, 1.0], [2.0, -2.0, 9.5]]],
    dtype=torch.float64,
)


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def of_box(ball, box):
    """Places of the ball's waves among those of the box."""
    place = {tuple(h): index for index, h in enumerate(box.indices.T.int().tolist())}
    return torch.tensor([place[tuple(h)] for h in ball.indices.T.int().tolist()])


def both(cells, cutoff, ranges, slots, dtype):
    s = random(len(cells), slots, 3)
    ball = Ball(s, torch.linalg.inv(cells), torch.full((len(cells),), cutoff, dtype=torch.float64), ranges)
    return ball, Box(s, ranges, dtype)


@given(
    st.lists(st.floats(-0.5, 0.5), min_size=6, max_size=6), st.floats(1.0, 6.0), st.floats(1.0, 6.0), st.integers(1, 4)
)
def test_no_wave_inside_the_cutoff_is_missing(skew, short, long, cut):
    first = np.array([[short, 0.0, 0.0], [skew[0] * short, long, 0.0], [skew[1] * short, skew[2] * long, 4.0]])
    second = np.array([[long, skew[3], 0.0], [0.0, 4.0, skew[4]], [skew[5], 0.0, short]])
    cells = torch.from_numpy(np.stack((first, second)))
    lengths = cells.norm(dim=2).amax(0)
    ranges = tuple((cut * lengths / (2.0 * np.pi)).floor().int().tolist())
    found = sphere_of(torch.linalg.inv(cells), torch.full((2,), float(cut), dtype=torch.float64), ranges)
    counted = {tuple(h) for h, count in zip(found.indices.T.tolist(), found.count.tolist(), strict=True) if count}
    reciprocal = 2.0 * np.pi * torch.linalg.inv(cells).mT
    for h in itertools.product(*(range(-n, n + 1) for n in ranges)):
        if float((torch.tensor(h, dtype=torch.float64) @ reciprocal).norm(dim=1).min()) < cut * (1.0 - 1e-9):
            assert tuple(map(abs, h)) in counted
    assert len(counted) == int((found.count > 0).sum())


@pytest.mark.parametrize("cells", [CELLS, CELLS[:1]], ids=["two-systems", "one-system"])
@pytest.mark.parametrize("level", [0, 1, 2, 3, 5])
def test_both_maps_are_those_of_the_box(cells, level, close, dtype):
    ball, box = both(cells, 5.0, (6, 7, 9), 13, dtype)
    place = of_box(ball, box)
    c = random(len(cells), 13, count_of(level), dtype=dtype)
    expected = box.structure(c, level)[..., place]
    counted = ball.count > 0  # others fill a block
    scale = float(expected.abs().max())
    close((ball.structure(c, level) / scale)[..., counted], (expected / scale)[..., counted])
    g = random(*expected.shape, seed=1, dtype=dtype) * counted
    spread = g.new_zeros(len(cells), 8, box.indices.shape[1]).index_add_(2, place, g)
    expected = box.moments(spread, level)
    scale = expected.abs().amax((0, 1))
    close(ball.moments(g, level) / scale, expected / scale)


def test_waves_of_many_tiles(close):
    ball, box = both(CELLS[:1], 20.0, (22, 25, 4), 3, torch.float64)
    place = of_box(ball, box)
    c = random(1, 3, 4)
    counted = ball.count > 0
    close(ball.structure(c, 1)[..., counted], box.structure(c, 1)[..., place[counted]], atol=1e-8)
    g = random(1, 8, len(place), seed=1)
    close((ball.moments(g, 1) * c).sum(), (ball.structure(c, 1) * g).sum())


def test_derivatives_to_third_order():
    inverse, cutoff = torch.linalg.inv(CELLS[:1]), torch.full((1,), 1.7, dtype=torch.float64)
    s = (0.1 * random(1, 2, 3)).requires_grad_()
    c = random(1, 2, 4, seed=1).requires_grad_()

    def structure(s, c):
        return Ball(s, inverse, cutoff, (2, 2, 2)).structure(c, 1)

    g = torch.randn_like(structure(s, c)).requires_grad_()
    slopes = [
        (structure, (s, c)),
        (lambda s, g: Ball(s, inverse, cutoff, (2, 2, 2)).moments(g, 1), (s, g)),
        (lambda s, c: torch.autograd.grad((structure(s, c) ** 2).sum(), (s, c), create_graph=True), (s, c)),
    ]
    for function, arguments in slopes:
        assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


def batch_of(pbc, dtype=torch.float64):
    positions = random(14, 3, seed=2, dtype=dtype) + 3.0
    system = torch.tensor([0] * 6 + [1] * 8)
    return AtomicBatch(positions, torch.ones(14, dtype=torch.int64), CELLS.to(dtype), torch.tensor([pbc, pbc]), system)


def results(batch, plan=None, accuracy=1e-4):
    """Energies, and gradients of theirs and of a loss on them and forces."""
    leaves = [t.clone().requires_grad_() for t in (batch.positions, batch.cell, random(14, seed=3).to(batch.positions))]
    dipoles = random(14, 3, seed=4).to(batch.positions)
    coulomb = Coulomb(accuracy=accuracy, method="ewald")
    batch = batch.replace(positions=leaves[0], cell=leaves[1])
    energy = coulomb(batch, Multipoles(leaves[2], dipoles), plan, outputs="energy").energy
    first = torch.autograd.grad(energy.sum(), leaves, create_graph=True)
    loss = sum((slope**2).sum() for slope in first)
    potential = coulomb(batch, Multipoles(leaves[2], dipoles), plan)
    return [energy, *first, *torch.autograd.grad(loss, leaves), potential.potential, potential.field_gradient]


def with_and_without(monkeypatch, work):
    found = []
    for least in (1, 10**9):
        monkeypatch.setattr(waves, "LEAST_COMPILED", least)
        found.append(work())
    return zip(*found, strict=True)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, False, True)], ids=["3D", "2D", "1D"])
def test_energies_and_all_derivatives_are_those_of_the_box(monkeypatch, pbc, close, dtype):
    for ball, box in with_and_without(monkeypatch, lambda: results(batch_of(pbc, dtype))):
        scale = float(box.detach().abs().max())
        close((ball / scale).to(dtype), (box / scale).to(dtype))  # energies are float64 sums of rounded terms


def test_a_plan_kept_while_the_cell_changes(monkeypatch, close):
    batch = batch_of((True, True, True))
    plan = Coulomb(method="ewald").prepare(batch)

    def sweep():
        strained = [batch.replace(cell=batch.cell * (1.0 + strain)) for strain in np.linspace(-0.05, 0.05, 7)]
        return [value for one in strained for value in results(one, plan)]

    for ball, box in with_and_without(monkeypatch, sweep):
        close(ball / box.detach().abs().max(), box / box.detach().abs().max())


def test_the_box_serves_small_systems_and_where_nothing_can_be_compiled(monkeypatch):
    arguments = (torch.linalg.inv(CELLS), torch.ones(2, dtype=torch.float64), (1, 1, 1), torch.float64)
    assert isinstance(waves.waves_of(random(2, 3, 3), *arguments), Box)
    assert isinstance(waves.waves_of(random(2, waves.LEAST_COMPILED, 3), *arguments), Ball)
    monkeypatch.setattr(waves, "kernels_for", lambda device: None)
    assert isinstance(waves.waves_of(random(2, waves.LEAST_COMPILED, 3), *arguments), Box)


@pytest.fixture
def threads():
    """Two threads of torch, for a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@pytest.mark.parametrize("members", [1, 2])
def test_pieces_of_systems_on_threads(monkeypatch, threads, members, close):
    ball, box = both(CELLS[:members], 4.0, (6, 7, 9), 70, torch.float64)
    assert len(ball._tables._pieces) == 1 * members
    monkeypatch.setattr(sphere, "_LEAST_FOR_THREADS", 0)
    split, _ = both(CELLS[:members], 4.0, (6, 7, 9), 70, torch.float64)
    assert len(split._tables._pieces) == 2
    c = random(members, 70, 4)
    total = split.structure(c, 1)
    close(total, ball.structure(c, 1), atol=1e-8)
    close(split.moments(total, 1), ball.moments(total, 1), atol=1e-6)


@pytest.mark.parametrize("team", [True, False], ids=["threads-of-torch", "own-threads"])
def test_every_task_runs_once_and_what_one_raises_is_raised(monkeypatch, threads, team):
    if not team:
        monkeypatch.setattr(openmp, "_runtime", lambda: None)
    done = []
    POOL.run([lambda i=i: done.append(i) for i in range(7)])
    assert sorted(done) == list(range(7))
    with pytest.raises(ZeroDivisionError):
        POOL.run([lambda: None, lambda: 1 / 0, lambda: None])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
@pytest.mark.filterwarnings("ignore:This process")
def test_a_forked_process_waits_for_no_threads_of_its_parent(threads):
    POOL.run([lambda: None] * 2)
    child = os.fork()
    if child == 0:
        done = []
        POOL.run([lambda i=i: done.append(i) for i in range(3)])
        os._exit(0 if sorted(done) == [0, 1, 2] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
