"""Spreading and gathering: B-splines as scipy has them, two backends alike, each the transpose of the other."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from farfield.electrostatics import spreading
from farfield.electrostatics.spreading import MULTI_INDICES, Stencil, count_of, gather, spline_weights, spread

SHAPE = (12, 9, 10)


def coordinates(atoms: int, seed: int = 0, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(atoms, 3, generator=generator, dtype=torch.float64) * torch.tensor(shape, dtype=torch.float64)


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("order", [4, 5, 6, 7, 8])
def test_weights_are_cardinal_splines(order):
    x = torch.rand(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    spline = BSpline.basis_element(np.arange(order + 1.0))
    points = x.numpy()[:, None] + order - 1 - np.arange(order)
    for derivative, weights in enumerate(spline_weights(x, order, order - 2)):
        expected = (spline.derivative(derivative) if derivative else spline)(points)
        np.testing.assert_allclose(weights.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("order", "degree"), [(4, 0), (6, 1), (6, 2), (8, 4)])
def test_both_backends_spread_and_gather_alike(order, degree):
    u = coordinates(40)
    coefficients, mesh = normal(40, count_of(degree)), normal(*SHAPE)
    compiled, plain = (Stencil(u, SHAPE, order, compiled) for compiled in (True, False))
    torch.testing.assert_close(
        spread(u, coefficients, compiled, degree), spread(u, coefficients, plain, degree), rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        gather(u, mesh, compiled, degree), gather(u, mesh, plain, degree), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("compiled", [True, False])
def test_gather_is_the_transpose_of_spread_and_charge_is_conserved(compiled):
    u, degree = coordinates(30), 2
    coefficients, mesh = normal(30, count_of(degree)), normal(*SHAPE)
    stencil = Stencil(u, SHAPE, 6, compiled)
    whole = spread(u, coefficients, stencil, degree)
    assert float((whole * mesh).sum()) == pytest.approx(
        float((coefficients * gather(u, mesh, stencil, degree)).sum()), rel=1e-12
    )
    # Splines add up to one everywhere, and their derivatives to nothing.
    assert float(whole.sum()) == pytest.approx(float(coefficients[:, 0].sum()), rel=1e-12)


def test_a_mesh_smaller_than_the_splines_wraps_more_than_once():
    shape = (3, 2, 4)
    u = coordinates(5, shape=shape)
    coefficients = normal(5, 1)
    for compiled in (True, False):
        mesh = spread(u, coefficients, Stencil(u, shape, 6, compiled), 0)
        assert float(mesh.sum()) == pytest.approx(float(coefficients.sum()), rel=1e-12)
        larger = tuple(8 * n for n in shape)
        unfolded = spread(u, coefficients, Stencil(u, larger, 6, compiled), 0)
        folded = unfolded.reshape(8, 3, 8, 2, 8, 4).sum((0, 2, 4))
        torch.testing.assert_close(mesh, folded, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("degree", [0, 1])
def test_derivatives_of_all_orders_are_the_same_maps(compiled, degree):
    u = coordinates(3).requires_grad_()
    coefficients, mesh = normal(3, count_of(degree)).requires_grad_(), normal(*SHAPE).requires_grad_()

    def both(u, coefficients, mesh):
        stencil = Stencil(u, SHAPE, 6, compiled)
        # a power, so that second derivatives pass through both arguments
        return (spread(u, coefficients, stencil, degree) ** 2 * mesh).sum(), gather(u, mesh, stencil, degree)

    assert torch.autograd.gradcheck(both, (u, coefficients, mesh), fast_mode=True)
    assert torch.autograd.gradgradcheck(both, (u, coefficients, mesh), fast_mode=True)


def test_too_many_derivatives_are_refused():
    u = coordinates(2)
    with pytest.raises(ValueError, match="degree 4 are needed but a mesh of order 4 gives them up to 3"):
        gather(u, normal(*SHAPE), Stencil(u, SHAPE, 4), 4)


@pytest.mark.parametrize("shape", [(48, 9, 10), (50, 6, 6)])
def test_threads_never_meet(shape, monkeypatch):
    """With two threads and many blocks the mesh is that of one thread, to the order of summation."""
    monkeypatch.setattr(spreading, "_ATOMS_PER_TASK", 4)
    u, coefficients = coordinates(2000, shape=shape), normal(2000, 1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = spread(u, coefficients, Stencil(u, shape, 4), 0)
        torch.set_num_threads(2)
        stencil = Stencil(u, shape, 4)
        colors = stencil.tasks_by_color()
        assert len(colors) == 2
        assert min(len(color) for color in colors) > 1
        for color in colors:
            touched = [
                {(int(plane) - j) % shape[0] for plane in np.floor(u[part, 0].numpy()) for j in range(4)}
                for part in color
            ]
            assert sum(map(len, touched)) == len(set.union(*touched)), "two blocks of one color share a plane"
        for _ in range(20):
            torch.testing.assert_close(spread(u, coefficients, stencil, 0), alone, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            gather(u, alone, stencil, 1), gather(u, alone, Stencil(u, shape, 4, False), 1), rtol=1e-11, atol=1e-11
        )
    finally:
        torch.set_num_threads(before)


def _sum_in_child(queue):
    u = coordinates(2000)
    torch.set_num_threads(2)
    queue.put(float(spread(u, normal(2000, 1), Stencil(u, SHAPE, 4), 0).square().sum()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_forked_after_use_works(monkeypatch):
    """Data-loader workers are forked: threads of the parent are not there."""
    monkeypatch.setattr(spreading, "_ATOMS_PER_TASK", 4)
    context = multiprocessing.get_context("fork")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        u = coordinates(2000)
        expected = float(spread(u, normal(2000, 1), Stencil(u, SHAPE, 4), 0).square().sum())
        queue = context.Queue()
        child = context.Process(target=_sum_in_child, args=(queue,), daemon=True)
        child.start()
        assert queue.get(timeout=60) == pytest.approx(expected, rel=1e-12)
        child.join(10)
    finally:
        torch.set_num_threads(before)


def test_every_derivative_has_one_place():
    assert len(set(MULTI_INDICES)) == len(MULTI_INDICES) == count_of(spreading.MAX_DEGREE)
    assert [sum(index) for index in MULTI_INDICES] == sorted(sum(index) for index in MULTI_INDICES)


def test_kernels_compile_where_nothing_can_be_written(monkeypatch):
    import numba

    from farfield.electrostatics.compiled import compiled as compile_kernel

    compiled, tried = numba.njit, []

    def njit(**options):
        tried.append(options.get("cache", False))
        if tried[-1]:
            raise RuntimeError("cannot cache function: no locator available")
        return compiled(**options)

    monkeypatch.setattr(numba, "njit", njit)
    assert compile_kernel(lambda x: x + 1.0)(1.0) == 2.0
    assert tried == [True, False]
