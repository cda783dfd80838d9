"""Separable structure factors and moments against dense sums over all waves, and their derivatives of any order."""

from __future__ import annotations

import math
import threading

import pytest
import torch

from farfield.electrostatics import separable
from farfield.electrostatics.separable import WaveTables, moments, multi_indices, structure_factors

RANGES = (2, 3, 1)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def basis(s, axis, power):
    """∂^p of cos 2πhs and sin 2πhs, from the shift of the phase by p quarter turns."""
    h = 2.0 * math.pi * torch.arange(RANGES[axis] + 1, dtype=s.dtype)
    angle = s[..., axis, None] * h + 0.5 * math.pi * power
    return torch.cat((torch.cos(angle), torch.sin(angle)), -1) * h.repeat(2) ** power


def dense(s, level):
    """All waves at all atoms, differentiated: shape (members, slots, coefficients, n3, n2, n1)."""
    products = [
        torch.einsum("mia,mib,mic->micba", *(basis(s, axis, power) for axis, power in enumerate(p)))
        for p in multi_indices(level)
    ]
    return torch.stack(products, 2)


@pytest.fixture(params=[1 << 16, 300, 1], ids=["one-block", "some-blocks", "atom-by-atom"])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(separable, "_BLOCK", {"cpu": request.param})


def test_multi_indices_are_all_of_them_lower_levels_first():
    for level in range(4):
        indices = multi_indices(level)
        assert len(set(indices)) == math.comb(level + 3, 3)
        assert max(map(sum, indices)) == level
        assert indices == multi_indices(level + 1)[: len(indices)]


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("level", [0, 1, 2, 6])
def test_both_maps_equal_the_sum_over_all_waves(level, close):
    s = random(2, 5, 3)
    c = random(2, 5, len(multi_indices(level)), seed=1)
    tables = WaveTables(s, RANGES, torch.float64)
    waves = dense(s, level)
    scale = float(waves.abs().max())
    total = structure_factors(s, c, tables, level)
    close(total.flatten(1) / scale, torch.einsum("mip,mipzyx->mzyx", c, waves).flatten(1) / scale)
    g = random(*total.shape, seed=2)
    found = moments(g, s, tables, level)
    close(found / scale, torch.einsum("mzyx,mipzyx->mip", g.view(2, *waves.shape[3:]), waves) / scale)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("level", [0, 1, 2])
def test_derivatives_to_third_order(level):
    s = (0.1 * random(1, 2, 3)).requires_grad_()
    c = random(1, 2, len(multi_indices(level)), seed=1).requires_grad_()

    def total(s, c):
        return structure_factors(s, c, WaveTables(s, (1, 1, 1), s.dtype), level)

    def found(s, g):
        return moments(g, s, WaveTables(s, (1, 1, 1), s.dtype), level)

    def slopes(s, c):
        return torch.autograd.grad((total(s, c) ** 2).sum(), (s, c), create_graph=True)

    g = torch.randn_like(total(s, c)).requires_grad_()
    for function, arguments in ((total, (s, c)), (found, (s, g))):
        assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(slopes, (s, c), fast_mode=True)


@pytest.mark.parametrize("needed", [(True, False), (False, True)], ids=["positions", "coefficients"])
def test_parts_of_the_derivative_alone(needed, close):
    s, c = (t.requires_grad_(need) for t, need in zip((random(1, 3, 3), random(1, 3, 4, seed=1)), needed, strict=True))
    leaf = s if needed[0] else c

    def second(function):
        first = torch.autograd.grad((function() ** 2).sum(), leaf, create_graph=True)[0]
        return torch.autograd.grad((first**2).sum(), leaf)[0]

    expected = second(lambda: torch.einsum("mip,mipzyx->mzyx", c, dense(s, 1)))
    found = second(lambda: structure_factors(s, c, WaveTables(s, RANGES, s.dtype), 1))
    close(found / expected.norm(), expected / expected.norm())


def test_memory_first_made_in_inference_mode_serves_later_calls(monkeypatch, close):
    monkeypatch.setattr(separable, "_scratch", threading.local())
    separable._selection.cache_clear()
    s, c = random(1, 4, 3).requires_grad_(), random(1, 4, 4, seed=1).requires_grad_()

    def total():
        return structure_factors(s, c, WaveTables(s, RANGES, s.dtype), 1)

    with torch.inference_mode():
        inferred = total()
    close(total(), inferred.clone())
    first = torch.autograd.grad((total() ** 2).sum(), s, create_graph=True)[0]
    assert torch.autograd.grad(first.sum(), c)[0].shape == c.shape
