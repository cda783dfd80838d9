"""Coefficients of the lattice harmonics: exact algebra for the flat ones, accuracy for the fitted ones."""

import math
from fractions import Fraction

import pytest
import torch

from farfield.observables import fitted_coefficients, flat_coefficients


def displaced(coefficients, s):
    m = torch.arange(1, coefficients.shape[-1] + 1, dtype=torch.float64)
    return (coefficients * torch.sin(2 * math.pi * s[:, None] * m) / (2 * math.pi * m)).sum(-1)


@pytest.mark.parametrize("harmonics", [1, 2, 3, 6, 12])
def test_flat_coefficients_solve_the_flatness_conditions(harmonics):
    # Σ_m c_m m^{2p} = δ_{p0} for p < M makes all derivatives up to order 2M those of x; checked in exact fractions.
    top = math.factorial(harmonics) ** 2
    exact = [
        Fraction(2 * (-1) ** (m + 1) * top, math.factorial(harmonics - m) * math.factorial(harmonics + m))
        for m in range(1, harmonics + 1)
    ]
    for p in range(harmonics):
        assert sum(c * m ** (2 * p) for m, c in enumerate(exact, start=1)) == (1 if p == 0 else 0)
    torch.testing.assert_close(flat_coefficients(harmonics), torch.tensor([float(c) for c in exact]).double())


def test_one_harmonic_is_the_published_formula():
    assert flat_coefficients(1).tolist() == [1.0]


@pytest.mark.parametrize("harmonics", [1, 2, 3])
def test_error_of_flat_coefficients_has_its_order(harmonics):
    s = torch.tensor([0.02, 0.04], dtype=torch.float64)
    small, large = (displaced(flat_coefficients(harmonics), s) - s).abs()
    assert math.log2(large / small) == pytest.approx(2 * harmonics + 1, abs=0.1)


@pytest.mark.parametrize("reach", [0.05, 0.25, 0.4, 0.48])
def test_fitted_coefficients_are_better_where_charges_respond(reach):
    # the weight of the fit, written a second way: relative errors count as (1 − t²)⁸
    t = torch.linspace(0.01, 0.99, 300, dtype=torch.float64)
    flat, fitted = (
        float((((displaced(c, reach * t) / (reach * t) - 1) * (1 - t**2) ** 4) ** 2).sum())
        for c in (flat_coefficients(4), fitted_coefficients(4, torch.tensor(reach)))
    )
    assert fitted < 0.5 * flat


def test_fitted_coefficients_become_exact():
    s = torch.linspace(-0.35, 0.35, 301, dtype=torch.float64)
    errors = [float((displaced(fitted_coefficients(m, torch.tensor(0.35)), s) - s).abs().max()) for m in (4, 8, 12)]
    assert errors[1] < 0.2 * errors[0]
    assert errors[2] < 0.2 * errors[1]


def test_fitted_coefficients_are_batched():
    reach = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.45, 0.2]])
    found = fitted_coefficients(3, reach)
    assert found.shape == (2, 3, 3)
    torch.testing.assert_close(found[1, 0], fitted_coefficients(3, reach[1, 0]))


@pytest.mark.parametrize("harmonics", [0, -2, 1.5, True])
def test_no_harmonics_are_refused(harmonics):
    with pytest.raises(Exception, match="harmonics"):  # the type checks that tests run under refuse some before we do
        flat_coefficients(harmonics)
