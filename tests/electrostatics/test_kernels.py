"""Radial kernels against their integral, over all distances, both precisions and every order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from farfield.electrostatics.kernels import gaussian_kernels

HIGHEST = 7


def quadrature(squared: torch.Tensor, exponent: float, order: int) -> torch.Tensor:
    """B_n = (2/√π) 2ⁿ a^{2n+1} ∫₀¹ t^{2n} exp(−a²x t²) dt by Gauss–Legendre on short intervals."""
    nodes, weights = np.polynomial.legendre.leggauss(40)
    pieces = np.linspace(0.0, 1.0, 41)
    t = np.concatenate([0.5 * (b - a) * nodes + 0.5 * (a + b) for a, b in zip(pieces[:-1], pieces[1:], strict=True)])
    w = np.concatenate([0.5 * (b - a) * weights for a, b in zip(pieces[:-1], pieces[1:], strict=True)])
    t, w = torch.from_numpy(t), torch.from_numpy(w)
    integral = (w * t ** (2 * order) * torch.exp(-(exponent**2) * squared[:, None] * t**2)).sum(1)
    return 2.0 / math.sqrt(math.pi) * 2.0**order * exponent ** (2 * order + 1) * integral


@pytest.mark.parametrize("smearing", [0.5, 1.0, 1.7])
def test_kernels_equal_their_integral(dtype, smearing):
    exponent = 1.0 / (math.sqrt(2.0) * smearing)
    r = torch.cat((torch.linspace(0.0, 6.0 * smearing, 601, dtype=torch.float64), torch.tensor([20.0, 60.0]))).to(dtype)
    squared = r * r
    kernels = gaussian_kernels(squared, torch.tensor(exponent, dtype=dtype), HIGHEST)
    # The integral is taken at the rounded argument: what is tested is the kernel, not the rounding of r².
    rounded = float(torch.tensor(exponent, dtype=dtype))
    for order, kernel in enumerate(kernels):
        expected = quadrature(squared.double(), rounded, order)
        # The upward recurrence loses digits between 2σ and 3σ, most for the highest order, which no force needs.
        worst = {torch.float64: 2e-12, torch.float32: 2e-5 if order < 6 else 1e-3}[dtype]
        assert float(((kernel.double() - expected) / expected).abs().max()) < worst, order


def test_each_kernel_is_the_derivative_of_the_one_before():
    squared = torch.linspace(0.0, 30.0, 50, dtype=torch.float64, requires_grad=True)
    exponent = torch.tensor(0.7, dtype=torch.float64)
    kernels = gaussian_kernels(squared, exponent, 3)
    higher = gaussian_kernels(squared.detach(), exponent, 5)
    for n in range(4):
        (slope,) = torch.autograd.grad(kernels[n].sum(), squared, create_graph=True)
        torch.testing.assert_close(slope, -0.5 * higher[n + 1], rtol=1e-12, atol=0)
        (curvature,) = torch.autograd.grad(slope.sum(), squared, retain_graph=True)
        torch.testing.assert_close(curvature, 0.25 * higher[n + 2] if n < 4 else None, rtol=1e-12, atol=0)


def test_pairs_in_any_layout_of_memory():
    squared = torch.linspace(0.0, 5.0, 12, dtype=torch.float64).reshape(3, 4)
    exponent = torch.tensor(0.7, dtype=torch.float64)
    plain, turned = (gaussian_kernels(x, exponent, 3) for x in (squared, squared.T.contiguous().T))
    for a, b in zip(plain, turned, strict=True):
        assert torch.equal(a, b)


def test_values_at_one_point():
    a = 0.9
    kernels = gaussian_kernels(torch.zeros(1, dtype=torch.float64), torch.tensor(a, dtype=torch.float64), 5)
    for n, kernel in enumerate(kernels):
        assert float(kernel) == pytest.approx(
            2.0 / math.sqrt(math.pi) * 2.0**n * a ** (2 * n + 1) / (2 * n + 1), rel=1e-14
        )


def test_derivatives_to_third_order_pass_gradcheck():
    squared = torch.tensor([0.0, 1e-6, 0.3, 3.99, 4.01, 20.0], dtype=torch.float64, requires_grad=True)
    exponent = torch.tensor(0.7, dtype=torch.float64)

    def kernels(x):
        return gaussian_kernels(x, exponent, 2)

    def slopes(x):
        return torch.autograd.grad(kernels(x)[1].sum(), x, create_graph=True)[0]

    inside = squared.detach()[1:].requires_grad_()
    assert torch.autograd.gradcheck(kernels, inside, eps=1e-8, atol=1e-6)
    assert torch.autograd.gradgradcheck(kernels, inside, eps=1e-8, atol=1e-6)
    assert torch.autograd.gradgradcheck(slopes, inside, eps=1e-8, atol=1e-6)
